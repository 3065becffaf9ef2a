"""Names that vLLM's users bring: what each is here, whether its value changes anything, or why it is refused. No torch.

    own_names(ARGUMENTS, {"tensor_parallel_size": 1, "dtype": "half"}, own={"dtype"})    {"dtype": "half"}
    own_names(ARGUMENTS, {"tensor_parallel_size": 2}, own={"dtype"})                     refused, with the reason

The names themselves stand in `vllm_table`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from baton import vllm_table
from baton.errors import UnsupportedFeature, refuse

Kind = Literal["taken", "neutral", "refused"]
_WORD = re.compile(r"(?P<name>\w+)(?P<switch>\?)?(?P<many>\[\])?(?P<any>~)?(?:=(?P<values>.*)|>(?P<ours>\w+))?$")
EMPTY = frozenset(("", "none", "null", "{}", "[]", "false"))
"""What asks for nothing, as `plain` writes it."""


@dataclass(frozen=True, slots=True)
class Name:
    """One name of vLLM's."""

    name: str
    kind: Kind
    """Taken; neutral, whatever the value; or refused, unless the value changes nothing."""
    says: str
    """Why; of a taken one, nothing."""
    ours: str
    """What it is called here."""
    values: frozenset[str] = EMPTY
    """Those that change nothing, as `plain` writes them."""
    is_switch: bool = False
    is_list: bool = False

    def judge(self, value: object, shown: str = "") -> str:
        """Return what to tell of a name that is not ours and whose value changes nothing.

        Raises:
            UnsupportedFeature: it asks for what is not served.
        """
        shown = shown or f"{self.name}={value!r}"
        if self.kind == "neutral" or plain(value) in self.values:
            return f"{shown} changes nothing here. {self.says}"
        raise UnsupportedFeature(f"{shown} is not served. {self.says}", field=self.name)


def plain(value: object) -> str:
    """Write a value so that equal ones are equal, whether they come from Python or from a command line."""
    if value is None or value is False or (hasattr(value, "__len__") and not value):
        return ""
    if isinstance(value, (list, tuple, dict)):
        value = json.dumps(value, default=str)
    text = re.sub(r"\s", "", str(value)).lower()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def own_names(table: Mapping[str, Name], given: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Return what is Baton's own of `given`, under Baton's names; what changes nothing is left out.

    Raises:
        UnsupportedFeature: a name of vLLM's asks for what is not served.
        InvalidRequest: a name is nobody's.
    """
    kept: dict[str, Any] = {}
    for name, value in given.items():
        known = table.get(name)
        if name in own:
            kept[name] = value
        elif known is None:
            raise refuse(name, value, "there is no such name", closest(name, own))
        elif known.ours in own:
            kept.setdefault(known.ours, value)
        else:
            known.judge(value)
    return kept


def closest(name: str, own: Collection[str]) -> str:
    """Name what may have been meant, or all that there is."""
    near = difflib.get_close_matches(name, own, n=1, cutoff=0.75)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Known: {', '.join(sorted(own))}." if own else ""


def _read(taken: str, groups: Iterable[tuple[str, str]]) -> dict[str, Name]:
    names = [_name(word, "", "taken") for word in taken.split()]
    names += [_name(word, says, "refused") for says, words in groups for word in words.split()]
    table: dict[str, Name] = {}
    for name in names:
        table.setdefault(name.name, name)
    return table


def _name(word: str, says: str, kind: Kind) -> Name:
    match = _WORD.match(word)
    assert match, word
    values = frozenset(plain(value) for value in (match["values"] or "").split("|"))
    return Name(
        match["name"],
        "neutral" if match["any"] else kind,
        says,
        match["ours"] or match["name"],
        EMPTY | values,
        is_switch=bool(match["switch"]),
        is_list=bool(match["many"]),
    )


FLAGS = _read(vllm_table.TAKEN, vllm_table.SERVING)
"""Of `vllm serve`, as settings are named: with underscores."""
_SERVER = ("The server has it: give it to `baton up`.", re.sub(r">\w+", "", vllm_table.TAKEN))
ARGUMENTS = _read(vllm_table.ARGUMENTS, (*vllm_table.OFFLINE, *vllm_table.SERVING, _SERVER))
"""Of `LLM(...)`."""
SAMPLING = _read(vllm_table.SAMPLING_TAKEN, vllm_table.SAMPLING)
"""Of `SamplingParams(...)`."""
STRUCTURED = _read("", vllm_table.STRUCTURED)
"""Of `StructuredOutputsParams(...)`."""
CALLS = _read("", vllm_table.CALLS)
"""Of `LLM.generate` and `LLM.chat`."""
BENCH = _read(vllm_table.BENCH_TAKEN, vllm_table.BENCH)
"""Of `vllm bench serve`."""
IMPORTS = _read("", vllm_table.IMPORTS)
"""Of the package `vllm`."""
METHODS = _read("", vllm_table.METHODS)
"""Of `LLM`, beside generate, chat, beam_search and what else Baton's has."""
ROUTES = {path: says for says, paths in vllm_table.ROUTES for path in paths.split()}
"""Of the servers of vLLM and OpenAI: why it is not here."""


def why_no_route(path: str) -> str:
    """Return what to do in place of asking a path that is vLLM's or OpenAI's, or lies below one; nothing of others."""
    while path.strip("/"):
        if path in ROUTES:
            return ROUTES[path]
        path = path.rpartition("/")[0]
    return ""
