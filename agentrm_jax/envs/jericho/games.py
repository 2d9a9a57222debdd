"""AgentBoard's twenty games: their order, what is asked in each, and where the story files lie."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.data_directory import data_directory, require

NOT_INSTALLED = "jericho is not installed: pip install 'agentrm-jax[jericho]'"
_SOURCE = "https://github.com/BYU-PCCL/z-machine-games (jericho-game-suite)"

# In AgentBoard's order, which is also the order of its label file. What is asked is AgentBoard's;
# the words are ours.
GOALS = {
    "905": "Leave the house, and then get out of the city in your car without being caught.",
    "acorncourt": "Unlock the gate and open it. Its key lies in a stone well; the broken bucket "
    "can be used to fetch it.",
    "afflicted": "Get into Nikolai's restaurant and find him, and do not get caught.",
    "balances": "This is a world of magic, and spells are learnt from spell books. Find the books "
    "and scrolls, which may be hidden in furniture, oats or boxes, and learn the spells rezrov, "
    "lleps and bozbar. A spell is used like this: cast rezrov on door.",
    "dragon": "Find a mug in an inn.",
    "jewel": "Reach the Dropoff Area of the Fifth Layer. Pulling quartz out of the ceiling of the "
    "mineral cave may open a way up.",
    "library": "Find the book on Graham Nelson in the library.",
    "omniquest": "You hunt for treasure: find the mysterious cylindrical room under a rock on an "
    "island. To swim in the ocean you need a tool to breathe with.",
    "reverb": "You deliver pizzas, and your boss has a new order for you. Find out who it is for "
    "and deliver it.",
    "snacktime": "You are a bulldog, and your pet sleeps near you. Wake him and get fed.",
    "zenon": "You are a prisoner in a cell of the ship Zenon. Get out into the corridor without "
    "being caught; a distraction may help.",
    "zork1": "Find your way into the secret passage whose entrance is in the living room of the "
    "house.",
    "zork2": "You explore the underground. Find the unicorn; you need light, or a grue eats you in "
    "the dark.",
    "zork3": "Find your way into a secret passage. The old man in the Engravings Room may be won "
    "over with bread, so look for bread.",
    "detective": "Look for the murderer in town; he is said to stay at the Holiday Inn. Get a "
    "weapon, and be careful with suspicious people.",
    "night": "You are a student who looks for the missing printer of the university. It is said to "
    "be behind a secret panel, in the dark: follow its buzz. First get the flashlight from a box "
    "near the elevator.",
    "pentari": "You are suddenly in a world of fantasy. Find a dagger set with jewels, perhaps in "
    "the armory, and hide from the dark elf, who kills easily.",
    "weapon": "Get the weapon Yi-Lono-Mordel to work: activate its power stud, after its contacts "
    "are recalibrated.",
    "huntdark": "You are a hunter in the dark: hunt the wumpus.",
    "loose": "You help people on your way. Find a lost golden hairpin, which is hidden in a pot, "
    "and give it back to a girl called Mary.",
}
GAMES = tuple(GOALS)
# Never trained on: `train` has the other games.
TEST_GAMES = ("905", "afflicted", "omniquest", "zork3", "pentari", "weapon")
_SUFFIXES = {"afflicted": "z8", "snacktime": "z8"}


def missing() -> str | None:
    """Returns the package or file that is missing before any game can be played."""
    if importlib.util.find_spec("jericho") is None:
        return NOT_INSTALLED
    if not present():
        return (
            f"{data_directory() / 'jericho'}: no story file, such as {story_name('zork1')}, is "
            f"there; get them from {_SOURCE}"
        )
    return None


def present() -> tuple[str, ...]:
    """The games whose story files are there, in AgentBoard's order."""
    return tuple(name for name in GAMES if (data_directory() / _relative(name)).is_file())


def story_name(game: str) -> str:
    return f"{game}.{_SUFFIXES.get(game, 'z5')}"


def story_file(game: str) -> Path:
    """Returns the path of the game's story file.

    Raises:
      UserError: It is missing.
    """
    return require(_relative(game), _SOURCE)


def check_release(game: str, path: Path) -> None:
    """Raises a `UserError` where the file is not the release that jericho knows."""
    from jericho import defines

    known = defines.BINDINGS_DICT.get(hashlib.md5(path.read_bytes()).hexdigest(), {})
    if known.get("name") != game:
        raise UserError(
            f"{path}: is not the release of {game} that jericho knows; get it from {_SOURCE}"
        )


def _relative(game: str) -> str:
    return f"jericho/{story_name(game)}"
