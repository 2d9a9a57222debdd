"""The tokenizer that a GGUF file carries, as the files of a Hugging Face directory."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in GGUF
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def write_gguf_tokenizer(metadata: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Args:
      metadata: The file's, `tokenizer.*` among it.

    Raises:
      UserError: It is of another kind than byte-level byte pairs, or splits words unknown here.
    """
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

    def of(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    if of("model") != "gpt2" or not of("tokens") or not of("merges"):
        raise UserError(f"tokenizer.ggml.model: only gpt2 is read, not {of('model')!r}")
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
    if of("pre") not in splits:
        raise UserError(f"tokenizer.ggml.pre: {of('pre')!r} is none of {', '.join(splits)}")
    tokens: list[str] = of("tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in of("merges")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,  # pyright: ignore[reportArgumentType]
            ignore_merges=of("pre") == "llama-bpe",  # words that are tokens stay whole
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits[of("pre")])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    kinds = list(zip(tokens, of("token_type") or (), strict=False))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in kinds if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False) for t, k in kinds if k == _USER_DEFINED])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": metadata.get("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        **{
            f"{role}_token": tokens[of(f"{name}_token_id")]
            for role, name in _ROLES.items()
            if of(f"{name}_token_id") is not None
        },
    }
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
