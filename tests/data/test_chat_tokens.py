"""What changes the tokens of a chat without a word: stored settings, dates, forged turns, ends."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest
from chat_cases import KINDS, TEMPLATES, write_tokenizer
from conversation_cases import PROMPT, trajectory, word_tokenizer

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import opening_tokens, reply_tokens
from agentrm_jax.data.probes import PROBES, messages_of, turn_tokens
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.template_process import TemplateError, render_template
from agentrm_jax.data.tokenizer import END, Tokenizer, load_tokenizer

THINKING = TEMPLATES["qwen 3"][0]
CHATML = TEMPLATES["chatml"][0]


def change(path: pathlib.Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def chatml(directory: pathlib.Path, template: str = CHATML) -> pathlib.Path:
    write_tokenizer(directory, "digits", "chatml")
    change(directory / "tokenizer_config.json", chat_template=template)
    return directory


def all_tokens(tokenizer: Tokenizer) -> list[list[int]]:
    return [turn_tokens(tokenizer, turns) for turns in PROBES.values()]


STORED = {
    "padding": {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<unk>",
    },
    "multiple": {
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<unk>",
    },
    "truncation": {
        "max_length": 16, "stride": 0, "strategy": "LongestFirst", "direction": "Right",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [*STORED, "dropout"])
@pytest.mark.parametrize("kind", ["digits", "legacy"])
def test_settings_stored_with_a_tokenizer_change_nothing(name, kind, tmp_path):
    write_tokenizer(tmp_path / "plain", kind, "chatml")
    write_tokenizer(tmp_path / "stored", kind, "chatml")
    path = tmp_path / "stored" / "tokenizer.json"
    if name == "dropout":
        change(path, model={**json.loads(path.read_text())["model"], "dropout": 0.5})
    else:
        change(path, **{name.replace("multiple", "padding"): STORED[name]})
    plain, stored = (load_tokenizer(tmp_path / folder) for folder in ("plain", "stored"))
    assert all_tokens(stored) == all_tokens(plain)
    assert (stored.chat, stored.fingerprint()) == (plain.chat, plain.fingerprint())
    stored.export(tmp_path / "export")
    exported = json.loads((tmp_path / "export" / "tokenizer.json").read_text())
    assert exported["padding"] is exported["truncation"] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["llama 2", "mistral 3", "llama 3", "phi 3"])
def test_no_text_forges_a_control_token(kind, template, tmp_path):
    write_tokenizer(tmp_path, kind, template)
    tokenizer = load_tokenizer(tmp_path)
    names = sorted(tokenizer.decode([token]).strip() for token in tokenizer.control)
    assert len(names) == 2 + len(TEMPLATES[template][1])
    honest = turn_tokens(tokenizer, ["a", "b", "c"])
    forged = [f"a{name}b {name} {name}{name}" for name in ("".join(names), *names)]
    for text in forged:
        assert tokenizer.control.isdisjoint(tokenizer.encode(text))
        tokens = turn_tokens(tokenizer, [text, text, text])
        assert [t for t in tokens if t in tokenizer.control] == [
            t for t in honest if t in tokenizer.control
        ]
        if kind in ("byte-level", "tekken", "digits"):  # others have no token for every character
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_that_spells_a_control_token_cannot_forge_it():
    """The model of the tokenizer merges the characters of `</s>` to that very token."""
    import tokenizers
    from tokenizers import AddedToken, models

    vocabulary = {name: i for i, name in enumerate(["<", "/", "s", ">", "</", "s>", "</s>", "a"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    assert inner.encode("</s>").ids == [6]
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = Tokenizer(inner, word_tokenizer().chat, 0)
    assert tokenizer.encode("a</s>a</s>") == [7, 0, 1, 5, 7, 0, 1, 5]


def test_settings_that_split_the_templates_tokens_are_refused(tmp_path):
    change(chatml(tmp_path) / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: split_special_tokens must be"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("kind", "template"), [("legacy", "llama 2"), ("digits", "chatml")])
def test_two_turns_of_the_user_in_a_row_are_one(kind, template, tmp_path):
    """An example that ends with an observation, and the first observation of the task."""
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, kind, template)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.export(tmp_path / "export")
    ours = opening_tokens(tokenizer, PROMPT, "Goal: go.")
    turns = [PROMPT.instruction, "OK.", *PROMPT.example]
    joined = messages_of([*turns[:-1], turns[-1] + "\nGoal: go."])
    apart = [*messages_of(turns), {"role": "user", "content": "Goal: go."}]
    for directory, messages in ((tmp_path, joined), (tmp_path / "export", apart)):
        tokens = AutoTokenizer.from_pretrained(directory).apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert tokens == ours


def test_lone_surrogates_and_any_control_character_are_text():
    tokenizer = word_tokenizer()
    assert tokenizer.decode(tokenizer.encode("a\ud83d b")) == "a\ufffd b"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "\U0001f600"
    assert tokenizer.decode(tokenizer.encode("\0 \x1b[0m \u202e")) == "\0 \x1b[0m \u202e"


def test_a_sampled_reply_with_control_tokens_is_read_as_its_text():
    tokenizer = word_tokenizer()
    end, text = tokenizer.chat.stop_token, tokenizer.encode("go")
    forged = [*text, end, *text]
    reply = tokenizer.decode(forged)
    assert reply == f"go{END}go"
    assert reply_tokens(tokenizer, reply, forged) == [*tokenizer.encode(reply), end]
    assert reply_tokens(tokenizer, reply, forged).count(end) == 1
    assert reply_tokens(tokenizer, "go", text) == [*text, end]


@pytest.mark.parametrize(
    ("generation", "config", "names"),
    [
        ({"eos_token_id": ["<|im_end|>", "</s>"]}, None, ["</s>"]),
        ({"eos_token_id": "</s>"}, {"eos_token_id": 5}, ["</s>"]),  # 5 is a letter
        (None, {"eos_token_id": ["</s>", "<s>"]}, ["<s>", "</s>"]),
        ({}, {}, []),
        ({"eos_token_id": None}, None, []),
    ],
)
def test_all_ends_of_text_end_a_reply(generation, config, names, tmp_path):
    chatml(tmp_path)
    import tokenizers

    ids = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id

    def numbered(value):
        if isinstance(value, list):
            return [ids(name) for name in value]
        return ids(value) if isinstance(value, str) else value

    for name, values in (("generation_config.json", generation), ("config.json", config)):
        if values is not None:
            numbers = {key: numbered(value) for key, value in values.items()}
            (tmp_path / name).write_text(json.dumps(numbers))
    tokenizer = load_tokenizer(tmp_path)
    assert sorted(tokenizer.chat.ends) == sorted(int(ids(name) or 0) for name in names)
    assert tokenizer.stops[0] == tokenizer.chat.stop_token == ids("<|im_end|>")
    assert {*tokenizer.stops} == {ids("<|im_start|>"), ids("<|im_end|>"), ids("<s>"), ids("</s>")}
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").stops == tokenizer.stops


def test_ends_of_text_that_are_no_ids_are_refused(tmp_path):
    (chatml(tmp_path) / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id must be a token"):
        load_tokenizer(tmp_path)


DATED = "{{ '<|im_start|>system\\n' + strftime_now('%d %B %Y %H:%M') + '<|im_end|>\\n' }}" + CHATML


def test_the_day_of_a_template_never_changes(tmp_path, monkeypatch):
    import transformers.utils.chat_template_utils as used

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(days=1)

    chatml(tmp_path, DATED)
    today = load_tokenizer(tmp_path)
    monkeypatch.setattr(used, "datetime", Tomorrow)
    tomorrow = load_tokenizer(tmp_path)
    assert tomorrow.chat == today.chat
    assert tomorrow.fingerprint() == today.fingerprint()
    assert "26 July 2024 00:00" in today.decode(today.chat.begin)
    assert today.chat.date == "2024-07-26"
    today.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "chat.json").read_text())["date"] == "2024-07-26"


def test_a_given_day_is_recorded_as_well(tmp_path):
    dated = "{{ '<|im_start|>' + (date_string or strftime_now('%Y')) + '<|im_end|>' }}" + CHATML
    chat = load_tokenizer(chatml(tmp_path, dated)).chat
    assert chat.begin[1] == "26 Jul 2024"
    assert chat.date == "2024-07-26"


def test_what_was_saved_before_texts_were_encoded_together_keeps_its_tokens(tmp_path):
    """SentencePiece's first blank stood before every turn."""
    write_tokenizer(tmp_path, "metaspace first", "mistral 1")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "saved")
    path = tmp_path / "saved" / "chat.json"
    stored = json.loads(path.read_text())
    ids = {name: [p for p in stored[name] if isinstance(p, int)] for name in
           ("begin", "assistant_open", "assistant_close")}  # fmt: skip
    old = {**ids, "user_open": [], "user_close": [], "pad_id": stored["pad_id"]}
    path.write_text(json.dumps(old))
    again = load_tokenizer(tmp_path / "saved")
    blank = tokenizer.encode("look")
    assert tokenizer.encode("look", tokenizer.chat.stop_token) != blank
    assert again.encode("look", again.chat.stop_token) == blank
    again.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "chat.json").read_text()) == old


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML + "{{ ['a', 'b'] | random }}", r"the chat template fails \(it uses random numbers"),
        (CHATML + "{{ lipsum() }}", r"the chat template fails \(it uses random numbers"),
        (CHATML + "{{ raise_exception }}", r"writes the address of an object"),
        ("{% set x = namespace(s='ab') %}{% for i in range(50) %}{% set x.s = x.s ~ x.s %}"
         "{% endfor %}{{ x.s }}", r"the chat template takes more memory than 1024 MiB"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", r"the chat template is nested too deep"),
        ("{% for m in messages %}", r"the chat template cannot be read \(Unexpected end"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "conversation 'plain words'"),
        (CHATML.replace("m['content']", "m['content'][:500]"), r"'long turns', turn 1:"),
        (CHATML.replace("m['content']", "m['content'].replace('<', '&lt;')"), "'digits and"),
        (CHATML.replace("m['content']", "m['content'] | title"), "changes or drops turns"),
        (CHATML.replace("m['content']", "m['content'].replace('\\n', ' ')"), "changes the blanks"),
        (CHATML.replace("m['content']", "m['content'].replace('  ', ' ')"), "'leading blank'"),
        (CHATML.replace("m['content']", "('SYS ' if loop.last else '') + m['content']"),
         "is not append-only"),
        (CHATML.replace("in messages", "in messages[-8:]"), "'many turns', turn 9:"),
        ("{% if messages | length > 30 %}{{ 'Be short.' }}{% endif %}" + CHATML, "'many turns', "),
        (CHATML.replace("in messages", "in messages if m['content']"), "'empty turns', turn 1:"),
        (CHATML.replace("m['content']", "m['content'].strip(' \\n\\t')"), "'rare blanks', turn 1:"),
        (CHATML.replace("m['content']", "m['content'] | int(m['content']) | string"), "'numbers'"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_reproduced_are_refused_in_one_line(template, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(chatml(tmp_path, template))
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def test_a_template_may_refuse_empty_turns(tmp_path):
    fails = "{% if not m['content'] %}{{ raise_exception('empty') }}{% endif %}{{ "
    tokenizer = load_tokenizer(chatml(tmp_path, CHATML.replace("{{ ", fails, 1)))
    plain = load_tokenizer(chatml(tmp_path / "plain", CHATML))
    assert all_tokens(tokenizer) == all_tokens(plain)


def test_a_template_without_end_is_stopped():
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match="ran longer than 1 s"):
        render_template(loops, {}, [(messages_of(["a"]), True)], seconds=1)


@pytest.mark.parametrize(
    "closing", ["</think>", "[/THINK]", "</reasoning>", "<|end_of_thought|>", "◁/think▷"]
)
def test_reasoning_is_recognised_between_any_markers(closing, tmp_path):
    template = THINKING.replace("</think>", closing)
    assert load_tokenizer(chatml(tmp_path, template)).chat.drops_reasoning
    only_last = template.replace("m['role'] == 'assistant'", "false")
    assert not load_tokenizer(chatml(tmp_path, only_last)).chat.drops_reasoning


def test_empty_reasoning_before_the_last_reply_is_left_out(tmp_path):
    """As in the template of Qwen 3."""
    last = THINKING.replace(
        "{{ m['content'] }}",
        "{{ ('<think>\\n\\n</think>\\n\\n' if loop.last and loop.index0 % 2 else '') + "
        "m['content'] }}",
    )
    tokenizer = load_tokenizer(chatml(tmp_path, last))
    assert tokenizer.chat.drops_reasoning
    assert tokenizer.chat.closing == ("\n",)
    assert tokenizer.decode(turn_tokens(tokenizer, ["Go.", "Done."])) == (
        "<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\nDone.<|im_end|>"
    )


def test_reasoning_that_a_template_drops_is_kept(tmp_path):
    tokenizer = load_tokenizer(chatml(tmp_path, THINKING))
    assert tokenizer.chat.drops_reasoning
    assert not load_tokenizer(chatml(tmp_path, CHATML)).chat.drops_reasoning
    said = ["Go.", "<think>\nhm\n</think>\n\nAction: go", "Done."]
    assert tokenizer.decode(turn_tokens(tokenizer, said)) == (
        "<|im_start|>user\nGo.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nAction: go<|im_end|>\n"
        "<|im_start|>user\nDone.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_server_that_encodes_the_rendered_text_has_one_beginning(tmp_path):
    """The tokenizer of others adds a token before every text; the export's adds none."""
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, "legacy", "mistral 3")
    path = tmp_path / "tokenizer.json"
    first = next(t["id"] for t in json.loads(path.read_text())["added_tokens"] if t["id"] and
                 t["content"] == "<s>")  # fmt: skip
    adding = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [first], "tokens": ["<s>"]}},
    }  # fmt: skip
    change(path, post_processor=adding)
    chat = {"tokenize": False, "add_generation_prompt": True}
    source = AutoTokenizer.from_pretrained(tmp_path)
    text = source.apply_chat_template(messages_of(["a"]), **chat)
    assert source(text)["input_ids"].count(first) == 2
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.export(tmp_path / "export")
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    text = exported.apply_chat_template(messages_of(["a"]), **chat)
    assert exported(text)["input_ids"] == turn_tokens(tokenizer, ["a"])
    assert load_tokenizer(tmp_path / "export").fingerprint() == tokenizer.fingerprint()


def test_an_action_is_read_at_the_stop_token_or_at_the_end_of_the_template(tmp_path):
    tokenizer = load_tokenizer(chatml(tmp_path))
    assert tokenizer.foreign
    tokenizer.save(tmp_path / "saved")
    assert not load_tokenizer(tmp_path / "saved").foreign
    whole, limit = trajectory(3), 1000
    stop, closed = (
        Renderer(tokenizer, lambda task: None, limit, closed=closed).both_ends(whole)[0]
        for closed in (False, True)
    )
    newline = tokenizer.encode("\n", tokenizer.chat.stop_token)
    for at_stop, at_end in zip(stop, closed, strict=True):
        if at_stop.action is not None and at_end.action is not None:
            stopped, ended = (
                [t for segment in segments for t in segment]
                for segments in (at_stop.action, at_end.action)
            )
            assert stopped[-1] == tokenizer.chat.stop_token
            assert ended == [*stopped, *newline]
        same = [[t for piece in end.state for t in piece] for end in (at_stop, at_end)]
        assert same[0] == same[1]
