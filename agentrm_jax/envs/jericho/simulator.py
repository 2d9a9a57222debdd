"""A game that is played: one emulator for each story file, and states that episodes hold."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.jericho.games import NOT_INSTALLED, check_release, story_file

_READS_A_KEY = 246  # the Z-machine's opcode `read_char`; else a line is read


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class State:
    """A moment of a game. Nothing in it is ever changed, so it may be shared.

    Attributes:
      native: Memory, stack, registers and random numbers, as jericho gives them.
      text: What the game said last.
      score: Its points; they may fall again.
      won, over: Whether the game ended well, or ended.
      changed: Whether the last command changed the world, as jericho sees it.
      origin: The state and the command that led here, where the game waits for a key, else None.
    """

    native: Any
    text: str
    score: int
    won: bool
    over: bool
    changed: bool
    origin: tuple[State, str] | None


class Simulator:
    """The emulator with one story file loaded.

    Which episode it plays is decided again for each command: it is put into the episode's state
    unless it stands there already.

    What an emulator keeps outside of that state must never matter. Its undo list and its files
    are kept out of reach by `jericho.text`. Its windows differ only where a game waits for a key,
    as in a menu of hints: it is reset when it leaves such a moment, and comes to one by giving
    the commands again that led there.
    """

    def __init__(self, story: Path) -> None:
        import jericho

        self.emulator: Any = jericho.FrotzEnv(str(story))  # with the walkthrough's seed
        self._library = self.emulator.frotz_lib
        text, _ = self.emulator.reset()
        self.start = self._stands = self._state(text, None)
        self.max_score: int = self.emulator.get_max_score()
        self.walkthrough: tuple[str, ...] = tuple(self.emulator.get_walkthrough())

    def play(self, state: State, command: str) -> State:
        """Returns the state after the command."""
        self.stand(state)
        if _reads_key(state.native):
            command = command[:1]  # the rest would answer later questions, also other episodes'
        # Not `emulator.step`: it cannot decode everything that a game may print.
        said = self._library.step(command.encode("ascii", "replace") + b"\n")
        self._stands = self._state(said.decode("cp1252", "replace"), (state, command))
        return self._stands

    def stand(self, state: State) -> None:
        """Puts the emulator into the state."""
        if self._stands is state:
            return
        # An error in the game halts the emulator, and only a reset gets it going.
        if _reads_key(self._stands.native) or self._library.halted() > 0:
            self.emulator.reset()
        if state.origin is None:
            self.emulator.set_state(state.native)
        else:
            self.play(*state.origin)
        self._stands = state

    def world(self, state: State) -> bytes:
        """Returns the state of all things; equal if only counters and random numbers differ."""
        self.stand(state)
        return bytes(self.emulator.get_world_objects(clean=True))

    def _state(self, text: str, origin: tuple[State, str] | None) -> State:
        native = self.emulator.get_state()
        won = self._library.victory() > 0
        return State(
            native=native,
            text=text,
            score=self._library.get_score(),
            won=won,
            over=won or self._library.game_over() > 0 or self._library.halted() > 0,
            changed=self._library.world_changed() > 0,
            origin=origin if _reads_key(native) else None,
        )


def _reads_key(native: Any) -> bool:
    return native[6] == _READS_A_KEY


def simulator(game: str) -> Simulator:
    """This process's simulator of the game; it is made once.

    Raises:
      UserError: Jericho or the story file is missing, or the file is another release.
    """
    return _loaded(game, story_file(game))


@functools.cache
def _loaded(game: str, story: Path) -> Simulator:
    try:
        check_release(game, story)
    except ImportError as error:
        raise UserError(NOT_INSTALLED) from error
    return Simulator(story)
