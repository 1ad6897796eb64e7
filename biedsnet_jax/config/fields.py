"""Fields of a config by their dotted names."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from biedsnet_jax.errors import BadInput, shown


def get_field(config: ConfigDict, name: str) -> Any:
    """Value at a dotted name. Raises BadInput with the nearest name where none is."""
    value = find(config, name)
    # An unset string is None too.
    if value is None and name not in flat(config):
        near = nearest(name, list(flat(config)))
        raise BadInput(
            f"{shown(name)} is not a field of the config. The nearest is "
            f"--config.{shown(near)}"
        )
    return value


def find(config: Any, name: str) -> Any:
    """Value or section at a dotted name; None where there is none."""
    for part in name.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return None
        config = config[part]
    return config


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the field at a dotted name, and makes the sections that it lies in.

    Nothing is set where a value stands in the place of a section:
    `known_fields.check_known` refuses that.
    """
    *sections, field = name.split(".")
    section = config
    for part in sections:
        if part not in section:
            section[part] = ConfigDict()
        section = section[part]
        if not isinstance(section, ConfigDict):
            return
    section[field] = value


def nearest(name: str, names: Collection[str]) -> str:
    """The most similar of `names`, first among those with the same last part."""
    last = name.rsplit(".", 1)[-1]
    same_last = [other for other in names if other.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(name, same_last or names, n=1, cutoff=0.0)
    return near[0] if near else "none"


def flat(config, prefix: str = "") -> dict[str, Any]:
    """Fields by dotted name, such as {"data.size": 256}."""
    found = {}
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with fields set by dotted name.

    Raises BadInput for a field that there is not, and for a value of another type.
    """
    changed = config.copy_and_resolve_references()
    for name, value in fields.items():
        usual = get_field(changed, name)
        if isinstance(usual, ConfigDict):
            raise BadInput(
                f"{name} is {shown(repr(value))}, but it is a section. Set its fields one "
                f"by one, such as {name}.{next(iter(usual))}"
            )
        try:
            changed.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"{name} is {shown(repr(value))}, of the wrong type. Give a value like "
                f"{usual!r}, of {type(usual).__name__}."
            ) from error
    return changed
