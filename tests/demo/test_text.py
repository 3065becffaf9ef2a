"""The generators: deterministic, right, and never asking in training what is held out."""

import json
import random
import re

import numpy as np
import pytest
from demo import tasks
from demo.conversation import belongs
from demo.corpus import IGNORED, Corpus, small_task
from demo.forms import json_exchange
from demo.questions import CARRIED_NUM, CARRIED_SEED, MAKERS, make_questions
from demo.recall import recall_conversation
from demo.tokenizer import END, MAX_LEN, Encoder, load_encoder, train_tokenizer
from demo.words import FIRST_NAMES, NOUNS

from baton.config import demo_model_path
from baton.demo.questions import FILE, same_call, same_json, to_lines


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(demo_model_path())


def test_a_batch_depends_on_seed_step_and_progress_alone(encoder: Encoder) -> None:
    first, again = (Corpus(encoder, seed=3).batch(7, 0.5, rows=2) for _ in range(2))
    other = Corpus(encoder, seed=4).batch(7, 0.5, rows=2)
    for name in ("tokens", "targets", "documents"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.tokens, other.tokens)


def test_questions_of_a_seed_are_always_the_same_and_those_of_another_are_not(encoder: Encoder) -> None:
    first, again, other = (make_questions(seed, 2, encoder) for seed in (1, 1, 2))
    assert first == again
    assert sum(a == b for a, b in zip(first, other, strict=True)) < len(first) / 4


def test_the_package_carries_the_questions_that_are_drawn(encoder: Encoder) -> None:
    assert FILE.read_text() == to_lines(make_questions(CARRIED_SEED, CARRIED_NUM, encoder))


def test_rows_hold_whole_documents_and_teach_the_next_token(encoder: Encoder) -> None:
    batch = Corpus(encoder, seed=1).batch(0, 1.0, rows=2)
    taught = batch.targets != IGNORED
    following = np.roll(batch.tokens, -1, axis=1)
    assert batch.tokens.shape == (2, MAX_LEN)
    assert 0.1 < taught.mean() < 0.7
    assert np.array_equal(batch.targets[taught], following[taught])
    same_document = batch.documents == np.roll(batch.documents, -1, axis=1)
    assert same_document[taught].all()
    assert (np.diff(batch.documents, axis=1) >= 0).all()


def test_no_sum_is_both_trained_on_and_asked_in_evaluation() -> None:
    def pairs(split: str, seed: int) -> set[tuple[int, ...]]:
        rng = random.Random(seed)
        questions = [tasks.sum_exchange(rng, split, 2)[0]["content"] for _ in range(3000)]  # type: ignore[arg-type]
        return {tuple(sorted(map(int, re.findall(r"\d+", question)))) for question in questions}

    trained, held_out = pairs("train", 1), pairs("held_out", 2)
    assert len(trained) > 2000
    assert len(held_out) > 150
    assert not trained & held_out


def test_no_fact_is_both_asked_in_training_and_in_evaluation(encoder: Encoder) -> None:
    def answers(split: str, seed: int) -> set[str]:
        rng = random.Random(seed)
        conversations = [recall_conversation(rng, split, 200, 4, encoder.length) for _ in range(200)]  # type: ignore[arg-type]
        return {m["content"] for c in conversations for m in c.messages if m["role"] == "assistant"}

    shared = answers("train", 1) & answers("held_out", 2)
    assert shared <= {"I have read it. What would you like to know?"}


def test_held_out_content_is_about_a_sixteenth() -> None:
    share = sum(belongs(str(number), "held_out") for number in range(16_000)) / 16_000
    assert 0.05 < share < 0.075


def test_sums_are_right_and_lists_are_what_was_asked() -> None:
    rng = random.Random(5)
    for _ in range(200):
        _, answer = tasks.sum_exchange(rng, "train", 3, rng.choice("+-"))
        a, sign, b, result = re.fullmatch(r"(\d+) ([+-]) (\d+) = (-?\d+)\.", answer["content"]).groups()  # type: ignore[union-attr]
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    for _ in range(50):
        question, answer = tasks.sort_exchange(rng, "held_out", 5)
        words = answer["content"].removeprefix("In order: ").rstrip(".").split(", ")
        assert words == sorted(words)
        assert set(words) <= set(NOUNS)
        assert all(word in question["content"] for word in words)


def test_the_answer_to_a_recall_question_stands_in_the_prompt(encoder: Encoder) -> None:
    rng = random.Random(8)
    for _ in range(30):
        conversation = recall_conversation(rng, "held_out", 300, 1, encoder.length, "key first")
        text = " ".join(message["content"] for message in conversation.prompt)
        value = conversation.answer.rstrip(".").split()[-1]
        assert value in text


@pytest.mark.parametrize(("size", "low", "high"), [(1000, 900, 1100), (3000, 2800, 3300)])
def test_recall_prompts_have_the_length_their_name_says(encoder: Encoder, size: int, low: int, high: int) -> None:
    make = MAKERS[f"recall, prompt of {size:,} tokens"]
    rng = random.Random(1)
    lengths = [len(encoder.render(make(rng, encoder))[0]) for _ in range(5)]
    assert low < min(lengths)
    assert max(lengths) < high


def test_a_conversation_for_evaluation_ends_with_the_answer(encoder: Encoder) -> None:
    for question in make_questions(3, 1, encoder):
        ids, said = encoder.render(question.conversation)
        assert ids[-1] == encoder.special[END]
        assert said[-1]
        assert encoder.decode(ids).endswith(question.conversation.answer)
        assert len(ids) <= MAX_LEN


def test_json_answers_are_compared_by_value_and_type() -> None:
    _, answer = json_exchange(random.Random(1), "train")
    assert same_json(answer["content"], answer["content"])
    assert same_json('{"a":1}', '{"a": 1}')
    assert not same_json('{"a": "1"}', '{"a": 1}')
    assert not same_json('{"a": 1', '{"a": 1}')
    call = {"name": "f", "arguments": {"x": 1}}
    assert same_call(f"<tool_call>{json.dumps(call)}</tool_call>", f"<tool_call>{json.dumps(call)}</tool_call>")
    assert not same_call(json.dumps(call), f"<tool_call>{json.dumps(call)}</tool_call>")


def test_the_tokenizer_of_some_texts_is_always_the_same() -> None:
    rng = random.Random(2)
    texts = [message["content"] for _ in range(200) for message in small_task(rng)]
    assert train_tokenizer(texts).to_str() == train_tokenizer(texts).to_str()


def test_words_stand_once_in_their_lists() -> None:
    for words in (NOUNS, FIRST_NAMES):
        assert len(set(words)) == len(words)


def test_the_quick_encoder_agrees_with_the_tokenizer(encoder: Encoder) -> None:
    rng = random.Random(4)
    for _ in range(50):
        for message in small_task(rng):
            text = message["content"]
            slow = encoder._tokenizer.encode(text, add_special_tokens=False).ids
            assert encoder.encode(text) == slow
    assert encoder.encode("é 1<|end|>") == encoder._tokenizer.encode("é 1<|end|>", add_special_tokens=False).ids
