"""JAX's cache of compiled programs on the disk."""

from __future__ import annotations

import os
import pathlib


def keep_compiled_programs() -> None:
    """Stores compiled programs on the disk, so that another process need not compile them again.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) stays. Without a home folder, or
    without space, nothing is stored.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of compiled programs, None if no folder can be written."""
    try:
        above = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = above / "agentrm_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no permission, no space, or no home at all
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
