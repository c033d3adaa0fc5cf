"""Computes each loss with TRL's own code on fixed log-probs and prints them as JSON, for the trainer's
test `tests/losses.rs`. No model: a stub returns the log-probs where TRL calls one. Run with a Python
that has `trl` and `peft`:
    python bench/trainer/goldens.py > crates/trainer/src/tests/trl.json
"""

import contextlib
import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import peft
import torch
import transformers
import trl
from trl.experimental.cpo import CPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

# Log-probs of the tokens of an answer, by policy and reference. Log-ratios: 2 and -1, -1 and 0.5, and
# with 0.25 and 30 one pair far on the wrong side.
PAIRS = [
    {
        "chosen": {"policy": [-2.0, -1.5, -3.0, -2.5, -1.0], "reference": [-2.5, -2.0, -3.5, -3.0, -1.0]},
        "rejected": {"policy": [-2.25, -3.0, -1.75, -2.0], "reference": [-2.0, -2.5, -1.5, -2.0]},
    },
    {
        "chosen": {"policy": [-1.0, -2.5, -0.5, -2.0], "reference": [-1.0, -2.0, -0.5, -1.5]},
        "rejected": {
            "policy": [-1.0, -0.5, -2.0, -0.25, -1.25, -1.0, -0.75, -1.25],
            "reference": [-1.0, -1.0, -2.0, -0.25, -1.25, -1.0, -0.75, -1.25],
        },
    },
    {
        "chosen": {"policy": [-0.125, -0.125], "reference": [-0.25, -0.25]},
        "rejected": {"policy": [-4.0, -5.0, -6.0], "reference": [-14.0, -15.0, -16.0]},
    },
]

# Single answers, good and bad, and for each a mismatched one: the answer to another prompt.
SINGLES = [
    {"is_good": True, "policy": [-2.0, -1.5, -3.0], "reference": [-2.5, -2.5, -3.5]},
    {"is_good": True, "policy": [-1.0, -2.5], "reference": [-0.75, -1.75]},
    {"is_good": False, "policy": [-2.25, -3.0, -1.75, -2.0], "reference": [-2.0, -2.5, -1.5, -2.0]},
    {"is_good": False, "policy": [-1.0], "reference": [-21.0]},
]
MISMATCHED = {
    "positive": {"policy": [[-3.0, -4.0], [-2.0]], "reference": [[-3.5, -4.0], [-2.75]]},
    "negative, which counts as zero": {"policy": [[-3.0, -4.0], [-2.0]], "reference": [[-2.5, -4.0], [-1.5]]},
}

# Sampled answers of two prompts. The policy that sampled them was an earlier one.
GROUPS = [
    [
        {"reward": 1.0, "policy": [-1.0, -2.0], "reference": [-1.3, -1.8], "behaviour": [-1.3, -3.0]},
        {"reward": 0.0, "policy": [-0.5], "reference": [-1.0], "behaviour": [-1.2]},
        {"reward": 0.25, "policy": [-2.0, -0.1, -0.7], "reference": [-1.5, -0.1, -0.9], "behaviour": [-1.0, -0.2, -0.9]},
    ],
    [
        {"reward": 0.5, "policy": [-1.0, -1.0], "reference": [-1.25, -1.0], "behaviour": [-1.25, -0.5]},
        {"reward": 0.5, "policy": [-0.25], "reference": [-0.5], "behaviour": [-0.5]},
        {"reward": 0.5, "policy": [-3.0], "reference": [-2.0], "behaviour": [-2.5]},
    ],
]

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    gather=lambda values: values,
    gather_for_metrics=lambda values: values,
    reduce=lambda values, reduction: values,
)


def metrics():
    return defaultdict(lambda: defaultdict(list))


def padded(answers, of):
    """Log-probs as a model returns them: behind a prompt of two tokens, zero where there is no target."""
    longest = max(len(answer[of]) for answer in answers)
    rows = [[0.0] + answer[of] + [0.0] * (longest - len(answer[of])) for answer in answers]
    return torch.tensor(rows)


