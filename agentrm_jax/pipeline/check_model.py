"""Compares how a model is read here and by transformers: tokens, ends of replies, logits."""

from __future__ import annotations

import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line

Outcome = Literal["ok", "differs", "skipped"]

_TOLERANCE = 1e-3  # relative to the largest logit; float32 in two libraries agrees to about 1e-5


class Check(NamedTuple):
    """One row of the table."""

    name: str
    outcome: Outcome
    detail: str


def check_model(directory: pathlib.Path, *, logits: bool = True) -> Iterator[Check]:
    """Yields the comparisons of a model with transformers, one row of a table each.

    Args:
      directory: A Hugging Face directory, or a model folder of a run.
      logits: Whether to compare logits as well, which reads the model's weights twice.

    Raises:
      UserError: There is no model, or its `config.json` cannot be read.
    """
    from agentrm_jax.data.tokenizer import load_tokenizer

    kind, rows = _kind_and_rows(directory)
    try:
        tokenizer = load_tokenizer(directory)
    except UserError as error:
        yield Check("template", "differs", str(error).removeprefix(f"{directory}: "))
        return
    yield Check("template", "ok", _template_notes(tokenizer))
    if tokenizer.foreign or (directory / "tokenizer_config.json").exists():
        yield _compared("tokens", tokenizer, directory, exported=not tokenizer.foreign)
    else:
        yield Check("tokens", "skipped", "the model has a chat format of its own, no template")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.export(pathlib.Path(folder))
        yield _compared("export", tokenizer, pathlib.Path(folder), exported=True)
    yield _special_tokens(tokenizer)
    yield _ends(tokenizer, directory)
    largest = max(tokenizer.vocab_size - 1, *tokenizer.chat_tokens)
    outcome = "ok" if largest < rows else "differs"
    yield Check("embedding", outcome, f"largest token id {largest}, {rows} rows")
    if kind == "reward":
        yield _value_position(tokenizer)
    yield _logits(directory, tokenizer, kind) if logits else _skipped_logits("--no-logits")


def _kind_and_rows(directory: pathlib.Path) -> tuple[Literal["policy", "reward"], int]:
    from agentrm_jax.pipeline.models import is_model_directory, stored_shape

    if not is_model_directory(directory):
        advice = "give a Hugging Face directory or a model folder of a run"
        if directory.suffix == ".gguf":
            advice = f"convert it first: agentrm convert {directory} --to DIR"
        raise UserError(f"{directory}: no model here; {advice}")
    try:
        return "policy", stored_shape(directory, "policy").vocab_size
    except UserError as policy_error:
        try:
            return "reward", stored_shape(directory, "reward").vocab_size
        except UserError:
            raise policy_error from None


def _template_notes(tokenizer: Any) -> str:
    chat = tokenizer.chat
    notes = ["append-only"]
    if chat.user_strip != ("", "") or chat.reply_strip != ("", ""):
        notes.append("blanks at the ends of turns are removed, as the template does")
    if chat.date:
        notes.append(f"its date is {chat.date} for ever")
    if chat.drops_reasoning:
        notes.append(
            "it removes or rewrites the reasoning of earlier replies; here replies keep it: a "
            "state is a prefix of its continuations"
        )
    return "; ".join(notes)


def _compared(
    name: str, tokenizer: Any, directory: pathlib.Path, *, exported: bool = False
) -> Check:
    """Compares our tokens of the probe conversations with a directory's template."""
    from transformers import AutoTokenizer

    from agentrm_jax.data.hugging_face_tokenizer import differences
    from agentrm_jax.data.probes import PROBES, messages_of

    theirs = AutoTokenizer.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True
    )

    def tokens(turns: Sequence[str]) -> list[int] | None:
        replied = not len(turns) % 2
        day = {} if exported else {"date_string": "26 Jul 2024"}
        try:
            return theirs.apply_chat_template(
                messages_of(turns), tokenize=True, return_dict=False,
                add_generation_prompt=not replied, **day,
            )  # fmt: skip
        except Exception:  # some templates reject a reply at the end
            return None

    templates = {
        name: [tokens(turns[:count]) for count in range(1, len(turns) + 1)]
        for name, turns in PROBES.items()
    }
    different = list(differences(tokenizer, templates))
    if different and not exported and tokenizer.chat.date:
        return Check(name, "skipped", "compared for its fixed date when read; today's differs")
    return _as_check(name, templates, different)


def _as_check(
    name: str, templates: Mapping[str, Sequence[list[int] | None]], different: Sequence[str]
) -> Check:
    compared = sum(tokens is not None for prefixes in templates.values() for tokens in prefixes)
    if different:
        return Check(name, "differs", f"{len(different)} of {compared} prefixes: {different[0]}")
    return Check(name, "ok", f"{compared} of {compared} prefixes of {len(templates)} conversations")


