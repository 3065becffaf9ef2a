"""What a worker answers to each message of the control protocol: real processes, a small router."""

from __future__ import annotations

import os
import secrets
import signal
import uuid
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from tests.cluster import WORKER_FLAGS, Cluster, prompt_of
from tests.processes import eventually, start_worker
from tests.worker.small_router import Link, SmallRouter

from baton.messages import Cancel, Hello, Ticket
from baton.prompt import Span
from baton.protocol import SamplingParams
from baton.worker.handover import FirstToken

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=700, ignore_eos=True)


@pytest.fixture(scope="module")
def router(cluster: Cluster) -> Iterator[SmallRouter]:
    endpoints = (cluster.workers[name].info().control for name in ("p0", "d0"))
    small = SmallRouter(*endpoints, wants_blocks=True)
    yield small
    small.close()


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster, router: SmallRouter) -> Iterator[None]:
    yield
    cluster.assert_quiet()


def wanted(cluster: Cluster, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return cluster.offline([prompt], params)[0][0].ids


def test_the_first_token_comes_from_prefill_and_the_rest_from_decode(cluster: Cluster, router: SmallRouter) -> None:
    prefill, decode = router.links
    prompt = prompt_of(40_000, 100)
    request_id = router.start_pair(prefill, decode, prompt, GREEDY)
    router.until(
        lambda: decode.answer(request_id).is_finished() and prefill.answer(request_id).tokens, "the answer is whole"
    )
    first, rest = prefill.answer(request_id).tokens[0], decode.answer(request_id).tokens[0]
    assert [t.token_id for t in first + rest] == wanted(cluster, prompt)
    assert [t.position for t in first + rest] == list(range(100, 120))
    assert rest[0].num_fetched == 100
    assert decode.transfers[-1].num_tokens == 100


def test_a_decode_worker_without_a_ticket_computes_the_prompt(cluster: Cluster, router: SmallRouter) -> None:
    _, decode = router.links
    prompt = prompt_of(40_100, 70)
    request_id = router.start(decode, prompt, GREEDY)
    router.until(lambda: decode.answer(request_id).is_finished(), "the answer is whole")
    assert decode.answer(request_id).ids() == wanted(cluster, prompt)


@pytest.mark.parametrize("num_emitted", [1, 5, 19])
@pytest.mark.parametrize("with_prefill", [False, True])
def test_a_replay_goes_on_after_what_was_emitted(
    cluster: Cluster, router: SmallRouter, num_emitted: int, with_prefill: bool
) -> None:
    prefill, decode = router.links
    prompt = prompt_of(40_200 + num_emitted + 50 * with_prefill, 60)
    ids = wanted(cluster, prompt)
    choices = {0: ids[:num_emitted]}
    if with_prefill:
        request_id = router.start_pair(prefill, decode, prompt, GREEDY, epoch=3, choices=choices)
    else:
        request_id = router.start(decode, prompt, GREEDY, epoch=3, choices=choices)
    first, rest = prefill.answer(request_id, 3), decode.answer(request_id, 3)
    router.until(
        lambda: (
            first.is_finished() or (rest.is_finished() and (bool(first.tokens) or not with_prefill))  # they race
        ),
        "the answer is whole",
    )
    if with_prefill:
        router.cancel(request_id, 3)
    assert ids[:num_emitted] + first.ids() + rest.ids() == ids


def test_a_start_after_its_cancel_is_dropped(router: SmallRouter) -> None:
    _, decode = router.links
    request_id = uuid.uuid4().hex
    decode.send(Cancel(request_id, 2))
    for epoch in (0, 2):
        router.start(decode, prompt_of(40_300, 20), GREEDY, request_id=request_id, epoch=epoch)
    router.start(decode, prompt_of(40_300, 20), GREEDY, request_id=request_id, epoch=3)
    router.until(lambda: decode.answer(request_id, 3).is_finished(), "the open epoch is answered")
    assert not decode.answer(request_id, 0).tokens
    assert not decode.answer(request_id, 2).tokens


def test_a_second_start_of_the_same_epoch_is_dropped(cluster: Cluster, router: SmallRouter) -> None:
    _, decode = router.links
    prompt = prompt_of(40_350, 20)
    request_id = router.start(decode, prompt, GREEDY)
    router.start(decode, prompt, GREEDY, request_id=request_id)
    router.until(lambda: decode.answer(request_id).is_finished(), "the answer is whole")
    router.start(decode, prompt, GREEDY, request_id=request_id)  # and one that comes when it has ended
    after = router.start(decode, prompt, GREEDY)
    router.until(lambda: decode.answer(after).is_finished(), "what was asked after it is answered")
    assert decode.answer(request_id).ids() == wanted(cluster, prompt)


def test_a_higher_epoch_ends_the_lower_one(router: SmallRouter) -> None:
    _, decode = router.links
    prompt = prompt_of(40_400, 20)
    request_id = router.start(decode, prompt, LONG)
    router.until(lambda: decode.answer(request_id).tokens, "tokens come")
    router.start(decode, prompt, GREEDY, request_id=request_id, epoch=1)
    router.until(lambda: decode.answer(request_id, 1).is_finished(), "the higher epoch is answered")
    assert not decode.answer(request_id).is_finished()


def test_a_cancel_of_one_choice_leaves_the_others(cluster: Cluster, router: SmallRouter) -> None:
    prefill, decode = router.links
    prompt = prompt_of(40_500, 50)
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=300, ignore_eos=True)
    request_id = router.start_pair(prefill, decode, prompt, params)
    router.until(lambda: decode.answer(request_id).tokens.get(1), "choice 1 runs")
    decode.send(Cancel(request_id, 0, 1))
    answer = decode.answer(request_id)
    router.until(lambda: answer.is_finished(0) and answer.is_finished(2), "the others end")
    assert not answer.is_finished(1)
    choices = cluster.offline([prompt], params)[0]
    assert answer.ids(2) == choices[2].ids
    assert answer.ids(1) == choices[1].ids[: len(answer.ids(1))]


