"""Baton under its distribution's name: `from batonllm import LLM, SamplingParams, __version__`.

`baton` itself is a namespace package, whose portions lie in several folders: it can hold no names. Each name here is loaded
when it is first asked for, so that the version costs no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from baton.vllm_names import IMPORTS

if TYPE_CHECKING:
    from baton.beam_search import BeamSearchParams
    from baton.llm import LLM, CompletionOutput, RequestOutput
    from baton.llm_pooling import PoolingOutput, PoolingRequestOutput
    from baton.pooling import PoolingParams
    from baton.protocol import SamplingParams
    from baton.structured_outputs import StructuredOutputs as GuidedDecodingParams
    from baton.structured_outputs import StructuredOutputs as StructuredOutputsParams

__all__ = [
    "LLM",
    "BeamSearchParams",
    "CompletionOutput",
    "GuidedDecodingParams",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]

__version__ = importlib.metadata.version("batonllm")
TextPrompt = TokensPrompt = dict
"""As in vLLM: `TokensPrompt(prompt_token_ids=[1, 2])` is what `LLM.generate` takes."""
_HOMES = {
    "LLM": "baton.llm",
    "BeamSearchParams": "baton.beam_search",
    "CompletionOutput": "baton.llm",
    "PoolingOutput": "baton.llm_pooling",
    "PoolingParams": "baton.pooling",
    "PoolingRequestOutput": "baton.llm_pooling",
    "RequestOutput": "baton.llm",
    "SamplingParams": "baton.protocol",
    "StructuredOutputsParams": "baton.llm",
    "GuidedDecodingParams": "baton.llm",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in IMPORTS:  # which `from batonllm import` shows; of an AttributeError it shows nothing
        raise ImportError(f"batonllm has no {name}. {IMPORTS[name].says}", name="batonllm")
    raise AttributeError(f"batonllm has no {name}. It has {', '.join(__all__)}; the rest is in the package `baton`.")


def __dir__() -> list[str]:
    return __all__
