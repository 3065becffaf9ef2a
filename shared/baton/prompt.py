"""A prompt: token ids, and the media that some of them stand for.

What a picture or a sound is to the language model is a run of placeholder tokens whose embeddings come from elsewhere. A
`Span` says where the run is and names the content by its hash, so that two prompts with equal ids and different pictures
share no KV.
"""

from __future__ import annotations

import msgspec

from baton.errors import refuse


class Span(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Media at a place in a prompt."""

    at: int
    """Its first placeholder token."""
    length: int
    """Placeholder tokens."""
    content_hash: bytes
    """Names the content; equal content, equal hash."""
    reference: str = ""
    """Where its embeddings are found. No part of what the KV depends on."""

    @property
    def end(self) -> int:
        """The token after its last."""
        return self.at + self.length


class Prompt(msgspec.Struct, array_like=True, frozen=True):
    """What a request begins with. Fixed over replays, the same for router and worker.

    Construction raises `InvalidRequest` for spans that are out of order, overlap or leave the prompt.
    """

    token_ids: list[int]
    spans: tuple[Span, ...] = ()
    """In order; they do not overlap."""

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.at < end or span.length < 1 or span.end > len(self.token_ids) or not span.content_hash:
                where = f"{span.at}..{span.end}"
                limit = f"spans need content, and lie in order within the prompt's {len(self.token_ids)} tokens"
                raise refuse("spans", where, limit, "Each begins where the one before it ends, or later.")
            end = span.end

    def __len__(self) -> int:
        return len(self.token_ids)
