"""Devices: one mesh over all of them, the shardings of batch and state, and the compile cache.

Networks never mention a mesh. A batch is split over the axis "data"; the state is on every device.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from biedsnet_jax import files
from biedsnet_jax.types import BadInput

# Compiler options for a program that runs once, such as the hundreds of small random draws of an initialisation:
# optimising it costs several times what it saves.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def make_mesh(devices: list | None = None) -> Mesh:
    """One axis, "data", over `devices` (all by default)."""
    devices = devices or jax.devices()
    # Auto: under Explicit, the default of make_mesh, concatenating with noise and splitting into windows are errors.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over the devices."""
    return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch onto its devices, as one global array each."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}


def check_divisible(batch_size: int, parts: int, *, field: str, what: str) -> None:
    """Raise when a batch cannot be cut into equal parts."""
    if batch_size < 1 or batch_size % parts:
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        fits = f"{below} or {above}" if below > 0 else f"{above}"
        raise BadInput(f"batch of {batch_size} does not divide over {parts} {what}, in {field}; set {field} to {fits}")


def enable_compile_cache(folder: str | None) -> None:
    """Keep compiled programs on disk between runs; `auto` is the user's cache folder, None is off."""
    if not folder:
        return
    if folder == "auto":
        folder = str(files.user_cache() / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
