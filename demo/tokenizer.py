"""The demo model's tokenizer: byte-level BPE of 4,096 entries, each digit an entry of its own.

Made with the `tokenizers` library from the text that `corpus` writes; the same seed gives the same file.
Any text survives encoding and decoding, since every byte has an entry. `Encoder` is the same tokenizer for
those who encode millions of short ASCII texts: it splits with Python's `re` and remembers each word.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from demo.conversation import Conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from baton.demo.questions import TOOL_CALL_END, TOOL_CALL_START

VOCAB_SIZE = 4096
MAX_LEN = 4096
BOS, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, TOOLS, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tools|>", "<|tool|>"
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT, TOOLS, TOOL)

# A digit alone; letters with the space before them; marks with the space before them; other white space.
_SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII_SPLIT = re.compile(r"[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is iterable -%}{%- for part in content -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if messages and messages[0].role in ['system', 'developer'] -%}
{{- '<|system|>' + text(messages[0].content) + '<|end|>' -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
{{- '<|tools|>' -}}
{%- for tool in tools -%}
{{- (tool.function if tool.function is defined else tool) | tojson -}}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|' + ('system' if message.role == 'developer' else message.role) + '|>' + text(message.content) -}}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set call = call.function if call.function is defined else call -%}
{{- '<tool_call>{"name": ' + call.name | tojson + ', "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the entries from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Part of the text that clients parse, so not special: decoding keeps them.
    tokenizer.add_tokens([AddedToken(TOOL_CALL_START, normalized=False), AddedToken(TOOL_CALL_END, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that `transformers` and the server read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    config = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LEN,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _ids_of(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[int]:
    ids = [tokenizer.token_to_id(token) for token in tokens]
    assert None not in ids, "the tokenizer lacks a marker of the template"
    return [i for i in ids if i is not None]


class Encoder:
    """Encode quickly what generators write: the same ids as the tokenizer's own, from a memory of words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        self.special: dict[str, int] = dict(zip(SPECIAL_TOKENS, _ids_of(tokenizer, SPECIAL_TOKENS), strict=True))

    def encode(self, text: str) -> list[int]:
        """Encode without special tokens around it."""
        if not text.isascii() or "<" in text:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        words = self._words
        for word in _ASCII_SPLIT.findall(text):
            known = words.get(word)
            if known is None:
                known = self._tokenizer.encode(word, add_special_tokens=False).ids
                if len(words) < 200_000:
                    words[word] = known
            ids += known
        return ids

    def length(self, text: str) -> int:
        return len(self.encode(text))

    def decode(self, ids: list[int]) -> str:
        """Decode, leaving special tokens out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def render(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Encode a conversation as the chat template would, and mark the tokens the assistant has to say.

        The end of the assistant's turn is one of them; the token that opens the turn is not.
        """
        special, end = self.special, self.special[END]
        ids, said = [special[BOS]], [False]

        def add(opening: int, text: str, is_said: bool) -> None:
            body = self.encode(text)
            ids.extend((opening, *body, end))
            said.append(False)
            said.extend([is_said] * (len(body) + 1))

        messages = conversation.messages
        if messages[0]["role"] == "system":
            add(special[SYSTEM], messages[0]["content"], False)
            messages = messages[1:]
        if conversation.tools:
            lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in conversation.tools]
            add(special[TOOLS], "\n".join(lines), False)
        for message in messages:
            role = message["role"]
            add(special[f"<|{role}|>"], message["content"], role == "assistant")
        return ids, said


def load_encoder(folder: Path) -> Encoder:
    return Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
