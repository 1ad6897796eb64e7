"""Fields of a config by their dotted names."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from biedsnet_jax.errors import shown
from biedsnet_jax.types import BadInput


def get_field(config: ConfigDict, name: str) -> Any:
    """The value at a dotted name. Raises BadInput, with the nearest name, where there is none."""
    value = config
    for part in name.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            near = _nearest(name, config)
            raise BadInput(f"unknown config field, {name}, in --config; the nearest is --config.{shown(near)}")
        value = value[part]
    return value


def _nearest(name, config):
    """The field whose name is most like `name`, of those with the same last part if there are any."""
    fields, last = list(flat(config)), name.rsplit(".", 1)[-1]
    same_last = [field for field in fields if field.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(name, same_last or fields, n=1, cutoff=0.0)
    return near[0] if near else "none"


def flat(config, prefix: str = "") -> dict[str, Any]:
    """{"data.size": 256, ...}"""
    found = {}
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
