#!/usr/bin/env python3
"""Writes worker/train/src/optimizer/torch.json: parameters after updates by PyTorch's AdamW and SGD, for the tests of ours.

    $(e2e/torch/setup.sh) e2e/torch/optimizers.py

Parameters and gradients are f32 numbers computed here and in the test by the same rule, so that the file has results only.
"""

import json
import math
import pathlib

import torch

LENGTH, STEPS = 24, 6
TARGET = pathlib.Path(__file__).resolve().parents[2] / "worker/train/src/optimizer/torch.json"


def number(i: int) -> float:
    """A multiple of 1/512 in [-1, 1], so exact in f32."""
    return ((i * 389 + 97) % 1025 - 512) / 512


def run(make):
    """The last third of the parameters has no decay."""
    parameters = torch.tensor([number(i) for i in range(LENGTH)])
    decayed = torch.nn.Parameter(parameters[:16].clone())
    free = torch.nn.Parameter(parameters[16:].clone())
    optimizer = make([{"params": [decayed]}, {"params": [free], "weight_decay": 0.0}])
    out = []
    for step in range(STEPS):
        gradient = torch.tensor([number(1000 * (step + 1) + i) * 2.0 ** (i % 5 - 3) for i in range(LENGTH)])
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        decayed.grad, free.grad = gradient[:16].clone(), gradient[16:].clone()
        optimizer.step()
        out.append(torch.cat([decayed.detach(), free.detach()]).tolist())
    return out


results = {
    "version": torch.__version__.split("+")[0],
    "AdamW": run(lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
    "Sgd": run(lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)),
    "SgdPlain": run(lambda groups: torch.optim.SGD(groups, lr=0.01, weight_decay=0.1)),
}
assert all(math.isfinite(v) for key in ("AdamW", "Sgd", "SgdPlain") for row in results[key] for v in row)
TARGET.write_text(json.dumps(results, separators=(",", ":")) + "\n")
print(TARGET)
