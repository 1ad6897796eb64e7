"""Config fields added and removed since the first version.

With them the workdirs of earlier versions stay usable. Whoever adds a field to
configs/default.py adds it here too, with the value that means what was done before;
tests/config/test_earlier_versions.py fails where that is forgotten. Workdirs of a fork
that does not get the default, and a warning where their run reads the field.
"""

import copy
from typing import Any

from ml_collections import ConfigDict, config_dict

from biedsnet_jax.config import known_fields
from biedsnet_jax.config.fields import find, flat, set_field
from biedsnet_jax.errors import listed, shown

# Fields that configs/default.py has now, with the value that means what was done before.
ADDED = {
    "network_file": "",
    "diffusion.self_condition": False,
    "networks.biedsnet.fold": False,
    "networks.biedsnet.remat": False,
    "networks.biedsnet.condition_joins": "after",
    "networks.biedsnet.groups": 16,
    "networks.trans_unet.groups": 32,
    # Changes no score, so that the default serves.
    "eval.pictures": 32,
    # Nor does this: the paper's convention was always computed beside.
    "eval.paper": True,
    "data.fit": "squash",
    "data.target": "hard",
    "data.spacing": "",
    "data.plane": "axial",
    "data.ignore": "",
    "data.unannotated": (),
    "data.class_names": (),
    "data.channel_names": (),
    # Every file of a flat folder was a case of its own.
    "data.case": "",
    "parallel": ConfigDict({"fsdp": 1}),
    "init": ConfigDict({"source": "", "freeze": ()}),
    # Masks were written as they left the network.
    "postprocess": False,
    "data.foreground": 0.0,
    "augment.rotate": 1.0,
    "augment.zoom": 0.0,
    "augment.elastic": 0.0,
    "augment.noise": 0.0,
    "augment.blur": 0.0,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.low_resolution": 0.0,
    "augment.inverted_gamma": 0.0,
    "augment.gamma": 0.0,
    "sampler.mirror": "",
}

# Fields that configs/default.py had once, with the value that means what is done now.
REMOVED: dict[str, Any] = {
    "sampler.start": "noise",
    "sampler.start_fraction": 0.5,
    "sampler.start_run": 8,
}


def renew(config: ConfigDict) -> list[str]:
    """Updates the config of a workdir to the fields of today, in place.

    Returns sentences on missing fields that its run reads and that ADDED does not have,
    and on fields that do not exist any more.
    """
    complete(config)
    return list(filter(None, (_drop(config), _fill(config))))


def complete(config: ConfigDict) -> ConfigDict:
    """Adds the fields of ADDED that a config lacks, in place; makes no new section."""
    for name, value in ADDED.items():
        section, field = _parent(config, name)
        if isinstance(section, ConfigDict) and field not in section:
            # A copy, so that configs do not share a section.
            section[field] = copy.deepcopy(value)
    return config


def _parent(config, name):
    """The section that a field lies in, and the field's name there."""
    above, _, field = name.rpartition(".")
    return (find(config, above) if above else config), field


def _fill(config):
    """Adds the defaults of missing fields, and says which of them the run reads."""
    there = flat(config)
    read = []
    for name, value in known_fields.defaults().items():
        if name in there:
            continue
        set_field(
            config, name, config_dict.placeholder(str) if value is None else value
        )
        if known_fields.is_used(name, there):
            read.append(_shown(name, value))
    if not read:
        return ""
    return f"lacks {listed(read)}, which configs/default.py has. The default is taken."


def _drop(config):
    """Removes fields that do not exist, and says which of them the run read."""
    before = flat(config)
    for name in known_fields.unknown(config):
        section, field = _parent(config, name)
        del section[field]
    there = flat(config)
    read = [
        _shown(name, value)
        for name, value in before.items()
        if name not in there
        and REMOVED.get(name, ...) != value
        and known_fields.is_used(name, there)
    ]
    if not read:
        return ""
    return (
        f"has {listed(read)}, which configs/default.py does not have. It is left out."
    )


def _shown(name, value):
    return f"{shown(name)}={shown(repr(value))}"
