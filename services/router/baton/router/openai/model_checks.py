"""What of a request is checked against the model that serves: ids, lengths, and what the answer may come to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from baton.errors import InvalidRequest, Unavailable, refuse
from baton.messages import ModelFacts
from baton.prompt import Prompt
from baton.protocol import MAX_LOGPROBS, SamplingParams, check_answer_len, check_prompt
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.requests.structured import in_field
from baton.router.router_state import RouterState
from baton.structured_outputs import StructuredOutputs
from baton.text import bad_words_ids

_LONG = 4096
_TEXT_NBYTES, _ID_NBYTES, _TOKEN_NBYTES, _SCORE_NBYTES = 4, 6, 48, 32
"""What a prompt's token takes about in an event: as text, as an id, and with scores; and each of those."""


_EVENT_SCORE_NBYTES = 80
"""What a log-probability takes in a chat's event: a token's text, its bytes, and the score."""


async def check_with_model(
    router: RouterState, request: ChatRequest | CompletionRequest, params: SamplingParams, prompts: Sequence[Prompt]
) -> SamplingParams:
    """Check parameters and prompts; return the parameters with the model's defaults, and bad words as ids.

    Raises:
        InvalidRequest: the model cannot do it, or its context does not hold it.
        Unavailable: no worker has come yet.
    """
    facts = facts_of(router)
    if facts.pooling is not None:
        raise _generates_nothing(facts)
    defaults = {name: v for name, v in router.sampling_defaults.items() if getattr(request, name) is None}
    if defaults:
        params = params.replace(**defaults)
    if params.bad_words:
        spelled = await router.text.run(bad_words_ids, router.tokenizer, params.bad_words)
        params = params.replace(bad_words_ids=spelled)
    params = params.with_vocab(facts.vocab_size)
    params.check_vocab(facts.vocab_size, facts.eos_token_ids)
    await _check_lengths(prompts, params, facts, request)
    if params.structured_outputs is not None:
        await _check_form(router, request, params.structured_outputs)
    router.config.limits.check_scores(params, sum(map(len, prompts)))
    if request.stream:
        _check_stream_begin(router, request, params, prompts)
    if not request.stream or (params.num_top or 0) > MAX_LOGPROBS:
        room = sum(min(params.max_tokens or facts.max_model_len, facts.max_model_len - len(each)) for each in prompts)
        router.config.limits.check_answer_scores(params, room)
    return params


async def _check_form(router: RouterState, request: ChatRequest | CompletionRequest, form: StructuredOutputs) -> None:
    """Refuse a form that no grammar can be made of, naming the request's field."""
    try:
        await router.forms.check(form)
    except InvalidRequest as error:
        given = request.form()
        raise in_field("tools" if given is None else given[0], error) from None  # of strict ones no field says it


def _check_stream_begin(
    router: RouterState, request: ChatRequest | CompletionRequest, params: SamplingParams, prompts: Sequence[Prompt]
) -> None:
    """Refuse a stream that gives so much of its prompts, all at once, that no client could take it in time."""
    num_tokens, nbytes = sum(map(len, prompts)), 0
    if isinstance(request, CompletionRequest) and request.echo:
        nbytes += sum(len(each) if isinstance(each, str) else _TEXT_NBYTES * len(each) for each in request.prompt)
        if request.logprobs is not None:
            nbytes += num_tokens * (_TOKEN_NBYTES + _SCORE_NBYTES * ((params.prompt_logprobs or 0) + 1))
    if request.return_token_ids:
        nbytes += _ID_NBYTES * num_tokens
    limit = router.config.stream_buffer_nbytes
    if (count := params.num_top or 0) * _EVENT_SCORE_NBYTES > limit:
        reason = f"each event would have {count} log-probabilities, and at most {limit} bytes may wait"
        raise refuse("stream", True, reason, "Ask without stream, or raise the router's --stream-buffer-nbytes.")
    if nbytes * params.n > limit:
        reason = f"its first events would give {nbytes * params.n} bytes of the prompt, and at most {limit} may wait"
        raise refuse("stream", True, reason, "Ask without stream, or raise the router's --stream-buffer-nbytes.")


def _generates_nothing(facts: ModelFacts) -> InvalidRequest:
    """Refuse to generate with a model that pools."""
    paths = "/classify, /v1/score or /v1/rerank" if facts.pooling and facts.pooling.labels else "/v1/embeddings"
    return InvalidRequest(
        f"{facts.name} generates no text: ask {paths}, or serve a model that does.",
        field="model",
        code="model_not_supported",
    )


def facts_of(router: RouterState) -> ModelFacts:
    """Return what is known of the model; workers are alike, but for the parts of their hash chains.

    Raises:
        Unavailable: no worker has come yet.
    """
    facts = router.dispatcher.last_facts
    if facts is None:
        raise Unavailable("No decode worker is ready. Try again in a few seconds.")
    return facts


async def _check_lengths(
    prompts: Sequence[Prompt], params: SamplingParams, facts: ModelFacts, request: ChatRequest | CompletionRequest
) -> None:
    """Refuse prompts, or prompts with their answers, that the context does not hold."""
    says_completion = getattr(request, "max_completion_tokens", None) is not None
    field = "max_completion_tokens" if says_completion else "max_tokens"
    for index, prompt in enumerate(prompts):
        try:
            check_prompt(prompt, facts.vocab_size, facts.max_model_len)
            check_answer_len(prompt, params, facts.max_model_len, max_tokens_field=field)
        except InvalidRequest as error:
            raise (error if len(prompts) == 1 else error.of(f"prompt {index}")) from None
        if len(prompt) > _LONG:
            await asyncio.sleep(0)  # there may be many: others have their turn between