def test_a_cancel_of_the_first_choice_while_its_kv_is_awaited(cluster: Cluster, router: SmallRouter) -> None:
    prefill, decode = router.links
    prompt = prompt_of(40_550, 50)
    params = SamplingParams(n=2, temperature=1.0, seed=1, max_tokens=12, ignore_eos=True)
    request_id = uuid.uuid4().hex
    ticket = router.ticket(prefill, request_id, prompt)
    router.start(decode, prompt, params, request_id=request_id, ticket=ticket)
    decode.send(Cancel(request_id, 0, 0))
    router.start(prefill, prompt, params, leg="prefill", request_id=request_id, ticket=ticket)
    router.until(lambda: decode.answer(request_id).is_finished(1), "the other choice ends")
    assert not decode.answer(request_id).tokens.get(0)
    assert decode.answer(request_id).ids(1) == cluster.offline([prompt], params)[0][1].ids


def test_cancel_at_every_moment_of_a_pair(router: SmallRouter) -> None:
    prefill, decode = router.links
    for i in range(24):
        request_id = router.start_pair(prefill, decode, prompt_of(40_600 + i, 40 + 30 * i), LONG)
        for link in router.links:
            link.pump(i % 4)
        router.cancel(request_id)


def test_a_decode_leg_whose_prefill_never_starts_is_freed_by_cancel(router: SmallRouter) -> None:
    prefill, decode = router.links
    prompt, request_id = prompt_of(40_700, 80), uuid.uuid4().hex
    router.start(decode, prompt, GREEDY, request_id=request_id, ticket=router.ticket(prefill, request_id, prompt))
    router.pump_for(0.1)
    router.cancel(request_id)


