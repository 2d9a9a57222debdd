"""Other wordings of BabyAI's actions, for tests of robustness."""

from __future__ import annotations

from agentrm_jax.envs.perturbations import Wording

WORDINGS = {
    wording.name: wording
    for wording in (
        Wording(name="original"),
        Wording(name="move_to", actions=(("go to {o}", "move to {o}"),)),
        Wording(name="grab", actions=(("pickup {o}", "grab {o}"), ("pick up {o}", "grab {o}"))),
        Wording(
            name="rotate",
            actions=(("turn left", "rotate left"), ("turn right", "rotate right")),
        ),
    )
}
