#!/usr/bin/env python3
"""Writes the fixtures of adapters in ../parity.rs: adapters of the models beside, as PEFT saves them, with the logits of PEFT.

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install torch transformers safetensors peft
    /tmp/parity/bin/python worker/model/tests/parity/adapters.py [NAME...]

Per adapter a folder with adapter_config.json and adapter_model.safetensors, and <name>.safetensors with `tokens` [length] (i64) and
`logits` [length, vocab] (f32, computed in f64 from the same f32 weights as in generate.py). Versions are in adapters.json, by adapter.
"""

import importlib.metadata
import json
import pathlib
import shutil
import sys
import zlib

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
VOCAB, LENGTH = 97, 37

ADAPTERS = {
    "llama-lora": ("llama", LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM")),
    # Counts by alpha / sqrt(rank), and beside some matrices only.
    "mistral-rslora": ("mistral", LoraConfig(
        r=3, lora_alpha=2, target_modules=["q_proj", "down_proj"], use_rslora=True, task_type="CAUSAL_LM")),
    # Beside matrices that are one module: of queries, keys and values, and of gate and inner values.
    "phi3-lora": ("phi3", LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")),
    "qwen2-prompt": ("qwen2", PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")),
}


def write(name, base, config):
    # An adapter does not depend on the others.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    shape = AutoConfig.from_pretrained(HERE / base)
    model = AutoModelForCausalLM.from_pretrained(HERE / base, config=shape, attn_implementation="eager", dtype=torch.float32)
    model = get_peft_model(model, config)
    for parameter_name, p in sorted(model.named_parameters()):
        if p.requires_grad:
            noise = torch.randn(p.shape, generator=generator)
            p.data = noise * (1.0 if "prompt" in parameter_name else 0.4 / p.shape[1] ** 0.5)
    model.eval()
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    tokens = torch.randint(0, VOCAB, (LENGTH,), generator=generator)
    with torch.no_grad():
        logits = model.double()(input_ids=tokens[None]).logits[0][-LENGTH:]
    save_file({"tokens": tokens, "logits": logits.float().contiguous()}, HERE / f"{name}.safetensors")
    print(f"{name}: {[f.name for f in folder.iterdir()]}, largest logit {logits.abs().max():.3f}")


def main():
    path = HERE / "adapters.json"
    versions = json.loads(path.read_text())
    for name in sys.argv[1:] or ADAPTERS:
        write(name, *ADAPTERS[name])
        versions[name] = {package: importlib.metadata.version(package) for package in ["torch", "transformers", "safetensors", "peft"]}
    path.write_text(json.dumps(versions, indent=2) + "\n")


main()
