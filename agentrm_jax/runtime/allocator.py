"""The C library's allocator: what is freed is kept."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets this process use large blocks again that it has freed. To be called before all else.

    XLA asks for the temporary memory of a program again in every call. glibc hands blocks above 32
    MB back to the kernel as soon as they are freed, and the kernel has to clear each page when it
    is touched again, at about 1.5 GB/s: on a CPU a sixth of the time of training. Without glibc, or
    with another allocator in its place, this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    # One heap that is never trimmed: blocks of their own, and those of threads, would be given up.
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
        mallopt(option, value)
