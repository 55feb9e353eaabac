#!/usr/bin/env python3
"""Writes the fixtures of ../parity.rs and ../dequantise.rs: tiny random models with the logits of transformers, and quantised blocks.

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch transformers safetensors gguf numpy
    /tmp/parity/bin/python worker/model/tests/parity/generate.py

Per model a folder with config.json and model.safetensors as transformers writes them (f32), for some of them <name>.gguf as llama.cpp's converter
writes it (f32), and <name>.safetensors with `tokens`
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
    Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM,
    Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
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
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
# Sequences longer than 32 have other frequencies than shorter ones.
LONGROPE = dict(
    rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.5, 2.5, 6.0, 9.0],
)
PHI3 = dict(
    SHAPE, rms_norm_eps=1e-5, max_position_embeddings=128, original_max_position_embeddings=32, rope_parameters=LONGROPE, sliding_window=None,
)
# All others have as many tokens as `LENGTH`.
LENGTHS = {"phi3-short": 32}


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
    # Qwen2 slides from its second layer on.
    "qwen2-window": Qwen2ForCausalLM(Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=16, max_window_layers=1, rope_parameters=theta(1e6), rms_norm_eps=1e-6)),
    "llama-yarn": LlamaForCausalLM(LlamaConfig(
        **SHAPE | dict(num_attention_heads=2, num_key_value_heads=1), rope_parameters=YARN, rms_norm_eps=1e-5, tie_word_embeddings=False)),
    # Five layers that slide, one that does not, and one that slides: two bases, of which one is stretched.
    "gemma3": Gemma3ForCausalLM(Gemma3TextConfig(
        **{key: value for key, value in SHAPE.items() if key != "hidden_act"}
        | dict(hidden_size=16, intermediate_size=24, num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=1),
        head_dim=8, query_pre_attn_scalar=8, sliding_window=16, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1e6, factor=4.0), sliding_attention=theta(10000.0)))),
    # Fused matrices, in all layers a window.
    "phi3": Phi3ForCausalLM(Phi3Config(**PHI3 | dict(rope_parameters=theta(10000.0), sliding_window=16))),
    "phi3-long": Phi3ForCausalLM(Phi3Config(**PHI3)),
    "phi3-short": Phi3ForCausalLM(Phi3Config(**PHI3)),
}


def randomise(model, generator):
    """Weights that keep rows in size but make sharp attention; norms and biases that cannot be left out unnoticed."""
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            # Gemma adds 1 to the weights of its norms.
            usual = 0.0 if model.config.model_type == "gemma3_text" else 1.0
            p.data = 0.5 * noise if name.endswith("bias") else usual + 0.2 * noise
        else:
            p.data = noise * (1.0 if "embed" in name else 1.6 / p.shape[1] ** 0.5)


def write_model(name, model, generator):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model, generator)
    model.eval().float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in GGUF:
        write_gguf(HERE / f"{name}.gguf", model)
    tokens = torch.randint(0, VOCAB, (LENGTHS.get(name, LENGTH),), generator=generator)
    with torch.no_grad():
        logits = model.double()(tokens[None]).logits[0]
    save_file({"tokens": tokens.numpy(), "logits": logits.float().numpy()}, HERE / f"{name}.safetensors")
    print(f"{name}: {(folder / 'model.safetensors').stat().st_size} bytes, largest logit {logits.abs().max():.3f}")


GGUF = {"llama-yarn", "gemma3", "phi3", "phi3-long"}
ROLES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA3_ROLES = ROLES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(path, model):
    """Keys, names and values as llama.cpp's convert_hf_to_gguf.py has them."""
    c, kind = model.config, {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    out = gguf.GGUFWriter(path, kind)
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters
    if kind == "gemma3":
        out.add_key_length(head_dim)
        out.add_value_length(head_dim)
        out.add_sliding_window(c.sliding_window)
        # That of the layers that slide is known to readers.
        rope = rope["full_attention"]
    else:
        out.add_rope_dimension_count(head_dim)
        out.add_vocab_size(c.vocab_size)
    if kind == "phi3":
        original = c.original_max_position_embeddings
        out.add_rope_scaling_orig_ctx_len(original)
        if c.sliding_window:
            out.add_sliding_window(c.sliding_window)
        if rope["rope_type"] == "longrope":
            out.add_rope_scaling_attn_factors((1 + np.log(c.max_position_embeddings / original) / np.log(original)) ** 0.5)
            for which in ["long", "short"]:
                out.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], dtype=np.float32))
    out.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ["linear", "yarn"]:
        out.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        out.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    roles = GEMMA3_ROLES if kind == "gemma3" else ROLES
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, p in sorted(model.named_parameters()):
        module = name.removesuffix(".weight")
        values = p.data.float().numpy()
        if kind == "llama" and module.endswith(("q_proj", "k_proj")):
            values = values.reshape(-1, 2, head_dim // 2, c.hidden_size).swapaxes(1, 2).reshape(values.shape)
        if kind == "gemma3" and module.endswith("norm"):
            values = values + 1
        if module not in outer:
            _, _, layer, role = module.split(".", 3)
            module = f"blk.{layer}.{roles[role]}"
        out.add_tensor(f"{outer.get(module, module)}.weight", np.ascontiguousarray(values))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


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
