"""Stores what llama.cpp's own C code makes of random blocks of each quantised type of GGUF.

    gcc -O1 -ffp-contract=off -fPIC -shared -D_GNU_SOURCE -I ggml/include -I ggml/src \\
      -o libquants.so ggml/src/ggml-quants.c -lm
    python tests/model/make_gguf_goldens.py libquants.so
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from agentrm_jax.model.gguf_file import TYPES

BLOCKS = 2
PLAIN = ("F32", "F16", "BF16")


def main(library: str) -> None:
    lazily = os.RTLD_LAZY  # the rest of ggml is not there
    quants = ctypes.CDLL(str(pathlib.Path(library).resolve()), mode=lazily)
    found = {}
    for name in (name for name in TYPES.values() if name not in PLAIN):
        kind = GGMLQuantizationType[name]
        size, stored = GGML_QUANT_SIZES[kind]
        random, kept = np.random.RandomState(int(kind)), []
        dequantize = getattr(quants, "dequantize_row_" + name.lower().replace("_k", "_K"))
        dequantize.restype = None
        while len(kept) < BLOCKS:  # scales of random bits may be infinite
            block, values = random.bytes(stored), np.empty(size, np.float32)
            dequantize(block, values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(size))
            if np.isfinite(values).all():
                kept.append((np.frombuffer(block, np.uint8), values))
        found[f"{name}.blocks"] = np.stack([block for block, _ in kept])
        found[f"{name}.values"] = np.stack([values for _, values in kept])
    np.savez_compressed(pathlib.Path(__file__).parent / "goldens" / "gguf_types.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