def test_a_prompt_that_nobody_fetches_is_freed_when_its_lease_ends(router: SmallRouter) -> None:
    prefill, _ = router.links
    prompt, request_id = prompt_of(40_800, 80), uuid.uuid4().hex
    ticket = router.ticket(prefill, request_id, prompt)
    router.start(prefill, prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
    router.until(lambda: prefill.answer(request_id).tokens, "the first token comes")


@pytest.mark.parametrize("fault", ["secret", "layout", "source", "incarnation"])
def test_a_fetch_that_fails_costs_time_and_no_token(cluster: Cluster, router: SmallRouter, fault: str) -> None:
    prefill, decode = router.links
    prompt, request_id = prompt_of(40_900 + len(fault), 90), uuid.uuid4().hex
    good = router.ticket(prefill, request_id, prompt)
    bad = msgspec.structs.replace(
        good,
        **{
            "secret": {"secret": secrets.token_bytes(16)},
            "layout": {"layout": "another"},
            "source": {"source": "host:0;ipc:///nowhere"},
            "incarnation": {"source_incarnation": "another"},
        }[fault],
    )
    router.start(decode, prompt, GREEDY, request_id=request_id, ticket=bad)
    router.start(prefill, prompt, GREEDY, leg="prefill", request_id=request_id, ticket=good)
    router.until(lambda: decode.answer(request_id).is_finished(), "the answer is whole")
    assert decode.answer(request_id).ids() == wanted(cluster, prompt)
    assert decode.answer(request_id).tokens[0][0].position == 90  # it computed the first token too
    router.cancel(request_id)


def test_a_ticket_of_another_worker_is_refused_as_retryable(router: SmallRouter) -> None:
    prefill, _ = router.links
    prompt, request_id = prompt_of(41_000, 30), uuid.uuid4().hex
    ticket: Ticket = router.ticket(prefill, request_id, prompt)
    ticket = msgspec.structs.replace(ticket, source_incarnation="another")
    router.start(prefill, prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
    router.until(lambda: prefill.answer(request_id).ended, "it is refused")
    assert prefill.answer(request_id).ended[0].error.retryable


@pytest.mark.parametrize(
    ("token_ids", "kind"), [([10**9], "invalid_request"), (list(range(5, 205)) * 6, "context_too_long")]
)
def test_a_prompt_that_cannot_run_is_refused_for_good(router: SmallRouter, token_ids: list[int], kind: str) -> None:
    for link, leg in zip(router.links, ("prefill", "decode"), strict=True):
        request_id = router.start(link, token_ids, GREEDY, leg=leg)
        router.until(lambda link=link, r=request_id: link.answer(r).ended, "it is refused")  # type: ignore[misc]
        error = link.answer(request_id).ended[0].error
        assert (error.kind, error.retryable) == (kind, False)


def test_media_are_refused_for_good_and_not_ignored_by_a_model_that_takes_none(router: SmallRouter) -> None:
    for link, leg in zip(router.links, ("prefill", "decode"), strict=True):
        request_id = router.start(link, prompt_of(41_050, 30), GREEDY, leg=leg, spans=(Span(4, 8, b"cat"),))
        router.until(lambda link=link, r=request_id: link.answer(r).ended, "it is refused")  # type: ignore[misc]
        error = link.answer(request_id).ended[0].error
        assert (error.kind, error.retryable, error.field) == ("unsupported", False, "spans")
        assert all(words in error.message for words in ("spans=4..12", "no media", "Send the prompt without"))
        assert not link.answer(request_id).tokens


def test_a_leg_that_a_worker_lacks_is_refused_as_retryable(router: SmallRouter) -> None:
    prefill, _ = router.links
    request_id = router.start(prefill, [5, 6], GREEDY, leg="decode")
    router.until(lambda: prefill.answer(request_id).ended, "it is refused")
    assert prefill.answer(request_id).ended[0].error.retryable


@pytest.mark.parametrize("emitted", [[10**6], [5] * 10**4])
def test_tokens_before_a_replay_that_cannot_be_cost_that_request_only(router: SmallRouter, emitted: list[int]) -> None:
    _, decode = router.links
    neighbour = router.start(decode, prompt_of(41_200, 30), GREEDY)
    wrong = router.start(decode, prompt_of(41_201, 30), GREEDY, epoch=1, choices={0: emitted})
    router.until(lambda: decode.answer(wrong, 1).ended and decode.answer(neighbour).is_finished(), "both end")
    assert decode.answer(wrong, 1).ended[0].error.kind == "internal"
    assert not decode.answer(neighbour).ended


def test_a_deadline_ends_a_running_request(router: SmallRouter) -> None:
    _, decode = router.links
    request_id = router.start(decode, prompt_of(41_100, 30), LONG, seconds_left=0.2)
    late = router.start(decode, prompt_of(41_101, 30), LONG, seconds_left=-1)
    router.until(lambda: decode.answer(request_id).ended and decode.answer(late).ended, "both end")
    assert decode.answer(request_id).ended[0].error.kind == "deadline"
    assert decode.answer(late).ended[0].error.kind == "deadline"
    assert not decode.answer(late).tokens


def test_garbage_is_dropped_and_counted_and_hurts_nobody(cluster: Cluster, router: SmallRouter) -> None:
    _, decode = router.links
    before = cluster.workers["d0"].metrics()["stale_messages_total"]
    prompt = prompt_of(41_200, 40)
    request_id = router.start(decode, prompt, GREEDY)
    for link in router.links:
        for frame in (b"", b"\x00", secrets.token_bytes(1000), b"\xdd" + b"\xff" * 20):
            link.socket.send(frame)
        link.socket.send_multipart([b"two", b"frames"])
    router.until(lambda: decode.answer(request_id).is_finished(), "the answer is whole")
    assert decode.answer(request_id).ids() == wanted(cluster, prompt)
    router.until(lambda: cluster.workers["d0"].metrics()["stale_messages_total"] >= before + 5, "all are counted")


def test_one_message_a_step_carries_the_tokens_of_all_requests(router: SmallRouter) -> None:
    _, decode = router.links
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    before = decode.num_outputs
    ids = [router.start(decode, prompt_of(41_300 + i, 8), params) for i in range(32)]
    router.until(lambda: all(decode.answer(i).is_finished() for i in ids), "all end")
    assert decode.num_outputs - before < 32 * 50 / 8


def test_the_block_log_on_the_socket_says_what_is_cached(cluster: Cluster, router: SmallRouter) -> None:
    for link, name in zip(router.links, ("p0", "d0"), strict=True):
        prompt = prompt_of(41_400, 64)
        leg = "prefill" if name == "p0" else "decode"
        request_id = router.start(link, prompt, SamplingParams(temperature=0, max_tokens=1), leg=leg)
        router.until(lambda link=link, r=request_id: link.answer(r).tokens, "it is computed")  # type: ignore[misc]
        cluster.assert_quiet()

        def is_complete(link: Link = link, name: str = name) -> bool:
            num_cached = cluster.workers[name].metrics()['kv_blocks{state="cached"}']
            return num_cached == len(_hashes_told(link))

        router.until(is_complete, "the log has every cached block")


def _hashes_told(link: Link) -> set[bytes]:
    """Apply a block log from its newest snapshot on; from there entries are numbered without gaps.

    A worker that has not heard of a router for long forgets it, and begins anew, with a snapshot, when it comes back.
    """
    newest = max(at for at, entry in enumerate(link.blocks) if entry.is_snapshot)
    hashes, sequence = set(link.blocks[newest].stored), link.blocks[newest].sequence
    for entry in link.blocks[newest + 1 :]:
        assert entry.sequence == sequence + 1
        sequence = entry.sequence
        hashes = (hashes - set(entry.evicted)) | set(entry.stored)
    return hashes


def test_a_first_token_is_read_as_it_was_written() -> None:
    first = FirstToken(2, 17, 100, True)
    assert FirstToken.decode(first.encode()) == first


def test_decode_also_prefill_announces_and_serves_both_legs(cluster: Cluster) -> None:
    both = SmallRouter(*(cluster.workers[name].info().control for name in ("d0", "d1")))
    lender, other = both.links
    assert lender.info is not None
    assert set(lender.info.legs) == {"prefill", "decode"}

    def num_ended() -> list[float]:
        counts = cluster.workers["d0"].metrics()
        return [counts.get(f'phase_seconds_count{{phase="{leg}"}}', 0) for leg in ("prefill", "decode")]

    before = num_ended()
    long = both.start(lender, prompt_of(41_510, 30), LONG)
    both.until(lambda: lender.answer(long).tokens, "it decodes")
    prompt = prompt_of(41_500, 200)
    request_id = both.start_pair(lender, other, prompt, GREEDY)
    both.until(
        lambda: other.answer(request_id).is_finished() and lender.answer(request_id).tokens, "the answer is whole"
    )
    assert lender.answer(request_id).ids() + other.answer(request_id).ids() == wanted(cluster, prompt)
    assert not lender.answer(long).is_finished()  # it went on meanwhile
    both.cancel(long)
    both.close()
    eventually(lambda: num_ended() == [count + 1 for count in before], "each leg is counted by its name")


def test_a_worker_that_is_refused_is_not_ready_and_says_why(cluster: Cluster) -> None:
    worker = start_worker("decode", cluster.model, cluster.folder, "refused", *WORKER_FLAGS, "--block-size", "32")
    try:
        worker.wait_ready()
        link = Link(worker.info().control, "r1")
        link.hello = Hello("r1", refusal="block_size is 32, and 16 on d0")
        eventually(lambda: (link.pump(), httpx.get(f"{worker.url}/ready"))[1].status_code == 503, "it is not ready")
        assert httpx.get(f"{worker.url}/ready").json() == {
            "status": "refused by the router: block_size is 32, and 16 on d0"
        }
        link.hello = Hello("r1")
        eventually(lambda: (link.pump(), httpx.get(f"{worker.url}/ready"))[1].status_code == 200, "it is ready again")
        assert worker.log().count("refused_by_router") == 1
    finally:
        worker.kill()


def test_a_worker_whose_loop_hangs_is_seen_by_its_face(cluster: Cluster) -> None:
    worker = cluster.workers["p1"]
    engine = worker.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        eventually(lambda: httpx.get(f"{worker.url}/health").status_code == 503, "the face says so")
    finally:
        os.kill(engine, signal.SIGCONT)
    worker.wait_ready()
    cluster.wait_seen()
