"""Random JSON Schemas over a stack whose workers are killed: each answer follows its schema and is the offline one.

    python -m tests.schemas_under_faults 500        two seeds each; ends with 1 where an answer is wrong

Every prompt goes over a prefill worker. The schemas come in ten parts, and in the middle of each a worker is killed, a
decode and a prefill worker in turn; the next part begins when all are back.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.random_schemas import MAX_TOKENS, PROMPT, params_of, random_schema, wrong_of
from tests.processes import BatonProcess, eventually, free_ports

from baton.chaos import live_workers
from baton.llm import LLM
from baton.recording import Answer, Question, Server, connected
from baton.stack_processes import Role, StackProcesses

NUM_PARTS, NUM_STREAMS = 10, 24
KILLED: tuple[Role, Role] = ("decode face", "prefill face")
_REMOTE = {"x-baton-pin": "path=remote"}
Asked = tuple[dict[str, Any], int]
"""A schema, and the seed of its answer."""


@dataclass(slots=True)
class Outcome:
    """What came of all parts."""

    num_answers: int = 0
    num_going_on: list[int] = field(default_factory=list)
    """Streams that a kill found under way, of each part."""
    wrong: list[str] = field(default_factory=list)


async def disturbed_answers(
    url: str, api_key: str | None, llm: LLM, seeds: range, num_parts: int = NUM_PARTS
) -> Outcome:
    """Ask a stack for answers of the schemas of these seeds, and compare them with the offline LLM's."""
    outcome, size = Outcome(), max(1, -(-len(seeds) // num_parts))
    async with connected(url, api_key) as server:
        assert server.client.base_url.port is not None
        processes = StackProcesses(server.client.base_url.port)
        for number, first in enumerate(range(0, len(seeds), size)):
            asked = [(random_schema(seed), draw) for seed in seeds[first : first + size] for draw in (0, 1)]
            answers = await _ask_all(server, processes, KILLED[number % 2], llm, asked, outcome)
            _compare(llm, asked, answers, outcome)
    return outcome


async def _ask_all(
    server: Server, processes: StackProcesses, role: Role, llm: LLM, asked: Sequence[Asked], outcome: Outcome
) -> list[Answer]:
    """Ask one part, and kill a worker of the role when half of the answers are there and others under way."""
    prompt, salt, before = llm.get_tokenizer().encode(PROMPT), uuid.uuid4().hex, await live_workers(server)
    places = asyncio.Semaphore(NUM_STREAMS)
    num_ended, is_killed = 0, False
    going_on: set[int] = set()

    async def one(i: int, schema: dict[str, Any], draw: int) -> Answer:
        nonlocal num_ended
        fields = {"temperature": 1.0, "seed": draw, "max_tokens": MAX_TOKENS, "structured_outputs": {"json": schema}}
        async with places:
            answer = await server.ask(Question(prompt, fields), _REMOTE, salt, lambda _: on_token(i))
        num_ended += 1
        going_on.discard(i)
        return answer

    def on_token(i: int) -> None:
        nonlocal is_killed
        going_on.add(i)
        if not is_killed and num_ended >= len(asked) // 2:
            is_killed = True
            outcome.num_going_on.append(len(going_on))
            worker = processes.of_role(role)[0]
            for process in (*worker.children(recursive=True), worker):
                process.kill()

    answers = await asyncio.gather(*(one(i, schema, draw) for i, (schema, draw) in enumerate(asked)))
    assert is_killed
    while (now := await live_workers(server)).keys() < before.keys() or now == before:
        await asyncio.sleep(0.1)
    return list(answers)


def _compare(llm: LLM, asked: Sequence[Asked], answers: Sequence[Answer], outcome: Outcome) -> None:
    outputs = llm.generate([PROMPT] * len(asked), [params_of(*each) for each in asked], use_tqdm=False)
    for (schema, draw), answer, output in zip(asked, answers, outputs, strict=True):
        outcome.num_answers += 1
        (expected,) = output.outputs
        text = llm.get_tokenizer().decode(answer.token_ids, skip_special_tokens=True)
        wrong = answer.error or wrong_of(schema, text, answer.finish_reason)
        if wrong is None and answer.token_ids != expected.token_ids:
            wrong = f"{text!r} is not {expected.text!r}"
        if wrong is not None:
            outcome.wrong.append(f"seed {draw}: {wrong}")


def main(count: int) -> int:
    """Run it on a stack of its own with the demo model; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="baton-schemas-") as folder:
        (port,) = free_ports(1)
        arguments = ["up", "--prefill", "2", "--decode", "2", "--port", str(port), "--drain-s", "1"]
        stack = BatonProcess(arguments, Path(folder, "up.log"), port).start()
        try:
            eventually(lambda: "Try:" in stack.log() or not stack.is_running, "all are ready")
            llm = LLM(use_tqdm=False, kv_cache_memory_bytes=2**28, max_num_seqs=32, max_model_len=1024)
            outcome = asyncio.run(disturbed_answers(stack.url, None, llm, range(count)))
        finally:
            stack.stop()
    for wrong in outcome.wrong:
        print(wrong)
    print(
        f"{count} schemas, {outcome.num_answers} answers, {len(outcome.num_going_on)} workers killed with "
        f"{outcome.num_going_on} streams under way: {len(outcome.wrong)} wrong",
        flush=True,
    )
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
