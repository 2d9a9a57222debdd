"""The places in which a run can be started: the template of each and the options that it takes."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import jinja2

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown
from agentrm_jax.launch.job import PORT, Job

CONFIG_FOLDER = "/etc/agentrm"
"""Folder of the configuration in containers."""

RESTARTS = 10
"""Restarts of one worker, or of all that are joined, before a place gives up."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A place that runs jobs: its template, and the options that it takes.

    Attributes:
      name: Its name, and that of its template.
      suffix: Suffix of the rendered file.
      options: The options that it takes, as well as those of all places.
      required: The options that must be given.
      starts: The words of a program that reads the rendered text from its input and starts it;
        empty if the user starts the job.
      needs: Where to find this program, for the error if it is missing.
    """

    name: str
    suffix: str
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    needs: str = ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="local", suffix="sh", starts=("bash", "-s")),
        Kind(
            name="processes",
            suffix="sh",
            options=("hosts", "mode", "gpus"),
            starts=("bash", "-s"),
        ),
        Kind(
            name="slurm",
            suffix="sh",
            options=("hosts", "mode", "gpus", "name", "queue", "time"),
            starts=("sbatch",),
            needs="start it on a host of the cluster that has sbatch",
        ),
        Kind(
            name="jobset",
            suffix="yaml",
            options=("hosts", "mode", "gpus", "tpu", "name", "queue", "image", "volume"),
            required=("image", "volume"),
        ),
        Kind(
            name="skypilot",
            suffix="yaml",
            options=("hosts", "mode", "gpus", "tpu", "name", "volume"),
            required=("volume",),
        ),
        Kind(name="tpu-pod", suffix="sh", options=("name", "zone"), required=("name", "zone")),
        Kind(
            name="ray",
            suffix="sh",
            options=("hosts", "mode", "gpus"),
            starts=("bash", "-s"),
        ),
    )
}


def render(job: Job, made_by: Sequence[str]) -> str:
    """Returns the script or the manifest that starts a job.

    Args:
      job: The job.
      made_by: The words of the command that renders it, for the comment at its top.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agentrm_jax.launch", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["shell"] = _shell
    kind = KINDS[job.kind]
    template = environment.get_template(f"{kind.name}.{kind.suffix}.j2")
    return template.render(made_by=_shell(made_by), **_values(job))


def _values(job: Job) -> dict[str, Any]:
    """The variables of the templates."""
    in_container = f"{CONFIG_FOLDER}/{job.config.name}"
    return {
        "job": job,
        "command": job.command(),
        "container_command": job.command(in_container),
        "config_folder": CONFIG_FOLDER,
        "config_text": job.config.read_text(encoding="utf-8"),
        "port": PORT,
        "restarts": RESTARTS,
    }


def _shell(words: Sequence[str] | str) -> str:
    """The words, quoted for bash, on one line."""
    words = [words] if isinstance(words, str) else words
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise UserError(f"{shown(word)}: must be on one line, without control characters")
    return shlex.quote(word)


def rendered_name(kind: str) -> str:
    """Returns the name of a file for what is rendered for a place, such as `slurm.sh`."""
    return f"{kind.replace('-', '_')}.{KINDS[kind].suffix}"


def check_config(path: pathlib.Path) -> None:
    """Refuses a configuration whose name cannot be a key of a ConfigMap.

    Raises:
      UserError: The name has other characters than letters, digits, `-`, `_` and `.`.
    """
    if not re.fullmatch(r"[-._a-zA-Z0-9]+", path.name):
        raise UserError(
            f"{shown(path.name)}: a jobset needs a configuration whose file name has only "
            "letters, digits, -, _ and ."
        )
