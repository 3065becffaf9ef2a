"""How a command of Baton's shows its help and reads its arguments: plain text in groups, and vLLM's spellings.

Typer's own panels give a flag's name and type a share of the width each: at 80 columns they cut both. Its plain form never
does, but knows no groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from baton import vllm_table
from baton.errors import UnsupportedFeature
from baton.flag_groups import GROUPS, place_of
from baton.spelling import ours
from baton.vllm_names import BENCH

ALL = "baton.help_all"
"""Set in a context's meta where every flag is to be shown."""


class Command(TyperCommand):
    """A command with its flags in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group; of a command that has common flags, those alone unless all are asked for."""
        shown = [each for each in self.get_params(ctx) if ctx.meta.get(ALL) or not self.is_rare(str(each.name))]
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in sorted(shown, key=lambda each: place_of(str(each.name))):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(_group(parameter), []).append(_with_default(parameter, *record))
        order = ("Arguments", "Options", *GROUPS)
        for group in sorted(sections, key=order.index):
            with formatter.section(group):
                formatter.write_dl(sections[group])
        if num_hidden := len(self.get_params(ctx)) - len(shown):
            formatter.write_paragraph()
            formatter.write_text(f"{num_hidden} more flags: --help-all shows them.")

    def is_rare(self, name: str) -> bool:
        """Whether a flag is shown by --help-all alone."""
        return False


def _with_default(parameter: Any, names: str, text: str) -> tuple[str, str]:
    """Write a switch's default as on or off: click names the flag again, which lines then cut at its dashes."""
    if parameter.param_type_name != "option" or not parameter.secondary_opts:
        return names, text
    return names, re.sub(r"default: [\w-]+\]$", f"default: {'on' if parameter.default else 'off'}]", text)


def _group(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return "Help" if parameter.name == "help" else parameter.rich_help_panel or "Options"


class ServiceCommand(Command):
    """A command that serves: it also knows what vLLM's users type."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite what is vLLM's, and parse."""
        return super().parse_args(ctx, ours(args, self.get_params(ctx)))


class BenchServeCommand(Command):
    """`baton bench serve`: it also knows what is typed after `vllm bench serve`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite what is vLLM's, take lists with commas apart, and parse."""
        return super().parse_args(ctx, _apart(ours(args, self.get_params(ctx), table=BENCH), self.get_params(ctx)))


class ListsCommand(Command):
    """A command with lengths of two numbers, of which one number is both."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write one number twice, and parse."""
        return super().parse_args(ctx, ours(args, self.get_params(ctx), table={}))


def _apart(arguments: list[str], options: Sequence[Any]) -> list[str]:
    """Write `--rate 8,16` as `--rate 8 --rate 16`."""
    lists = {flag for option in options if option.multiple for flag in option.opts}
    apart: list[str] = []
    for word in arguments:
        if apart and apart[-1] in lists:
            flag = apart.pop()
            apart += [part for each in word.split(",") for part in (flag, each)]
        else:
            apart.append(word)
    return apart


class Group(TyperGroup):
    """A command of sub-commands."""

    strangers: Mapping[str, str] = {}
    """vLLM's sub-commands that are not here, with what stands for them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Name every sub-command with its first sentence, whole: click cuts it at the width."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(1000)) for name, each in commands if each])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the sub-command.

        Raises:
            UnsupportedFeature: it is vLLM's, and has no twin here.
        """
        if args[0] in self.strangers and self.get_command(ctx, args[0]) is None:
            raise UnsupportedFeature(f"{args[0]} is not served. {self.strangers[args[0]]}", field=args[0])
        return super().resolve_command(ctx, args)


class BenchCommands(Group):
    """The command `baton bench`."""

    strangers = vllm_table.BENCH_COMMANDS


class Commands(Group):
    """The command `baton`, which says of vLLM's sub-commands what stands for them."""

    strangers = vllm_table.COMMANDS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take a model, or flags of a server, without a command for `up`, as images of vLLM are run."""
        own = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
        if args and ("/" in args[0] or (args[0].startswith("--") and args[0].partition("=")[0] not in own)):
            args = ["up", *args]
        return super().parse_args(ctx, args)
