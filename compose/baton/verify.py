"""`baton verify`: whether every worker and every path of a running stack gives the same answers, token for token.

The ways of an answer
    local      a decode worker computes the prompt
    remote     a prefill worker computes it, and its KV travels to the decode worker
    replayed   begun on a decode worker, and taken from it half way, as if it had died: another one goes on
    cached     a decode worker finds the prompt in its cache
    offline    the LLM in this process: no sockets, no cache, the same weights

Greedy and seeded answers are compared with the first way, which is the offline one where there is torch. Log-probabilities
may differ by rounding, as far as the type's bound. Where the two likeliest tokens of a greedy answer are nearer than that,
the order of additions decides, not the worker: such an answer is compared up to there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from baton.comparison import BOUNDS, LENGTHS, compare, dtype_of, make_questions
from baton.config import demo_model_path
from baton.errors import BatonError, ConfigError
from baton.recording import NUM_LOGPROBS, Answer, Question, Server, connected, lead_of
from baton.services import DEMO_NAME

ANSWER_LEN = 32
_REPLAY_AT = ANSWER_LEN // 2


@dataclass(frozen=True, slots=True)
class Way:
    """One path over named workers."""

    path: str
    decode: str
    prefill: str | None = None

    @property
    def pin(self) -> str:
        """As the header x-baton-pin says it."""
        if self.prefill is not None:
            return f"path=remote; prefill={self.prefill}; decode={self.decode}"
        return f"path=local; decode={self.decode}" + (f"; replay={_REPLAY_AT}" if self.path == "replayed" else "")


@dataclass(slots=True)
class Row:
    """What came of one way."""

    path: str
    workers: str
    num_answers: int = 0
    num_tokens: int = 0
    num_cut: int = 0
    """Answers that were compared only up to two tokens that are as good as equally likely."""
    num_other: int = 0
    """Answers that took another way."""
    logprob_gap: float = 0.0
    differences: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        """In words."""
        if self.differences:
            return f"{len(self.differences)} DIFFER"
        if self.num_other == self.num_answers:
            return "not taken"
        notes = [f"equal, log-probs within {self.logprob_gap:.0e}"]
        notes += [f"{self.num_cut} up to a tie"] if self.num_cut else []
        other = "not in the cache" if self.path == "cached" else "went another way"
        notes += [f"{self.num_other} {other}"] if self.num_other else []
        return "; ".join(notes)

    def compare(self, i: int, question: Question, answer: Answer, wanted: Answer, bound: float) -> None:
        """Compare one answer with what is right."""
        self.num_answers += 1
        kind = "greedy" if question.is_greedy else "seeded"
        where = f"prompt {i} ({len(question.prompt)} tokens, {kind})"
        if answer.error is not None:
            self.differences.append(f"{where}: {answer.error}")
            return
        found = compare(question, answer, wanted, bound)
        self.num_tokens += found.num_tokens
        self.num_cut += found.is_cut
        self.logprob_gap = max(self.logprob_gap, found.logprob_gap)
        if found.difference is not None:
            self.differences.append(f"{where}: {found.difference}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked of `baton verify`."""

    url: str
    api_key: str | None
    model: str | None
    """Hub id or folder for the offline LLM; None: what the server's name says."""
    num_prompts: int
    offline: bool


async def verify(settings: Settings) -> int:
    """Compare everything with everything, print a table, and return the exit status.

    Raises:
        ConfigError: nobody answers, nobody decodes, or the offline LLM cannot be loaded.
    """
    async with connected(settings.url, settings.api_key) as server:
        questions = await make_questions(server, settings.num_prompts, ANSWER_LEN)
        workers = (await server.read("/debug/workers"))["workers"]
        ways, dtype = _ways(workers), dtype_of(workers)
        rows: list[Row] = []
        reference, bound = None, BOUNDS[dtype]
        if settings.offline and importlib.util.find_spec("torch") is not None:
            reference = await asyncio.to_thread(_ask_offline, settings.model, server, questions, dtype)
            rows.append(Row("offline", "this process"))
            for i, (question, answer) in enumerate(zip(questions, reference, strict=True)):
                rows[0].compare(i, question, answer, answer, bound)
        salts = {way.decode: uuid.uuid4().hex for way in ways if way.path == "local"}
        for way in ways:
            # a secret of each way: nothing is found in a cache but what is meant to be
            salt = salts[way.decode] if way.path in ("local", "cached") else uuid.uuid4().hex
            headers = {"x-baton-pin": way.pin}
            answers = await asyncio.gather(*(server.ask(question, headers, salt) for question in questions))
            reference = reference or answers
            row = Row(way.path, way.decode if way.prefill is None else f"{way.prefill} > {way.decode}")
            for i, (question, answer, wanted) in enumerate(zip(questions, answers, reference, strict=True)):
                row.compare(i, question, answer, wanted, bound)
                row.num_other += not await _went(server, way, answer)
            rows.append(row)
    return _report(server, rows, bound)


