"""How the C library hands out memory to this process."""

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed() -> bool:
    """Has the C library keep freed memory for the next request; returns whether it does.

    XLA asks for a program's buffers at every call, hundreds of megabytes for a training
    step on a CPU. By default they go back to the system in between, which then clears
    77,000 pages a step. The process's peak stays what it was.

    Only glibc can be told so. A user who has set its variables is left alone.
    """
    chosen = any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        # Another C library, such as musl.
        return False
    # Only the first arena can hold more than 64 MB of its own.
    options = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all([mallopt(*option) for option in options])
