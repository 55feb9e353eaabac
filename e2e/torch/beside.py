#!/usr/bin/env python3
"""Tokens per second of forward, loss and backward of one process, beside PyTorch in eager mode: same model, sequences and threads, in f32.

    make bench-train        (or: $(e2e/torch/setup.sh) e2e/torch/beside.py --example target/release/examples/train_speed --out FILE.json)

Both run in turns, --rounds times each; of each the fastest step of all rounds counts, as on a shared machine the others measure who else
was there. Dunlin's gradients are sums in fixed point that do not depend on order, and it computes the forward pass again in backward, as peers do;
PyTorch keeps what it computed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

import report  # beside the other benchmarks

# HIDDEN LAYERS HEADS KV_HEADS FFN VOCAB SEQUENCE MICROBATCH
SHAPES = {
    "the example's: 128 wide, 8 layers": [128, 8, 4, 2, 352, 256, 128, 4],
    "256 wide, 8 layers": [256, 8, 4, 4, 768, 512, 256, 4],
    "SmolLM2's blocks: 576 wide, 4 layers": [576, 4, 9, 3, 1536, 512, 256, 4],
}


def measure(command, threads, seconds, shape):
    arguments = [str(n) for n in [threads, seconds, *shape]]
    printed = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--example", required=True)
    parser.add_argument("--out", help="file for the figures as JSON")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=6)
    args = parser.parse_args()
    rivals = {"dunlin": [args.example], "pytorch": [sys.executable, str(HERE / "speed.py")]}
    figures = []
    print(f"{'model':<38} {'threads':>7} {'dunlin':>8} {'PyTorch':>8} {'ratio':>6}   tokens/s, forward and backward")
    for name, shape in SHAPES.items():
        for threads in (1, 2):
            best = dict.fromkeys(rivals, 0.0)
            for _ in range(args.rounds):
                for rival, command in rivals.items():
                    best[rival] = max(best[rival], measure(command, threads, args.seconds, shape))
            ratio = best["dunlin"] / best["pytorch"]
            print(f"{name:<38} {threads:>7} {best['dunlin']:>8.0f} {best['pytorch']:>8.0f} {ratio:>6.2f}", flush=True)
            figures.append({"model": name, "shape": shape, "threads": threads, **best, "ratio": ratio})
    if args.out:
        report.write(args.out, __doc__, figures)


if __name__ == "__main__":
    main()
