#!/usr/bin/env python3
"""Adapters trained here, in Hugging Face's PEFT: it loads the checkpoints and gives the same tokens with the same log-probabilities.

    make test-peft        (or: $(e2e/torch/setup.sh) e2e/torch/adapters.py --dunlin target/release/dunlin --text FILE)

A random model, a LoRA adapter beside all matrices and a prompt, trained for 30 steps on two stages; then greedy tokens of each from a local
swarm beside those of PEFT in f64.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import tempfile
import urllib.request

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ADAPTERS = {
    "lora": {"lora": {"rank": 4, "alpha": 8, "targets": ["Query", "Key", "Value", "Output", "Gate", "Up", "Down"]}},
    "prompt": {"prompt": {"tokens": 7}},
}
PROMPT, TOKENS, STEPS, TOLERANCE = [10, 20, 30, 40, 50, 60, 70], 12, 30, 5e-5


def train(dunlin, folder, base, text, name, adapter):
    config = {
        "model": {"checkpoint": str(base)}, "adapter": adapter,
        "data": {"text": {"path": str(text)}, "tokenizer": "Bytes", "validationFraction": 0.01},
        "sequenceLength": 64, "globalBatch": 8, "microbatch": 2, "steps": STEPS, "seed": 1,
        "optimizer": {"kind": "AdamW", "learningRate": 0.01}, "stages": 2,
        "checkpoint": {"everySteps": 1000, "destination": str(folder / name)},
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    command = [dunlin, "local-train", "--config", str(file), "--peers", "2"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return json.loads(lines[-1])["checkpoint"]["path"]


def ask(url, name):
    body = {"model": name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1, "return_token_ids": True, "ignore_eos": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    [choice] = json.load(urllib.request.urlopen(request))["choices"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def greedy(model):
    tokens, logprobs = list(PROMPT), []
    for _ in range(TOKENS):
        with torch.no_grad():
            row = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -1], -1)
        tokens.append(int(row.argmax()))
        logprobs.append(float(row[tokens[-1]]))
    return tokens[len(PROMPT):], logprobs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dunlin", required=True)
    parser.add_argument("--text", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        base = folder / "base"
        shape = ["--layers", "4", "--hidden", "128", "--heads", "4", "--kv-heads", "2", "--ffn", "256", "--vocab", "600"]
        subprocess.run([args.dunlin, "random-model", *shape, "--out", str(base)], check=True, stdout=subprocess.DEVNULL)
        paths = {name: train(args.dunlin, folder, base, args.text, name, adapter) for name, adapter in ADAPTERS.items()}
        adapters = [option for name, path in paths.items() for option in ("--adapter", f"{name}={path}")]
        command = [args.dunlin, "local", "--model", str(base), "--peers", "2", *adapters]
        swarm = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            url = json.loads(swarm.stdout.readline())["url"]
            for name, path in paths.items():
                model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
                theirs, their_logprobs = greedy(PeftModel.from_pretrained(model, path).eval().double())
                ours, our_logprobs = ask(url, name)
                differs = max(abs(a - b) for a, b in zip(our_logprobs, their_logprobs))
                print(f"{name:<8} {TOKENS} tokens, {'the same' if ours == theirs else 'OTHERS'}, log-probabilities differ by {differs:.1e} at most")
                if ours != theirs or differs > TOLERANCE:
                    raise SystemExit(f"{name}: {ours} {our_logprobs}, PEFT {theirs} {their_logprobs}")
        finally:
            swarm.send_signal(signal.SIGTERM)
            swarm.wait()


main()
