"""A small tokenizer for the router's tests: every byte, some words, special tokens, a chat template."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- if tools %}{{- '<|system|>' + tools | tojson + '<|end|>' -}}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|' + message.role + '|>' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- elif message.content -%}"
    "{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}"
    "{%- for call in message.tool_calls or [] -%}{{- call.function | tojson -}}{%- endfor -%}{{- '<|end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
_TEXT = ["hello world, this is a small tokenizer for tests", "the quick brown fox jumps over the lazy dog"] * 4


def make_tokenizer_folder(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write tokenizer.json and tokenizer_config.json; give the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v}))
    return folder
