"""The benchmark's other process: it sends what the lines of its standard input ask for."""

from __future__ import annotations

import json
import sys
import time

import msgspec
import zmq

from baton.kvtransfer.bench.plan import EPOCH, BenchSide, Plan, host_array
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.sockets import SEND_QUEUE
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.tcp import TcpTransport
from baton.logs import LogConfig, setup_logs

NUM_CHUNKS = 4
CHUNK_S = 0.012
"""As a GPU computes 512 tokens of an 8B model."""


def serve(plan: Plan) -> None:
    """Answer each line: `bare`; `round FIRST`: offer a round's transfers; `one NUMBER`; `chunks NUMBER`; `times`."""
    ours, bare = BenchSide(plan, 1), _Bare(plan)
    exporter = Exporter(ours.side)
    thread = TransferThread(exporter).start()
    _say({"bare": bare.address, "endpoint": exporter.endpoint})
    for line in sys.stdin:
        command, _, number = line.strip().partition(" ")
        exporter.events()
        if command == "bare":
            bare.send()
        elif command == "times":
            timeline = ours.timed.timeline
            _say({"times": timeline.times, "in_memory_s": timeline.in_memory_s})
        else:
            count = plan.total_transfers if command == "round" else 1
            ours.timed.timeline.clear()
            for transfer in range(count):
                exporter.offer(plan.ticket(int(number) + transfer))
            _say({})
            for transfer in range(count):
                _publish(plan, exporter, int(number) + transfer, transfer, NUM_CHUNKS if command == "chunks" else 1)
    thread.stop()
    bare.close()


def _publish(plan: Plan, exporter: Exporter, number: int, transfer: int, num_chunks: int) -> None:
    ticket, block_ids, hashes = plan.ticket(number), plan.block_ids(transfer), plan.hashes()
    size = -(-len(block_ids) // num_chunks)
    for first in range(0, len(block_ids), size):
        if num_chunks > 1:
            time.sleep(CHUNK_S)
        span = slice(first, first + size)
        exporter.publish(ticket.request_id, EPOCH, block_ids[span], hashes[span])
    exporter.finish(ticket.request_id, EPOCH)


class _Bare:
    """A socket that sends the plan's bytes as they lie."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._context = zmq.Context(io_threads=plan.config.num_stripes)
        self._push = self._context.socket(zmq.PUSH)
        self._push.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self._transport = TcpTransport() if plan.scheme == "tcp" else IpcTransport()
        self._blocks = host_array(plan, 1).data
        self.address = self._transport.bind(self._push, 0)

    def send(self) -> None:
        plan = self._plan
        frame_nbytes = max(1, plan.config.message_nbytes // plan.block_nbytes) * plan.block_nbytes
        nbytes = plan.num_blocks * plan.num_transfers * plan.block_nbytes
        for _ in range(plan.repeats):
            for first in range(0, nbytes, frame_nbytes):
                self._push.send(self._blocks[first : min(nbytes, first + frame_nbytes)], copy=False)

    def close(self) -> None:
        self._push.close(linger=0)
        self._transport.close()
        self._context.term()


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    setup_logs("exporter", LogConfig(log_level="info"))
    serve(msgspec.json.decode(sys.argv[1], type=Plan))
