"""How models write their thoughts, by vLLM's names for it, and which of the forms a chat template speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.harmony import HarmonyForm
from baton.router.openai.parsers.thinking import ThinkingForm
from baton.router.openai.parts import NewParser


class ReasoningForm(Protocol):
    """How a model writes its thoughts."""

    def new_parser(
        self, calls: NewParser | None, offered: Offered | None, prompt: str, *, continues: bool
    ) -> NewParser | None:
        """Return what makes the parser of a choice; None where all is text.

        `calls` makes what reads the rest, if functions are `offered`; `prompt` is the prompt's end; `continues` if that
        is the beginning of an answer.
        """


_THINK = ThinkingForm()
_BEGUN = ThinkingForm(begins_inside=True)
"""The same of models that leave out the opening tag, and of templates that write it."""
_MISTRAL = ThinkingForm(("[THINK]",), ("[/THINK]",))

REASONING_FORMS: Mapping[str, ReasoningForm] = {
    **dict.fromkeys(("qwen3", "deepseek_v3", "deepseek_v4", "glm45", "glm47", "mimo"), _THINK),
    **dict.fromkeys(("deepseek_r1", "olmo3", "minimax_m2", "step3", "step3p5", "holo2", "nemotron_v3"), _BEGUN),
    "granite": ThinkingForm(
        ("Here is my thought process:", "Here's my thought process:"), ("Here is my response:", "Here's my response:")
    ),
    "kimi_k2": ThinkingForm(ends_before=("<|tool_calls_section_begin|>",)),
    "mistral": _MISTRAL,
    "magistral": _MISTRAL,
    **dict.fromkeys(("openai_gptoss", "gpt_oss"), HarmonyForm()),
    "seed_oss": ThinkingForm(("<seed:think>",), ("</seed:think>",)),
}

_SIGNS = (
    ("<|channel|>", "openai_gptoss"),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed_oss"),
    ("Here is my thought process:", "granite"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("</think>", "qwen3"),
    ("<think>", "qwen3"),
)
"""What in a template tells a form, the surest first; whether an answer begins inside of thoughts its prompt tells."""


def reasoning_form_of(template: str) -> str:
    """Return the name of the form that a chat template speaks of; none where it speaks of none."""
    return next((name for sign, name in _SIGNS if sign in template), "none")
