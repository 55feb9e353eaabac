#!/usr/bin/env python3
"""Does a training run go on through everything that can be lost? Processes of `dunlin local-train` on a loaded machine, real SIGKILLs and SIGSTOPs.

    e2e/bench/losses.py --dunlin target/release/dunlin --out FILE.json       (a part of `make bench-faults`)

Two loops keep both cores busy. 200 times something is lost, of a small Llama on 2 stages x 2 peers with two trainers: a peer, two, all of a stage, all, all while a manifest is being written,
a peer while the one before is being replaced, a trainer, the conductor, the conductor with a peer; or a peer, a trainer or the conductor sleeps for a while (SIGSTOP). Each time the run has to decide
three more steps; the longest time from one step to the next is the gap. At the end the last checkpoint, optimizer included, is compared with that of a run of as many steps on one peer that nothing happened to. Fails when a
gap is 10 s or longer, a step is printed twice, or a bit differs.
"""

import argparse
import collections
import hashlib
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
import urllib.request

import report

HERE = pathlib.Path(__file__).resolve().parent
GAP_MAX_S = 10.0
# The longest sleep: the conductor's is a part of the gap, others are replaced meanwhile.
SLEEP_S = {"peer sleeps": 6.0, "trainer sleeps": 6.0, "conductor sleeps": 2.0}


def configuration(text, folder, steps, stages):
    return {
        "model": {"config": {"architecture": "llama", "hiddenSize": 32, "layers": 4, "heads": 4, "kvHeads": 2, "ffn": 64, "contextLength": 64, "ropeBase": 10000.0, "rmsEps": 1e-5, "tied": True}},
        "data": {"text": {"path": text}, "tokenizer": "Bytes", "validationFraction": 0.1},
        "sequenceLength": 32, "globalBatch": 16, "microbatch": 2, "steps": steps, "seed": 7,
        "optimizer": {"kind": "AdamW", "learningRate": 0.003, "weightDecay": 0.1, "clip": 1.0, "schedule": {"kind": "Constant", "warmupSteps": 4}},
        "stages": stages,
        "checkpoint": {"everySteps": 5 if steps > 100_000 else steps, "keep": 3, "destination": str(folder / "checkpoints")},
    }


class Run:
    def __init__(self, dunlin, text, folder, steps, stages, peers):
        self.folder = folder
        folder.mkdir()
        file = folder / "run.json"
        file.write_text(json.dumps(configuration(text, folder, steps, stages)))
        self.log = open(folder / "log.txt", "w")
        self.process = subprocess.Popen([dunlin, "local-train", "--config", str(file), "--peers", str(peers)], stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env=os.environ | {"DUNLIN_LOG": "warn"})
        first = json.loads(self.process.stdout.readline())
        self.url, self.steps, self.at, self.last = first["url"], [], [], None
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "step" in said:
                self.steps.append(said["step"])
                self.at.append(time.monotonic())
            else:
                self.last = said

    def status(self):
        """None when the conductor does not answer."""
        try:
            with urllib.request.urlopen(self.url + "/status", timeout=2) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def step(self):
        status = self.status()
        return status["step"] if status else -1

    def children(self, role):
        """Pids by name."""
        found = {}
        for folder in pathlib.Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    parent = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
                    words = (folder / "cmdline").read_bytes().decode().split("\0")
                except (OSError, IndexError):
                    continue
                if parent == self.process.pid and role in words and "--name" in words:
                    found[words[words.index("--name") + 1]] = int(folder.name)
        return found

    def checkpoint(self):
        """The newest complete one."""
        complete = [p for p in (self.folder / "checkpoints").iterdir() if (p / "training.json").exists()]
        return max(complete, key=lambda p: int(p.name.removeprefix("step-")))

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.reader.join()
        self.log.close()


