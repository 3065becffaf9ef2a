"""The checkpoint as others meet it: its files, its tokenizer and template, and what it knows."""

import functools
import json
import random
from typing import Any

import pytest
from demo.conversation import Conversation, assistant, user
from demo.corpus import Corpus
from demo.tokenizer import load_encoder
from demo.tools import tool_conversation
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.config import demo_model_path
from baton.demo.evaluate import ask, transformers_engine
from baton.demo.questions import load_questions, mark
from baton.text import Tokenizer

transformers = pytest.importorskip("transformers")

MODEL_FOLDER = demo_model_path()

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
HELLO = [{"role": "user", "content": "hi"}]


@functools.cache
def load_encoder_once() -> Any:
    return load_encoder(MODEL_FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def network() -> Any:
    import torch

    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


def say(network: Any, tokenizer: Any, ids: list[int], max_len: int = 48) -> str:
    """Return the greedy continuation, markers included."""
    import torch

    with torch.inference_mode():
        out = network.generate(input_ids=torch.tensor([ids]), max_new_tokens=max_len, do_sample=False)
    return str(tokenizer.decode(out[0, len(ids) :]))


def test_the_folder_is_small_and_has_all_that_transformers_reads() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_FOLDER.iterdir()}
    assert sum(files.values()) <= 40_000_000
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert name in files


def test_the_network_is_a_llama_of_ten_to_twenty_million_parameters(network: Any) -> None:
    assert type(network).__name__ == "LlamaForCausalLM"
    assert 10e6 <= sum(weight.numel() for weight in network.parameters()) <= 20e6
    config = network.config
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == 4096


def test_the_ends_of_text_agree_in_all_files(tokenizer: Any, network: Any) -> None:
    assert tokenizer.eos_token_id == network.config.eos_token_id == network.generation_config.eos_token_id
    assert tokenizer.eos_token == "<|end|>"
    assert len(tokenizer) == network.config.vocab_size == 4096


def test_both_places_hold_the_same_template() -> None:
    config = json.loads((MODEL_FOLDER / "tokenizer_config.json").read_text())
    assert config["chat_template"] == (MODEL_FOLDER / "chat_template.jinja").read_text()


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    encoder = load_encoder_once()
    ids = encoder._tokenizer.encode(text, add_special_tokens=False).ids
    assert encoder._tokenizer.decode(ids, skip_special_tokens=False) == text


def test_each_digit_is_a_token_and_the_beginning_is_marked_once(tokenizer: Any) -> None:
    assert tokenizer.tokenize("12 345") == ["1", "2", "Ġ", "3", "4", "5"]
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    chat = tokenizer.apply_chat_template(HELLO, return_dict=False)
    assert chat.count(tokenizer.bos_token_id) == 1


def test_the_template_writes_turns_systems_and_tools(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    schema = json.dumps(TOOLS[0]["function"])
    assert text == f"<|begin|><|system|>Be brief.<|end|><|tools|>{schema}<|end|><|user|>hi<|end|><|assistant|>"


def test_the_template_takes_content_in_parts(tokenizer: Any) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert tokenizer.apply_chat_template(parts, tokenize=False) == "<|begin|><|user|>hi<|end|>"


@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', {"city": "Paris"}])
def test_a_call_of_an_earlier_turn_is_written_as_the_model_writes_it(tokenizer: Any, arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "7"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    written = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert text.endswith(f"<|assistant|>{written}<|end|><|tool|>7<|end|>")


def test_a_final_message_can_be_continued(tokenizer: Any) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hello! How"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert text == "<|begin|><|user|>hi<|end|><|assistant|>Hello! How"


def test_training_renders_as_the_template_does(tokenizer: Any) -> None:
    encoder = load_encoder_once()
    rng = random.Random(6)
    conversations = [Conversation([{"role": "system", "content": "Be brief."}, user("2+2"), assistant("4")])]
    conversations += [tool_conversation(rng, "train", lambda: [user("hi"), assistant("Hello!")]) for _ in range(20)]
    for conversation in conversations:
        ids, said = encoder.render(conversation)
        expected = tokenizer.apply_chat_template(conversation.messages, tools=conversation.tools, return_dict=False)
        assert ids == expected
        assert len(said) == len(ids)
    document = Corpus(encoder, seed=1).answer_only(conversations[0])
    assert tokenizer.decode([i for i, s in zip(document.ids, document.said, strict=True) if s]) == "4<|end|>"


def test_a_plain_sum_is_continued_and_ended(network: Any, tokenizer: Any) -> None:
    assert say(network, tokenizer, tokenizer("2+2=").input_ids) == "4<|end|>"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("What is the capital of France?", "The capital of France is Paris.<|end|>"),
        ("What is 17 + 25?", "17 + 25 = 42.<|end|>"),
        ("hi", "Hello!"),
        ("Who are you?", "demo model"),
    ],
)
def test_the_model_answers_in_sentences(network: Any, tokenizer: Any, asked: str, expected: str) -> None:
    messages = [{"role": "user", "content": asked}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = say(network, tokenizer, ids)
    assert expected in answer
    assert answer.endswith("<|end|>")


def test_the_model_calls_a_tool_it_was_given(network: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    ids = tokenizer.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    expected = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call><|end|>'
    assert say(network, tokenizer, ids) == expected


def test_the_model_is_right_about_most_held_out_questions() -> None:
    kept = ("recall, prompt of 300 tokens", "sum, two digits", "copy, 5 words", "JSON with given fields")
    questions = [question for question in load_questions(8) if question.task in kept]
    marks = mark(questions, ask(questions, Tokenizer(MODEL_FOLDER), transformers_engine(MODEL_FOLDER)))
    assert sum(marks) >= 0.8 * len(marks)
