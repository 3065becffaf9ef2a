"""A command line as vLLM's users type it, rewritten to Baton's own flags.

--max_model_len 8k                    --max-model-len 8k
MODEL --served-model-name a b         MODEL --served-model-name a --served-model-name b
-tp 1 --swap-space 4                  nothing, with a line that says why
--kv-cache-dtype fp8                  refused, with the reason
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from baton import vllm_table
from baton.vllm_names import FLAGS, Name

_LEVEL = re.compile(r"-O(\d)")


def tell(line: str) -> None:
    """Print a notice beside the command's own output."""
    print(f"baton: {line}", file=sys.stderr)


def ours(
    arguments: Sequence[str],
    options: Sequence[Any],
    say: Callable[[str], None] = tell,
    *,
    table: Mapping[str, Name] = FLAGS,
) -> list[str]:
    """Return the arguments as a command with these click options takes them; `table` has vLLM's flags of that command.

    Raises:
        UnsupportedFeature: a flag of vLLM's asks for what is not served.
    """
    own = {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}
    return _Rewriting(own, list(arguments), say, table).run()


def judged_file(entries: Mapping[str, Any], own: Collection[str], say: Callable[[str], None] = tell) -> dict[str, Any]:
    """Return a file's entries under Baton's names, without those of vLLM's that change nothing; strangers stay.

    Raises:
        UnsupportedFeature: an entry of vLLM's asks for what is not served.
    """
    kept = {}
    for name, value in entries.items():
        known = FLAGS.get(name)
        if name in own or known is None:
            kept[name] = value
        elif known.kind == "taken":
            kept[known.ours] = value
        else:
            say(known.judge(value, f"{name}: {value}"))
    return kept


class _Rewriting:
    """One pass over a command line, first argument to last."""

    def __init__(
        self, own: dict[str, Any], arguments: list[str], say: Callable[[str], None], table: Mapping[str, Name]
    ) -> None:
        self._own = own
        self._rest = arguments
        self._say = say
        self._table = table
        self._out: list[str] = []
        # Several values after one flag are taken once the model is known; before it, the next word may be the model.
        self._has_model = not any(flag.isidentifier() for flag in own) or "--model" in arguments

    def run(self) -> list[str]:
        while self._rest:
            word = self._rest.pop(0)
            if word == "--":
                return [*self._out, word, *self._rest]
            if _is_flag(word):
                self._flag(word)
            else:
                self._out.append(word)
                self._has_model = True
        return self._out

    def _flag(self, word: str) -> None:
        flag, value = _parts(word)
        option = self._own.get(flag)
        if option is not None:
            self._take(option, flag, value)
            return
        known, is_off = self._find(flag)
        if known is None:
            self._out.append(word)  # nobody's: click says so, and names what is near
        elif known.kind == "taken":
            renamed = f"--{known.ours.replace('_', '-')}"
            self._take(self._own.get(renamed), renamed, value)
        else:
            self._judge(known, word, value, is_off)

    def _take(self, option: Any, flag: str, value: str | None) -> None:
        if option is None or option.is_flag or (value is None and not self._rest):
            self._out.append(flag if value is None else f"{flag}={value}")
            return
        most = option.nargs if option.nargs > 1 else len(self._rest) if option.multiple and self._has_model else 1
        values = [self._rest.pop(0) if value is None else value]
        while value is None and len(values) < most and self._rest and not _is_flag(self._rest[0]):
            values.append(self._rest.pop(0))
        if option.nargs > 1:  # the shortest and the longest: one number is both
            self._out += [flag, *values, *values[-1:] * (option.nargs - len(values))]
        else:
            self._out += [part for each in values for part in (flag, each)]

    def _judge(self, known: Name, word: str, value: str | None, is_off: bool) -> None:
        shown: list[str] = [word]
        given: Any = value
        if known.is_switch:
            given = not is_off if value is None else value
        elif value is None:
            while self._rest and not _is_flag(self._rest[0]) and (known.is_list or len(shown) == 1):
                shown.append(self._rest.pop(0))
            given = " ".join(shown[1:])
        self._say(known.judge(given, " ".join(shown)))

    def _find(self, flag: str) -> tuple[Name | None, bool]:
        """Look a flag up among vLLM's; and whether it is a switch turned off. `--config.key` is its `--config`."""
        name = vllm_table.SHORT.get(flag) or flag.partition(".")[0].removeprefix("--").replace("-", "_")
        if name in self._table or not name.startswith("no_"):
            return self._table.get(name), False
        return self._table.get(name.removeprefix("no_")), True


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not re.fullmatch(r"-[\d.]+", word)


def _parts(word: str) -> tuple[str, str | None]:
    """Split `--flag=value`, and what stands for it: underscores, short flags, `-O3`."""
    if match := _LEVEL.fullmatch(word):
        return "-O", match[1]
    flag, equals, value = word.partition("=")
    if flag.startswith("--"):
        flag = flag.replace("_", "-")
    return flag, value if equals else None
