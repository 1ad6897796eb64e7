"""Devices: one mesh over all processes, shardings of batch and state, compile cache.

Networks never mention the mesh. It has the axes "data" and "fsdp"; a batch is split over
both. The devices along "fsdp" share one copy of the state, its large arrays cut into
parts (fully sharded data parallel, as ZeRO stage 3); with one device along it the state
is whole on every device.
"""

import functools
import math
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import files, processes

# Compiler options for a program that runs once, such as the hundreds of small random
# draws of an initialisation: optimising it costs several times what it saves.
RUN_ONCE = {"xla_backend_optimization_level": 0}
# Elements: gathering an array smaller than that costs more than keeping it whole.
SHARDED_FROM = 2**12


def make_mesh(devices: list | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh with the axes "data" and "fsdp", the second of size `fsdp`.

    `devices` are those of all processes by default. Raises BadInput where `fsdp` does
    not divide their number.
    """
    devices = devices or jax.devices()
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise BadInput(
            f"parallel.fsdp is {fsdp}, which does not divide {count} devices. "
            f"Use one of {fits}."
        )
    # Auto: under Explicit, the default of make_mesh, concatenating with noise and
    # splitting into windows are errors.
    return jax.make_mesh(
        (count // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def device_kind(mesh: Mesh) -> str:
    """Device kind of a mesh, such as "NVIDIA H200".

    On CPU it is the processor and core count, since both change how sums are rounded,
    and so what is trained.
    """
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        return device.device_kind
    cores = os.cpu_count()
    # macOS and Windows do not say which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return f"{processor()}, {cores} core{'s' if cores > 1 else ''}"


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with a whole copy on every device."""
    return NamedSharding(mesh, P())


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Shardings of the arrays (or shapes) of `tree`.

    An array is cut over "fsdp" along its largest axis that divides, the last of equals.
    One without such an axis, or with fewer than SHARDED_FROM elements, stays whole.
    """
    return jax.tree.map(
        lambda x: NamedSharding(mesh, _cut(x.shape, mesh.shape["fsdp"])), tree
    )


def _cut(shape, parts):
    fits = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not fits or math.prod(shape) < SHARDED_FROM:
        return P()
    chosen = max(fits, key=lambda axis: (shape[axis], axis))
    return P(*(None,) * chosen, "fsdp")


def my_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """The rows of a batch that lie on this process's devices."""
    places = (
        batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    )
    return sorted({row for (rows,) in places for row in range(batch_size)[rows]})


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch onto its devices, as one global array each."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, x)
        for name, x in batch.items()
    }


def put_whole_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch that every process has whole onto the devices of all."""
    rows = my_rows(len(next(iter(batch.values()))), mesh)
    return put_batch({name: x[rows] for name, x in batch.items()}, mesh)


def jit_batches(function: Callable, mesh: Mesh) -> Callable:
    """Jits `(variables, image, index) -> arrays` with rows split over all devices.

    Every process gets the whole result. The variables stay as they are, whole or cut
    over "fsdp".
    """
    split = batch_sharding(mesh)
    result = split if jax.process_count() == 1 else replicated(mesh)
    return jax.jit(function, in_shardings=(None, split, split), out_shardings=result)


def on_this_process(tree: Any) -> tuple[Any, Mesh]:
    """(`tree`, whole on each device of this process; the mesh of these devices)."""
    whole = multihost_utils.process_allgather(tree, tiled=True)
    mesh = make_mesh(jax.local_devices())
    return jax.device_put(whole, replicated(mesh)), mesh


def whole_array(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array, also where its parts lie on several processes."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def check_divisible(batch_size: int, parts: int, *, field: str, what: str) -> None:
    """Raises BadInput where a batch cannot be cut into equal parts."""
    if batch_size > 0 and batch_size % parts == 0:
        return
    below = batch_size // parts * parts
    fits = f"{below + parts}"
    if below > 0:
        fits = f"{below} or {fits}"
    raise BadInput(
        f"{field} is {batch_size}, which does not divide over {parts} {what}. "
        f"Set it to {fits}."
    )


def divisible(batch_size: int, mesh: Mesh) -> int:
    """A batch size raised to the next that divides over all devices.

    It is for predicting, where the size changes no result.
    """
    return math.ceil(batch_size / mesh.size) * mesh.size


def enable_compile_cache(folder: str | None) -> None:
    """Keeps compiled programs in a folder between runs.

    `auto` is the folder that jax has already, as in a notebook that chose one, else the
    user's cache folder; None is off. A folder that cannot be written is warned of once
    and not used, since jax would warn at every program.
    """
    if not folder:
        return
    files.check_no_address(folder, "compile_cache")
    automatic = folder == "auto"
    if automatic and jax.config.jax_compilation_cache_dir:
        return
    folder = str(files.user_cache() / "xla") if automatic else files.expanded(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _warn_once(
            f"The compile cache {folder} cannot be written ({reason(error)}), "
            "so every program is compiled anew. "
            "Set compile_cache to another folder, or to '' for none."
        )
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@functools.cache
def _warn_once(text: str) -> None:
    """Prints a warning; the cache keeps a process that loads twice from repeating it."""
    processes.say(text)
