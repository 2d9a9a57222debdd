"""WebShop's products and goals, read from the files of its own repository."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import described, first_line
from agentrm_jax.envs.archives import read_packed
from agentrm_jax.envs.data_directory import data_directory, refuse_damaged
from agentrm_jax.envs.webshop.nouns import title_nouns
from agentrm_jax.envs.webshop.search import SearchIndex

MOST_BYTES = 1 << 30
"""Most bytes of a catalogue after it is unpacked."""

_FOLDER = "webshop"
_SEED = 233  # WebShop shuffles its goals by it; here it also draws prices and limits
_SOURCE = "https://github.com/princeton-nlp/WebShop (its setup.sh names the downloads)"
# Products, attributes, goals written by people; of the first set that is there all is read.
_SETS = (
    ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"),
    ("items_shuffle_1000.json", "items_ins_v2_1000.json", None),
    ("webshop_1k_lucene_docs.jsonl.gz", "items_ins_v2_1000.json", None),
)
_NOUNS_FILE = "title_nouns.json"
PAPER_FILE = "eto_test_indices.json"
_NO_LIMIT = 1_000_000.0
_LIMITS = [10.0 * tens for tens in range(1, 100)]

_UNREADABLE = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError, OSError, ArithmeticError),
    *(EOFError, zlib.error),  # of a damaged archive
)

Options = Mapping[str, str] | Sequence[str]
"""Of a synthetic goal by name; of a goal that a person wrote the values alone."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """One product. Texts are as WebShop shows them. It is equal to itself alone."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    reviews: tuple[Mapping[str, Any], ...]
    price_text: str
    price: float
    rating: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    categories: frozenset[str]
    query: str
    nouns: tuple[str, ...]

    @functools.cached_property
    def option_of(self) -> Mapping[str, str]:
        """The option's name for each value; of two options with one value the later."""
        return {value: name for name, values in self.options.items() for value in values}

    @functools.cached_property
    def lower_texts(self) -> tuple[str, ...]:
        """Title, bullet points and description, where attributes are looked for."""
        return (self.title.lower(), " ".join(self.bullets).lower(), self.description.lower())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """The product that is to be bought."""

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: Options
    price_limit: float


class Catalogue:
    """Products, goals in WebShop's order and the search index. Nothing in it is ever changed."""

    def __init__(self, products: Sequence[Product], goals: Sequence[Goal], *, full: bool) -> None:
        self.products = tuple(products)
        self.goals = tuple(goals)
        self.full = full
        self.by_asin = {product.asin: product for product in self.products}

    @functools.cached_property
    def _index(self) -> SearchIndex:
        return SearchIndex([p.asin for p in self.products], map(_searched_text, self.products))

    @functools.lru_cache(maxsize=4096)  # noqa: B019  (catalogues live as long as their process)
    def search(self, keywords: str) -> tuple[int, ...]:
        """The numbers of up to 50 products, best first."""
        return self._index.search(keywords, 50)


def missing_files() -> str | None:
    """One line on what is to be put where; None if some catalogue is there."""
    folder = data_directory() / _FOLDER
    if _file_set(folder) is not None:
        return None
    products, attributes, _ = _SETS[1]
    return (
        f"{folder / products} and {attributes} next to it: not found; get them from {_SOURCE} and "
        f"put them there, or set AGENTRM_DATA to the folder that holds {_FOLDER}"
    )


def load_catalogue() -> Catalogue:
    """The catalogue of the data directory, read once in a process.

    Raises:
      UserError: Files are missing or are not what they should be.
    """
    folder = data_directory() / _FOLDER
    if line := missing_files():
        raise UserError(line)
    return _loaded(folder)


def catalogue_label() -> str:
    """Returns the names of catalogue and goals, which stand next to figures."""
    folder = data_directory() / _FOLDER
    found = _file_set(folder)
    if found is None or found[2] is None:
        return "1k catalogue, synthetic goals"
    written = (folder / found[2]).exists()
    return f"full catalogue, {'human' if written else 'synthetic'} goals"


def paper_numbers() -> list[int] | None:
    """The numbers of ETO's test goals; None unless they and the full catalogue are there."""
    folder = data_directory() / _FOLDER
    found = _file_set(folder)
    if found is None or found[2] is None or not (folder / PAPER_FILE).exists():
        return None
    if not (folder / found[2]).exists():
        return None
    try:
        numbers = [int(number) for number in _read_json(folder / PAPER_FILE)]
    except _UNREADABLE as error:
        raise UserError(
            f"{folder / PAPER_FILE}: not a list of numbers: {first_line(error)}"
        ) from None
    return numbers


