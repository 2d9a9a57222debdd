"""Tokenizers, chat templates and conversations, each combination of which is compared with
transformers."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "You are in a room. There is a red key 12 and a box. USER: ASSISTANT: [INST] [/INST]",
    "Thought: I take the key.\nAction: take red key\n\n### Instruction:\n### Response:\n",
    "user\nassistant\nsystem\nmodel\n Observation: You look around, it is open. (take) [look]\n",
    'Der Schlüssel ist größer. ключ 鍵 é ½ <b>it\'s</b> & "more" 4096.5 kg',
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_pairs(splitter: Any, size: int = 420) -> dict[str, Any]:
    """A byte-level tokenizer as JSON."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return json.loads(tokenizer.to_str())


def sentence_pieces(*, fallback: bool) -> dict[str, Any]:
    """The vocabulary of a SentencePiece tokenizer, without what prepares the text, as JSON."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<unk>"], show_progress=False, min_frequency=1
    )
    # SentencePiece keeps line breaks apart from words.
    tokenizer.train_from_iterator([" ".join(text.split()) for text in CORPUS * 3], trainer)
    contents = json.loads(tokenizer.to_str())
    if fallback:
        model = contents["model"]
        model.update(byte_fallback=True, fuse_unk=True)
        for byte in range(256):
            model["vocab"].setdefault(f"<0x{byte:02X}>", len(model["vocab"]))
    return contents


@functools.cache
def tokenizer_json(kind: str) -> str:
    """A tokenizer without the special tokens of a chat."""
    if kind == "byte-level":
        contents = byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False))
    elif kind == "tekken":
        split = pre_tokenizers.Split(Regex(TEKKEN), behavior="isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        contents = byte_pairs(pre_tokenizers.Sequence([split, whole]))
    elif kind == "digits":
        single = pre_tokenizers.Digits(individual_digits=True)
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
        contents = byte_pairs(pre_tokenizers.Sequence([single, whole]), 360)
    elif kind == "legacy":
        contents = sentence_pieces(fallback=True)
        made = tokenizers.Tokenizer.from_str(json.dumps(contents))
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )  # fmt: skip
        return made.to_str()
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        made.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
            show_progress=False,
        )  # fmt: skip
        made.train_from_iterator([" ".join(text.split()) for text in CORPUS * 3], trainer)
        return made.to_str()
    else:
        scheme = kind.removeprefix("metaspace ")
        made = tokenizers.Tokenizer.from_str(
            json.dumps(sentence_pieces(fallback=scheme != "always"))
        )
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
        return made.to_str()
    return json.dumps(contents)


KINDS = (
    "metaspace first", "metaspace always", "metaspace never", "legacy", "unigram", "byte-level",
    "tekken", "digits",
)  # fmt: skip

_USER = "{% if m['role'] == 'user' %}"
_TURNS = "{% for m in messages %}"
_ASKED = "{% if add_generation_prompt %}"
_END = "{% endif %}{% endfor %}"
TEMPLATES: dict[str, tuple[str, Sequence[str | AddedToken]]] = {
    "llama 2": (
        _TURNS + _USER + "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + m['content'].strip() + ' ' + eos_token }}" + _END,
        (),
    ),
    "mistral 1": (
        "{{ bos_token }}" + _TURNS + _USER + "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token }}" + _END,
        (),
    ),
    "mistral 3": (
        "{{ bos_token }}" + _TURNS + _USER + "{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}" + _END,
        ("[INST]", "[/INST]"),
    ),
    "zephyr": (
        _TURNS + "{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
        + _ASKED + "{{ '<|assistant|>\\n' }}{% endif %}",
        (),
    ),
    "vicuna": (
        "{{ bos_token + 'A chat.' }}" + _TURNS + _USER + "{{ ' USER: ' + m['content'] }}{% else %}"
        "{{ ' ASSISTANT: ' + m['content'] + eos_token }}" + _END
        + _ASKED + "{{ ' ASSISTANT:' }}{% endif %}",
        (),
    ),
    "chatml": (
        _TURNS + "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}" + _ASKED + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama 3": (
        "{{ bos_token }}" + _TURNS + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>'"
        " + '\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        + _ASKED + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": (
        "{{ bos_token }}" + _TURNS + "{% set role = 'model' if m['role'] == 'assistant' else "
        "'user' %}{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}" + _ASKED + "{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "phi 3": (
        _TURNS + "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        + _ASKED + "{{ '<|assistant|>\\n' }}{% endif %}",
        tuple(
            AddedToken(name, special=True, normalized=False, rstrip=True)
            for name in ("<|user|>", "<|assistant|>", "<|end|>")
        ),
    ),
    "alpaca": (
        "{{ bos_token + 'Below is an instruction.\\n\\n' }}" + _TURNS + _USER
        + "{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}{% else %}"
        "{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}" + _END
        + _ASKED + "{{ '### Response:\\n' }}{% endif %}",
        (),
    ),
    # Words merge with the blank that a state ends with: cannot be a prefix.
    "blank before replies": (
        _TURNS + _USER + "{{ bos_token + 'USER: ' + m['content'] + '\\nASSISTANT: ' }}{% else %}"
        "{{ m['content'] + eos_token }}" + _END,
        (),
    ),
    "qwen 3": (
        _TURNS + "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' and "
        "'</think>' in m['content'] %}{{ m['content'].split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        + _ASKED + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
}  # fmt: skip
"""Name to template and special tokens, other than those of the beginning and the end of a text."""

CONVERSATIONS = {
    "plain": ("look around", "Action: take key", "You have it.", "open the door", "Done."),
    "leading blank": (" a room", " take it", "  two blanks", " Thought: go", " x"),
    "trailing newline": ("a room\n", "take it\n", "you have\n\n", "go \n", "end\n"),
    "scripts": ("🙂 鍵 é", "größer 👩‍🚀", "مفتاح — ½", "über ключ", "门 ✅"),
    "digits": ("12  keys   and 3.5", "4 + 4\n\n8", "<b> [X] <|no|> & 100%", "7", "0   "),
}


def write_tokenizer(directory: pathlib.Path, kind: str, template: str) -> None:
    """Writes a tokenizer with a chat template as a Hugging Face directory."""
    source, names = TEMPLATES[template]
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(kind))
    tokenizer.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False) if isinstance(name, str) else name
            for name in ("<unk>", "<s>", "</s>", *names)
        ]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": source,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
