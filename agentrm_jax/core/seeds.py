"""Random seeds that are derived from names. Nothing here imports JAX."""

from __future__ import annotations

import hashlib


def seeded_bytes(seed: int, *names: str) -> bytes:
    """Returns 8 random bytes that depend on a seed and some names alone.

    Machines, versions and the order of calls do not change them.
    """
    text = "\0".join((str(seed), *names))
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def derived_seed(seed: int, *names: str) -> int:
    """Returns a seed from 0 to 2**31 - 1 that depends on a seed and some names alone."""
    return int.from_bytes(seeded_bytes(seed, *names)[:4], "big") >> 1
