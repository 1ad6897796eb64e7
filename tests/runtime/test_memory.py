"""How the C library hands out memory, seen by the faults of a process of its own."""

import os
import subprocess
import sys

import pytest

# A thread asks for 128 MB, writes to all of it and frees it, five times; then the pages
# that the system had to give the process for the last three are printed.
PROGRAM = """
import ctypes, resource, sys, threading
from biedsnet_jax.runtime import memory

print(memory.keep_freed() if sys.argv[1] == "keep" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for turn in range(5):
        if turn == 2:
            before = faults()
        buffer = libc.malloc(2**27)
        libc.memset(buffer, 1, 2**27)
        libc.free(buffer)
    print(faults() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="another C library"
)


def kept_and_faults(how: str, **variables: str) -> tuple[str, int]:
    """What keep_freed returned, and the pages of three allocations after the second."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GLIBC_TUNABLES", "MALLOC_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=plain | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@glibc
def test_freed_memory_is_used_again():
    kept, faults = kept_and_faults("keep")
    assert kept == "True"
    # 128 MB are 32,768 pages of 4 kB.
    assert faults < 100


@glibc
@pytest.mark.parametrize(
    "variable", ["GLIBC_TUNABLES=glibc.malloc.trim_threshold=1", "MALLOC_ARENA_MAX=2"]
)
def test_what_the_user_has_chosen_stays(variable):
    name, _, value = variable.partition("=")
    assert kept_and_faults("keep", **{name: value})[0] == "False"
