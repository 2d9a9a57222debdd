"""The paper's five wordings of ALFWorld: the original and four others."""

from __future__ import annotations

from agentrm_jax.envs.perturbations import Wording

_PARAPHRASE = """\
Imagine that you are a robot in a home with one job to finish. Only what lies on or in the spot \
where you stand can be seen, closed spots show nothing until they are opened, and your hand holds \
a single thing.
In every turn you name one of these commands:
look
inventory
examine {thing or place}
use {thing}
go to {place}
open {place}
close {place}
take {thing} from {place}
put {thing} in/on {place}
heat {thing} with {place}
cool {thing} with {place}
clean {thing} with {place}
Say the number of a thing or place too, as in: go to cabinet 2
You read "Nothing happens." when a command cannot be carried out.
Answer like this:
Thought: <your reasoning>
Action: <your command>"""

WORDINGS = {
    wording.name: wording
    for wording in (
        Wording(name="original"),
        Wording(
            name="using",
            actions=tuple(
                (f"{verb} {{o}} with {{r}}", f"{verb} {{o}} using {{r}}")
                for verb in ("clean", "heat", "cool", "slice")
            ),
        ),
        Wording(name="move_to", actions=(("go to {r}", "move to {r}"),)),
        Wording(
            name="from_take",
            actions=(("take {o} from {r}", "from {r} take {o}"),),
            texts=(("take an object from a receptacle", "from a receptacle take an object"),),
        ),
        Wording(name="paraphrase", instruction=_PARAPHRASE),
    )
}
