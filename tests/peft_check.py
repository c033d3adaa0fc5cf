"""Random models of six architectures in transformers, with adapters that PEFT has made, and what the
server computes with them. Run by tests/e2e/export.rs, which stands between the two steps:

make DIR   writes for each architecture hf/, peft/ (saved by PEFT), model.gguf and tokens.json
check DIR  compares logprobs.json (the server's, without and with the imported adapter) with
           transformers, with PEFT's own folder and with exported/, our folder in PEFT

The GGUF is written here, with a formula of its own for the order of rows.
"""

import json
import os
import sys

import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY, WIDTH, FEED_FORWARD, LAYERS, HEADS, KEY_HEADS, WINDOW = 300, 128, 256, 3, 4, 2, 16
COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=FEED_FORWARD,
    num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS,
    max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    tie_word_embeddings=False, initializer_range=0.08,
)
GEMMA = COMMON | dict(
    tie_word_embeddings=True, head_dim=64, query_pre_attn_scalar=64, sliding_window=WINDOW,
    hidden_activation="gelu_pytorch_tanh",
)
# What makes each adapter; the scales of two of them are not alpha / rank.
ARCHITECTURES = {
    "llama": (LlamaConfig(**COMMON), {}),
    "qwen2": (Qwen2Config(**COMMON, use_sliding_window=False), {"use_rslora": True}),
    "qwen3": (
        Qwen3Config(**COMMON, head_dim=64),
        {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"up_proj": 24}},
    ),
    "gemma2": (Gemma2Config(**GEMMA), {}),
    "gemma3": (Gemma3TextConfig(**GEMMA), {}),
    "phi3": (Phi3Config(**COMMON), {}),
}
# llama.cpp looks gemma's GELU up in a table of 16-bit floats.
MOST = {"gemma2": 3e-3, "gemma3": 3e-3}


def permuted(weight, n_head):
    """As llama.cpp's converter orders the rows of queries and keys."""
    half = weight.shape[0] // n_head // 2
    return weight.reshape(n_head, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name, architecture):
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    has_post_norms = architecture.startswith("gemma")
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    inner = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm" if has_post_norms else "ffn_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.gate_up_proj": "ffn_up",
    }
    return f"blk.{layer}.{inner[stem]}.{kind}"


def write_gguf(model, config, architecture, path):
    head_dim = getattr(config, "head_dim", None) or WIDTH // HEADS
    rope = getattr(config, "rope_parameters", None) or {}
    base = rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta") or 10000.0
    out = gguf.GGUFWriter(path, architecture)
    out.add_name("random")
    out.add_block_count(LAYERS)
    out.add_context_length(512)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(FEED_FORWARD)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KEY_HEADS)
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(float(base))
    out.add_rope_dimension_count(head_dim)
    if architecture.startswith("gemma"):
        out.add_sliding_window(WINDOW)
    if architecture == "gemma2":
        out.add_attn_logit_softcapping(config.attn_logit_softcapping)
        out.add_final_logit_softcapping(config.final_logit_softcapping)
    n_plain = VOCABULARY - 259
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens + [f"t{i}" for i in range(n_plain)])
    out.add_token_scores([0.0] * VOCABULARY)
    out.add_token_types([2, 3, 3] + [6] * 256 + [1] * n_plain)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = weight.float().numpy()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + 1
        if architecture == "llama" and ".q_proj." in name:
            weight = permuted(weight, HEADS)
        if architecture == "llama" and ".k_proj." in name:
            weight = permuted(weight, KEY_HEADS)
        out.add_tensor(gguf_name(name, architecture), np.ascontiguousarray(weight))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def make(root):
    for architecture, (config, settings) in ARCHITECTURES.items():
        torch.manual_seed(3)
        folder = os.path.join(root, architecture)
        os.makedirs(folder)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            for _, weight in model.named_parameters():
                if weight.ndim == 1:
                    weight.add_(torch.randn_like(weight) * 0.1)
        model.save_pretrained(f"{folder}/hf")
        write_gguf(model, config, architecture, f"{folder}/model.gguf")
        lora = LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **settings
        )
        adapted = get_peft_model(model, lora)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn_like(weight) * 0.1)
        adapted.save_pretrained(f"{folder}/peft")
        rng = np.random.default_rng(1)
        texts = [[1] + rng.integers(3, VOCABULARY, 40).tolist() for _ in range(3)]
        with open(f"{folder}/tokens.json", "w") as file:
            json.dump(texts, file)


def logprobs(model, texts):
    model.eval()
    found = []
    with torch.no_grad():
        for text in texts:
            rows = torch.log_softmax(model(torch.tensor([text])).logits[0].double(), -1)
            found.append([rows[i, text[i + 1]].item() for i in range(len(text) - 1)])
    return found


def furthest(a, b):
    return max(abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def check(root):
    for architecture in ARCHITECTURES:
        folder = os.path.join(root, architecture)
        with open(f"{folder}/logprobs.json") as file:
            served, served_adapted = json.load(file)
        with open(f"{folder}/tokens.json") as file:
            texts = json.load(file)

        def load():
            return AutoModelForCausalLM.from_pretrained(
                f"{folder}/hf", dtype=torch.float32, attn_implementation="eager"
            )

        def adapted(name):
            return logprobs(PeftModel.from_pretrained(load(), f"{folder}/{name}"), texts)

        plain = logprobs(load(), texts)
        gaps = [
            furthest(plain, served),
            furthest(adapted("peft"), served_adapted),
            furthest(adapted("exported"), served_adapted),
        ]
        change = furthest(served, served_adapted)
        words = "base {:.1e}, imported {:.1e}, exported {:.1e}".format(*gaps)
        print(f"{architecture}: {words}; the adapter changes {change:.2f}")
        assert max(gaps) <= MOST.get(architecture, 1e-4), architecture
        assert change > 0.5, "the adapter changes little, so the check shows little"


{"make": make, "check": check}[sys.argv[1]](sys.argv[2])