def _ways(workers: Sequence[Mapping[str, Any]]) -> list[Way]:
    live = sorted((worker for worker in workers if worker["state"] == "live"), key=lambda worker: str(worker["id"]))
    decodes = [str(worker["id"]) for worker in live if "decode" in worker["legs"]]
    prefills = [str(worker["id"]) for worker in live if "prefill" in worker["legs"]]
    if not decodes:
        raise ConfigError("no decode worker is live: there is nothing to compare.")
    ways = []
    for decode in decodes:
        ways += [Way("local", decode), Way("cached", decode)]
        ways += [Way("remote", decode, prefill) for prefill in prefills if prefill != decode]
        ways.append(Way("replayed", decode))
    return ways


async def _went(server: Server, way: Way, answer: Answer) -> bool:
    """Whether an answer took its way."""
    if way.path == "cached":
        return answer.num_cached > 0 or answer.error is not None
    if way.path == "replayed":
        return len((await server.read(f"/debug/route?id={answer.request_id}"))["routes"]) > 1
    told = dict(part.partition("=")[::2] for part in answer.route.partition("; cost_ms=")[0].split("; "))
    return told.get("decode") == way.decode and told.get("prefill") == way.prefill


def _ask_offline(named: str | None, server: Server, questions: Sequence[Question], dtype: str) -> list[Answer]:
    """Answer all questions in this process."""
    from baton.llm import LLM, SamplingParams

    model = named or (str(demo_model_path()) if server.model == DEMO_NAME else server.model)
    try:
        llm = LLM(
            model,
            dtype=dtype,
            use_tqdm=False,
            enable_prefix_caching=False,
            max_model_len=min(server.max_model_len, max(LENGTHS) + ANSWER_LEN),
            max_num_seqs=16,
        )
    except BatonError as error:
        raise ConfigError(
            f"the offline LLM: {error} Name the model's folder by --model, or say --no-offline."
        ) from None
    params = [SamplingParams(**question.settings, logprobs=NUM_LOGPROBS) for question in questions]
    outputs = llm.generate([list(question.prompt) for question in questions], params, use_tqdm=False)
    answers = []
    for output in outputs:
        choice = output.outputs[0]
        rows = choice.logprobs or []
        answers.append(
            Answer(
                choice.token_ids,
                [row[token_id].logprob for row, token_id in zip(rows, choice.token_ids, strict=True)],
                [lead_of(entry.logprob for entry in row.values()) for row in rows],
                choice.finish_reason,
            )
        )
    return answers


def _report(server: Server, rows: Sequence[Row], bound: float) -> int:
    """Print what was compared, and where it first differs."""
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("path", "worker", "answers", "tokens", "result"):
        table.add_column(name, justify="right" if name in ("answers", "tokens") else "left", overflow="fold")
    for row in rows:
        result = "the others are compared with it" if row is rows[0] else row.result
        table.add_row(row.path, row.workers, str(row.num_answers), str(row.num_tokens), result)
    console.print(
        f"{server.model} at {server.client.base_url}; log-probabilities may differ by {bound:g}", soft_wrap=True
    )
    console.print(table)
    wrong = [row for row in rows if row.differences]
    for row in wrong:
        console.print(f"{row.path}, {row.workers}: {row.differences[0]}", soft_wrap=True, markup=False)
    if not wrong:
        console.print("Every answer is the same.")
    return 1 if wrong else 0
