"""Chat formats derived from templates in the manner of ChatML and Llama-3."""

from __future__ import annotations

import json

import pytest
import tokenizers
from conversation_cases import PROMPT, trajectory, word_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import render
from agentrm_jax.data.tokenizer import load_tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|headend|>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|headend|>\n\n{% endif %}"
)
DATED = "{{ date_string if date_string is defined else strftime_now('%c') }}" + LLAMA3
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = ("<|bos|>", "<|eos|>", "<|head|>", "<|headend|>", "<|eot|>")


def write_model(directory, template, specials, **config) -> None:
    """A tokenizer whose every byte is a token, as a Hugging Face directory."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


CASES = {
    "chatml": (CHATML, CHATML_TOKENS, {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}),
    # As Llama-3 was first released: the token that ends a turn is not its eos_token.
    "llama3": (LLAMA3, LLAMA3_TOKENS, {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}),
    "dated": (DATED, LLAMA3_TOKENS, {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}),
}


@pytest.fixture(params=CASES)
def model(request, tmp_path):
    template, specials, config = CASES[request.param]
    write_model(tmp_path, template, specials, **config)
    return tmp_path


def test_our_tokens_are_those_of_the_template(model):
    from transformers import AutoTokenizer

    whole = trajectory(3)
    turns = [PROMPT.instruction, "OK.", *PROMPT.example[:2], whole.first_observation]
    for step in whole.steps:
        turns += [step.reply, step.transition.observation]
    hugging_face = AutoTokenizer.from_pretrained(model)
    text = hugging_face.apply_chat_template(
        [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)],
        tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024",
    )  # fmt: skip
    prompt = type(PROMPT)(instruction=PROMPT.instruction, example=PROMPT.example[:2])
    rendered, _ = render(load_tokenizer(model), prompt, whole)
    assert rendered.tokens.tolist() == hugging_face.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("turns", [4, 5])
def test_an_exported_template_gives_our_tokens(model, turns, tmp_path):
    """With the whole chat, and with a reply at its end."""
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(model)
    tokenizer.export(tmp_path / "out")
    whole = trajectory(2)
    rendered, _ = render(tokenizer, None, whole)
    said = [whole.first_observation]
    for step in whole.steps:
        said += [step.reply, step.transition.observation]
    chat = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(said)]
    hugging_face = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = hugging_face.apply_chat_template(
        chat[:turns], tokenize=False, add_generation_prompt=turns == 5
    )
    end = rendered.state_ends[2] if turns == 5 else rendered.action_ends[1]
    tokens = hugging_face.encode(text, add_special_tokens=False)
    assert tokens == rendered.tokens[: end + 1].tolist()
    assert hugging_face.pad_token_id == tokenizer.pad_id != tokens[-1]
    assert hugging_face.eos_token_id == tokenizer.chat.stop_token
    (tmp_path / "out" / "chat.json").unlink()  # so that it is found from the template
    again = load_tokenizer(tmp_path / "out")
    assert render(again, None, whole)[0].tokens.tolist() == rendered.tokens.tolist()


def test_an_exported_template_knows_two_roles(tmp_path):
    from transformers import AutoTokenizer

    word_tokenizer().export(tmp_path)
    hugging_face = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "system", "content": "Be kind."}]
    with pytest.raises(Exception, match="turns are of user or assistant"):
        hugging_face.apply_chat_template(turns, tokenize=False)


def test_the_stop_token_ends_a_turn_and_cannot_be_written(model):
    tokenizer = load_tokenizer(model)
    written = tokenizer.decode([tokenizer.chat.stop_token])
    assert written in ("<|im_end|>", "<|eot|>")
    assert tokenizer.chat.stop_token not in tokenizer.encode(f"x{written}y")
    assert tokenizer.decode(tokenizer.encode(f"x{written}y")) == f"x{written}y"


def test_padding_ends_no_state(model):
    tokenizer = load_tokenizer(model)
    rendered, _ = render(tokenizer, PROMPT, trajectory(3))
    ends = [*rendered.action_ends, *rendered.state_ends]
    assert tokenizer.pad_id not in rendered.tokens[ends]
    assert tokenizer.decode([tokenizer.pad_id]) in ("<|endoftext|>", "<|eos|>")


def test_a_declared_padding_token_is_kept_where_it_does_no_harm(tmp_path):
    specials = (*LLAMA3_TOKENS, "<|rightpad|>")
    write_model(tmp_path, LLAMA3, specials, bos_token="<|bos|>", pad_token="<|rightpad|>")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode([tokenizer.pad_id]) == "<|rightpad|>"


def test_saved_it_needs_no_template(model, tmp_path):
    tokenizer = load_tokenizer(model)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.chat, again.pad_id) == (tokenizer.chat, tokenizer.pad_id)
    assert again.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        # Earlier replies are shortened, as some models do with their reasoning.
        (
            CHATML.replace(
                "{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'][:2] }}"
            ),
            "changes or drops turns",
        ),
        # What stands before the first turn depends on how many there are.
        ("{{ messages | length }}" + CHATML, "not append-only"),
        (CHATML.replace("<|im_end|>", "###"), "without a special token"),
        ("{{ raise_exception('no such role') }}", "no such role"),
    ],
)
def test_templates_that_cannot_serve_are_refused(tmp_path, template, message):
    write_model(tmp_path, template, CHATML_TOKENS)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