def inputs_of(answers):
    longest = max(len(answer["policy"]) for answer in answers)
    mask = torch.tensor([[0, 0] + [1] * len(a["policy"]) + [0] * (longest - len(a["policy"])) for a in answers])
    ids = torch.full_like(mask, 7)
    return {"input_ids": ids, "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def outputs_of(log_probs):
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def dpo(pair, loss_types, loss_weights, beta, label_smoothing=0.0):
    answers = [pair["chosen"], pair["rejected"]]
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.__dict__.update(
        model=SimpleNamespace(training=False),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=loss_weights,
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics=metrics(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = inputs_of(answers)
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = padded(answers, "reference").sum(1).chunk(2)
    model = lambda **_: outputs_of(padded(answers, "policy"))
    loss = trainer._compute_loss(model, inputs, False)
    return loss.item(), {name: values[0] for name, values in trainer._metrics["eval"].items()}


REPORTED = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"]


def on_pairs(objective, pairs, loss_types, loss_weights, note, reported=REPORTED, **settings):
    """`objective` as in the trainer's protocol; one call for each pair, because TRL returns the mean."""
    losses, by_name = [], defaultdict(list)
    for pair in pairs:
        loss, of_pair = dpo(pair, loss_types, loss_weights, **settings)
        losses.append(loss)
        for name in reported:
            by_name[name].append(of_pair[name])
    how = f"DPOTrainer, loss_type {loss_types}, loss_weights {loss_weights}"
    return {"objective": objective, "trl": how, "note": note, "pairs": pairs, "loss": losses, "metrics": by_name}


def simpo(beta, gamma):
    trainer = CPOTrainer.__new__(CPOTrainer)
    trainer.__dict__.update(
        accelerator=ACCELERATOR, alpha=0.0, loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=0.0
    )
    mean = lambda side: torch.tensor([sum(p[side]["policy"]) / len(p[side]["policy"]) for p in PAIRS])
    losses, chosen, rejected = trainer.cpo_loss(mean("chosen"), mean("rejected"))
    return {
        "objective": {"name": "simpo", "beta": beta, "gamma": gamma},
        "trl": "experimental CPOTrainer.cpo_loss, loss_type simpo, on mean log-probs; without its cpo_alpha (NLL) term",
        "note": None,
        "pairs": PAIRS,
        "loss": losses.tolist(),
        "metrics": {"rewards/chosen": chosen.tolist(), "rewards/rejected": rejected.tolist()},
    }


def kto(name, beta, desirable_weight, undesirable_weight):
    mismatched = MISMATCHED[name]
    mismatched = [dict(zip(mismatched, values)) for values in zip(*mismatched.values())]
    losses, kl = [], None
    for single in SINGLES:
        trainer = KTOTrainer.__new__(KTOTrainer)
        trainer.__dict__.update(
            model=SimpleNamespace(training=False),
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
            _metrics=metrics(),
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = inputs_of([single])
        of_kl = {f"KL_{key}": value for key, value in inputs_of(mismatched).items()}
        inputs |= of_kl | {
            "label": torch.tensor([single["is_good"]]),
            "ref_logps": padded([single], "reference").sum(1),
            "ref_KL_logps": padded(mismatched, "reference").sum(1),
        }

        def model(input_ids, **_):
            answers = mismatched if input_ids is of_kl["KL_input_ids"] else [single]
            return outputs_of(padded(answers, "policy"))

        losses.append(trainer._compute_loss(model, inputs, False).item())
        kl = trainer._metrics["eval"]["kl"][0]
    return {
        "objective": {
            "name": "kto",
            "beta": beta,
            "desirable_weight": desirable_weight,
            "undesirable_weight": undesirable_weight,
        },
        "trl": "KTOTrainer, loss_type kto",
        "note": f"KL estimate {name}",
        "singles": SINGLES,
        "mismatched": mismatched,
        "kl": kl,
        "loss": losses,
    }


def grpo(beta, epsilon, importance_cap):
    answers = [answer for group in GROUPS for answer in group]
    longest = max(len(answer["policy"]) for answer in answers)
    rows = lambda of: torch.tensor([answer[of] + [0.0] * (longest - len(answer[of])) for answer in answers])
    reference, policy = object(), object()

    class Fixed(GRPOTrainer):
        """TRL between sampling and loss: rewards to advantages, importance ratios, loss."""

        def _generate(self, prompts):
            ids = [[7] * len(answer["policy"]) for answer in answers]
            return [[5]] * len(answers), ids, None, ids, [answer["behaviour"] for answer in answers], {}, None, None

        def _calculate_rewards(self, *_):
            return torch.tensor([[answer["reward"]] for answer in answers])

        def _get_per_token_logps_and_entropies(self, model, *_, **__):
            # When the answers are scored the policy is the reference, as at the first step of a run.
            values = rows("policy" if model is policy else "reference")
            return values, torch.zeros_like(values), None

    trainer = Fixed.__new__(Fixed)
    trainer.__dict__.update(
        accelerator=ACCELERATOR,
        model=SimpleNamespace(training=False),
        ref_model=reference,
        args=SimpleNamespace(
            gradient_checkpointing_kwargs=None,
            per_device_eval_batch_size=len(answers),
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            delta=None,
            use_bias_correction_kl=False,
        ),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        environment_factories=None,
        environments=None,
        tools=[],
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_iterations=1,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_clip_max=importance_cap,
        num_generations_eval=len(GROUPS[0]),
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
        reward_weights=torch.ones(1),
        reward_funcs=[None],
        reward_func_names=["reward"],
        beta=beta,
        epsilon_low=epsilon,
        epsilon_high=epsilon,
        loss_type="grpo",
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=metrics(),
        _logs={
            "prompt": [],
            "completion": [],
            "rewards": defaultdict(list),
            "advantages": [],
            "extra": defaultdict(list),
            "images": [],
        },
        _pending_extra_logs={},
        _pending_metrics={},
        log_multimodal=False,
    )
    grpo_trainer.disable_gradient_checkpointing = lambda *_: contextlib.nullcontext()
    batch = trainer._generate_and_score_completions([{"prompt": "p"} for _ in answers])
    losses, kl, clip_ratio = [], [], []
    for row in range(len(answers)):
        one = {name: values[row : row + 1] if values.dim() else values for name, values in batch.items()}
        trainer._metrics = metrics()
        of_row = lambda values: tuple(value[row : row + 1] if value is not None else None for value in values)
        whole = Fixed._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = lambda *a, **n: of_row(whole(trainer, *a, **n))
        losses.append(trainer._compute_loss(policy, one).item())
        kl.extend(trainer._metrics["eval"]["kl"])
        clip_ratio.append(trainer._metrics["eval"]["clip_ratio/region_mean"][0])
    return {
        "objective": {"name": "grpo", "beta": beta, "epsilon": epsilon, "importance_cap": importance_cap},
        "trl": "GRPOTrainer, loss_type grpo, vllm_importance_sampling_mode token_truncate, importance_sampling_level token",
        "note": "one loss for each answer; kl and clip_ratio are means over its tokens",
        "groups": GROUPS,
        "advantages": batch["advantages"].tolist(),
        "loss": losses,
        "kl": kl,
        "clip_ratio": clip_ratio,
    }


def one_token(pair):
    """The same summed log-probs in one token, so that a mean over tokens is a sum."""
    return {side: {of: [sum(values)] for of, values in pair[side].items()} for side in pair}


def main():
    dpo_loss = lambda beta, nll: on_pairs(
        {"name": "dpo", "beta": beta, "nll": nll}, PAIRS, ["sigmoid", "sft"], [1.0, nll], None, beta=beta
    )
    dpo_norm = lambda beta, nll: on_pairs(
        {"name": "dpo_norm", "beta": beta, "nll": nll},
        PAIRS,
        ["sigmoid_norm", "sft"],
        [1.0, nll],
        "TRL reports rewards without the division by length, the trainer with it",
        reported=["logps/chosen", "logps/rejected"],
        beta=beta,
    )
    robust = lambda beta, nll, wrong: on_pairs(
        {"name": "robust_dpo", "beta": beta, "nll": nll, "label_smoothing": wrong},
        PAIRS,
        ["robust", "sft"],
        [1.0, nll],
        None,
        beta=beta,
        label_smoothing=wrong,
    )
    cases = [
        dpo_loss(0.1, 0.0),
        dpo_loss(0.1, 1.0),
        dpo_loss(0.5, 0.25),
        dpo_norm(5.0, 0.0),
        dpo_norm(2.0, 1.0),
        robust(0.1, 0.0, 0.2),
        robust(0.1, 1.0, 0.1),
        on_pairs(
            {"name": "ipo", "beta": 0.1},
            [one_token(pair) for pair in PAIRS],
            ["ipo"],
            [1.0],
            "answers of one token: TRL divides log-ratios by the length, the trainer has the sums of arXiv 2310.12036, "
            "equation 17; with one token both are the same",
            beta=0.1,
        ),
        simpo(2.0, 1.0),
        simpo(2.5, 0.0),
        on_pairs(
            {"name": "sft"},
            PAIRS,
            ["sft"],
            [1.0],
            "one answer a batch: TRL takes the mean over the tokens of a batch, the trainer the mean over its answers "
            "of the mean over their tokens",
            reported=["logps/chosen"],
            beta=0.1,
        ),
    ]
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft, trl)}
    versions["python"] = sys.version.split()[0]
    golden = {
        "about": "Losses by TRL's own code on fixed log-probs. Written by bench/trainer/goldens.py.",
        "versions": versions,
        "pairs": cases,
        "kto": [kto(name, 0.1, 1.0, 1.5) for name in MISMATCHED],
        "grpo": [grpo(0.04, 0.2, 2.0), grpo(0.0, 0.2, 3.0)],
    }
    lines = lambda cases: "[\n  " + ",\n  ".join(json.dumps(case) for case in cases) + "\n ]"
    text = lambda value: lines(value) if isinstance(value, list) else json.dumps(value)
    print("{\n " + ",\n ".join(f"{json.dumps(name)}: {text(value)}" for name, value in golden.items()) + "\n}")


main()
