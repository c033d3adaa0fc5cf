"""The other side of `make bench-trainer`: DPO with LoRA by TRL and PEFT, on the same base, the same
start adapter, the same pairs and with the same learning rate at each step. Reads a setting as JSON from
standard input; prints one JSON line `{"seconds", "steps", "versions"}` at the end."""

import json
import sys
import time

import numpy
import torch
from datasets import Dataset
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensors(path):
    return {tensor.name: torch.from_numpy(numpy.array(tensor.data)) for tensor in GGUFReader(path).tensors}


def number(path, key):
    field = GGUFReader(path).fields[key]
    return field.parts[field.data[0]][0].item()


def unpermuted(rows, heads):
    """GGUF has the two halves of each head of q and k interleaved; the first dimension goes back."""
    n, width = rows.shape
    return rows.reshape(heads, n // heads // 2, 2, width).transpose(1, 2).reshape(n, width)


def base(setting):
    path = setting["base"]
    key = lambda name: number(path, f"llama.{name}")
    stored = tensors(path)
    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=stored["token_embd.weight"].shape[0],
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
        max_position_embeddings=key("context_length"),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=setting["end"],
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    state = {"model.embed_tokens.weight": stored["token_embd.weight"], "model.norm.weight": stored["output_norm.weight"]}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    permuted = {"attn_q": heads, "attn_k": kv_heads}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in (LAYERS | {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}).items():
            weight = stored[f"blk.{layer}.{ours}.weight"]
            if ours in permuted:
                weight = unpermuted(weight, permuted[ours])
            state[f"model.layers.{layer}.{theirs}.weight"] = weight
    model.load_state_dict(state)
    return model.to(getattr(torch, setting["dtype"])), permuted


def adapted(setting):
    model, permuted = base(setting)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=setting["rank"],
        lora_alpha=setting["alpha"],
        lora_dropout=0.0,
        target_modules=[name.split(".")[1] for name in LAYERS.values()],
    )
    model = get_peft_model(model, lora)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in tensors(setting["start"]).items():
            _, layer, part, _, half = name.split(".")
            theirs = f"base_model.model.model.layers.{layer}.{LAYERS[part]}.lora_{half[-1].upper()}.default.weight"
            if half == "lora_b" and part in permuted:
                values = unpermuted(values, permuted[part])
            parameters[theirs].copy_(values)
    return model


def tokenizer(setting, n_vocab):
    words = Tokenizer(WordLevel({f"t{number}": number for number in range(n_vocab)}, unk_token="t3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"t{setting['end']}", pad_token="t0", unk_token="t3")


class Tokenized(DPOTrainer):
    """Takes pairs that are token ids already, and a learning rate for each step."""

    rates = []

    def _prepare_dataset(self, dataset, *_arguments, **_named):
        return dataset

    def create_scheduler(self, num_training_steps, optimizer=None):
        rate = lambda step: self.rates[min(step, len(self.rates) - 1)] / self.args.learning_rate
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
        return self.lr_scheduler


class Steps(TrainerCallback):
    """What TRL reports of each step."""

    NAMES = {
        "loss": "loss",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
        "logps/chosen": "logps_chosen",
        "logps/rejected": "logps_rejected",
    }

    def __init__(self):
        self.steps = []

    def on_log(self, args, state, control, logs=None, **_named):
        if logs and "loss" in logs:
            self.steps.append({ours: float(logs[theirs]) for theirs, ours in self.NAMES.items()})


def main():
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(1)
    model = adapted(setting)
    with open(setting["data"], encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    data = Dataset.from_list(
        [{"prompt_ids": p["prompt"], "chosen_ids": p["chosen"], "rejected_ids": p["rejected"]} for p in pairs]
    )
    steps = Steps()
    micro = setting["micro"]
    config = DPOConfig(
        output_dir=setting["out"],
        beta=setting["beta"],
        loss_type=["sigmoid"],
        learning_rate=max(setting["rates"]),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=setting["batch_pairs"] // micro,
        num_train_epochs=setting["epochs"],
        max_grad_norm=1.0,
        adam_beta2=0.98,
        optim="adamw_torch",
        weight_decay=0.0,
        bf16=False,
        use_cpu=setting["device"] == "cpu",
        gradient_checkpointing=setting["checkpointing"],
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=True,
        dataloader_pin_memory=setting["device"] != "cpu",
        seed=1,
    )
    trainer = Tokenized(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer(setting, model.config.vocab_size),
        callbacks=[steps],
    )
    trainer.rates = setting["rates"]
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    import peft, transformers, trl

    versions = {name.__name__: name.__version__ for name in (torch, transformers, peft, trl)}
    print(json.dumps({"seconds": seconds, "steps": steps.steps, "versions": versions}))


main()
