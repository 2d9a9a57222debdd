"""Every kind of tokenizer with every kind of template: the tokens of transformers, or refused."""

from __future__ import annotations

import pathlib

from chat_cases import CONVERSATIONS, KINDS, TEMPLATES, write_tokenizer

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.probes import messages_of, turn_tokens
from agentrm_jax.data.tokenizer import Tokenizer, load_tokenizer


def template_tokens(hugging_face, turns, *, replied: bool) -> list[int]:
    return hugging_face.apply_chat_template(
        messages_of(turns), tokenize=True, return_dict=False, add_generation_prompt=not replied
    )


def compared(directory: pathlib.Path, tokenizer: Tokenizer) -> list[str]:
    """The turns at which our tokens are not those of the template or of the export."""
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(directory)
    tokenizer.export(directory / "export")
    exported = AutoTokenizer.from_pretrained(directory / "export")
    wrong = []
    for name, turns in CONVERSATIONS.items():
        for count in range(1, len(turns) + 1):
            replied = not count % 2
            ours = turn_tokens(tokenizer, turns[:count])
            theirs = template_tokens(source, turns[:count], replied=replied)
            closing = theirs[len(ours) :]
            if theirs[: len(ours)] != ours or (closing and not replied):
                wrong.append(f"{name}, turn {count}: {ours} {theirs}")
            again = template_tokens(exported, turns[:count], replied=replied)
            text = exported.apply_chat_template(
                messages_of(turns[:count]), tokenize=False, add_generation_prompt=not replied
            )
            if not again == exported(text)["input_ids"] == ours:
                wrong.append(f"{name}, turn {count}, exported: {ours} {again}")
    return wrong


def test_each_pair_has_the_tokens_of_its_template_or_is_refused(tmp_path, capsys):
    equal, refused, wrong = [], {}, {}
    for kind in KINDS:
        for template in TEMPLATES:
            directory = tmp_path / kind / template
            write_tokenizer(directory, kind, template)
            try:
                tokenizer = load_tokenizer(directory)
            except UserError as error:
                refused[kind, template] = str(error)
                continue
            assert tokenizer.chat.drops_reasoning == (template == "qwen 3")
            differences = compared(directory, tokenizer)
            if differences:
                wrong[kind, template] = differences
            else:
                equal.append((kind, template))
    with capsys.disabled():
        print(
            f"\npairs compared {len(KINDS) * len(TEMPLATES)}, equal {len(equal)}, "
            f"refused {len(refused)}, wrong {len(wrong)}"
        )
    assert not wrong
    assert refused.keys() == {(kind, "blank before replies") for kind in KINDS}
    for message in refused.values():
        assert "the chat template cannot be reproduced token for token" in message
        assert "\n" not in message
