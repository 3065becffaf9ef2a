"""Rules over the source that a reader of one file would miss: what must stand nowhere in the package.

`python -m tests.security.rules` prints where one is broken; `make audit` and a test run it.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from baton.checkout import ROOT

SOURCES = ("compose/baton", "compose/batonllm", "shared/baton", "kernels/baton", "services")
READS_STRANGERS = (
    "shared/baton/requests",
    "shared/baton/messages.py",
    "shared/baton/prompt.py",
    "shared/baton/registry.py",
    "services/kvtransfer/baton/kvtransfer/wire.py",
    "services/router/baton/router/openai",
    *(f"services/router/baton/router/{name}.py" for name in ("auth", "envelope", "http_head", "http_request", "pin")),
)
"""Where what others sent is read: `python -O` drops every assert, so none may check it (CVE-2026-41523)."""
_UNPICKLERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "jsonpickle",
    "diskcache",
    "joblib",
}
_CALLS = {
    **dict.fromkeys(("eval", "exec", "__import__"), "runs what it is given"),
    **dict.fromkeys(("torch.load", "torch.save", "np.load", "numpy.load"), "reads pickles: weights are safetensors"),
    **dict.fromkeys(("yaml.load", "yaml.full_load", "yaml.unsafe_load"), "makes objects: yaml.safe_load does not"),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput"), "gives a line to a shell"),
    **dict.fromkeys(("tempfile.mktemp",), "gives a name that another may take first"),
    **dict.fromkeys(("multiprocessing.Queue", "multiprocessing.Pipe", "multiprocessing.Manager"), "pickles"),
}
_METHODS = {"recv_pyobj", "send_pyobj", "load_module", "extractall", "add_unsafe_globals"}
_TRUTHS = {
    "shell": "gives a line to a shell",
    "trust_remote_code": "runs a model's code",
    "allow_pickle": "reads pickles",
}
_LIES = {"verify": "trusts any certificate", "weights_only": "reads pickles", "autoescape": "lets text be markup"}


def broken(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Yield lines where a rule is broken, with what is wrong there."""
    reads_strangers = path.startswith(READS_STRANGERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"import of {name}") for name in names if name.partition(".")[0] in _UNPICKLERS)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, reason) for reason in _wrong_call(node))
        elif isinstance(node, ast.Assert) and reads_strangers:
            yield node.lineno, "assert where what others sent is read"


def _wrong_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name in _CALLS:
        yield f"{name} {_CALLS[name]}"
    if name.rpartition(".")[2] in _METHODS:
        yield f"{name} trusts what it reads"
    for keyword in call.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if value is True and keyword.arg in _TRUTHS:
            yield f"{keyword.arg}=True {_TRUTHS[keyword.arg]}"
        if value is False and keyword.arg in _LIES:
            yield f"{keyword.arg}=False {_LIES[keyword.arg]}"


def broken_anywhere() -> Iterator[str]:
    """Yield where in the package a rule is broken."""
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            for line, what in broken(ast.parse(file.read_text()), path):
                yield f"{path}:{line}: {what}"


@functools.cache
def tests_of(file: Path) -> set[str]:
    """Name the tests of a file; none if it is not there."""
    tree = ast.parse(file.read_text() if file.is_file() else "")
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def named_test_exists(name: str) -> bool:
    """Whether `tests/file.py::test_name` is a test of this repository."""
    path, _, function = name.partition("::")
    return function in tests_of(ROOT / path)


if __name__ == "__main__":
    found = list(broken_anywhere())
    print("\n".join(found) or "rules: kept in every file")
    sys.exit(bool(found))
