"""What a request with use_beam_search asks for, and which of its other fields a search does not keep to."""

from __future__ import annotations

from baton.beam_search import BeamSearchParams
from baton.errors import refuse, unsupported
from baton.protocol import MAX_BEAM_WIDTH, SamplingParams
from baton.requests.sampling import SamplingRequest

_NOT_KEPT: dict[str, object] = {
    **dict.fromkeys(("stop", "stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words", "logprob_token_ids")),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens"), 0),
    **{"repetition_penalty": 1, "prompt_logprobs": None, "repetition_detection": None, "logits_processors": None},
}
"""Fields, and the value that asks for nothing."""


def check_beams(request: SamplingRequest, width: int) -> None:
    """Refuse what beams do not keep to, and fields of a search where there is none.

    Raises:
        InvalidRequest: names the field.
    """
    if not request.use_beam_search:
        for name, neutral in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(request, name) not in (None, neutral):
                raise refuse(name, getattr(request, name), "use_beam_search is not set", "Set it, or leave this out.")
        return
    if request.stream:
        raise refuse("stream", True, "a beam search has its answers at its end only", "Ask without stream.")
    if width > MAX_BEAM_WIDTH:
        raise refuse("n", width, f"a beam search has at most {MAX_BEAM_WIDTH} beams", "Ask for fewer.")
    for name, nothing in _NOT_KEPT.items():
        value = getattr(request, name)
        if value and value != nothing:
            raise unsupported(name, value, "a beam search does not keep to it", "Leave one of the two out.")
    if (form := request.form()) is not None:
        raise unsupported(form[0], "given", "a beam search does not keep to it", "Leave one of the two out.")
    budget = getattr(request, "thinking_token_budget", None)
    if budget not in (None, -1):
        raise unsupported("thinking_token_budget", budget, "a beam search does not keep to it", "Leave it out.")
    if getattr(request, "echo", False) and getattr(request, "logprobs", None) not in (None, False):
        raise unsupported("echo", True, "a beam search scores no prompt", "Ask without echo, or without logprobs.")
    if request.max_tokens == 0:
        raise refuse("max_tokens", 0, "a beam search needs at least 1")


def beams_of(request: SamplingRequest, params: SamplingParams, room: int) -> BeamSearchParams | None:
    """Return the search that a request asks for, if it does; `room` is what the context holds behind the prompt."""
    if not request.use_beam_search:
        return None
    penalty = request.length_penalty
    return BeamSearchParams(
        beam_width=params.n,
        max_tokens=room if params.max_tokens is None else params.max_tokens,
        ignore_eos=params.ignore_eos,
        length_penalty=1.0 if penalty is None else penalty,
        include_stop_str_in_output=params.include_stop_str_in_output,
        early_stopping=bool(request.early_stopping),
    )
