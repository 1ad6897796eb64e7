"""The fields that a config may have, and which of them a run reads.

They are those of `configs/default.py`, of a student's section `distill`, and of networks
without a section there, such as one of a user's own file.
"""

import dataclasses
import functools
import runpy
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from biedsnet_jax.config import build_model, config_file
from biedsnet_jax.config.fields import find, flat, nearest
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.networks import NETWORKS

STUDENT = ("distill.teacher", "distill.step", "distill.grid", "distill.truth_weight")
# Fields of every Linen module that no config sets.
_OF_LINEN = ("parent", "name")


def defaults() -> Mapping[str, Any]:
    """Fields of configs/default.py by dotted name."""
    return _read(str(config_file.default()))


@functools.cache
def _read(path: str) -> dict[str, Any]:
    try:
        return flat(runpy.run_path(path)["get_config"]())
    except Exception as error:
        raise BadInput(
            f"{path} fails with {type(error).__name__}: {reason(error)}. Mend that "
            "file."
        ) from error


def unknown(config: ConfigDict) -> list[str]:
    """Dotted names of a config's fields and sections that do not exist."""
    fields = _names(config)
    return list(_unknown(config, fields, _sections(fields), ""))


def check_known(config: ConfigDict) -> None:
    """Raises BadInput at a field that does not exist, or a value in place of a section."""
    fields = sorted(_names(config))
    sections = sorted(_sections(fields))
    for name in unknown(config):
        value = find(config, name)
        if isinstance(value, ConfigDict):
            what = f"{shown(name)} is not a section"
            near = nearest(name, sections)
        else:
            what = f"{shown(name)} ({shown(repr(value))}) is not a field"
            near = nearest(name, fields)
        raise BadInput(
            f"{what} of a config. Use {near}, the nearest in configs/default.py, or leave "
            "it out."
        )
    for section in sections:
        value = find(config, section)
        if value is not None and not isinstance(value, ConfigDict):
            first = next(name for name in fields if name.startswith(f"{section}."))
            raise BadInput(
                f"{section} is {shown(repr(value))} where a section of fields belongs. "
                f"Set its fields one by one, such as {first}."
            )


def is_used(name: str, fields: Mapping[str, Any]) -> bool:
    """Whether a run reads the field `name`; `fields` are the run's own, by dotted name.

    It does not read fields of other networks and sources, nor in one pass those of
    diffusion and sampler but for the mirror, nor those of the loss with MedSegDiff,
    which has its own.
    """
    network = fields.get("network")
    section, *rest = name.split(".")
    if section == "networks" and rest:
        return rest[0] == network
    if section == "data" and len(rest) > 1:
        return rest[0] == fields.get("data.source")
    if name == "data.case":
        return fields.get("data.source") in ("folder", "nifti")
    if name == "sampler.mirror":
        return True
    if name == "data.plane":
        return fields.get("data.source") == "nifti"
    if name == "data.spacing":
        return fields.get("data.fit") != "squash"
    if section in ("diffusion", "sampler", "fusion"):
        return fields.get("method") != "direct" and build_model.is_denoiser(fields)
    return section != "loss" or network != "medsegdiff"


def _names(config) -> frozenset[str]:
    """Names of all fields that exist."""
    known = set(defaults())
    described = {name.split(".")[1] for name in known if name.startswith("networks.")}
    networks = dict(NETWORKS)
    if config.get("network_file"):
        networks[config.network] = build_model.network_class(config)
    for network in networks.keys() - described:
        own = (field.name for field in dataclasses.fields(networks[network]))
        known |= {f"networks.{network}.{name}" for name in own if name not in _OF_LINEN}
    return frozenset(known.union(STUDENT))


def _sections(fields) -> set[str]:
    found = set()
    for name in fields:
        parts = name.split(".")
        found |= {".".join(parts[:depth]) for depth in range(1, len(parts))}
    return found


def _unknown(config, fields, sections, prefix) -> Iterator[str]:
    for part in config:
        name = f"{prefix}{part}"
        if name in sections:
            if isinstance(config[part], ConfigDict):
                yield from _unknown(config[part], fields, sections, f"{name}.")
        elif name not in fields:
            yield name
