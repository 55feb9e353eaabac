#!/usr/bin/env python3
"""Writes the fixtures of ../parity.rs and ../dequantise.rs: tiny random models with the logits of transformers, and quantised blocks.

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch transformers safetensors gguf numpy
    /tmp/parity/bin/python worker/model/tests/parity/generate.py

Per model a folder with config.json and model.safetensors as transformers writes them (f32), and <name>.safetensors with `tokens`
[length] (i64) and `logits` [length, vocab] (f32, computed in f64 from the same f32 weights, but for rotary angles, norms and softmax,
which transformers always computes in f32). `blocks.safetensors` has, per GGUF block
type, `<type>.bytes` [rows, bytes] (u8) and `<type>.values` [rows, values] (f32) of the gguf package. Versions are in versions.json.
"""

import importlib.metadata
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

HERE = pathlib.Path(__file__).resolve().parent
VOCAB, LENGTH = 97, 41

SHAPE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, hidden_act="silu", bos_token_id=1, eos_token_id=2, pad_token_id=None, attn_implementation="eager",
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)


def theta(value):
    return dict(rope_type="default", rope_theta=value)


MODELS = {
    # Grouped heads, a base of its own, an untied head.
    "llama": LlamaForCausalLM(LlamaConfig(
        **SHAPE | dict(num_hidden_layers=3), rope_parameters=theta(50000.0), rms_norm_eps=1e-5, tie_word_embeddings=False)),
    # Llama 3's scaling: with an original context of 32 the frequencies of a head of 16 are high, blended and low.
    "llama3-rope": LlamaForCausalLM(LlamaConfig(
        **SHAPE | dict(num_attention_heads=2, num_key_value_heads=1), rope_parameters=LLAMA3, rms_norm_eps=1e-6, tie_word_embeddings=True)),
    "llama-linear-rope": LlamaForCausalLM(LlamaConfig(
        **SHAPE, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0), tie_word_embeddings=True)),
    # Heads wider than hidden / heads.
    "mistral": MistralForCausalLM(MistralConfig(
        **SHAPE | dict(num_key_value_heads=1), head_dim=16, sliding_window=None, rope_parameters=theta(1e6), rms_norm_eps=1e-5)),
    # The window is smaller than the sequence: what a model computes beyond it differs.
    "mistral-window": MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16, rope_parameters=theta(10000.0), rms_norm_eps=1e-5)),
    "qwen2": Qwen2ForCausalLM(Qwen2Config(
        **SHAPE, use_sliding_window=False, rope_parameters=theta(1e6), rms_norm_eps=1e-6, tie_word_embeddings=True)),
    # Norms of the heads of queries and keys, which are wider than hidden / heads.
    "qwen3": Qwen3ForCausalLM(Qwen3Config(
        **SHAPE, head_dim=16, use_sliding_window=False, rope_parameters=theta(1e6), rms_norm_eps=1e-6, tie_word_embeddings=False)),
}


def randomise(model, generator):
    """Weights that keep rows in size but make sharp attention; norms and biases that cannot be left out unnoticed."""
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            p.data = 0.5 * noise if name.endswith("bias") else 1.0 + 0.2 * noise
        else:
            p.data = noise * (1.0 if "embed" in name else 1.6 / p.shape[1] ** 0.5)


def write_model(name, model, generator):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model, generator)
    model.eval().float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(0, VOCAB, (LENGTH,), generator=generator)
    with torch.no_grad():
        logits = model.double()(tokens[None]).logits[0]
    save_file({"tokens": tokens.numpy(), "logits": logits.float().numpy()}, HERE / f"{name}.safetensors")
    print(f"{name}: {(folder / 'model.safetensors').stat().st_size} bytes, largest logit {logits.abs().max():.3f}")


def write_blocks():
    random = np.random.default_rng(7)
    out = {}
    for kind in ["F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "IQ4_NL", "IQ4_XS"]:
        kind = gguf.GGMLQuantizationType[kind]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        rows, blocks = 3, 512 // values
        data = random.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
        # Random bytes are sound blocks, but for the f16 scales: they shall be finite and of a usual size.
        scales = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208]}.get(kind.name, [0])
        for at in scales:
            data[:, at : at + 2] = random.normal(0, 0.05, (rows * blocks, 1)).astype(np.float16).view(np.uint8)
        data = data.reshape(rows, blocks * size)
        out[f"{kind.name}.bytes"] = data
        out[f"{kind.name}.values"] = gguf.quants.dequantize(data, kind).astype(np.float32)
    save_file(out, HERE / "blocks.safetensors")


def main():
    generator = torch.Generator().manual_seed(1)
    for name, model in MODELS.items():
        write_model(name, model, generator)
    write_blocks()
    versions = {name: importlib.metadata.version(name) for name in ["torch", "transformers", "safetensors", "gguf", "numpy"]}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


main()
