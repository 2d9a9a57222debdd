"""The tokenizer that a GGUF file carries, as the files of a Hugging Face directory."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable

_PREFIX, _TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in GGUF
_KINDS = (1, _CONTROL, _USER_DEFINED, 5)  # and normal and unused ones
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message: llama.cpp stops at each


def write_gguf_tokenizer(metadata: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Args:
      metadata: The file's, `tokenizer.*` among it.

    Raises:
      UserError: It is of another kind than byte-level byte pairs, splits words in a way that is not
        known here, or a key does not fit the others; names the key.
    """
    found = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
    if found.get("model") != "gpt2":
        raise UserError(f"{_PREFIX}model: only gpt2 is read, not {found.get('model')!r}")
    tokens = _texts(found, "tokens")
    tokenizer = _tokenizer(tokens, _merges(found, tokens), found.get("pre"))
    kinds = _kinds(found, len(tokens))
    of_kind: dict[int, list[str]] = {}
    for token, kind in zip(tokens, kinds, strict=True):
        of_kind.setdefault(kind, []).append(token)
    ends = [tokens[number] for number in end_token_ids(metadata, len(tokens))]
    control = dict.fromkeys([*of_kind.get(_CONTROL, ()), *ends])
    tokenizer.add_special_tokens(_added(control, special=True))
    own = [token for token in of_kind.get(_USER_DEFINED, ()) if token not in control]
    tokenizer.add_tokens(_added(own, special=False))
    template = metadata.get(_TEMPLATE)
    if not isinstance(template, str | None):
        raise UserError(f"{_TEMPLATE}: must be text, not {type(template).__name__}")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        **{
            f"{role}_token": tokens[number]
            for role, number in special_token_ids(metadata, len(tokens)).items()
        },
    }
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def special_token_ids(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """Returns the ids of the tokens `bos`, `eos`, `unk` and `pad`, as far as the file names them.

    Raises:
      UserError: An id is no token; names the key.
    """
    found = {role: _token_id(metadata, name, vocab_size) for role, name in _ROLES.items()}
    return {role: number for role, number in found.items() if number is not None}


def end_token_ids(metadata: Mapping[str, Any], vocab_size: int) -> list[int]:
    """Returns the ids of the tokens that end a reply, as far as the file names them.

    Raises:
      UserError: An id is no token; names the key.
    """
    found = [_token_id(metadata, name, vocab_size) for name in _ENDS]
    return list(dict.fromkeys(number for number in found if number is not None))


def _token_id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    key = f"{_PREFIX}{name}_token_id"
    value = metadata.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
        raise UserError(
            f"{key}: must be below {vocab_size}, the number of tokens (got {value!r:.40})"
        )
    return value


def _tokenizer(tokens: list[str], merges: list[tuple[str, str]], pre: Any) -> Any:
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers

    splits = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
        "llama-bpe": [
            pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }
    if not isinstance(pre, str) or pre not in splits:
        raise UserError(f"{_PREFIX}pre: must be one of {', '.join(splits)} (got {pre!r})")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre == "llama-bpe",  # words that are tokens stay whole
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits[pre])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _added(tokens: Iterable[str], *, special: bool) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(token, special=special) for token in tokens]


def _texts(found: Mapping[str, Any], name: str) -> list[str]:
    """A list of distinct texts."""
    values = found.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise UserError(f"{_PREFIX}{name}: must be a list of texts")
    known: dict[str, int] = {}
    for number, value in enumerate(values):
        if known.setdefault(value, number) != number:
            raise UserError(
                f"{_PREFIX}{name}: {printable(repr(value))} is there twice, as number "
                f"{known[value]} and {number}"
            )
    return values


def _merges(found: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of tokens, each of which makes a token."""
    known, pairs = set(tokens), []
    for number, merge in enumerate(_texts(found, "merges")):
        pair = tuple(merge.split(" "))
        if len(pair) != 2 or not {*pair, "".join(pair)} <= known:
            raise UserError(
                f"{_PREFIX}merges: number {number}, {printable(repr(merge))}, does not make a "
                "token of two tokens"
            )
        pairs.append(pair)
    return pairs


def _kinds(found: Mapping[str, Any], size: int) -> list[int]:
    kinds = found.get("token_type")
    if not isinstance(kinds, list) or len(kinds) != size:
        raise UserError(f"{_PREFIX}token_type: must have an entry for each of {size} tokens")
    for number, kind in enumerate(kinds):
        if type(kind) is not int or kind not in _KINDS:
            raise UserError(f"{_PREFIX}token_type: type {kind!r} of token {number} is not read")
    return kinds
