#!/usr/bin/env python3
"""How much of its speed a training run keeps when every peer has a slow link: `dunlin local-train` in a network namespace of its own.

    make bench-links        (or, as root: e2e/bench/links.py --dunlin target/release/dunlin --out FILE.json)

Rows: 4 stages of one peer each, activations as F32, F16 and Q8. Averages: 2 stages of two peers each, with usual and with delayed updates. Every peer's traffic, in and out apart, goes through a token bucket of --mbit (HTB
on the loopback device, by the port that the peer listens at); trainers, of which there are as many as peers, are not held back. The share is
tokens/s with the bucket over tokens/s without, same processes, same machine: 100% is a run that computation alone bounds. Steps alternate
between both, so that the machine's moods hit both alike.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing

import report

HERE = pathlib.Path(__file__).resolve().parent
UNLIMITED = "100gbit"


def configuration(text, shape, width, microbatch):
    return {
        "model": {"config": {"architecture": "llama", "hiddenSize": width, "layers": 8, "heads": width // 64, "kvHeads": width // 64,
                             "ffn": width * 11 // 4, "contextLength": 256, "ropeBase": 10000.0, "rmsEps": 1e-5, "tied": True}},
        "data": {"text": {"path": text}, "tokenizer": "Bytes", "validationFraction": 0.01},
        "sequenceLength": 128, "globalBatch": 8 * microbatch, "microbatch": microbatch, "steps": 1_000_000, "seed": 1,
        "optimizer": {"kind": "AdamW", "learningRate": 0.001, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weightDecay": 0.1, "momentum": 0.0,
                      "clip": 1.0, "schedule": {"kind": "Constant", "warmupSteps": 20}, "delayedUpdates": shape.delayed_updates},
        "stages": shape.stages, "wire": {"activations": shape.activations, "gradients": shape.gradients},
    }


class Shape(typing.NamedTuple):
    stages: int
    activations: str
    gradients: str
    delayed_updates: bool


ROWS = [Shape(4, codec, "Exact", False) for codec in ("F32", "F16", "Q8")]
AVERAGES = [Shape(2, "F16", gradients, delayed) for gradients in ("F32", "Q8") for delayed in (False, True)]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Namespace:
    """Everything in it ends with it."""

    def __init__(self):
        self.name = f"dunlin-links-{os.getpid()}"
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        subprocess.run(["kill", "-9", *pids], check=False) if pids else None
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    def inside(self, *command):
        return ["ip", "netns", "exec", self.name, *command]

    def tc(self, *words):
        run(*self.inside("tc", *words))

    def buckets(self, ports):
        """A class for each direction of each port; how fast it is says `limit`."""
        self.tc("qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "1", "r2q", "1000")
        self.tc("class", "add", "dev", "lo", "parent", "1:", "classid", "1:1", "htb", "rate", UNLIMITED)
        self.classes = []
        for index, (port, way) in enumerate((port, way) for port in ports for way in ("dport", "sport")):
            name = f"1:{index + 10:x}"
            self.tc("class", "add", "dev", "lo", "parent", "1:", "classid", name, "htb", "rate", UNLIMITED)
            self.tc("filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "prio", "1", "u32", "match", "ip", way, str(port), "0xffff", "flowid", name)
            self.classes.append(name)

    def limit(self, rate):
        burst = ["burst", "64kb", "cburst", "64kb"] if rate != UNLIMITED else []
        for name in self.classes:
            self.tc("class", "change", "dev", "lo", "parent", "1:", "classid", name, "htb", "rate", rate, *burst)

    def sent_bytes(self):
        said = run(*self.inside("tc", "-s", "class", "show", "dev", "lo"))
        sent = re.findall(r"class htb (1:[0-9a-f]+) .*?\n Sent (\d+) bytes", said)
        return sum(int(count) for name, count in sent if name in self.classes)


def listening(namespace, pid):
    """The port that a peer is called at."""
    lines = run(*namespace.inside("ss", "-Hltnp")).splitlines()
    ports = [int(line.split()[3].rsplit(":", 1)[1]) for line in lines if f"pid={pid}," in line]
    command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    port = int(command[command.index("--listen") + 1].rsplit(":", 1)[1])
    assert port in ports, (port, ports)
    return port


def measure(dunlin, shape, args, text):
    with Namespace() as namespace, tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "run.json"
        file.write_text(json.dumps(configuration(text, shape, args.width, args.microbatch)))
        command = namespace.inside(dunlin, "local-train", "--config", str(file), "--peers", "4", "--trainers", "4")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"DUNLIN_LOG": "error"})
        first = json.loads(process.stdout.readline())
        at, came = [], threading.Condition()

        def read():
            for line in process.stdout:
                with came:
                    at.append(time.monotonic())
                    came.notify_all()

        threading.Thread(target=read, daemon=True).start()

        def steps(count):
            """Seconds of so many whole steps that begin from now on."""
            with came:
                begin = len(at) + 1
                came.wait_for(lambda: len(at) > begin + count, timeout=600) or exit("no steps in 600 s")
                return at[begin + count] - at[begin]

        namespace.buckets([listening(namespace, p["pid"]) for p in first["processes"] if p["role"] == "peer"])
        steps(3)
        free, held, sent = 0.0, 0.0, namespace.sent_bytes()
        count = 0
        for _ in range(args.rounds):
            namespace.limit(UNLIMITED)
            free += steps(args.steps)
            namespace.limit(f"{args.mbit}mbit")
            held += steps(args.steps)
            count += 2 * (args.steps + 2)
        sent = (namespace.sent_bytes() - sent) / count
        process.terminate()
        process.wait()
    tokens = args.rounds * args.steps * 8 * args.microbatch * 128
    return shape._asdict() | {"free_tokens_per_s": tokens / free, "held_tokens_per_s": tokens / held, "share": free / held, "mbytes_per_step": sent / 1e6}


def end(*_):
    """The namespace goes also then; a second signal would interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dunlin", required=True)
    parser.add_argument("--out", help="file for the figures as JSON")
    parser.add_argument("--only", choices=("rows", "averages"), help="one half")
    parser.add_argument("--mbit", type=int, default=200)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--microbatch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    text = run(HERE.parent / "fetch-text.sh").strip()
    shapes = AVERAGES if args.only == "averages" else ROWS if args.only == "rows" else ROWS + AVERAGES
    rows = [measure(args.dunlin, shape, args, text) for shape in shapes]
    print(f"4 peers, hidden {args.width}, {args.microbatch} x 128 rows a call, {args.mbit} Mbit/s for each peer and direction")
    print(f"{'stages':>6} {'activations':>12} {'gradients':>10} {'updates':>8} {'tokens/s free':>14} {'held':>8} {'share':>7} {'MB a step':>10}")
    for row in rows:
        updates = "delayed" if row["delayed_updates"] else "usual"
        print(f"{row['stages']:>6} {row['activations']:>12} {row['gradients']:>10} {updates:>8} {row['free_tokens_per_s']:>14.0f} "
              f"{row['held_tokens_per_s']:>8.0f} {row['share']:>7.1%} {row['mbytes_per_step']:>10.1f}")
    if args.out:
        report.write(args.out, __doc__, rows)


if __name__ == "__main__":
    main()
