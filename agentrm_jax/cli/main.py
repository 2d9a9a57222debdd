"""The command line: `agentrm COMMAND ...`."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence

from agentrm_jax.cli import failures
from agentrm_jax.cli.interrupts import handled_interrupts
from agentrm_jax.core.errors import UserError

# Heavy modules are imported by the command that needs them, so that --help and mistakes are quick.

_STAGE_COMMANDS = {
    "experts": "write expert trajectories (also by environment: agentrm experts NAME)",
    "sft": "train the tokenizer and the policy on them",
    "explore": "grow search trees with the policy",
    "label": "take (state, value) labels from the trees",
    "train-rm": "train the reward model on the labels",
    "sample": "sample whole trajectories, for an implicit reward model",
    "train-implicit": "train the implicit reward model on their outcomes",
    "evaluate": "run greedy, best-of-n, beam search and the baselines on test tasks",
}
_COMMANDS = {
    "run": "all stages in turn; those whose output is there are skipped",
    **_STAGE_COMMANDS,
    "report": "write report.html, report.json and results.json again",
    "plan": "whether a run fits TPUs of a topology; no TPU is needed",
    "envs": "environments: list, check, play",
    "convert": "write a GGUF file of a Llama as a Hugging Face directory",
    "export": "write a policy or a reward model for transformers and others",
    "import": "read expert trajectories in the conversation format of ETO or AgentGym",
    "score": "what a reward model thinks of trajectories, step by step",
    "check-model": "compare a model's tokens and logits with transformers",
    "eval-rm": "how well a reward model's scores agree with search trees; no environment",
}
_OWN_ARGUMENTS = {  # modules of commands that take more or less than a configuration
    "experts NAME": "agentrm_jax.cli.experts",
    "plan": "agentrm_jax.cli.plan",
    "envs": "agentrm_jax.cli.environments",
    "convert": "agentrm_jax.cli.convert",
    "export": "agentrm_jax.cli.export",
    "import": "agentrm_jax.cli.imports",
    "score": "agentrm_jax.cli.score",
    "eval-rm": "agentrm_jax.cli.eval_rm",
    "check-model": "agentrm_jax.cli.check_model",
}
_COMPUTING = (
    "score",
    "eval-rm",
    "check-model",
)  # of those, which compile programs that are worth keeping
_USAGE = """\
usage: agentrm COMMAND CONFIG --output DIR [--KEY=VALUE ...]
       agentrm experts NAME --split train --n N --output DIR
       agentrm plan CONFIG --topology v5p:4x4x4 [--KEY=VALUE ...]
       agentrm envs list | check [NAME ...] | play NAME
       agentrm import FILE --output DIR
       agentrm score FILE --model RUN [--output OUT.jsonl]
       agentrm eval-rm TREES --model RUN --output DIR
       agentrm export RUN --what policy|reward --to DIR
       agentrm convert FILE.gguf --to DIR
       agentrm check-model PATH

AgentRM in JAX: a reward model is trained on states found by tree search and steers an agent.

commands:
{commands}

CONFIG is a YAML file such as configs/quickstart.yaml; every key of it can be set on the command
line, for example --evaluate.n=10. `agentrm run --help` lists the keys. An interrupted command
resumes when it is given again. An error is one line; --debug prints the traceback as well.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status.

    Whatever it raises ends it with one line. The traceback is printed as well if `--debug` is among
    the arguments, anywhere.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [word for word in given if word != "--debug"]
    debug = len(arguments) < len(given)
    failures.open_standard_streams()
    with handled_interrupts() as interrupts, failures.collected_noise(interrupts.again) as noise:
        try:
            status = _main(arguments)
            noise.show_hidden()
            sys.stdout.flush()  # a full disk or a closed pipe would else be met after the end
        except SystemExit:  # of argparse, which has said why
            raise
        except BaseException as error:
            noise.silence()
            if interrupts.asked:
                error = KeyboardInterrupt().with_traceback(error.__traceback__)
            return failures.ended(error, arguments, debug=debug, noise=noise.text)
    return status


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib import metadata

        print(f"agentrm_jax {metadata.version('agentrm-jax')}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`agentrm --help` lists them"
        raise UserError(f"no command {command!r}; {hint}")
    if command == "experts" and not _names_a_file(rest):
        command = "experts NAME"
    if command in _OWN_ARGUMENTS:
        if command in _COMPUTING:
            start_jax()
        return importlib.import_module(_OWN_ARGUMENTS[command]).main(rest)
    return _configured(command, rest)


def _usage() -> str:
    width = max(len(name) for name in _COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, text in _COMMANDS.items()]
    return _USAGE.format(commands="\n".join(lines))


def _names_a_file(arguments: Sequence[str]) -> bool:
    """Whether the first word is a configuration file rather than an environment's name."""
    return any(word.endswith((".yaml", ".yml")) for word in arguments)


def _configured(command: str, arguments: list[str]) -> int:
    """A command over a configuration file."""
    from agentrm_jax.pipeline.load_config import load_config, print_help

    prog = f"agentrm {command}"
    if not arguments or {"-h", "--help"} & set(arguments):
        print_help(prog, _COMMANDS[command])
        return 0 if arguments else 2
    own = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    own.add_argument("config", type=pathlib.Path, nargs="?")
    own.add_argument("--output", type=pathlib.Path)
    known, overrides = own.parse_known_args(arguments)
    if known.config is None or known.output is None:
        missing = "CONFIG" if known.config is None else "--output"
        raise UserError(f"{missing} is missing: {prog} CONFIG --output DIR [--KEY=VALUE ...]")
    config = load_config(known.config, overrides)

    from agentrm_jax.pipeline import runner
    from agentrm_jax.runtime.processes import check_joined, ended_with_others, join

    start_jax()
    join(config.distributed)
    check_joined()
    with ended_with_others():
        if command == "run":
            runner.run_all(config, known.output)
        elif command == "report":
            runner.report(config, known.output)
        else:
            runner.run_stage(config, known.output, command)
    return 0


def start_jax() -> None:
    """Keeps compiled programs on the disk, so that a second run need not compile them again; and
    memory that is freed."""
    from agentrm_jax.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := _cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cache_folder() -> pathlib.Path | None:
    """The folder of compiled programs, None if there is none that can be written."""
    try:
        above = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = above / "agentrm_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no right to, no space, or no home at all
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


if __name__ == "__main__":
    sys.exit(main())
