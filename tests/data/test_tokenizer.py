"""Tokenizers trained from nothing."""

from __future__ import annotations

import json
import re

import pytest
from conversation_cases import TEXTS, any_text, hostile_text, word_tokenizer
from hypothesis import given, settings

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.tokenizer import END, PAD, load_tokenizer, train_tokenizer


@settings(deadline=None, max_examples=200)
@given(any_text)
def test_round_trip_of_any_text(text):
    tokenizer = word_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=100)
@given(hostile_text)
def test_text_never_becomes_a_special_token(text):
    tokenizer = word_tokenizer()
    ids = tokenizer.encode(text)
    assert all(token >= 5 for token in ids)
    assert tokenizer.decode(ids) == text


def test_training_repeats_to_the_byte(tmp_path):
    for name in ("a", "b"):
        train_tokenizer(iter(TEXTS), 400).save(tmp_path / name)
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b"))
    assert first == second


def test_merges_stay_within_words_and_digits_stand_alone():
    text = " left. red key 12 left. red key 12" * 50
    tokenizer = train_tokenizer([text], 400)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert " left" in pieces  # merges there are
    assert all(re.fullmatch(r" ?([a-z]+|\.|\d)| ", piece) for piece in pieces)
    # So a name is the same tokens wherever it stands.
    name = tokenizer.encode(" red key 12")
    assert tokenizer.encode("go to red key 12.")[-len(name) - 1 : -1] == name


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    text = f"Thought: é {END} 42"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.chat == tokenizer.chat
    assert (again.pad_id, again.vocab_size) == (tokenizer.pad_id, tokenizer.vocab_size)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert train_tokenizer(TEXTS, 300).fingerprint() != tokenizer.fingerprint()
    assert (
        tokenizer.decode([tokenizer.pad_id]),
        tokenizer.decode([tokenizer.chat.stop_token]),
    ) == (
        PAD,
        END,
    )


def test_a_limit_in_the_file_cuts_nothing(tmp_path):
    word_tokenizer().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["truncation"] = {
        "max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right",
    }  # fmt: skip
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode(TEXTS[0]) == word_tokenizer().encode(TEXTS[0])


def test_a_vocabulary_without_room_is_refused():
    with pytest.raises(UserError, match=r"model\.vocab_size: must be at least 261, not 100"):
        train_tokenizer(TEXTS, 100)
    assert train_tokenizer(TEXTS, 261).vocab_size == 261


def test_bad_directories_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: not found"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    word_tokenizer().save(tmp_path)
    sound = json.loads((tmp_path / "chat.json").read_text())
    wrong = (
        {"begin": 1}, {"begin": [1.5]}, {"user_open": [True]}, {"assistant_close": []},
        {"assistant_close": ["x"]}, {"user_strip": [""]}, {"reply_strip": 5}, {"ends": ["a"]},
        {"ends": 3}, {"date": 1}, {"drops_reasoning": 1}, {"pad_id": -1}, {"version": 3},
        {"closing": [[1]]}, {"user_close": [1 << 40]},
    )  # fmt: skip
    texts = (json.dumps({**sound, **values}) for values in wrong)
    for broken in ("{", "[]", "[" * 3000, '{"begin": [1]}', '{"pad_id": 0, "colour": []}', *texts):
        (tmp_path / "chat.json").write_text(broken)
        with pytest.raises(UserError, match=r"chat\.json: not a chat format"):
            load_tokenizer(tmp_path)
