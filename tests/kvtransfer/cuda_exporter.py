"""Another process with blocks on a GPU: `python -m tests.kvtransfer.cuda_exporter NUM_BLOCKS NBYTES NUM_REQUESTS`.

It offers all requests, each an equal run of the blocks, says its endpoint, and serves until its standard input ends. With
`--withheld` the last request's blocks are published, but it is never finished. With `--ring` they are read in its ring.
"""

import sys

import torch

from baton.kvtransfer.cuda_copies import CudaCopies
from baton.kvtransfer.device_memory import DeviceMemory
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.side import Side
from baton.kvtransfer.transports.cuda_ipc import CudaIpcTransport
from baton.kvtransfer.transports.shm_ring import ShmRingTransport

from .blocks import LAYOUT, TestTicket, block_hashes, request_id


def content(num_blocks: int, nbytes: int) -> torch.Tensor:
    """What the blocks hold, [num_blocks, nbytes], the same in every process."""
    generator = torch.Generator().manual_seed(num_blocks)
    return torch.randint(0, 256, (num_blocks, nbytes), dtype=torch.uint8, generator=generator)


def serve(num_blocks: int, nbytes: int, num_requests: int, *, withheld: bool, in_ring: bool) -> None:
    """Be the exporter, on the last GPU."""
    kv = content(num_blocks, nbytes).to(f"cuda:{torch.cuda.device_count() - 1}")
    copies = CudaCopies(kv)
    memory = DeviceMemory(copies, frame_nbytes=1 << 20, ring_nbytes=1)
    transport = ShmRingTransport(copies, memory.ring_fd) if in_ring else CudaIpcTransport(copies)
    side = Side(memory=memory, layout=LAYOUT, incarnation="exporter-1", transports=(transport,))
    exporter = Exporter(side)
    thread = TransferThread(exporter).start()
    each = num_blocks // num_requests
    for number in range(num_requests):
        ticket = TestTicket(request_id(number), source=exporter.endpoint)
        exporter.offer(ticket)
        block_ids = list(range(number * each, (number + 1) * each))
        exporter.publish(ticket.request_id, ticket.epoch, block_ids, block_hashes(number, each))
        if not (withheld and number == num_requests - 1):
            exporter.finish(ticket.request_id, ticket.epoch)
    print(exporter.endpoint, flush=True)
    sys.stdin.read()
    thread.stop()


if __name__ == "__main__":
    num_blocks, nbytes, num_requests = map(int, sys.argv[1:4])
    serve(num_blocks, nbytes, num_requests, withheld="--withheld" in sys.argv, in_ring="--ring" in sys.argv)
