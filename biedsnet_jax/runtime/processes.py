"""The processes of one run: how they meet, wait for each other and end together.

Every process runs the same program on its own devices and its own rows of each batch;
the first writes and prints. A single process is the first, and never waits.
"""

import collections
import contextlib
import glob
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from biedsnet_jax.errors import BadInput, reason

# Seconds for what may take hours on one process, such as unpacking a data set.
WAIT = 24 * 3600
# Parts of the errors that collectives raise when another process is gone.
_PEERS = (
    "closed by peer",
    "reset by peer",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Gloo",
    "eartbeat",
    "Broken pipe",
)
# How often each barrier was used.
_BARRIERS = collections.Counter()
# Seconds in which all processes have reported a mistake that each of them meets.
_MEET = 20


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of a run.

    They are those of the flags, else of SLURM, a Kubernetes job or a TPU pod, else this
    one alone. Raises BadInput where flags are missing or do not fit, and where the other
    processes do not answer in time.
    """
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if not missing:
        _check(coordinator, num_processes, process_id)
    elif len(missing) < len(flags):
        raise BadInput(
            "A run of several processes needs all of --coordinator, --num_processes and "
            f"--process_id. Add {' and '.join(missing)}."
        )
    elif not _in_cluster():
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except Exception as error:
        where = coordinator or "the cluster"
        text = " ".join(str(error).split())[:200]
        raise BadInput(
            f"The processes did not meet at {where}: {text}. "
            "Start all of them, with the same --coordinator."
        ) from error


def _check(coordinator, num_processes, process_id):
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(
            f"--coordinator {coordinator} is not an address. "
            "Give HOST:PORT of the first process."
        )
    if not 0 <= process_id < num_processes:
        raise BadInput(
            f"--process_id {process_id} is not among {num_processes} processes. "
            "Count from 0."
        )


def _in_cluster() -> bool:
    """Whether jax can find the other processes by itself."""
    env = os.environ
    slurm = (
        "SLURM_STEP_NODELIST" in env
        and "SLURM_PROCID" in env
        and int(env.get("SLURM_NTASKS", 1)) > 1
    )
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    tpu = "," in env.get("TPU_WORKER_HOSTNAMES", "")
    may_use_tpu = env.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    if may_use_tpu and "TPU_WORKER_HOSTNAMES" not in env:
        # The metadata of a TPU VM name its other workers.
        chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
        tpu = bool(chips) and importlib.util.find_spec("libtpu") is not None
    return slurm or kubernetes or tpu


def is_first() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; raises after WAIT seconds."""
    if jax.process_count() > 1:
        # jax takes each name only once.
        _BARRIERS[name] += 1
        _wait(f"{name} {_BARRIERS[name]}", WAIT)


def _wait(key, seconds):
    # Imported here, since it takes a second.
    from orbax.checkpoint import multihost

    # Through the coordinator, since collectives of devices give up after some minutes.
    multihost.get_barrier_sync_fn()(key=f"biedsnet {key}", timeout_ms=seconds * 1000)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Runs its body on the first process, then on the others.

    So the others find what the first has prepared.
    """
    try:
        if not is_first():
            barrier(name)
        yield
    finally:
        if is_first():
            # Also after an error, which the others then meet and report themselves.
            barrier(name)


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes in order, on every process."""
    if jax.process_count() == 1:
        return [value]
    barrier("gather")
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths)]


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def say(text: str) -> None:
    """Prints a line on stderr, with the process's number where there are several."""
    who = f"process {jax.process_index()}: " if several() else ""
    print(f"biedsnet: {who}{text}", file=sys.stderr, flush=True)


def describe(error: Exception) -> str:
    """A line about an unexpected error in one of several processes.

    Prints the traceback of an error of this process's own.
    """
    if any(sign in str(error) for sign in _PEERS):
        return (
            f"Another process ended or is out of reach: {reason(error)}. "
            "Its output says why. The same command goes on."
        )
    traceback.print_exception(error)
    return (
        f"An error stopped this process, {type(error).__name__}: {reason(error)}. "
        "The other processes stop too."
    )


def leave(code: int) -> int:
    """Ends one of several processes with `code`; returns it from a single one.

    The processes end together where all come here, else this one alone.
    """
    if not several():
        return code
    with contextlib.suppress(Exception):
        _wait("left", _MEET)
        # The first hosts the coordinator, whose end would be an error to the others.
        if is_first():
            time.sleep(1)
    sys.stdout.flush()
    # Past jax's shutdown, which waits for processes that wait for this one, and for
    # saves that never end.
    os._exit(code)
