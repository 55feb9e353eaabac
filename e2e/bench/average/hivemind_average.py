"""hivemind's averager: MEMBERS processes with a DHT node each average MB megabytes of f32, ROUNDS times, without compression. Prints seconds
from the trigger, when the group is formed, to the slowest that holds the result."""
import json
import multiprocessing as mp
import os
import sys
import time


def member(rank, members, values, rounds, addresses, barrier, answers):
    import torch

    torch.set_num_threads(1)
    import hivemind

    peers = addresses.get() if rank else None
    dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=peers)
    for _ in range(0 if rank else members - 1):
        addresses.put([str(a) for a in dht.get_visible_maddrs()])
    mine = torch.randn(values, generator=torch.Generator().manual_seed(rank))
    averager = hivemind.averaging.DecentralizedAverager(
        [mine], dht, prefix="bench", start=True, target_group_size=members, min_group_size=members,
        min_matchmaking_time=2.0, request_timeout=1.0, bandwidth=1000.0, client_mode=False)
    seconds = []
    for _ in range(rounds):
        barrier.wait()
        control = averager.step(wait=False, require_trigger=True, timeout=120)
        while control.stage.name in ("IDLE", "LOOKING_FOR_GROUP"):
            time.sleep(0.002)
        barrier.wait()
        begin = time.perf_counter()
        control.allow_allreduce()
        if len(control.result(timeout=120) or ()) != members:
            raise SystemExit("a member was missing")
        seconds.append(time.perf_counter() - begin)
    answers.put(seconds)
    barrier.wait()
    averager.shutdown()
    dht.shutdown()
    os._exit(0)


def main():
    members, values, rounds = int(sys.argv[1]), int(float(sys.argv[2]) * 1e6 / 4), int(sys.argv[3])
    # hivemind forks helpers of its own, and cannot be pickled.
    context = mp.get_context("fork")
    addresses, answers, barrier = context.Queue(), context.Queue(), context.Barrier(members)
    shared = (members, values, rounds, addresses, barrier, answers)
    processes = [context.Process(target=member, args=(rank, *shared)) for rank in range(members)]
    for process in processes:
        process.start()
    each = [answers.get(timeout=240) for _ in processes]
    # The first makes connections.
    print(json.dumps({"seconds": [max(s) for s in zip(*each)][1:]}), flush=True)
    for process in processes:
        process.join(20)


main()
