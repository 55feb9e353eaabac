#!/usr/bin/env python3
"""The loss of a TrainingSwarm that loses a peer every half minute beside that of one process of PyTorch: same model, first weights, data,
order, optimizer.

    make bench-loss        (or: $(e2e/torch/setup.sh) e2e/torch/compare.py --dunlin target/release/dunlin --out FILE.json)

The swarm makes one step, and both go on from that checkpoint's weights with a fresh optimizer. Meanwhile peers get SIGKILL, one every
--kill-every seconds, of a random stage; the swarm replaces them. Prints a table; fails when the final validation losses differ by 1% or more.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

import report  # beside the other benchmarks


def configuration(text, steps, delayed_updates):
    return {
        "model": {"config": {"architecture": "llama", "hiddenSize": 128, "layers": 8, "heads": 4, "kvHeads": 2, "ffn": 352,
                             "contextLength": 128, "ropeBase": 10000.0, "rmsEps": 1e-5, "tied": True}},
        "data": {"text": {"path": str(text)}, "tokenizer": "Bytes", "validationFraction": 0.01},
        "sequenceLength": 128, "globalBatch": 32, "microbatch": 4, "steps": steps, "seed": 1,
        "optimizer": {"kind": "AdamW", "learningRate": 0.001, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weightDecay": 0.1, "momentum": 0.0,
                      "clip": 1.0, "schedule": {"kind": "Cosine", "warmupSteps": 20, "finalFraction": 0.1}, "delayedUpdates": delayed_updates},
        "stages": 4,
        "validation": {"everySteps": max(1, steps // 10), "batches": 16},
    }


class Swarm:
    """local-train on `peers` peers, of which one is killed every `kill_every` seconds."""

    def __init__(self, dunlin, config, folder, peers, kill_every, seed):
        file = folder / "run.json"
        file.write_text(json.dumps(config))
        command = [dunlin, "local-train", "--config", str(file), "--peers", str(peers)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"DUNLIN_LOG": "error"})
        self.kills, self.over = 0, threading.Event()
        self.draw = random.Random(seed)
        if kill_every:
            threading.Thread(target=self.kill, args=(kill_every,), daemon=True).start()

    def kill(self, every):
        while not self.over.wait(every):
            # Children that are peers, whichever they are by now.
            listed = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", " train-peer "], capture_output=True, text=True)
            pids = [int(p) for p in listed.stdout.split()]
            if pids:
                os.kill(self.draw.choice(pids), signal.SIGKILL)
                self.kills += 1

    def run(self):
        steps, last = [], None
        try:
            for line in self.process.stdout:
                said = json.loads(line)
                if "step" in said:
                    steps.append(said)
                elif "checkpoint" in said:
                    last = said
        finally:
            self.over.set()
            self.process.terminate()
            self.process.wait()
        if last is None:
            raise SystemExit("the swarm failed; run it with DUNLIN_LOG=info")
        return steps, last


def pytorch(config, folder):
    file = folder / "torch.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, str(HERE / "train.py"), "--config", str(file), "--threads", "1"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dunlin", required=True)
    parser.add_argument("--out", help="file for the figures as JSON")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--delayed-updates", action="store_true", help="gradients are those of the parameters before the last update, on both sides")
    args = parser.parse_args()
    text = subprocess.run([HERE.parent / "fetch-text.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        first = configuration(text, 1, False)
        first["optimizer"] |= {"schedule": {"kind": "Constant"}}
        first["checkpoint"] = {"everySteps": 1, "keep": 1, "destination": str(folder / "first")}
        _, last = Swarm(args.dunlin, first, folder, 4, None, 0).run()
        config = configuration(text, args.steps, args.delayed_updates)
        config["model"] = {"checkpoint": last["checkpoint"]["path"]}
        reference = {}
        thread = threading.Thread(target=lambda: reference.update(lines=pytorch(config, folder)))
        began = time.monotonic()
        thread.start()
        swarm = Swarm(args.dunlin, config | {"checkpoint": {"everySteps": 100, "keep": 2, "destination": str(folder / "kept")}}, folder,
                      args.peers, args.kill_every, 1)
        steps, last = swarm.run()
        seconds = time.monotonic() - began
        thread.join()
    theirs = {line["step"]: line["loss"] for line in reference["lines"] if "loss" in line}
    ours = {line["step"]: line["loss"] for line in steps}
    if sorted(ours) != sorted(theirs):
        raise SystemExit(f"the swarm printed steps {sorted(ours)[:3]}..{sorted(ours)[-1]}, PyTorch {len(theirs)}")
    differences = [abs(ours[s] - theirs[s]) / theirs[s] for s in ours]
    validation = reference["lines"][-1]["validation"]
    difference = last["validation_loss"] / validation - 1
    print(f"{'step':>6} {'dunlin':>10} {'PyTorch':>10} {'difference':>11}")
    for step in sorted({min(s, args.steps - 1) for s in range(0, args.steps + 1, max(1, args.steps // 10))}):
        print(f"{step:>6} {ours[step]:>10.6f} {theirs[step]:>10.6f} {ours[step] / theirs[step] - 1:>+11.2e}")
    print(f"{'valid.':>6} {last['validation_loss']:>10.6f} {validation:>10.6f} {difference:>+11.2e}")
    print(f"{swarm.kills} kills in {seconds:.0f} s, {last['lost']} peers lost, {last['redone']} contributions redone; largest difference of a step {max(differences):.2e}")
    if args.out:
        figures = {"steps": args.steps, "peers": args.peers, "kills": swarm.kills, "lost": last["lost"], "redone": last["redone"], "seconds": seconds,
                   "validation": {"dunlin": last["validation_loss"], "pytorch": validation, "difference": difference},
                   "largest_difference_of_a_step": max(differences), "dunlin": ours, "pytorch": theirs}
        report.write(args.out, __doc__, figures)
    if not abs(difference) < 0.01:
        raise SystemExit("the final validation losses differ by 1% or more")


if __name__ == "__main__":
    main()
