"""Normalizers and post-processors of the `tokenizers` library, read and changed in JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

REASONING = frozenset(("<think>", "</think>", "[THINK]", "[/THINK]"))
"""Names of tokens that are part of a reply."""

_UNKNOWN = frozenset(("<unk>", "[UNK]", "<|unk|>", "<|unknown|>"))
_ADDING = frozenset(("TemplateProcessing", "BertProcessing", "RobertaProcessing"))


def control_tokens(tokenizer: Any) -> frozenset[int]:
    """Returns the ids of special tokens, except for unknown text and marks of reasoning."""
    other = REASONING | _UNKNOWN | {getattr(tokenizer.model, "unk_token", None)}
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special and token.content not in other)


def swallowing(tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """Returns the added tokens that take the blanks to their left, and those to their right."""
    added = tokenizer.get_added_tokens_decoder().items()
    left = frozenset(i for i, token in added if token.lstrip)
    return left, frozenset(i for i, token in added if token.rstrip)


def inside_text(tokenizer: Any) -> Any:
    """Returns a tokenizer that encodes a text as if another stood before it.

    SentencePiece's blank before the first word is the one thing that depends on it.
    """
    contents = json.loads(tokenizer.to_str()) if _may_prepend(tokenizer) else {}
    first = [part for part in _parts(contents, "pre_tokenizer") if _prepends_first(part)]
    if not first:
        return tokenizer
    for part in first:
        part["prepend_scheme"] = "never"
    return _loaded(contents)


def prepared(tokenizer: Any) -> Any:
    """Returns a copy that encodes every text whole and always alike: without padding, truncation
    and dropout, which are stored with a tokenizer that was used with them."""
    contents = json.loads(tokenizer.to_str())
    contents["padding"] = contents["truncation"] = None
    if contents["model"].get("dropout"):
        contents["model"]["dropout"] = None
    return _loaded(contents, encode_special_tokens=False)


def with_special(tokenizer: Any, ids: frozenset[int]) -> Any:
    """Returns a tokenizer in which some added tokens are special: text never encodes to them."""
    added = tokenizer.get_added_tokens_decoder()
    if all(added[token].special for token in ids):
        return tokenizer
    contents = json.loads(tokenizer.to_str())
    for token in contents["added_tokens"]:
        token["special"] = token["special"] or token["id"] in ids
    return _loaded(contents)


def without_added_tokens_around(tokenizer: Any) -> str:
    """Returns the JSON of a tokenizer that puts no tokens at the ends of a text."""
    contents = json.loads(tokenizer.to_str())
    kept = [p for p in _parts(contents, "post_processor") if p["type"] not in _ADDING]
    found = None
    if kept:
        found = kept[0] if len(kept) == 1 else {"type": "Sequence", "processors": kept}
    contents["post_processor"] = found
    return json.dumps(contents, ensure_ascii=False, indent=1)


def _parts(contents: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The members of a component, which may be sequences of others."""
    waiting = [contents.get(name)]
    while waiting:
        part = waiting.pop(0)
        if part is None:
            continue
        if part["type"] == "Sequence":
            waiting = [*part.get("pretokenizers", part.get("processors", ())), *waiting]
        else:
            yield part


def _prepends_first(part: dict[str, Any]) -> bool:
    return part["type"] == "Metaspace" and part.get("prepend_scheme") == "first"


def _may_prepend(tokenizer: Any) -> bool:
    """Whether the JSON form, large for large vocabularies, is worth reading."""
    return (
        tokenizer.pre_tokenizer is not None and b'"first"' in tokenizer.pre_tokenizer.__getstate__()
    )


def _loaded(contents: dict[str, Any], *, encode_special_tokens: bool = True) -> Any:
    import tokenizers

    found = tokenizers.Tokenizer.from_str(json.dumps(contents))
    found.encode_special_tokens = encode_special_tokens
    return found