def tensors(folder):
    """SHA-256 over all tensors of a checkpoint and its optimizer, by name, whatever files they are in."""
    all_of_them = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, tensor in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                all_of_them[name] = data[start + begin:start + end]
    digest = hashlib.sha256()
    for name in sorted(all_of_them):
        digest.update(name.encode())
        digest.update(all_of_them[name])
    return digest.hexdigest()


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def being_sealed(run):
    """Waits until the files of all stages of a checkpoint are there and its manifest is not."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for folder in (run.folder / "checkpoints").iterdir():
            if (folder / "optimizer-00002-of-00002.safetensors").exists() and not (folder / "training.json").exists():
                return


def lose(run, kind, draw):
    if run.process.poll() is not None:
        raise SystemExit(f"the run has ended: {(run.folder / 'log.txt').read_text()[-4000:]}")
    peers, trainers = run.children("train-peer"), run.children("trainer")
    conductor = run.children("conductor")
    one = draw.choice(sorted(peers.values()))
    if kind == "peer":
        kill([one])
    elif kind == "two peers":
        kill(draw.sample(sorted(peers.values()), 2))
    elif kind == "all of a stage":
        status = run.status()
        members = draw.choice(status["members"]) if status else []
        kill([peers[name] for name in members if name in peers])
    elif kind == "all peers":
        kill(peers.values())
    elif kind == "all peers while sealing":
        being_sealed(run)
        kill(peers.values())
    elif kind == "peer behind peer":
        kill([one])
        time.sleep(draw.uniform(0.05, 1.0))
        kill([draw.choice(sorted(run.children("train-peer").values()))])
    elif kind == "trainer":
        kill([draw.choice(sorted(trainers.values()))])
    elif kind == "conductor":
        kill(conductor.values())
    elif kind == "conductor and peer":
        kill([*conductor.values(), one])
    else:
        whom = {"peer sleeps": [one], "trainer sleeps": sorted(trainers.values()), "conductor sleeps": sorted(conductor.values())}[kind]
        pid, before, deadline = draw.choice(whom), run.step(), time.monotonic() + SLEEP_S[kind]
        os.kill(pid, signal.SIGSTOP)
        while time.monotonic() < deadline and run.step() < before + 5:
            time.sleep(0.02)
        os.kill(pid, signal.SIGCONT)


KINDS = ["peer", "two peers", "all of a stage", "all peers", "all peers while sealing", "peer behind peer", "trainer", "conductor", "conductor and peer", *SLEEP_S]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dunlin", required=True)
    parser.add_argument("--out", help="file for the figures as JSON")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    text = subprocess.run([HERE.parent / "fetch-text.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    draw = random.Random(args.seed)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 2)]
    gaps, wrong = collections.defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run = Run(args.dunlin, text, folder / "lossy", 10_000_000, 2, 4)
        try:
            for i in range(args.times):
                kind, before = KINDS[i % len(KINDS)] if i < 2 * len(KINDS) else draw.choice(KINDS), len(run.at)
                lose(run, kind, draw)
                decided, deadline = len(run.at), time.monotonic() + 60
                while len(run.at) < decided + 3 and time.monotonic() < deadline:
                    time.sleep(0.01)
                times = run.at[max(before - 1, 0):]
                gap = max([b - a for a, b in zip(times, times[1:])] + [time.monotonic() - times[-1]])
                gaps[kind].append(gap)
                if gap >= GAP_MAX_S:
                    wrong.append(f"loss {i}, {kind}: {gap:.1f} s; {json.dumps(run.status())[:600]}")
                    if gap >= 60:
                        break
            status = run.status()
        finally:
            run.end()
            for process in busy:
                process.kill()
        newest = run.checkpoint()
        straight = Run(args.dunlin, text, folder / "straight", int(newest.name.removeprefix("step-")), 1, 1)
        while straight.process.poll() is None:
            time.sleep(0.1)
        straight.end()
        equal = tensors(newest) == tensors(straight.checkpoint())
        doubled = len(run.steps) - len(set(run.steps))
        if wrong:
            print(open(run.folder / "log.txt").read()[-4000:], file=sys.stderr)
    everything = [gap for of_kind in gaps.values() for gap in of_kind]
    print(f"  {'what is lost':<26} times   p50 s   longest s")
    for kind, of_kind in sorted(gaps.items()):
        print(f"  {kind:<26} {len(of_kind):>5}   {sorted(of_kind)[len(of_kind) // 2]:>5.2f}   {max(of_kind):>9.2f}")
    print(f"  {'all':<26} {len(everything):>5}   {sorted(everything)[len(everything) // 2]:>5.2f}   {max(everything):>9.2f}")
    print(f"  steps decided {newest.name.removeprefix('step-')}, printed twice {doubled}, bits of an undisturbed run: {'yes' if equal else 'NO'}")
    if args.out:
        figures = {"gaps_s": gaps, "longest_gap_s": max(everything), "printed_twice": doubled, "bits_equal": equal, "steps": int(newest.name.removeprefix("step-")),
                   "redone": status and status["redone"], "peers_lost": status and status["lost"], "moves": status and status["moves"]}
        report.write(args.out, __doc__, figures)
    if wrong or doubled or not equal:
        raise SystemExit("\n".join(wrong) or "a step came twice, or bits differ")


if __name__ == "__main__":
    main()