def _file_set(folder: Path) -> tuple[str, str, str | None] | None:
    for found in _SETS:
        if (folder / found[0]).exists() and (folder / found[1]).exists():
            return found
    return None


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path) -> Catalogue:
    found = _file_set(folder)
    assert found is not None
    products_file, attributes_file, people_file = found
    try:
        attributes = _read_json(folder / attributes_file)
        nouns = {}
        if (folder / _NOUNS_FILE).exists():
            nouns = _read_json(folder / _NOUNS_FILE)
        written = None
        if people_file is not None and (folder / people_file).exists():
            written = _read_json(folder / people_file)
        rng = random.Random(_SEED)
        products = [
            _product(raw, attributes, nouns, rng) for raw in _distinct(folder / products_file)
        ]
        if written is not None:
            goals = list(_written_goals(products, written, rng))
        else:
            goals = list(_synthetic_goals(products, attributes, rng))
    except _UNREADABLE as error:
        raise UserError(
            f"{folder / products_file}: not as WebShop's files are "
            f"({described(error)}); get it from {_SOURCE}"
        ) from error
    random.Random(_SEED).shuffle(goals)
    return Catalogue(products, goals, full=people_file is not None)


def _read_json(path: Path) -> Any:
    refuse_damaged(path, f"{_FOLDER}/{path.name}")
    return parse_json(path.read_bytes())


def _distinct(path: Path) -> Iterator[Mapping[str, Any]]:
    """The file's products without those that WebShop leaves out."""
    if path.name.endswith(".jsonl.gz"):
        refuse_damaged(path, f"{_FOLDER}/{path.name}")
        lines = io.BytesIO(read_packed(path, MOST_BYTES))
        entries = [parse_json(line)["product"] for line in lines]
    else:
        entries = _read_json(path)
    seen = set()
    for entry in entries:
        asin = entry["asin"]
        if asin != "nan" and len(asin) <= 10 and asin not in seen:
            seen.add(asin)
            yield entry


def _product(
    raw: Mapping[str, Any],
    attributes: Mapping[str, Any],
    nouns: Mapping[str, Sequence[str]],
    rng: random.Random,
) -> Product:
    asin, title = raw["asin"], raw["name"]
    bullets = raw["small_description"]
    prices, price_text = _prices(raw.get("pricing"))
    return Product(
        asin=asin,
        title=title,
        description=raw["full_description"],
        bullets=tuple(bullets) if isinstance(bullets, list) else (bullets,),
        reviews=tuple(raw.get("Reviews", ())),
        price_text=price_text,
        price=prices[0] if len(prices) == 1 else rng.uniform(*prices),
        rating=str(raw.get("Rating", "N.A.")),
        options=_options(raw["customization_options"]),
        attributes=tuple(attributes.get(asin, {}).get("attributes", ("DUMMY_ATTR",))),
        category=raw["category"],
        categories=frozenset(part.strip() for part in raw["product_category"].split("\u203a")),
        query=raw["query"].lower().strip(),
        nouns=tuple(nouns[title]) if title in nouns else title_nouns(title),
    )


def _prices(pricing: str | Sequence[float] | None) -> tuple[list[float], str]:
    """One price, or the two ends of a range, and the text that shows them."""
    if not pricing:
        return [100.0], "$100.0"
    if isinstance(pricing, str):
        pricing = [float(re.sub(r"[^\d.]", "", part)) for part in pricing.split("$")[1:]]
    prices = list(pricing)[:2]
    return prices, " to ".join(f"${price}" for price in prices)


def _options(raw: Mapping[str, Any] | str | None) -> dict[str, tuple[str, ...]]:
    if not isinstance(raw, Mapping):
        return {}
    return {
        name.lower(): tuple(
            content["value"].strip().replace("/", " | ").lower() for content in contents
        )
        for name, contents in raw.items()
        if contents is not None
    }


def _searched_text(product: Product) -> str:
    options = ", and ".join(
        f"{name}: {', '.join(values)}" for name, values in product.options.items()
    )
    return f"{product.title} {product.description} {product.bullets[0]} {options}".lower()


def _drawn_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A limit above the price, one of the next three or four tens, and its text."""
    above = [limit for limit in _LIMITS if limit > price][:4]
    if len(above) < 2:
        return _NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _synthetic_goals(
    products: Sequence[Product], attributes: Mapping[str, Any], rng: random.Random
) -> Iterator[Goal]:
    """A goal for each choice of options of each product that has an instruction."""
    for product in products:
        about = attributes.get(product.asin, {})
        if about.get("instruction") is None:
            continue
        limit, limit_text = _drawn_limit(product.price, rng)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            chosen = dict(zip(names, values, strict=True))
            options = ", and ".join(f"{name}: {value}" for name, value in chosen.items())
            asked = f" with {options}" if options else ""
            yield Goal(
                asin=product.asin,
                instruction=f"{about['instruction']}{asked}{limit_text}",
                attributes=tuple(about["instruction_attributes"]),
                options=chosen,
                price_limit=limit,
            )


def _written_goals(
    products: Sequence[Product], written: Mapping[str, Any], rng: random.Random
) -> Iterator[Goal]:
    """The goals that people wrote; one without attributes is left out."""
    for product in products:
        for each in written.get(product.asin, ()):
            if not each["instruction_attributes"]:
                continue
            limit, limit_text = _drawn_limit(product.price, rng)
            yield Goal(
                asin=product.asin,
                instruction=each["instruction"].strip(".") + limit_text,
                attributes=tuple(each["instruction_attributes"]),
                options=tuple(each["instruction_options"]),
                price_limit=limit,
            )
