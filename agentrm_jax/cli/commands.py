"""The table of commands.

A command is a row here and two functions in a module of this package: `add_arguments(parser)` and
`run(given)`, which returns the exit status. Modules are imported by the command that needs them,
and import JAX only in `run`, so that `--help` and mistakes are quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Callable, Sequence

from agentrm_jax.cli.parser import Parser

_RUN = "CONFIG --output DIR [--KEY=VALUE ...]"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command.

    Attributes:
      name: One word, or two such as `envs list`.
      summary: What it does, in one line.
      usage: Its arguments, in one line.
      example: A command line.
      module: The module of this package that holds its functions.
      prefix: Of the names of these functions, in a module that holds several commands.
      takes_keys: Whether keys of a configuration can be set on its command line.
      computes: Whether it compiles programs that are worth keeping for the next command.
    """

    name: str
    summary: str
    usage: str
    example: str
    module: str = "stages"
    prefix: str = ""
    takes_keys: bool = False
    computes: bool = False

    def parser(self) -> Parser:
        """Returns a parser with the arguments of the command."""
        parser = Parser(
            self.name,
            usage=self.usage,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            example=self.example,
            takes_keys=self.takes_keys,
        )
        self._function("add_arguments")(parser)
        return parser

    def run(self, words: Sequence[str]) -> int:
        """Runs the command; returns its exit status.

        Raises:
          UserError: The words are not arguments of the command, or whatever else the user can mend.
        """
        parser = self.parser()
        if {"-h", "--help"} & set(words) or (parser.needs_arguments and not words):
            print(parser.format_help(), end="")
            return 0 if words else 2
        given = parser.parse(words)
        given.command, given.words = self.name, ["agentrm", self.name, *words]
        if self.computes:
            _start_jax()
        return self._function("run")(given)

    def _function(self, name: str) -> Callable[..., int]:
        module = importlib.import_module(f"agentrm_jax.cli.{self.module}")
        return getattr(module, f"{self.prefix}{name}")


def _stage(name: str, summary: str) -> Command:
    """Returns a command that takes a configuration and the folder of a run."""
    example = f"agentrm {name} configs/quickstart.yaml --output runs/quickstart"
    return Command(
        name=name, summary=summary, usage=_RUN, example=example, takes_keys=True, computes=True
    )


