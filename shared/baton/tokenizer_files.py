"""The files of a tokenizer, and the tokenizer that they make: tokenizer.json, else tokenizer.model or tekken.json. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from baton.errors import ModelLoadError
from baton.foreign_model import ADAPTER, foreign_model
from baton.hub_snapshot import fetch_snapshot
from baton.sentencepiece_model import read_sentencepiece
from baton.special_tokens import declare_special_tokens
from baton.tekken import read_tekken
from baton.template_files import TEMPLATE_FILES, read_templates

TOKENIZER = "tokenizer.json"
_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_READERS: dict[str, Callable[[Path, Mapping[str, Any]], tuple[Any, dict[str, str]]]] = {
    TOKENIZER: lambda file, _: (HFTokenizer.from_file(str(file)), {}),
    "tekken.json": lambda file, _: read_tekken(file),
    "tokenizer.model": read_sentencepiece,
}
"""What makes a tokenizer alone, the best first."""
_CONVERTED = ("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""What `transformers` makes one of, by the class that tokenizer_config.json or config.json names."""
_ALL = (*_READERS, *_CONVERTED, "merges.txt", *_TOKEN_FILES, *TEMPLATE_FILES, "config.json", ADAPTER)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A checkpoint's tokenizer and what stands beside it."""

    tokenizer: Path | None
    """None: there is only what `transformers` has to convert."""
    folder: Path

    @classmethod
    def find(cls, path: str | Path, revision: str | None) -> TokenizerFiles:
        """Find the files of a folder or hub id.

        Raises:
            ModelLoadError: there is none that a tokenizer is made of.
        """
        folder = Path(path)
        if not folder.is_dir():
            folder = fetch_snapshot(str(path), revision, _ALL, field="tokenizer")
        for name in _READERS:
            if (folder / name).is_file():
                return cls(folder / name, folder)
        if any((folder / name).is_file() for name in _CONVERTED):
            return cls(None, folder)
        if foreign := foreign_model(f"model={str(path)!r}", folder):
            raise ModelLoadError(foreign)
        raise ModelLoadError(
            f"tokenizer={str(path)!r} has none of {', '.join(_READERS)}{_strange(folder)}. Name a folder or hub id with a "
            "tokenizer.json (--tokenizer), such as the model that this one was made from; `LLM` works on token ids alone "
            "with skip_tokenizer_init=True."
        )

    @property
    def is_converted(self) -> bool:
        """Whether the tokenizer is read from a file that `transformers` does not read alike."""
        return self.tokenizer is not None and self.tokenizer.name != TOKENIZER

    def backend(self) -> tuple[Any, dict[str, str]]:
        """Load the tokenizer with all its tokens; return it, and its special tokens by name (bos_token and so on)."""
        assert self.tokenizer is not None
        declared = [self._read_json(name) for name in _TOKEN_FILES]
        try:
            backend, special = _READERS[self.tokenizer.name](self.tokenizer, declared[0])
        except ModelLoadError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise ModelLoadError(f"tokenizer={str(self.tokenizer)!r} cannot be read: {first_line(error)}") from error
        try:
            return backend, special | declare_special_tokens(backend, *declared)
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelLoadError(
                f"the special tokens in {', '.join(_TOKEN_FILES)} beside {str(self.tokenizer)!r} cannot be read: "
                f"{first_line(error)} Mend the entry."
            ) from error

    def settings(self) -> dict[str, Any]:
        """Return what tokenizer_config.json says."""
        return self._read_json("tokenizer_config.json")

    def chat_templates(self) -> dict[str, str]:
        """Return the templates by name."""
        return read_templates(self.folder, self.settings().get("chat_template"))

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelLoadError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
        return content if isinstance(content, dict) else {}


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, in one sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


def _strange(folder: Path) -> str:
    """Name what is there and cannot be converted."""
    if found := sorted(file.name for file in folder.glob("*.tiktoken")):
        return f"; {found[0]} is a tiktoken file: where it cuts words, and its special tokens, stand in code"
    return ""
