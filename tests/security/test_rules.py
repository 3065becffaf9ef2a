"""Nothing in the package breaks the rules over the source, and each rule finds what it is for."""

from __future__ import annotations

import ast
import re

import pytest
from tests.security.rules import broken, broken_anywhere, named_test_exists

from baton.checkout import ROOT

PLACE = "shared/baton/requests/fields.py"
PAGE = ROOT / "docs/threat-model.md"


def test_no_file_breaks_a_rule() -> None:
    assert list(broken_anywhere()) == []


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from dill import loads", "import torch, marshal", "import diskcache.core"),
        *("eval(text)", "exec(code)", "torch.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)"),
        *("os.system(line)", "subprocess.run(line, shell=True)", "tempfile.mktemp()", "socket.recv_pyobj()"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "httpx.get(url, verify=False)"),
        *("torch.load(path, weights_only=False)", "tar.extractall()", "assert field > 0", "multiprocessing.Queue()"),
    ],
)
def test_each_rule_finds_what_it_is_for(line: str) -> None:
    assert list(broken(ast.parse(line), PLACE))


@pytest.mark.parametrize(
    "line", ["re.compile(text)", "model.eval()", "yaml.safe_load(text)", "subprocess.run([program], shell=False)"]
)
def test_what_only_looks_like_it_is_let_alone(line: str) -> None:
    assert not list(broken(ast.parse(line), PLACE))


def test_every_claim_of_the_threat_model_names_a_test_that_exists() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("|") and not re.match(r"\|[\s|:-]+\|$", line)
    ]
    claims = [row for row in rows if "tests/" in row]
    assert len(claims) > 60
    headers = [row for row in rows if "tests/" not in row]
    assert all(row.rstrip(" |").endswith(("test", "what")) for row in headers), headers
    named = {name for row in claims for name in re.findall(r"`(tests/[^`]+)`", row)}
    assert sorted(name for name in named if not named_test_exists(name)) == []
