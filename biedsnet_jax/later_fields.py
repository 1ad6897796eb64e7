"""Config fields that came after the first version, so that workdirs of earlier ones stay usable.

Whoever adds a field to configs/default.py adds it here too, with the value that stands for what was done before it;
tests/test_later_fields.py notices where that is forgotten.
"""

import json

from ml_collections import ConfigDict

ADDED = {
    "sampler.start": "noise",
    "sampler.start_fraction": 0.5,  # which "noise" does not read, nor the next
    "sampler.start_run": 8,
    "diffusion.self_condition": False,
    "networks.biedsnet.fold": False,
    "networks.biedsnet.remat": False,
    "networks.biedsnet.condition_joins": "after",
    "networks.biedsnet.groups": 16,
    "networks.trans_unet.groups": 32,
    "eval.pictures": 32,  # which changes no score
    "data.case": "",  # every file of a flat folder was a case of its own
    "parallel": ConfigDict({"fsdp": 1}),
}


def says(text: str, name: str) -> bool:
    """Whether a stored config, the text of a config.json, has a value for the field `name`."""
    section = json.loads(text)
    for part in name.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True


def complete(config: ConfigDict) -> ConfigDict:
    """The config with those of ADDED that it lacks, in place; a section that is not there is not made up."""
    for name, value in ADDED.items():
        *sections, field = name.split(".")
        section = config
        for part in sections:
            section = section.get(part) if isinstance(section, ConfigDict) else None
        if isinstance(section, ConfigDict) and field not in section:
            section[field] = value
    return config
