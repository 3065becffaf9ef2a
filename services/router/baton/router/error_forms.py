"""Which API says an error, by the path that was asked."""

from __future__ import annotations

from baton.router.anthropic.errors import ANTHROPIC_FORM
from baton.router.openai.refusals import OPENAI_FORM, ErrorForm


def form_of(path: str) -> ErrorForm:
    """Return how errors are said on a path."""
    return ANTHROPIC_FORM if path.startswith("/v1/messages") else OPENAI_FORM
