"""A network from a user's own Python file, which a config names in `network_file`."""

import dataclasses
import functools
import pathlib
import runpy
from typing import Any

import flax.linen as nn

from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files

# Name of a workdir's copy of the file, so that a run outlives the user's.
COPY = "network.py"
_NEEDED = ("classes", "dtype", "check_size", "__call__")
_OF_DENOISERS = ("encode", "denoise")


def read(path: Any) -> bytes:
    """Reads a network's file. Raises BadInput for anything but the path of a file."""
    try:
        return pathlib.Path(files.expanded(path)).read_bytes()
    except BadInput:
        raise
    except (OSError, TypeError, ValueError) as error:
        raise BadInput(
            f"network_file is {shown(path, most=200)}, which cannot be read: "
            f"{reason(error)}. Give the Python file that has the network's class."
        ) from error


def load(path: Any, name: Any) -> type[nn.Module]:
    """Loads the network's class `name` from the file at `path`.

    Both may be anything that a config holds. Raises BadInput where the file has no such
    network.
    """
    found = _run(path, read(path))
    if not isinstance(name, str) or name not in found:
        raise BadInput(
            f"network is {shown(repr(name))}, but {path} has no class of that name. "
            "Set network to the name of the network's class there."
        )
    network = found[name]
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise BadInput(
            f"{name} in {path} is not a Flax module. Derive it from flax.linen.Module."
        )
    has = {field.name for field in dataclasses.fields(network)} | set(dir(network))
    needed = (*_NEEDED, *_OF_DENOISERS) if has.intersection(_OF_DENOISERS) else _NEEDED
    lacking = [part for part in needed if part not in has]
    if lacking:
        raise BadInput(
            f"{name} in {path} lacks {', '.join(lacking)}. docs/extend.md shows what a "
            "network has."
        )
    return network


@functools.cache
def _run(path, source):
    """Names that the file defines."""
    # `source` is for the cache alone: a file that changed is run again.
    try:
        return runpy.run_path(files.expanded(path))
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise BadInput(f"{path} fails with {what}. Mend that file.") from error
