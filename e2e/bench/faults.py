#!/usr/bin/env python3
"""What losing peers costs a training run on this machine: processes of `dunlin local-train`, real SIGKILLs and SIGTERMs.

    make bench-faults       (or: e2e/bench/faults.py --dunlin target/release/dunlin --out FILE.json)

Small Llamas on 4 stages x 2 peers. First, with the shape of examples/train-bible.yaml, nothing goes wrong: the processor time of the conductor,
which keeps the ledger, as a share of everybody's. Then, with a quarter of that shape, peers of a random stage get SIGKILL, one after the other, each when all stages have two peers again: time from the kill
until the update that was on its way is complete, less a usual step. Then the same with SIGTERM, which is a notice. Fails when a step
comes twice or is missing, or when anything is computed again after a notice.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

import report

HERE = pathlib.Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")


def configuration(text, hidden, sequence):
    return {
        "model": {"config": {"architecture": "llama", "hiddenSize": hidden, "layers": 8, "heads": 4, "kvHeads": 2, "ffn": hidden * 11 // 4,
                             "contextLength": 128,
                             "ropeBase": 10000.0, "rmsEps": 1e-5, "tied": True}},
        "data": {"text": {"path": text}, "tokenizer": "Bytes", "validationFraction": 0.01},
        "sequenceLength": sequence, "globalBatch": 32, "microbatch": 4, "steps": 1_000_000, "seed": 1,
        "optimizer": {"kind": "AdamW", "learningRate": 0.001, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weightDecay": 0.1, "momentum": 0.0,
                      "clip": 1.0, "schedule": {"kind": "Constant", "warmupSteps": 20}},
        "stages": 4,
    }


class Run:
    def __init__(self, dunlin, config, folder):
        file = pathlib.Path(folder) / "run.json"
        file.write_text(json.dumps(config))
        self.process = subprocess.Popen([dunlin, "local-train", "--config", str(file), "--peers", "8"], stdout=subprocess.PIPE, text=True,
                                        env=os.environ | {"DUNLIN_LOG": "error"})
        first = json.loads(self.process.stdout.readline())
        self.url = first["url"]
        self.conductor = next(p["pid"] for p in first["processes"] if p["role"] == "conductor")
        self.steps = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "step" in said:
                self.steps.append(said["step"])

    def status(self):
        with urllib.request.urlopen(self.url + "/status", timeout=5) as answer:
            return json.load(answer)

    def children(self, pattern=""):
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", pattern or "."], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def whole(self):
        """Status, once every stage has two peers and nothing is late."""
        deadline = time.monotonic() + 60
        while True:
            status = self.status()
            if status["phase"] == "Training" and all(stage["peers"] == 2 for stage in status["stages"]):
                return status
            if time.monotonic() > deadline:
                raise SystemExit(f"not whole after 60 s: {status}")
            time.sleep(0.05)

    def until_step(self, step):
        deadline = time.monotonic() + 60
        while True:
            status = self.status()
            if status["step"] >= step:
                return status
            if time.monotonic() > deadline:
                raise SystemExit(f"step {step} is not there after 60 s: {status}")
            time.sleep(0.005)

    def end(self):
        self.process.terminate()
        self.process.wait()


def processor_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def quantile(values, q):
    ordered = sorted(values)
    return ordered[max(0, -(-int(q * 1000) * len(ordered) // 1000) - 1)]


def lose(run, how, times, draw):
    """Seconds until the step on its way is complete, contributions redone, peers lost."""
    seconds, before = [], run.whole()
    for _ in range(times):
        step = run.whole()["step"]
        step = run.until_step(step + 10)["step"]
        began = time.monotonic()
        os.kill(draw.choice(run.children(" train-peer ")), how)
        # The update after next was begun after the loss, whatever was on its way.
        run.until_step(step + 2)
        seconds.append(time.monotonic() - began)
    # Who got notice last has gone by now.
    run.until_step(run.whole()["step"] + 20)
    after = run.whole()
    return seconds, after["redone"] - before["redone"], after["lost"] - before["lost"]


def undisturbed(run, steps):
    """Seconds of a step, processor seconds of the conductor a step, and its share of all processes'. The conductor is not asked meanwhile: steps are
    counted as they are printed."""
    run.until_step(20)
    pids, began, at = run.children(), time.monotonic(), len(run.steps)
    used = {pid: processor_s(pid) for pid in pids}
    while len(run.steps) < at + steps:
        time.sleep(0.1)
    used, made = {pid: processor_s(pid) - used[pid] for pid in pids}, len(run.steps) - at
    return (time.monotonic() - began) / made, used[run.conductor] / made, used[run.conductor] / sum(used.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dunlin", required=True)
    parser.add_argument("--out", help="file for the figures as JSON")
    parser.add_argument("--times", type=int, default=20, help="kills, and as many notices")
    args = parser.parse_args()
    text = subprocess.run([HERE.parent / "fetch-text.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args.dunlin, configuration(text, 128, 128), folder)
        try:
            quiet_step, quiet_ledger, quiet_share = undisturbed(run, 60)
        finally:
            run.end()
        run = Run(args.dunlin, configuration(text, 64, 64), folder)
        try:
            usual, ledger, share = undisturbed(run, 100)
            kills, redone, lost = lose(run, signal.SIGKILL, args.times, draw)
            notices, redone_after_notice, lost_with_notice = lose(run, signal.SIGTERM, args.times, draw)
            steps = list(run.steps)
        finally:
            run.end()
    stalls = [max(0.0, s - 2 * usual) for s in kills]
    pauses = [max(0.0, s - 2 * usual) for s in notices]
    once = steps == list(range(len(steps)))
    rows = [
        ("the example's shape: usual step", f"{quiet_step * 1e3:.0f} ms"),
        ("  conductor: processor time of a step, share", f"{quiet_ledger * 1e3:.1f} ms, {quiet_share:.2%}"),
        ("a quarter of it: usual step", f"{usual * 1e3:.0f} ms"),
        ("  conductor: processor time of a step, share", f"{ledger * 1e3:.1f} ms, {share:.2%}"),
        (f"stall, SIGKILL, {len(stalls)} times: p50 / p99", f"{quantile(stalls, .5) * 1e3:.0f} / {quantile(stalls, .99) * 1e3:.0f} ms"),
        ("  contributions redone a kill", f"{redone / args.times:.1f} of {8 * 4} a step"),
        ("  peers lost", f"{lost}"),
        (f"stall, notice, {len(pauses)} times: p50 / p99", f"{quantile(pauses, .5) * 1e3:.0f} / {quantile(pauses, .99) * 1e3:.0f} ms"),
        ("  contributions redone", f"{redone_after_notice}"),
        ("  peers lost", f"{lost_with_notice}"),
        ("steps", f"{len(steps)}, {'each once, in order' if once else 'NOT each once'}"),
    ]
    for name, value in rows:
        print(f"  {name:<46} {value}")
    if args.out:
        figures = {"example": {"usual_step_s": quiet_step, "conductor_s": quiet_ledger, "conductor_share": quiet_share},
                   "usual_step_s": usual, "conductor_s": ledger, "conductor_share": share, "stalls_s": stalls, "redone_by_kills": redone, "lost_by_kills": lost,
                   "pauses_s": pauses, "redone_by_notices": redone_after_notice, "lost_by_notices": lost_with_notice, "steps": len(steps)}
        report.write(args.out, __doc__, figures)
    if not once or redone_after_notice or lost_with_notice:
        raise SystemExit("a step came twice or is missing, or a notice cost work")


if __name__ == "__main__":
    main()
