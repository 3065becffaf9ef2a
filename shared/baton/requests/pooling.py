"""Requests that generate nothing: for vectors, classes and scores. OpenAI's fields, Jina's and Cohere's, and vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from baton.pooling import PoolingParams, Task
from baton.requests.closed import Closed
from baton.requests.conversation import Conversation
from baton.requests.fields import INT31, Prompt, Whole
from baton.requests.unserved import POOLING

MAX_ITEMS = 2048
"""Inputs, pairs or documents of one request; the OpenAI API takes as many inputs."""
_TEXT = {"type": "string"}


class PoolingRequest(Closed):
    """What all of them share."""

    unserved = POOLING
    ignored = frozenset(["user", "metadata", "service_tier", "safety_identifier"])
    long: ClassVar[tuple[str, ...]] = ()
    """Fields that may hold much."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT31), Whole] | None = None
    """Tokens that are kept of what is longer; -1: as many as the model takes. Without it that is refused."""
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=INT31), Whole] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Stands in the answer's id."""


class InputRequest(PoolingRequest, Conversation):
    """A text, several, token ids, several lists of them; or a conversation, which the model's template renders."""

    long = ("input",)
    input: Prompt | None = None

    @model_validator(mode="after")
    def _one_of(self) -> InputRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("exactly one of input and messages must be given")
        _check_count("input", self.input or ())
        if self.add_generation_prompt is None:  # nothing is generated after a conversation
            self.add_generation_prompt = False
        return self


class EmbeddingRequest(InputRequest):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1, le=INT31), Whole] | None = None
    normalize: bool | None = None

    def pooling_params(self) -> PoolingParams:
        """Return what is wanted of each input."""
        use = self.use_activation if self.normalize is None else self.normalize
        return PoolingParams(dimensions=self.dimensions, use_activation=use)


class PoolRequest(EmbeddingRequest):
    """POST /pooling: whatever the model gives."""

    task: Task | None = None
    """None: the model's first."""


class ClassifyRequest(InputRequest):
    """POST /classify."""


def _check_texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("it must be a text or a list of texts, not empty")
    return texts


def _check_documents(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("it must be a list of texts, not empty")
    texts: list[Any] = [
        each.get("text") if isinstance(each, dict) and each.keys() == {"text"} else each for each in value
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('its entries must be texts, or objects {"text": ...}')
    return texts


Texts = Annotated[
    list[str],
    PlainValidator(_check_texts),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_ITEMS}]}),
]
_DOCUMENT = {"anyOf": [_TEXT, {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}]}
Documents = Annotated[
    list[str],
    PlainValidator(_check_documents),
    WithJsonSchema({"type": "array", "items": _DOCUMENT, "minItems": 1, "maxItems": MAX_ITEMS}),
]


class ScoreRequest(PoolingRequest):
    """POST /v1/score: how well texts fit; one to one, or one to many."""

    long = ("text_1", "text_2")
    text_1: Texts
    text_2: Texts

    @model_validator(mode="after")
    def _fit(self) -> ScoreRequest:
        _check_count("text_2", self.text_2)
        if len(self.text_1) not in (1, len(self.text_2)):
            many = f"text_1 has {len(self.text_1)} texts and text_2 has {len(self.text_2)}"
            raise ValueError(f"{many}: text_1 must have one, or as many as text_2")
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """Return the texts to compare."""
        firsts = self.text_1 * len(self.text_2) if len(self.text_1) == 1 else self.text_1
        return list(zip(firsts, self.text_2, strict=True))


class RerankRequest(PoolingRequest):
    """POST /v1/rerank: documents, by how well they fit a query."""

    long = ("query", "documents")
    query: str
    documents: Documents
    top_n: Annotated[int, Field(ge=0, le=INT31), Whole] | None = None
    """How many are given; none or 0: all."""
    return_documents: bool | None = True

    @model_validator(mode="after")
    def _fit(self) -> RerankRequest:
        _check_count("documents", self.documents)
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """Return the query with each document."""
        return [(self.query, document) for document in self.documents]


def _check_count(field: str, items: Any) -> None:
    if len(items) > MAX_ITEMS:
        raise ValueError(f"{field} has {len(items)} entries, and at most {MAX_ITEMS} are taken at once")
