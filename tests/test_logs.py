"""What a process tells of itself: every line of one form, whoever wrote it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from tests.processes import HANG_S

from baton.log_view import LogView
from baton.logs import LogConfig

SPEAKER = """
import logging, sys, threading, warnings
from baton.errors import ConfigError
from baton.logs import LogConfig, get_logger, say_why_it_ends, setup_logs
setup_logs("s", LogConfig(log_level=sys.argv[1], log_format=sys.argv[2]))
log = get_logger("part")
log.debug("small")
log.info("event", fact=1)
logging.getLogger("uvicorn.error").error("of a library")
warnings.warn("beware")
print("half a", file=sys.stderr, end=" ")
print("line", file=sys.stderr)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
thread = threading.Thread(target=lambda: [][0])
thread.start()
thread.join()
say_why_it_ends(ConfigError("no such port"))
raise RuntimeError("crash")
"""


def speak(level: str, form: str, **environment: str) -> str:
    command = [sys.executable, "-c", SPEAKER, level, form]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize("form", ["json", "auto"])
def test_json_is_all_json_whatever_speaks(form: str) -> None:
    events = [json.loads(line) for line in speak("info", form).splitlines()]
    assert [each["level"] for each in events] == [
        *("info", "error", "warning", "info", "error", "critical", "critical", "critical")
    ]
    assert all(each["timestamp"] and each["service"] == "s" for each in events)
    assert events[0]["event"] == "event"
    assert events[0]["fact"] == 1
    assert "beware" in events[2]["event"]
    assert events[3]["event"] == "half a line"
    assert "ZeroDivisionError" in events[4]["exception"]
    assert "IndexError" in events[5]["exception"]
    assert events[6]["event"] == "no such port"
    assert "crash" in events[7]["exception"]


def test_text_has_time_and_level_and_no_colours_outside_a_terminal() -> None:
    shown = speak("debug", "text")
    assert "\x1b" not in shown
    assert "[debug    ] small" in shown
    assert "baton: no such port" in shown
    assert "small" not in speak("warning", "text")


@pytest.mark.parametrize(("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_colours_unless_its_owner_wants_none(environment: dict[str, str], is_coloured: bool) -> None:
    ours, theirs = pty.openpty()
    without = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAKER, "info", "auto"], stderr=theirs, env=without | environment
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how a terminal says that the last process has left it
        pass
    os.close(ours)
    process.wait(HANG_S)
    assert b"event" in shown
    assert (b"\x1b[" in shown) == is_coloured


def event(**fields: Any) -> str:
    return json.dumps({"event": "joined", "level": "info", "timestamp": "2026-01-02T03:04:05Z", **fields})


def test_several_processes_make_one_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    view = LogView(LogConfig())
    view.add(["router"])
    view.take("router", event(worker_id="d0", part="pool", service="router"))
    view.take("redis", "plain words")
    view.take("router", '{"no": "event"}')
    for name in ("prefill-0", "decode-0"):
        view.take(name, event(event="model='x' is nowhere", level="critical"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("router | ")
    assert lines[0].endswith("INFO    joined worker_id=d0")
    assert lines[1:3] == ["redis  | plain words", 'router | {"no": "event"}']
    assert len(lines) == 4  # a reason is told once


def test_several_processes_make_one_log_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    view = LogView(LogConfig(log_format="json"))
    view.say("up", "ready")
    view.take("router", event(service="router"))
    view.take("redis", "plain words")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["service"], each["event"], each["level"]) for each in events] == [
        *(("up", "ready", "info"), ("router", "joined", "info"), ("redis", "plain words", "info"))
    ]
    assert all(each["timestamp"] for each in events)