GROUPS: dict[str, Sequence[Command]] = {
    f"a run and its stages: agentrm COMMAND {_RUN}": (
        _stage("run", "all stages in turn; finished stages are skipped"),
        _stage("experts", "write expert trajectories"),
        _stage("sft", "train the tokenizer and the policy on expert trajectories"),
        _stage("explore", "grow search trees with the policy"),
        _stage("label", "compute values of states from the trees"),
        _stage("train-rm", "train the explicit reward model on the values of states"),
        _stage("sample", "sample whole trajectories for the implicit reward model"),
        _stage("train-implicit", "train the implicit reward model on the outcomes of samples"),
        _stage("calibrate", "choose thresholds of test-time methods on training tasks"),
        _stage("evaluate", "run greedy, best-of-n, beam search and the baselines on test tasks"),
        Command(
            name="report",
            summary="write the report of a run again, or one report of several runs",
            usage="CONFIG --output DIR | RUN [RUN ...] [--output DIR] [--tasks N]",
            example="agentrm report runs/small runs/large --output runs/compared",
            module="report",
            takes_keys=True,
            computes=True,
        ),
        Command(
            name="watch",
            summary="show how far a run is, live, from its files",
            usage="RUN [--once] [--every SECONDS]",
            example="agentrm watch runs/quickstart",
            module="watch",
        ),
        Command(
            name="status",
            summary="show which processes share a run by leases, and who holds which task",
            usage="RUN [--json]",
            example="agentrm status runs/quickstart",
            module="status",
        ),
        Command(
            name="merge",
            summary="join and check the results that processes with leases left in a run",
            usage="RUN",
            example="agentrm merge runs/quickstart",
            module="merge",
        ),
        Command(
            name="launch",
            summary="start a run here or on several hosts, or print the script that does",
            usage="KIND CONFIG --output DIR [--hosts N] [--dry-run] [--OPTION ...] "
            "[--KEY=VALUE ...]",
            example="agentrm launch slurm configs/quickstart.yaml --output runs/quickstart "
            "--hosts 4 --dry-run",
            module="launch",
            takes_keys=True,
        ),
        Command(
            name="plan",
            summary="compile a run for TPUs or GPUs, without one, and print whether it fits",
            usage="CONFIG --topology KIND:CHIPS [--stage NAME ...] [--json] [--KEY=VALUE ...]",
            example="agentrm plan configs/paper/llama3_8b_reward.yaml --stage train-rm "
            "--topology v5p:2x2x2",
            module="plan",
            takes_keys=True,
        ),
    ),
    "experiments": (
        Command(
            name="experiment",
            summary="run an experiment of the paper, or list all of them",
            usage="[NAME] [--size laptop|tiny|paper] [--output DIR] [--seeds A,B] [--dry-run] "
            "[--KEY=VALUE ...]",
            example="agentrm experiment main_table --dry-run",
            module="experiment",
            takes_keys=True,
            computes=True,
        ),
    ),
    "reward models and trajectories": (
        Command(
            name="score",
            summary="score trajectories with a reward model, step by step",
            usage="FILE --model RUN [--output OUT.jsonl] [--KEY=VALUE ...]",
            example="agentrm score runs/quickstart/eval/greedy --model runs/quickstart",
            module="score",
            takes_keys=True,
            computes=True,
        ),
        Command(
            name="eval-rm",
            summary="compare a reward model's scores with search trees, without an environment",
            usage="TREES --model RUN --output DIR [--KEY=VALUE ...]",
            example="agentrm eval-rm runs/other --model runs/quickstart --output eval_rm",
            module="eval_rm",
            takes_keys=True,
            computes=True,
        ),
        Command(
            name="serve",
            summary="serve a reward model over HTTP, and turns of a policy that it chooses",
            usage="--reward-model PATH [--policy URL|PATH] [--port PORT] [--OPTION ...] "
            "[--KEY=VALUE ...]",
            example="agentrm serve --reward-model runs/quickstart --policy runs/quickstart",
            module="serve",
            takes_keys=True,
            computes=True,
        ),
        Command(
            name="chat",
            summary="play an environment with the reward model's scores, alone or with a policy",
            usage="NAME --reward-model PATH [--policy URL|PATH] [-n N] [--auto] [--task N]",
            example="agentrm chat babyai --reward-model runs/quickstart --policy runs/quickstart",
            module="chat",
            computes=True,
        ),
        Command(
            name="demonstrate",
            summary="write trajectories of an environment's expert",
            usage="NAME --output DIR [--split train|test|paper] [--n N]",
            example="agentrm demonstrate pddl --n 100 --output experts/pddl",
            module="demonstrate",
        ),
        Command(
            name="import",
            summary="write trajectories of ETO, AgentGym or Harbor (ATIF) as expert trajectories",
            usage="FILE --output DIR [--environment NAME]",
            example="agentrm import webshop_sft.json --output experts/webshop",
            module="imports",
        ),
    ),
    "models": (
        Command(
            name="export",
            summary="write a model for transformers and others, or trajectories as ATIF",
            usage="RUN --what policy|reward|trajectories --to DIR [--dtype float32|bfloat16]",
            example="agentrm export runs/quickstart --what reward --to exported/reward",
            module="export",
        ),
        Command(
            name="convert",
            summary="write the GGUF file of a Llama as a Hugging Face directory",
            usage="FILE --to DIR [--dtype float32|bfloat16]",
            example="agentrm convert smollm2.gguf --to models/smollm2",
            module="convert",
        ),
        Command(
            name="check-model",
            summary="compare a model's tokens and logits with transformers",
            usage="PATH [--no-logits]",
            example="agentrm check-model models/smollm2",
            module="check_model",
            computes=True,
        ),
    ),
    "environments": (
        Command(
            name="envs list",
            summary="list the environments, what is installed, and their numbers of tasks",
            usage="",
            example="agentrm envs list",
            module="environments",
            prefix="list_",
        ),
        Command(
            name="envs check",
            summary="play each environment's expert, try its contract, time its methods",
            usage="[NAME ...] [--n N] [--split train|test|paper] [--config CONFIG] [--json]",
            example="agentrm envs check maze pddl --n 3",
            module="environments",
            prefix="check_",
        ),
        Command(
            name="envs play",
            summary="play an environment yourself; scores and steps are shown",
            usage="NAME [--task N] [--split NAME] [--kinds A,B] [--seed N] [--config CONFIG]",
            example="agentrm envs play alfworld --task 3",
            module="environments",
            prefix="play_",
        ),
    ),
}

COMMANDS = {command.name: command for group in GROUPS.values() for command in group}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--model` and `--config`, which say what reward model to read and how."""
    import pathlib

    from agentrm_jax.runtime.run_paths import EXPLICIT_MODEL

    parser.add_argument(
        "--model",
        type=pathlib.Path,
        required=True,
        metavar="RUN",
        help=f"folder of a run, its {EXPLICIT_MODEL}, or an exported model",
    )
    parser.add_argument(
        "--config",
        type=pathlib.Path,
        help="configuration that says how states are rendered (default: that of the run); its keys "
        "can be set as well, for example --engine.context=4096",
    )


def _start_jax() -> None:
    """Keeps freed memory for this process, and compiled programs for the next one."""
    from agentrm_jax.runtime.allocator import keep_freed_memory
    from agentrm_jax.runtime.compilation_cache import keep_compiled_programs

    keep_freed_memory()
    keep_compiled_programs()
