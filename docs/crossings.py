"""Count the calls between files that one streamed chat makes. Run in the repository's root:

    python docs/crossings.py [tokens] [--calls]

A router serves on a thread of this process, a fake worker in another process. Counted are calls whose caller and callee
lie in different files of the router, and of all of baton; a coroutine that goes on after waiting counts again. Of three
chats the least is printed, since a worker's idle report may come in between.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

import baton
from baton.router import config

sys.path.insert(0, ".")
from tests.router.cluster import cluster

ROUTER = str(Path(config.__file__).parent) + "/"
FOLDERS = tuple(f"{folder}/" for folder in baton.__path__)
TEMPLATE = "{%- for m in messages -%}{{- m.content + '\\n' -}}{%- endfor -%}"
TIMERS = ("WorkerPool._keep_in_touch", "OpenStreams._tick", "Discovery._follow")
Calls = Counter[tuple[str, str]]


def count(num_tokens: int) -> Calls:
    """Count the calls between files of baton in one chat, by caller and callee."""
    calls: Calls = Counter()
    counts: list[Calls] = []

    def on_event(frame: FrameType, event: str, _arg: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None or caller.f_code.co_qualname in TIMERS:
            return
        here, there = caller.f_code.co_filename, frame.f_code.co_filename
        if here != there and here.startswith(FOLDERS) and there.startswith(FOLDERS):
            calls[f"{here}:{caller.f_code.co_qualname}", f"{there}:{frame.f_code.co_qualname}"] += 1

    threading.setprofile(on_event)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": num_tokens, "stream": True}
    workers = [{"worker_id": "d0"}]
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), workers, chat_template=TEMPLATE) as made:
        threading.setprofile(None)
        for _ in range(4):  # the first one makes what is made once
            calls.clear()
            answer = httpx.post(f"{made.url}/v1/chat/completions", json=body, timeout=60)
            counts.append(calls.copy())
            assert answer.text.count('"content"') == num_tokens + 1, answer.text
    return min(counts[1:], key=lambda counted: counted.total())


def main(num_tokens: int, show_calls: bool) -> None:
    """Print both figures, and the router's calls if asked."""
    everywhere = count(num_tokens)
    router = Counter({pair: n for pair, n in everywhere.items() if all(name.startswith(ROUTER) for name in pair)})
    if show_calls:
        for pair, n in router.most_common():
            print(f"{n:5}  {' -> '.join(name.removeprefix(ROUTER) for name in pair)}")
    for name, calls in (("the router", router), ("all of baton", everywhere)):
        files = {each.split(":")[0] for pair in calls for each in pair}
        print(f"{calls.total():5} calls between {len(files)} files of {name}, for {num_tokens} tokens")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    main(numbers[0] if numbers else 7, "--calls" in sys.argv)
