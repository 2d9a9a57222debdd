"""A run's model as a Hugging Face directory for transformers and others."""

from __future__ import annotations

import importlib.metadata
import pathlib
from typing import Any, Literal

import jax

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import hugging_face
from agentrm_jax.model.heads import head_to_json
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.trained_on import write_trained_on
from agentrm_jax.runtime.array_checksums import named_leaves
from agentrm_jax.runtime.output_folders import check_output_folder
from agentrm_jax.runtime.run_paths import MODEL, RunPaths
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

Kind = Literal["policy", "reward"]

_TITLES: dict[Kind, str] = {"policy": "A policy", "reward": "A reward model of states"}

_README = """\
# {title}

Written by agentrm_jax {version}. `manifest.json` has the sha256 of every file. The chat template
puts the same tokens around turns as the model was trained on; it accepts turns of `user`
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
# The classifier has no bias, the value head does: it is the tensor `{name}` next to the
# weights (which transformers reports as unexpected) and a number in config.json."""


def model_folder(run: pathlib.Path, kind: Kind) -> pathlib.Path:
    """Returns the folder of a run's model, or the given folder if it is not that of a run."""
    paths = RunPaths(run)
    stage = {"policy": paths.policy_model, "reward": paths.explicit_model}[kind]
    return next(folder for folder in (stage, run / MODEL, run) if folder.exists() or folder is run)


def export_model(
    path: str | pathlib.Path, kind: Kind, to: str | pathlib.Path, dtype: str = "float32"
) -> int:
    """Writes a model as a Hugging Face directory: weights, tokenizer, chat template, manifest.

    Args:
      path: Folder of a run or of `train_reward_model`, or a model folder.
      kind: `policy` or `reward`.
      to: The folder to write.
      dtype: Of the weights, `float32` or `bfloat16`; the head of a reward model is float32.

    Returns:
      The number of parameters.

    Raises:
      UserError: There is no such model, its weights are not finite, or its head is not linear.
    """
    source, to = model_folder(pathlib.Path(path), kind), pathlib.Path(to)
    check_output_folder(to, [source])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    load = {"policy": models.load_policy, "reward": models.load_reward}[kind]
    model = load(source, dtype, mesh)
    params, code = model.params, _POLICY_CODE
    for name, leaf in named_leaves(params).items():
        if not jax.numpy.isfinite(leaf).all():
            raise UserError(
                f"{source}: parameter {name} holds values that are not finite; train the model "
                "again, or restore its files"
            )
    if kind == "reward":
        params, has_bias = _with_linear_head(source, model)
        bias = _BIAS_CODE.format(name=hugging_face.VALUE_BIAS) if has_bias else ""
        code = _REWARD_CODE.format(bias=bias)
    version = importlib.metadata.version("agentrm-jax")
    readme = _README.format(title=_TITLES[kind], version=version, code=code)

    def add_files(folder: pathlib.Path) -> None:
        model.tokenizer.export(folder)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        write_trained_on(folder, model.trained_on)

    chat = model.tokenizer.chat
    ends = [chat.stop_token, *chat.ends] if chat.ends else chat.stop_token
    tokens = {"pad_token_id": model.tokenizer.pad_id, "eos_token_id": ends}
    hugging_face.save(to, model.config, params, settings=tokens, add_files=add_files)
    return sum(x.size for x in jax.tree.leaves(params))


def _with_linear_head(source: pathlib.Path, model: models.Model) -> tuple[dict[str, Any], bool]:
    """Returns the parameters with a linear value head, and whether its bias is not zero."""
    head = model.head.linear(model.params["value_head"])
    if head is None:
        raise UserError(
            f"{source}: the value head {head_to_json(model.head)['kind']} cannot be exported: "
            f"{model.head.not_linear}; sequence classifiers of transformers are linear: train "
            "a head of kind mse or quantile"
        )
    kernel, bias = head
    return {**model.params, "value_head": {"kernel": kernel, "bias": bias}}, bool(bias)
