"""Workdirs of earlier versions: golden/first_config.json is one's config.json, written before any field was added."""

import json
import pathlib

import pytest

from biedsnet_jax import config, later_fields
from configs import default, phantom

FIRST = pathlib.Path(__file__).parent / "golden" / "first_config.json"


def names(fields, prefix=""):
    for name, value in fields.items():
        yield from names(value, f"{prefix}{name}.") if hasattr(value, "items") else [prefix + name]


def old_workdir(folder, without=()):
    """A workdir whose config.json is the first version's, or today's `without` some fields."""
    fields = json.loads(FIRST.read_text()) if not without else json.loads(phantom.get_config().to_json_best_effort())
    for name in without:
        *sections, field = name.split(".")
        section = fields
        for part in sections:
            section = section[part]
        del section[field]
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_the_first_versions_workdir_has_every_field_of_today(tmp_path):
    loaded = config.load(old_workdir(tmp_path))
    missing = set(names(default.get_config())) - set(names(loaded))
    assert not missing, "give each a line in biedsnet_jax/later_fields.py"
    config.check(loaded)
    config.check_same_run(loaded, tmp_path)


@pytest.mark.parametrize("name", later_fields.ADDED)
def test_todays_config_goes_on_with_a_workdir_that_lacks_a_later_field(tmp_path, name):
    workdir = old_workdir(tmp_path, without=[name])
    assert config.get_field(config.load(workdir), name) == later_fields.ADDED[name]
    same = phantom.get_config()
    same.update_from_flattened_dict({name: later_fields.ADDED[name]})
    config.check_same_run(same, workdir)


def test_a_value_that_is_there_stays_and_a_missing_section_is_not_made_up():
    c = default.get_config()
    c.sampler.start = "direct"
    assert later_fields.complete(c).sampler.start == "direct"
    del c.sampler
    assert "sampler" not in later_fields.complete(c)
