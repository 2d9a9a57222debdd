"""The command line: `agentrm COMMAND ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from agentrm_jax.cli.commands import COMMANDS, GROUPS, Command
from agentrm_jax.cli.parser import nearest
from agentrm_jax.core.errors import Stopped, UserError
from agentrm_jax.runtime import failures
from agentrm_jax.runtime.interrupts import handled_interrupts

_USAGE = """\
usage: agentrm COMMAND ARGUMENTS ... [--OPTION ...] [--KEY=VALUE ...]

AgentRM in JAX: a reward model is trained on states found by tree search and steers an agent.

{groups}

`agentrm COMMAND --help` explains a command. CONFIG is a YAML file such as configs/quickstart.yaml;
every key of it can be set on the command line, for example --evaluate.n=10: `agentrm run --help`
lists the keys. Run an interrupted command again to resume it. An error is one line; --debug prints
the traceback as well.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status.

    Any exception ends the command with one line. The traceback is printed as well if `--debug` is
    among the arguments, at any position.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [word for word in given if word != "--debug"]
    debug = len(arguments) < len(given)
    failures.open_standard_streams()
    with handled_interrupts() as interrupts, failures.collected_noise(interrupts.again) as noise:
        try:
            status = _main(arguments)
            noise.show_hidden()
            sys.stdout.flush()  # reports a full disk or a closed pipe now, not at exit
        except SystemExit:
            raise
        except BaseException as error:
            noise.silence()
            if interrupts.asked and not isinstance(error, Stopped):
                error = KeyboardInterrupt().with_traceback(error.__traceback__)
            return failures.ended(error, arguments, debug=debug, noise=noise.text)
    return status


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        groups = "\n\n".join(_listed(title, group) for title, group in GROUPS.items())
        print(_USAGE.format(groups=groups), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib import metadata

        print(f"agentrm_jax {metadata.version('agentrm-jax')}")
        return 0
    if _names_an_environment(arguments):
        print("agentrm: `agentrm experts NAME` is now `agentrm demonstrate NAME`", file=sys.stderr)
        arguments = ["demonstrate", *arguments[1:]]
    if arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]].run(arguments[1:])
    return _run_two_words(arguments)


def _run_two_words(arguments: list[str]) -> int:
    """Runs a command whose name has two words, such as `envs list`; returns its exit status."""
    first, second = (*arguments, "")[:2]
    commands = [command for name, command in COMMANDS.items() if name.startswith(f"{first} ")]
    if not commands:
        first_words = {name.partition(" ")[0] for name in COMMANDS}
        hint = nearest(first, first_words, "`agentrm --help` lists them")
        raise UserError(f"no command {first!r}; {hint}")
    if second in ("", "-h", "--help"):
        print(_listed(f"usage: agentrm {first} COMMAND ARGUMENTS ...\n\ncommands", commands))
        return 0 if second else 2
    name = f"{first} {second}"
    if name not in COMMANDS:
        names = [command.name for command in commands]
        hint = nearest(name, names, f"must be one of {', '.join(names)}")
        raise UserError(f"no command {name!r}; {hint}")
    return COMMANDS[name].run(arguments[2:])


def _listed(title: str, commands: Sequence[Command]) -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {command.name:<{width}}  {command.summary}" for command in commands)
    return "\n".join([f"{title}:", *lines])


def _names_an_environment(arguments: Sequence[str]) -> bool:
    """Whether `experts` is followed by an environment, as in earlier versions."""
    if len(arguments) < 2 or arguments[0] != "experts" or os.path.exists(arguments[1]):
        return False
    from agentrm_jax.envs.registry import environment_names

    return arguments[1].partition("@")[0] in environment_names()


if __name__ == "__main__":
    sys.exit(main())
