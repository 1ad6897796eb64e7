"""Finds a config file by its name, and loads it."""

import pathlib
import runpy
import sys

from ml_collections import ConfigDict

from biedsnet_jax.errors import BadInput, shown

_CONFIGS = pathlib.Path(__file__).absolute().parents[2] / "configs"


def get_config(name: str) -> ConfigDict:
    """Loads a config such as "phantom", "covid:unet,cpu" or "mine.py:unet".

    Raises BadInput where there is no such config or variant.
    """
    file, *variants = name.split(":", 1)
    path = pathlib.Path(file)
    if not path.is_file():
        path = _CONFIGS / f"{path.stem}.py"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in _CONFIGS.glob("*.py")))
        raise BadInput(f"There is no config {shown(file)}. Use one of {known}.")
    if str(_CONFIGS.parent) not in sys.path:
        sys.path.append(str(_CONFIGS.parent))
    try:
        return runpy.run_path(str(path))["get_config"](*variants)
    except ValueError as error:
        raise BadInput(" ".join(str(error).split())) from error
