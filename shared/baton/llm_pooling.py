"""What `LLM` does with a model that pools: vectors, classes and scores, by vLLM's names."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from baton.engine.engine import Engine, TokenOutput
from baton.errors import InvalidRequest, UnsupportedFeature, refuse
from baton.pooled_text import Cut, encode_pairs, encode_texts
from baton.pooling import PoolingFacts, PoolingParams, Task, check_pooled_prompt
from baton.prompt import Prompt
from baton.text import Tokenizer
from baton.vllm_names import CALLS, own_names

_AT_ONCE = 256
"""Texts encoded by one call."""


@dataclass(slots=True)
class PoolingOutput:
    """What one prompt gave."""

    data: Tensor
    """fp32, on the CPU: [size], or [tokens, size]."""

    @property
    def embedding(self) -> list[float]:
        """Of `LLM.embed`: the vector."""
        return self.data.tolist()

    @property
    def probs(self) -> list[float]:
        """Of `LLM.classify`: each class's share."""
        return self.data.tolist()

    @property
    def num_classes(self) -> int:
        """Of `LLM.classify`."""
        return len(self.data)

    @property
    def score(self) -> float:
        """Of `LLM.score`."""
        return float(self.data)


@dataclass(slots=True)
class PoolingRequestOutput:
    """The answer to one prompt."""

    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class _Pooled:
    """One prompt on its way."""

    def __init__(self, request_id: str, prompt: Prompt, params: PoolingParams, salt: str) -> None:
        self.request_id, self.num_choices, self.num_ends = request_id, 1, 1
        self.output: PoolingRequestOutput
        self._prompt, self._params, self._salt = prompt, params, salt

    def start(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        engine.pool_prompt(self.request_id, self._prompt, self._params, salt=self._salt.encode())

    def take(self, token: TokenOutput, engine: Engine) -> bool:
        assert token.pooled is not None
        data = torch.from_numpy(np.frombuffer(token.pooled.data, np.float32).reshape(token.pooled.shape).copy())
        made = PoolingOutput(data)
        self.output = PoolingRequestOutput(self.request_id, made, self._prompt.token_ids, token.num_cached_tokens)
        return True


class PoolsPrompts:
    """The methods of `LLM` for a model that pools."""

    engine: Engine
    _request_ids: Iterator[int] = itertools.count()

    @abstractmethod
    def _text(self) -> Tokenizer: ...

    @abstractmethod
    def _items(self, prompts: Any) -> list[dict[str, Any]]:
        """Return each prompt in its one form."""

    @abstractmethod
    def _run(self, answers: Sequence[_Pooled], use_tqdm: bool | Callable[..., Any]) -> None: ...

    def embed(
        self, prompts: Any, *, pooling_params: PoolingParams | None = None, use_tqdm: bool = True, **others: Any
    ) -> list[PoolingRequestOutput]:
        """Give a vector for each prompt, as `outputs.embedding`; results in the order of the prompts.

        Prompts are written as for `generate`; with `truncate_prompt_tokens` long ones are cut, -1: to what the model takes.

        Raises:
            InvalidRequest: names the field, value, limit and way out (and which prompt).
        """
        return self.encode(prompts, pooling_params=pooling_params, pooling_task="embed", use_tqdm=use_tqdm, **others)

    def classify(
        self, prompts: Any, *, pooling_params: PoolingParams | None = None, use_tqdm: bool = True, **others: Any
    ) -> list[PoolingRequestOutput]:
        """Give each class's share for each prompt, as `outputs.probs`; as `embed`."""
        return self.encode(prompts, pooling_params=pooling_params, pooling_task="classify", use_tqdm=use_tqdm, **others)

    def encode(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | None = None,
        pooling_task: Task | None = None,
        truncate_prompt_tokens: int | None = None,
        truncation_side: Literal["left", "right"] | None = None,
        use_tqdm: bool = True,
        **others: Any,
    ) -> list[PoolingRequestOutput]:
        """Give what the model pools of each prompt, as the tensor `outputs.data`; as `embed`."""
        own_names(CALLS, others, own=())
        facts = self._facts()
        wanted = pooling_params or PoolingParams()
        task = pooling_task or (facts.tasks[0] if pooling_params is None else wanted.task)
        params = PoolingParams(task, wanted.dimensions, wanted.use_activation)
        facts.check_task(task)
        facts.check_dimensions(params.dimensions)
        cut = Cut.of(truncate_prompt_tokens, truncation_side, self.engine.max_model_len)
        items = self._items(prompts)
        token_ids = self._encode_items(items, cut, lowercase=facts.lowercase)
        salts = [each.get("cache_salt") or "" for each in items]
        return self._pool([(each, params) for each in token_ids], salts, "prompt", use_tqdm)

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
        **others: Any,
    ) -> list[PoolingRequestOutput]:
        """Say how well texts fit, one with all or one with one, as `outputs.score`.

        A classifier of one class reads both together; of vectors it is the cosine.

        Raises:
            InvalidRequest: as `embed`.
        """
        own_names(CALLS, others, own=())
        facts = self._facts()
        firsts, seconds = ([each] if isinstance(each, str) else list(each) for each in (data_1, data_2))
        if not seconds or len(firsts) not in (1, len(seconds)):
            limit = f"there are {len(seconds)} texts in data_2, and data_1 must have one, or as many"
            raise refuse("data_1", f"{len(firsts)} texts", limit)
        firsts = firsts * len(seconds) if len(firsts) == 1 else firsts
        if "classify" not in facts.tasks:
            vectors = self.embed([*firsts, *seconds], truncate_prompt_tokens=truncate_prompt_tokens, use_tqdm=use_tqdm)
            for first, second in zip(vectors[: len(firsts)], vectors[len(firsts) :], strict=True):
                cosine = torch.cosine_similarity(first.outputs.data, second.outputs.data, dim=0)
                first.outputs = PoolingOutput(cosine)
            return vectors[: len(firsts)]
        if len(facts.labels) != 1:
            raise refuse("model", f"{len(facts.labels)} classes", "a score needs a classifier of one class")
        pairs = list(zip(firsts, seconds, strict=True))
        cut = Cut.of(truncate_prompt_tokens, None, self.engine.max_model_len)
        encoded = encode_pairs(self._text(), pairs, cut, field="data_2", lowercase=facts.lowercase)
        asked = [(token_ids, PoolingParams("classify", second_at=at)) for token_ids, at in encoded]
        outputs = self._pool(asked, [""] * len(asked), "data_2", use_tqdm)
        for output in outputs:
            output.outputs = PoolingOutput(output.outputs.data[0])
        return outputs

    def _facts(self) -> PoolingFacts:
        facts = self.engine.pooling
        if facts is None:
            raise UnsupportedFeature(
                "this model generates text and gives no vectors or scores. Load an embedding model, or give "
                "LLM(convert='embed').",
                field="model",
            )
        return facts

    def _encode_items(self, items: Sequence[dict[str, Any]], cut: Cut, *, lowercase: bool) -> list[list[int]]:
        """Return the ids of all prompts; texts many at once."""
        found: list[list[int]] = [each.get("prompt_token_ids") or [] for each in items]
        texts = [i for i, each in enumerate(items) if each.get("prompt") is not None]
        for at in range(0, len(texts), _AT_ONCE):
            some = texts[at : at + _AT_ONCE]
            given = [items[i]["prompt"] for i in some]
            encoded = encode_texts(self._text(), given, cut, field="prompt", lowercase=lowercase)
            for i, ids in zip(some, encoded, strict=True):
                found[i] = ids
        is_text = set(texts)
        return [ids if i in is_text else cut.ids(ids, f"prompt {i}") for i, ids in enumerate(found)]

    def _pool(
        self, asked: Sequence[tuple[list[int], PoolingParams]], salts: Sequence[str], field: str, use_tqdm: bool
    ) -> list[PoolingRequestOutput]:
        answers = []
        vocab_size, longest = self.engine.model.spec.vocab_size, self.engine.max_model_len
        for index, ((token_ids, params), salt) in enumerate(zip(asked, salts, strict=True)):
            prompt = Prompt(token_ids)
            try:
                check_pooled_prompt(prompt, vocab_size, longest, field)
            except InvalidRequest as error:
                raise error.of(f"{field} {index}") from None
            answers.append(_Pooled(str(next(self._request_ids)), prompt, params, salt))
        self._run(answers, use_tqdm)
        return [answer.output for answer in answers]
