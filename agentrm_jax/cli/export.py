"""`agentrm export RUN`: a run's model as a Hugging Face directory."""

from __future__ import annotations

import argparse
import importlib.metadata
import pathlib
from collections.abc import Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.output_folders import check_output_folder

_FOLDERS = {"policy": "sft/model", "reward": "reward/explicit/model"}

_README = """\
# {title}

Written by agentrm_jax {version}. `manifest.json` has the sha256 of every file. The chat template
puts the same tokens around turns as the model was trained on; it knows turns of `user`
(instructions, observations) and of `assistant` (thoughts and actions) only.

```python
{code}
```
"""
_POLICY_CODE = """\
import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained(".")
model = transformers.AutoModelForCausalLM.from_pretrained(".")
tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")"""
_REWARD_CODE = """\
import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained(".")
model = transformers.AutoModelForSequenceClassification.from_pretrained(".")
text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
score = model(**tokens).logits[0, 0]{bias}"""
_BIAS_CODE = """ + model.config.{name}
# The classifier has no bias, the value head does: it is the tensor `{name}` beside the
# weights (which transformers reports as unexpected) and a number in config.json."""


def main(arguments: Sequence[str]) -> int:
    """Writes the directory; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="agentrm export",
        description="Writes a model as a Hugging Face directory: weights, tokenizer, chat "
        "template and a manifest of checksums. Every command that takes a model reads it again.",
    )
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="folder of a run or a model")
    parser.add_argument("--what", choices=tuple(_FOLDERS), required=True)
    parser.add_argument("--to", metavar="DIR", type=pathlib.Path, required=True)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the weights; a reward model's head is float32",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    source = given.run / _FOLDERS[given.what]
    if not source.exists():
        source = given.run
    check_output_folder(given.to, [source])
    size = _export(source, given.what, given.to, given.dtype)
    print(f"{given.to}: a {given.what} of {size:,} parameters in {given.dtype}, read from {source}")
    return 0


def _export(source: pathlib.Path, what: str, to: pathlib.Path, dtype: str) -> int:
    """Returns how many parameters there are."""
    import jax

    from agentrm_jax.model import hugging_face
    from agentrm_jax.model.heads import head_to_json
    from agentrm_jax.pipeline import models
    from agentrm_jax.pipeline.trained_on import write_trained_on
    from agentrm_jax.runtime.array_checksums import named_leaves
    from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    load = {"policy": models.load_policy, "reward": models.load_reward}[what]
    model = load(source, dtype, mesh)
    params, code = model.params, _POLICY_CODE
    for name, leaf in named_leaves(params).items():
        if not jax.numpy.isfinite(leaf).all():
            raise UserError(
                f"{source}: parameter {name} holds values that are not finite; train the model "
                "again, or restore its files"
            )
    if what == "reward":
        head = model.head.linear(params["value_head"])
        if head is None:
            raise UserError(
                f"{source}: the value head {head_to_json(model.head)['kind']} cannot be exported: "
                f"{model.head.not_linear}; sequence classifiers of transformers are linear: train "
                "a head of kind mse or quantile"
            )
        params = {**params, "value_head": dict(zip(("kernel", "bias"), head, strict=True))}
        bias = _BIAS_CODE.format(name=hugging_face.VALUE_BIAS) if head[1] else ""
        code = _REWARD_CODE.format(bias=bias)
    readme = _README.format(
        title={"policy": "A policy", "reward": "A reward model of states"}[what],
        version=importlib.metadata.version("agentrm-jax"),
        code=code,
    )

    def add_files(folder: pathlib.Path) -> None:
        model.tokenizer.export(folder)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        write_trained_on(folder, model.trained_on)

    chat = model.tokenizer.chat
    ends = [chat.stop_token, *chat.ends] if chat.ends else chat.stop_token
    tokens = {"pad_token_id": model.tokenizer.pad_id, "eos_token_id": ends}
    hugging_face.save(to, model.config, params, settings=tokens, add_files=add_files)
    return sum(x.size for x in jax.tree.leaves(params))
