"""Calls that a model writes as Python: `[f(a=1, b="x"), g()]`. They are read, never run.

Only names, calls and literals are taken, of a text that is short enough for Python's parser to be done in milliseconds.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

import orjson

_MAX_LEN = 1 << 15
"""Characters: the worst of so many take about 30 ms."""
_MAX_DEPTH = 32
_WORDS = {"true": True, "false": False, "null": None}
"""What models write as JSON has it."""
_BEGINS = re.compile(r"\s*\[\s*(?:[A-Za-z_][\w.]*\s*(?:\(|$)|$)")


def may_be_python_calls(text: str) -> bool:
    """Whether a text can still become a list of calls, by its beginning."""
    return not text.strip() or _BEGINS.match(text) is not None


def read_python_calls(text: str) -> list[tuple[str, str]] | None:
    """Return the calls of a list, each a name and its arguments as JSON; None if the text holds anything else, or none."""
    text = text.strip()
    return _read(text if text.startswith("[") else f"[{text}]")


def read_python_lines(text: str) -> list[tuple[str, str]] | None:
    """Return the calls of a text with one a line."""
    return _read(f"[{','.join(filter(None, map(str.strip, text.splitlines())))}]")


def _read(text: str) -> list[tuple[str, str]] | None:
    if len(text) > _MAX_LEN:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            tree = ast.parse(text, mode="eval").body
        if isinstance(tree, ast.List):
            return [_call(node) for node in tree.elts] or None
    except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError):
        pass
    return None


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        arguments[keyword.arg] = _value(keyword.value, _MAX_DEPTH)
    return _name(node.func), orjson.dumps(arguments).decode()


def _name(node: ast.expr) -> str:
    """Return a name, which may have dots."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError
    return ".".join(reversed([*names, node.id]))


def _value(node: ast.expr, depth: int) -> Any:
    """Return what a literal says."""
    if not depth:
        raise ValueError
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, depth - 1) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value, depth - 1) for key, value in zip(keys, values, strict=True)}
    raise ValueError


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError
