"""The processes of one run: how they find each other, wait for each other, and end
together.

Every process runs the same program on its own devices and its own rows of each batch;
the first writes and prints. One process alone is the same with nobody to wait for.
"""

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

# seconds for what may take hours on one process, such as unpacking a data set
WAIT = 24 * 3600
# In what collectives and the coordinator raise where another process is gone.
_PEERS = (
    "closed by peer",
    "reset by peer",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Gloo",
    "eartbeat",
    "Broken pipe",
)
# seconds in which processes that refuse the same mistake have all said so
_MEET = 20


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the processes of a run: those of the flags, else of SLURM, a Kubernetes job
    or a TPU pod, else none.

    Raises BadInput where only some flags are given or they cannot be, and where the
    others do not answer in time.
    """
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if missing and len(missing) < len(flags):
        raise BadInput(
            f"some flags of many processes, none of {', '.join(missing)}, on the command line; give all 3"
        )
    if missing and not _in_cluster():
        return
    if not missing:
        _check(coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except Exception as error:
        where = coordinator or "the cluster"
        text = " ".join(str(error).split())[:200]
        raise BadInput(
            f"processes did not meet, {text}, {where}; start all of them, with one --coordinator"
        ) from error


def _check(coordinator, num_processes, process_id):
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(
            f"no address, {coordinator}, in --coordinator; give HOST:PORT of the first process"
        )
    if not 0 <= process_id < num_processes:
        raise BadInput(
            f"no such process, {process_id} of {num_processes}, in --process_id; count from 0"
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
    if "TPU_WORKER_HOSTNAMES" not in env and env.get("JAX_PLATFORMS", "tpu").startswith(
        "tpu"
    ):
        chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
        # a TPU VM, whose metadata name the others
        tpu = bool(chips) and importlib.util.find_spec("libtpu") is not None
    return slurm or kubernetes or tpu


def is_first() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here; an error after WAIT."""
    if jax.process_count() > 1:
        _wait(f"{name} {_count(name)}", WAIT)


def _wait(key, seconds):
    # here, since it takes a second to import
    from orbax.checkpoint import multihost

    # Through the coordinator, since collectives of the devices give up after some
    # minutes.
    multihost.get_barrier_sync_fn()(key=f"biedsnet {key}", timeout_ms=seconds * 1000)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """The body on the first process, then on the others, so that they find what it has
    prepared.
    """
    try:
        if not is_first():
            barrier(name)
        yield
    finally:
        if is_first():
            # after an error too: the others meet the same one, and say so themselves
            barrier(name)


def gather(value: Any) -> list[Any]:
    """`value`, JSON, of every process in order, on every process."""
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
    """Whether this is one of many."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def say(text: str) -> None:
    """A line on stderr that names the process where there are several."""
    who = f"process {jax.process_index()}: " if several() else ""
    print(f"biedsnet: {who}{text}", file=sys.stderr, flush=True)


def told(error: Exception) -> str:
    """A line about an unexpected error in one of several; one of its own shows its
    traceback before it.
    """
    if any(sign in str(error) for sign in _PEERS):
        return f"another process ended or is out of reach, {reason(error)}; its output says why, the same command goes on"
    traceback.print_exception(error)
    return f"stopped by an error, {type(error).__name__}: {reason(error)}; the others stop too"


def leave(code: int) -> int:
    """Exit with `code`, together with the others where they come here too, else alone,
    which they hear of.

    At once, without jax's shutdown: there it would wait for those that wait for it, and
    for saves that never end.
    """
    if not several():
        return code
    with contextlib.suppress(Exception):
        _wait("left", _MEET)
        # its end would be an error to the others
        time.sleep(is_first())
    sys.stdout.flush()
    os._exit(code)


_COUNTS: dict[str, int] = {}


def _count(name):
    """How often a barrier was used: a name serves once."""
    _COUNTS[name] = _COUNTS.get(name, 0) + 1
    return _COUNTS[name]
