"""Writes the goldens: what transformers makes of the tiny Llamas. Needs the extra `parity`.

python tests/model/make_goldens.py
"""

from __future__ import annotations

import numpy as np
from model_cases import FAMILIES, GOLDENS
from torch_cases import parts_of

if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for name, config in FAMILIES.items():
        np.savez_compressed(GOLDENS / f"{name}.npz", **parts_of(config))
