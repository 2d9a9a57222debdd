"""Writes the nouns of all titles as spaCy tags them: see `webshop.nouns`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from agentrm_jax.envs.webshop.catalogue import load_catalogue


def tagged_nouns(model: str, titles: Iterable[str]) -> dict[str, list[str]]:
    """The nouns as WebShop has them: by a spaCy model, which has to be installed."""
    import spacy

    tagger = spacy.load(model)
    return {
        title: [word.text.lower() for word in tagger(title) if word.pos_ in ("NOUN", "PROPN")]
        for title in titles
    }


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m agentrm_jax.envs.webshop.tagging MODEL FILE")
    titles = sorted({product.title for product in load_catalogue().products})
    found = tagged_nouns(sys.argv[1], titles)
    Path(sys.argv[2]).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
