"""`baton chat` and `baton complete`: a person at a terminal, and a server that streams."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from baton.errors import ConfigError
from baton.own_http import client_of


def first_key(keys: str | None) -> str | None:
    """Return the key to send: the variable may hold several, as it does for a router."""
    return keys.split()[0] if keys and keys.strip() else None


class Talk:
    """One conversation with a server, or one text after another."""

    def __init__(self, url: str, keys: str | None, model: str | None, options: Mapping[str, Any]) -> None:
        key = first_key(keys)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(600, connect=10)
        self._client = client_of(httpx.Client, url, base_url=f"{self._url}/v1", headers=headers, timeout=timeout)
        self._model = model
        self._options = {name: value for name, value in options.items() if value is not None}

    def chat(self, system_prompt: str | None, quick: str | None) -> int:
        """Talk until the person ends; return the exit status."""
        messages = [{"role": "system", "content": system_prompt}] if system_prompt else []

        def answer(text: str) -> None:
            messages.append({"role": "user", "content": text})
            content = self._print("chat/completions", {"messages": messages}, _chat_text)
            messages.append({"role": "assistant", "content": content})

        return self._loop(answer, quick)

    def complete(self, quick: str | None) -> int:
        """Go on with one text after another; return the exit status."""
        return self._loop(lambda text: self._print("completions", {"prompt": text}, _completion_text), quick)

    def _loop(self, answer: Callable[[str], object], quick: str | None) -> int:
        if quick is None:
            print(f"{self._name()} at {self._url}; an empty line or Ctrl-D ends", file=sys.stderr)
        for text in (quick,) if quick is not None else _lines():
            answer(text)
        return 0

    def _name(self) -> str:
        if self._model is None:
            try:
                self._model = str(self._client.get("models").raise_for_status().json()["data"][0]["id"])
            except (httpx.HTTPError, ValueError, LookupError) as error:
                raise ConfigError(_why(self._url, error)) from None
        return self._model

    def _print(self, path: str, body: dict[str, Any], text_of: Callable[[Any], str | None]) -> str:
        """Print an answer as it comes; return it whole."""
        pieces: list[str] = []
        body = {"model": self._name(), "stream": True, **body, **self._options}
        try:
            with self._client.stream("POST", path, json=body) as answer:
                if answer.is_error:
                    answer.read()
                    answer.raise_for_status()
                for choice in _choices(answer):
                    if piece := text_of(choice):
                        print(piece, end="", flush=True)
                        pieces.append(piece)
        except (httpx.HTTPError, ValueError) as error:
            raise ConfigError(_why(self._url, error)) from None
        print(flush=True)
        return "".join(pieces)


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        import readline  # noqa: F401  (arrows and history)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if not text.strip():
            return
        yield text


def _choices(answer: httpx.Response) -> Iterator[Any]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"].get("message", event["error"]))
            yield from event.get("choices", ())


def _chat_text(choice: Any) -> str | None:
    content: str | None = choice["delta"].get("content")
    return content


def _completion_text(choice: Any) -> str | None:
    text: str | None = choice["text"]
    return text


def _why(url: str, error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        try:
            return f"{error.response.status_code}: {error.response.json()['error']['message']}"
        except (ValueError, LookupError, TypeError):
            return f"{error.response.status_code}: {error.response.text[:200]}"
    if isinstance(error, httpx.TransportError):
        return f"url={url!r}: no server answers there ({error}). Start one with `baton up`."
    return str(error)
