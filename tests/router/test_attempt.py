"""One epoch of a request: every verdict, every transition, and what holds whatever comes in."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.messages import Ticket, Token
from baton.router.attempt import MAX_EARLY, Attempt, Choice, State, Verdict

NUM_PROMPT = 20
ANSWER = [100 + i for i in range(8)]


def attempt(*, remote: bool = True, epoch: int = 0, num_choices: int = 1, given: int = 0) -> Attempt:
    choices = [Choice(index) for index in range(num_choices)]
    for choice in choices:
        choice.tokens = ANSWER[:given]
    return Attempt(epoch, NUM_PROMPT, choices, "d", "p" if remote else None)


def token(at: int, **changes: Any) -> Token:
    fields = {"epoch": 0, "choice": 0, "position": NUM_PROMPT + at, "token_id": ANSWER[at % len(ANSWER)]} | changes
    return Token("id", **fields)


def in_state(state: State) -> Attempt:
    """Bring an attempt with both workers into a state."""
    made = attempt()
    if state in (State.HANDED, State.DECODING):
        made.take(token(0), "p")
    if state is State.DECODING:
        made.take(token(1), "d")
    if state is State.OVERTAKEN:
        made.take(token(1), "d")
    if state is State.CLOSED:
        made.close()
    assert made.state is state
    return made


# -- verdicts -------------------------------------------------------------------------------------------------


def test_the_next_token_of_a_choice_is_accepted_and_kept() -> None:
    made = attempt(remote=False)
    assert [made.take(token(at), "d") for at in range(3)] == [Verdict.ACCEPTED] * 3
    assert made.choices[0].tokens == ANSWER[:3]


def test_a_replay_goes_on_after_what_the_client_has() -> None:
    made = attempt(remote=False, epoch=1, given=3)
    assert made.take(token(3, epoch=1), "d") is Verdict.ACCEPTED
    assert made.choices[0].tokens == ANSWER[:4]


def test_another_first_token_is_a_mismatch_only_where_both_stand_on_the_same_kv() -> None:
    ticket = Ticket(bytes(16), 0, bytes(16), "layout", "source", "p-1", NUM_PROMPT)
    for arrived, verdict in ((False, Verdict.RECOMPUTED), (True, Verdict.MISMATCH)):
        made = Attempt(0, NUM_PROMPT, [Choice(0)], "d", "p", ticket, kv_arrived=arrived)
        assert made.take(token(0), "p") is Verdict.ACCEPTED
        assert made.take(token(0, token_id=399), "d") is verdict
        assert made.choices[0].tokens == ANSWER[:1]


def test_a_known_token_is_a_repeat_and_another_one_in_its_place_a_mismatch() -> None:
    made = attempt(remote=False, given=3)
    assert made.take(token(1), "d") is Verdict.REPEAT
    assert made.take(token(1, token_id=399), "d") is Verdict.MISMATCH
    assert made.take(token(0, position=NUM_PROMPT - 1), "d") is Verdict.MISMATCH
    assert made.choices[0].tokens == ANSWER[:3]


def test_a_token_of_a_choice_that_has_ended_is_a_repeat() -> None:
    made = attempt(remote=False)
    made.choices[0].is_done = True
    assert made.take(token(0), "d") is Verdict.REPEAT


@pytest.mark.parametrize("choice", [-1, 2])
def test_a_choice_that_nobody_asked_for_is_unknown(choice: int) -> None:
    assert attempt(num_choices=2).take(token(0, choice=choice), "d") is Verdict.UNKNOWN


@pytest.mark.parametrize(("epoch", "worker"), [(0, "d"), (2, "d"), (1, "p2")])
def test_another_epoch_and_a_worker_without_a_leg_are_stale(epoch: int, worker: str) -> None:
    made = attempt(epoch=1)
    assert made.take(token(0, epoch=epoch), worker) is Verdict.STALE
    assert made.state is State.PREFILLING


def test_a_closed_attempt_takes_nothing() -> None:
    made = in_state(State.OVERTAKEN)
    made.close()
    assert made.take(token(0), "p") is Verdict.STALE
    assert not made.early
    assert not made.has_leg("d", 0)


def test_tokens_that_overtake_the_first_one_are_kept() -> None:
    made = attempt()
    assert [made.take(token(at), "d") for at in (2, 1)] == [Verdict.EARLY] * 2
    assert made.early == {1: token(1), 2: token(2)}
    assert made.choices[0].tokens == []
    assert made.take(token(0), "p") is Verdict.ACCEPTED
    assert made.take(made.early.pop(1), "d") is Verdict.ACCEPTED


def test_another_token_in_the_place_of_one_that_is_kept_is_a_mismatch() -> None:
    made = attempt()
    verdicts = [made.take(each, "d") for each in (token(1), token(1), token(1, token_id=3))]
    assert verdicts == [Verdict.EARLY, Verdict.EARLY, Verdict.MISMATCH]
    assert made.early == {1: token(1)}


@pytest.mark.parametrize("state", [State.HANDED, State.DECODING])
def test_nothing_is_early_when_no_first_token_is_awaited(state: State) -> None:
    made = in_state(state)
    assert made.take(token(5), "d") is Verdict.GAP


def test_only_the_first_choice_can_be_early_for_its_first_token_alone_comes_from_prefill() -> None:
    assert attempt(num_choices=2).take(token(1, choice=1), "d") is Verdict.GAP


def test_what_is_kept_is_bounded() -> None:
    made = attempt()
    verdicts = [made.take(token(1 + at), "d") for at in range(MAX_EARLY + 1)]
    assert verdicts == [Verdict.EARLY] * MAX_EARLY + [Verdict.GAP]


# -- transitions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "worker", "after"),
    [
        (State.PREFILLING, "p", State.HANDED),
        (State.PREFILLING, "d", State.OVERTAKEN),
        (State.OVERTAKEN, "d", State.OVERTAKEN),
        (State.OVERTAKEN, "p", State.DECODING),
        (State.HANDED, "p", State.HANDED),
        (State.HANDED, "d", State.DECODING),
        (State.DECODING, "d", State.DECODING),
        (State.DECODING, "p", State.DECODING),
        (State.CLOSED, "d", State.CLOSED),
        (State.CLOSED, "p", State.CLOSED),
    ],
)
def test_a_token_moves_the_state(before: State, worker: str, after: State) -> None:
    made = in_state(before)
    made.take(token(0), worker)
    assert made.state is after


def test_without_a_prefill_worker_the_decode_worker_is_awaited_at_once() -> None:
    made = attempt(remote=False)
    states = [made.state]
    made.take(token(0), "d")
    assert [*states, made.state] == [State.HANDED, State.DECODING]


@pytest.mark.parametrize(
    ("state", "awaited"),
    [
        (State.PREFILLING, {"d", "p"}),
        (State.OVERTAKEN, {"d", "p"}),
        (State.HANDED, {"d"}),
        (State.DECODING, {"d"}),
        (State.CLOSED, set()),
    ],
)
def test_each_state_says_who_owes_a_token(state: State, awaited: set[str]) -> None:
    made = in_state(state)
    assert {worker for worker in ("d", "p", "other") if made.waits_for(worker)} == awaited


@pytest.mark.parametrize("state", [State.PREFILLING, State.HANDED])
def test_a_prefill_worker_is_needed_until_decode_has_given_a_token(state: State) -> None:
    made = in_state(state)
    assert not made.lose_prefill()
    assert made.state is state


def test_a_prefill_worker_is_needed_while_its_first_token_is_missing() -> None:
    made = in_state(State.OVERTAKEN)
    assert not made.lose_prefill()


def test_a_decode_worker_that_computed_all_by_itself_needs_no_prefill_worker() -> None:
    made = attempt()
    made.take(token(0), "d")
    states = [made.state]
    assert made.lose_prefill()
    assert [*states, made.state] == [State.OVERTAKEN, State.DECODING]
    assert made.take(token(1), "d") is Verdict.ACCEPTED
    assert made.take(token(0), "p") is Verdict.STALE


def test_a_prefill_worker_whose_kv_has_arrived_may_go() -> None:
    made = in_state(State.DECODING)
    assert made.lose_prefill()
    assert (made.state, made.prefill) == (State.DECODING, None)


# -- whatever comes -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["d", "p", "x"]), st.integers(0, 1), st.booleans())),
)
@example(True, [(1, "d", 0, True), (1, "d", 0, False)])  # kept early, and said otherwise before its turn
def test_what_is_kept_is_a_right_beginning_whatever_comes(remote: bool, said: list[tuple[int, str, int, bool]]) -> None:
    """Tokens of right epoch and id are taken in any order; none is taken twice, lost or changed."""
    made = attempt(remote=remote)
    for at, worker, epoch, is_right in said:
        tokens, early = list(made.choices[0].tokens), set(made.early)
        verdict = made.take(token(at, epoch=epoch, token_id=100 + at if is_right else 399), worker)
        if verdict is Verdict.ACCEPTED:
            assert made.choices[0].tokens == [*tokens, 100 + at if is_right else 399]
        else:
            assert made.choices[0].tokens == tokens
        assert (verdict is Verdict.STALE) == (epoch != 0 or worker == "x" or (worker == "p" and not remote))
        if verdict is Verdict.MISMATCH:
            assert at < len(tokens) or at in early
