"""Config fields that came and went after the first version, so that workdirs of earlier
ones stay usable.

Whoever adds a field to configs/default.py adds it here too, with the value that stands
for what was done before it; tests/config/test_earlier_versions.py notices where that is
forgotten. A fork that adds none here gets the default, and one line where the run reads
the field.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from biedsnet_jax.config import known_fields
from biedsnet_jax.config.fields import find, flat, set_field
from biedsnet_jax.errors import listed, shown

ADDED = {
    "network_file": "",
    "diffusion.self_condition": False,
    "networks.biedsnet.fold": False,
    "networks.biedsnet.remat": False,
    "networks.biedsnet.condition_joins": "after",
    "networks.biedsnet.groups": 16,
    "networks.trans_unet.groups": 32,
    # which changes no score
    "eval.pictures": 32,
    # every file of a flat folder was a case of its own
    "data.case": "",
    "parallel": ConfigDict({"fsdp": 1}),
}

# Fields that configs/default.py had once, with the value that means what is done today.
REMOVED: dict[str, Any] = {
    "sampler.start": "noise",
    "sampler.start_fraction": 0.5,
    "sampler.start_run": 8,
}


def renew(config: ConfigDict) -> list[str]:
    """Give the config of a workdir the fields that it would have today, in place.

    Returns a sentence or two on those that its run reads and that have no value in
    ADDED, and on those that are gone.
    """
    complete(config)
    return [*_drop(config), *_fill(config)]


def complete(config: ConfigDict) -> ConfigDict:
    """The config with those of ADDED that it lacks, in place; a section that is not
    there is not made up.
    """
    for name, value in ADDED.items():
        above, _, field = name.rpartition(".")
        section = find(config, above) if above else config
        if isinstance(section, ConfigDict) and field not in section:
            # A copy: what one config makes of its section is no other's.
            section[field] = (
                value.copy_and_resolve_references()
                if isinstance(value, ConfigDict)
                else value
            )
    return config


def _fill(config):
    """Defaults for what is not there."""
    there = flat(config)
    missing = {
        name: value
        for name, value in known_fields.defaults().items()
        if name not in there
    }
    for name, value in missing.items():
        set_field(
            config, name, config_dict.placeholder(str) if value is None else value
        )
    read = {
        name: value
        for name, value in missing.items()
        if known_fields.is_used(name, there)
    }
    if read:
        yield f"lacks {_listed(read)}, which configs/default.py has. The default is taken."


def _drop(config):
    """Fields that no version of today reads are taken out."""
    gone = {}
    for name in known_fields.unknown(config):
        above, _, field = name.rpartition(".")
        section = find(config, above) if above else config
        value = section[field]
        del section[field]
        values = (
            flat(value, f"{name}.") if isinstance(value, ConfigDict) else {name: value}
        )
        gone |= {
            each: value
            for each, value in values.items()
            if REMOVED.get(each, ...) != value
        }
    read = {
        name: value
        for name, value in gone.items()
        if known_fields.is_used(name, flat(config))
    }
    if read:
        yield f"has {_listed(read)}, which configs/default.py does not have. It is left out."


def _listed(fields):
    return listed(
        [f"{shown(name)}={shown(repr(value))}" for name, value in fields.items()]
    )
