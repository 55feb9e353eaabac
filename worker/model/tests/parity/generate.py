#!/usr/bin/env python3
"""Writes the fixtures of ../parity.rs and ../dequantise.rs: tiny random models with the logits of transformers, and quantised blocks.

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch transformers safetensors gguf numpy
    /tmp/parity/bin/python worker/model/tests/parity/generate.py [NAME...]

Every folder here with a recipe.json is a fixture; without a NAME all are written, and the blocks. Beside the recipe are config.json and model.safetensors
as transformers writes them (f32), <name>.gguf as llama.cpp's converter writes it (f32) if the recipe says how, and <name>.safetensors with `tokens`
[length] (i64) and `logits` [length, vocab] (f32, computed in f64 from the same f32 weights, but for rotary angles, norms and softmax,
which transformers always computes in f32). `blocks.safetensors` has, per GGUF block
type, `<type>.bytes` [rows, bytes] (u8) and `<type>.values` [rows, values] (f32) of the gguf package. Versions are in versions.json.

A recipe:

    about            why there is this fixture
    class            of transformers
    config           what its configuration has beside `SHAPE`
    length           tokens, if not as many as `LENGTH`
    norms_less_one   the folder has the weights of norms less 1
    gguf             architecture; keys of it beside those of all; names of tensors that are not a Llama's; tensors beside the model's; interleaved heads
    mistakes         places in config.json and wrong values, each of which ../parity.rs must see
    published        the config.json of published models of the family, for ../config_keys.rs
    own_test         why the model as it is has other logits, and a test of its own
"""

import importlib.metadata
import json
import pathlib
import sys
import zlib

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
VOCAB, LENGTH = 97, 41

SHAPE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None, attn_implementation="eager",
)


def model_of(recipe):
    kind = getattr(transformers, recipe["class"])
    return kind(kind.config_class(**SHAPE | recipe["config"]))


def randomise(model, generator, usual):
    """Weights that keep rows in size but make sharp attention; norms, usually of weight `usual`, and biases that cannot be left out unnoticed."""
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            p.data = 0.5 * noise if name.endswith("bias") else usual + 0.2 * noise
        else:
            p.data = noise * (1.0 if "embed" in name else 1.6 / p.shape[1] ** 0.5)


def write_model(name, recipe):
    folder = HERE / name
    # A fixture does not depend on the others.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    model = model_of(recipe)
    randomise(model, generator, 0.0 if recipe.get("norms_less_one") else 1.0)
    model.eval().float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "gguf" in recipe:
        write_gguf(HERE / f"{name}.gguf", model, recipe)
    tokens = torch.randint(0, VOCAB, (recipe.get("length", LENGTH),), generator=generator)
    with torch.no_grad():
        logits = model.double()(tokens[None]).logits[0]
    save_file({"tokens": tokens.numpy(), "logits": logits.float().numpy()}, HERE / f"{name}.safetensors")
    print(f"{name}: {(folder / 'model.safetensors').stat().st_size} bytes, largest logit {logits.abs().max():.3f}")


OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path, model, recipe):
    """Keys, names and values as llama.cpp's convert_hf_to_gguf.py has them."""
    c, how = model.config, recipe["gguf"]
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    out = gguf.GGUFWriter(path, how["architecture"])
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    add = {int: out.add_uint32, float: out.add_float32, str: out.add_string}
    for key, value in how["keys"].items():
        add[type(value)](f"{how['architecture']}.{key}", value)
    for name, values in how.get("tensors", {}).items():
        out.add_tensor(name, np.array(values, dtype=np.float32))
    names = NAMES | how.get("names", {})
    for name, p in sorted(model.named_parameters()):
        module, _, part = name.rpartition(".")
        values = p.data.float().numpy()
        if how.get("interleaved") and module.endswith(("q_proj", "k_proj")):
            values = values.reshape(-1, 2, head_dim // 2, c.hidden_size).swapaxes(1, 2).reshape(values.shape)
        if recipe.get("norms_less_one") and module.endswith("norm"):
            values = values + 1
        if module not in OUTER:
            _, _, layer, role = module.split(".", 3)
            module = f"blk.{layer}.{names[role]}"
        out.add_tensor(f"{OUTER.get(module, module)}.{part}", np.ascontiguousarray(values))
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
    named = sys.argv[1:]
    recipes = {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/recipe.json"))}
    versions = {name: importlib.metadata.version(name) for name in ["torch", "transformers", "safetensors", "gguf", "numpy"]}
    text = json.dumps(versions, indent=2) + "\n"
    if named and text != (HERE / "versions.json").read_text():
        sys.exit(f"versions.json has other versions than {versions}: install those, or write all fixtures")
    for name in named or recipes:
        write_model(name, recipes[name])
    if not named:
        write_blocks()
    (HERE / "versions.json").write_text(text)


if __name__ == "__main__":
    main()
