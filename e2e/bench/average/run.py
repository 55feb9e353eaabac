"""Averages of 25 million values (100 MB of f32) among processes on this machine, over TCP on loopback: those of a training swarm's peers, in
every encoding, beside Gloo's all-reduce and hivemind's averager, in turn in the same run. A table, and JSON with --out."""
import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import report  # beside the other benchmarks

HERE = Path(__file__).parent


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Members:
    """Processes that average once for every line they get."""

    def __init__(self, commands):
        env = {**os.environ, "PYTHONHASHSEED": "0"}
        start = lambda c: subprocess.Popen(c, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.processes = [start(command) for command in commands]
        self.values = self.answers()[0]["values"]

    def answers(self):
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            raise SystemExit("a member has ended")
        return [json.loads(line) for line in lines]

    def round(self):
        """Seconds of the slowest, and what the first says besides."""
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()
        answers = self.answers()
        if len({answer["digest"] for answer in answers}) != 1:
            raise SystemExit("members hold different averages")
        return max(answer["seconds"] for answer in answers), answers[0]

    def end(self):
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


def hivemind(python, members, mb, rounds):
    """Seconds from the trigger to the slowest peer that holds the result; none when hivemind is not there."""
    command = [python, HERE / "hivemind_average.py", str(members), str(mb), str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, start_new_session=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])["seconds"] if done.returncode == 0 else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dunlin", default=os.environ.get("DUNLIN_BIN", "target/release/dunlin"))
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hivemind-python", help="a Python that has hivemind")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, members = [], args.members
    for encoding in ["Exact", "F32", "F16", "Q8"]:
        group = ",".join(f"127.0.0.1:{port}" for port in free_ports(members))
        ours = Members(
            [args.dunlin, "--log", "warn", "bench", "average-member", "--group", group, "--index", str(i), "--gradients", encoding]
            for i in range(members)
        )
        port, values = free_ports(1)[0], ours.values
        gloo = Members([sys.executable, HERE / "gloo.py", str(i), str(members), str(port), str(values)] for i in range(members))
        pairs = []
        for index in range(args.rounds + 1):
            pair = gloo.round(), ours.round()
            # The first makes connections.
            if index > 0:
                pairs.append(pair)
        for side in (ours, gloo):
            side.end()
        seconds = [mine[0] for _, mine in pairs]
        theirs = [gloo[0] for gloo, _ in pairs]
        ratio = statistics.median(mine / their for mine, their in zip(seconds, theirs))
        rows.append({"encoding": encoding, "values": values, "seconds": seconds, "gloo_seconds": theirs,
                     "ratio_to_gloo": ratio, "relative_error": pairs[-1][1][1]["error"], "bit_identical": True})
    other = args.hivemind_python and hivemind(args.hivemind_python, members, values * 4 / 1e6, 4)

    median = statistics.median
    print(f"{values:,} values, {members} members, median of {args.rounds} rounds of the slowest member")
    print(f"{'encoding':9} {'ms':>6} {'(min-max)':>12} {'Gloo f32':>9} {'ratio':>6} {'hivemind':>9} {'error':>8}  same bits")
    for row in rows:
        ms = [1000 * s for s in row["seconds"]]
        faster = "-"
        if other:
            row["hivemind_seconds"], row["times_faster_than_hivemind"] = other, median(other) / median(row["seconds"])
            faster = f"{row['times_faster_than_hivemind']:.1f}x"
        print(f"{row['encoding']:9} {median(ms):6.0f} {min(ms):5.0f}-{max(ms):<6.0f} {1000 * median(row['gloo_seconds']):9.0f} "
              f"{row['ratio_to_gloo']:6.2f} {faster:>9} {row['relative_error']:8.1e}  yes")
    if args.out:
        report.write(args.out, __doc__, {"members": members, "rows": rows})
        print(args.out)


main()
