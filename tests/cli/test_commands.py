"""The table of commands: help, usage, examples and mistakes in the arguments of each."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from agentrm_jax.cli.commands import COMMANDS
from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    written = capsys.readouterr().err
    assert written.startswith("agentrm: error: ")
    assert written.count("\n") == 1
    return written


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_usage_and_example(name, capsys) -> None:
    command = COMMANDS[name]
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: agentrm {name}")
    assert command.usage in text
    assert f"example:\n  {command.example}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_can_be_parsed(name) -> None:
    command = COMMANDS[name]
    words = shlex.split(command.example)
    assert words[: 1 + len(name.split())] == ["agentrm", *name.split()]
    command.parser().parse(words[1 + len(name.split()) :])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_of_a_command_has_all_that_it_requires(name, capsys) -> None:
    parser = COMMANDS[name].parser()
    if not parser.needs_arguments:
        parser.parse([])
        return
    with pytest.raises(UserError, match=" missing: agentrm ") as error:
        parser.parse([])
    missing, _, usage = str(error.value).partition(" missing: ")
    for argument in missing.removesuffix(" is").removesuffix(" are").split(", "):
        assert argument in usage.split()
    assert main(name.split()) == 2
    assert capsys.readouterr().out.startswith("usage: ")


def test_help_does_not_import_jax_but_for_the_list_of_keys() -> None:
    program = (
        "import sys\n"
        "from agentrm_jax.cli.main import main\n"
        f"for name in ['', *{[name for name in COMMANDS if name != 'run']}]:\n"
        "    assert main([*name.split(), '--help']) == 0\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explor"], "no command 'explor'; did you mean explore?"),
        (["env", "list"], "no command 'env'; did you mean envs?"),
        (["envs", "chekc"], "no command 'envs chekc'; did you mean envs check?"),
        (["envs", "zzz"], "no command 'envs zzz'; must be one of envs list, envs check, envs play"),
        (["envs", "check", "--jsn"], "unknown option '--jsn'; did you mean --json?"),
        (["envs", "list", "--x"], "unknown option '--x'; `agentrm envs list --help` lists them"),
        (["convert", "a", "b", "--to", "c"], "unexpected argument 'b': agentrm convert FILE --to"),
        (["convert", "a"], "--to is missing: agentrm convert FILE --to DIR"),
        (["run", "--seed=1"], "CONFIG, --output are missing: agentrm run CONFIG --output DIR"),
        (
            ["score", "f", "--model", "m", "--enviroment=maze"],
            "unknown option '--enviroment'; did you mean --environment?",
        ),
        (
            ["export", "r", "--what", "value", "--to", "x"],
            "--what: must be one of policy, reward, trajectories (got 'value')",
        ),
        (["demonstrate", "maze", "--n", "x"], "--n: must be a whole number (got 'x')"),
    ],
)
def test_mistakes_in_arguments_are_one_line(arguments, message, capsys) -> None:
    assert message in fails(capsys, *arguments)


def test_keys_of_a_configuration_are_not_taken_for_options() -> None:
    key = "--environments=[{name: maze}]"
    given = COMMANDS["score"].parser().parse(["f", "--model", "m", key, "--seed", "3"])
    assert given.overrides == [key, "--seed", "3"]


def test_commands_of_two_words_are_listed(capsys) -> None:
    assert main(["envs"]) == 2
    assert main(["envs", "--help"]) == 0
    text = capsys.readouterr().out
    for name in ("envs list", "envs check", "envs play"):
        assert text.count(COMMANDS[name].summary) == 2