def _special_tokens(tokenizer: Any) -> Check:
    names = [tokenizer.decode([token]).strip() for token in sorted(tokenizer.control)]
    forged = [name for name in names if tokenizer.control & {*tokenizer.encode(f"a {name} b")}]
    if forged:
        return Check("special tokens", "differs", f"text encodes to {', '.join(forged[:5])}")
    return Check("special tokens", "ok", f"{len(names)} are plain text in turns")


def _ends(tokenizer: Any, directory: pathlib.Path) -> Check:
    """Compares the tokens that end a reply with `generation_config.json`."""
    stops = tokenizer.stops
    names = [tokenizer.decode([token]).strip() for token in (stops[0], *tokenizer.chat.ends)]
    more = len(stops) - len(names)
    detail = f"{', '.join(names)}; and at {more} other control tokens"
    path = directory / "generation_config.json"
    if not path.exists():
        return Check("replies end at", "ok", detail)
    try:
        ids = parse_json(path.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        return Check("replies end at", "differs", f"{path.name}: {first_line(error)}")
    missing = {i for i in (ids if isinstance(ids, list) else [ids]) if i is not None} - {*stops}
    if missing:
        return Check("replies end at", "differs", f"transformers also stops at {sorted(missing)}")
    return Check("replies end at", "ok", f"{detail}; all of {path.name}")


def _value_position(tokenizer: Any) -> Check:
    from agentrm_jax.data.probes import turn_tokens

    chat = tokenizer.chat
    state = turn_tokens(tokenizer, ["Hello."])[-1:]
    action = chat.closing[-1:] if tokenizer.foreign and chat.closing else (chat.stop_token,)
    where = "the end of the template" if tokenizer.foreign else "the stop token"
    return Check(
        "value read at",
        "ok",
        f"after an action {tokenizer.decode(action)!r} ({where}; reward_read_at chooses), after an "
        f"observation {tokenizer.decode(state)!r} (where a reply begins)",
    )


def _skipped_logits(why: str) -> Check:
    return Check("logits", "skipped", why)


def _logits(directory: pathlib.Path, tokenizer: Any, kind: Literal["policy", "reward"]) -> Check:
    from agentrm_jax.data.probes import PROBES, turn_tokens

    if importlib.util.find_spec("torch") is None:
        return _skipped_logits("torch is not installed")
    if (directory / "model.json").exists():
        return _skipped_logits("a model folder of a run; export it to compare")
    tokens = turn_tokens(tokenizer, PROBES["plain words"])
    try:
        ours, theirs = (read(directory, kind, tokens) for read in (_our_logits, _their_logits))
    except UserError as error:
        return Check("logits", "differs", str(error))
    except Exception as error:  # torch and transformers raise many kinds
        return Check("logits", "differs", f"transformers cannot read it ({first_line(error)})")
    import numpy as np

    largest, difference = np.abs(theirs).max(), np.abs(ours - theirs).max()
    close = ours.shape == theirs.shape and difference <= _TOLERANCE * max(largest, 1.0)
    what = "logits" if kind == "policy" else "scores"
    detail = f"largest difference {difference:.1e} of {what} up to {largest:.1f}"
    return Check("logits", "ok" if close else "differs", detail)


def _our_logits(directory: pathlib.Path, kind: Literal["policy", "reward"], tokens: list[int]):
    """[T, V] logits of a policy, or the [1] score of a reward model at the last token.

    The score is without the bias, which classifiers of transformers do not have.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from agentrm_jax.model import llama
    from agentrm_jax.pipeline import models
    from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    load: Callable[..., models.Model] = (
        models.load_policy if kind == "policy" else models.load_reward
    )
    model = load(directory, "float32", mesh)
    trunk = model.params if kind == "policy" else model.params["trunk"]
    row = jnp.asarray([tokens])
    positions = jnp.arange(len(tokens))[None]
    hidden = llama.forward(trunk, model.config, row, positions, jnp.ones_like(row))
    if kind == "policy":
        return np.asarray(llama.logits(trunk, model.config, hidden)[0])
    kernel = model.params["value_head"]["kernel"]
    return np.asarray(hidden[0, -1].astype(jnp.float32) @ kernel).reshape(1)


def _their_logits(directory: pathlib.Path, kind: Literal["policy", "reward"], tokens: list[int]):
    import torch
    import transformers

    maker = {
        "policy": transformers.AutoModelForCausalLM,
        "reward": transformers.AutoModelForSequenceClassification,
    }[kind]
    transformers.utils.logging.disable_progress_bar()
    model = maker.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].numpy()
