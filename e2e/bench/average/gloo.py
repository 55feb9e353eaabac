"""One of several processes that average numbers of their own with Gloo, once for every line on stdin: the other side of
`dunlin bench average-member`."""
import json
import os
import sys
import time

import torch
import torch.distributed as dist

rank, members, port, values = map(int, sys.argv[1:])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=members)
mine = torch.randn(values, generator=torch.Generator().manual_seed(rank)) * 1e-4
print(json.dumps({"values": values}), flush=True)
for _ in sys.stdin:
    average = mine.clone()
    dist.barrier()
    begin = time.perf_counter()
    dist.all_reduce(average)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "digest": hash(average.numpy().tobytes())}), flush=True)
