"""Fields that do not exist: refused from Python as on the command line, at any depth,
with the nearest one.
"""

import pathlib

import pytest
from ml_collections import ConfigDict
from refusals import refused

from biedsnet_jax.config import known_fields, run_config
from biedsnet_jax.config import student as student_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat, get_field, set_field
from biedsnet_jax.networks import NETWORKS
from biedsnet_jax.networks.unet import UNet
from configs import covid, default, folder, nifti, phantom, variants


def with_field(name: str, value, chosen: str | None = None) -> ConfigDict:
    """An unlocked config with one field more."""
    c = phantom.get_config(chosen).unlock()
    set_field(c, name, value)
    return c


@pytest.mark.parametrize("file", [default, phantom, folder, nifti, covid])
def test_configs_come_locked(file):
    c = file.get_config()
    with pytest.raises(AttributeError, match="learning_rte"):
        c.train.learning_rte = 1.0
    with pytest.raises(AttributeError, match="trian"):
        c.trian = ConfigDict()
    with pytest.raises(KeyError, match="unett"):
        c.networks["unett"] = {"channels": (8, 16)}
    c.train.learning_rate = 1.0


@pytest.mark.parametrize("chosen", variants.VARIANTS)
def test_variants_leave_a_config_locked(chosen):
    c = covid.get_config(chosen)
    assert c.is_locked and c.networks.is_locked and c.data.phantom.is_locked


def test_a_config_read_from_a_workdir_and_a_students_are_locked(tmp_path):
    run_config.save(phantom.get_config(), tmp_path / "config.json")
    for c in (run_config.load(tmp_path), student_config.get_config(str(tmp_path))):
        assert c.is_locked and c.train.is_locked
    student = student_config.get_config(str(tmp_path))
    check_config(student)
    with pytest.raises(AttributeError, match="gird"):
        student.distill.gird = 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "train.learning_rte",
            1.0,
            ["train.learning_rte (1.0) is not a field", "Use train.learning_rate,"],
        ),
        (
            "train.learning_rate_",
            1.0,
            ["train.learning_rate_ (1.0)", "Use train.learning_rate,"],
        ),
        ("learning_rate", 1e-3, ["learning_rate (0.001)", "Use train.learning_rate,"]),
        ("trehsold", 0.5, ["trehsold (0.5)", "Use threshold,"]),
        ("augment.h_flip", 0.5, ["augment.h_flip (0.5)", "Use augment.hflip,"]),
        (
            "data.phantom.n_case",
            3,
            ["data.phantom.n_case (3)", "Use data.phantom.n_cases,"],
        ),
        (
            "networks.biedsnet.channel",
            (8, 16),
            ["networks.biedsnet.channel ((8, 16))", "networks.biedsnet.channels,"],
        ),
        (
            "networks.unet.channel",
            (8, 16),
            ["networks.unet.channel ((8, 16))", "networks.unet.channels,"],
        ),
        (
            "networks.unett.channels",
            (8, 16),
            ["networks.unett is not a section", "Use networks.unet,"],
        ),
        ("trian.steps", 3, ["trian is not a section", "Use train,"]),
        ("train.steps_of.many", 3, ["train.steps_of is not a section"]),
        ("distil.grid", 3, ["distil is not a section", "Use distill,"]),
        ("distill.gird", 3, ["distill.gird (3)", "Use distill.grid,"]),
    ],
)
def test_a_field_that_does_not_exist_is_refused_with_the_nearest(name, value, says):
    refused(lambda: check_config(with_field(name, value)), *says, "configs/default.py")


@pytest.mark.parametrize(
    ("section", "first"),
    [("train", "accumulate"), ("networks", ""), ("data.phantom", "")],
)
def test_a_value_in_the_place_of_a_section(section, first):
    c = phantom.get_config().unlock()
    *above, last = section.split(".")
    with (get_field(c, above[0]) if above else c).ignore_type():
        (get_field(c, above[0]) if above else c)[last] = 3
    refused(
        lambda: check_config(c),
        f"{section} is 3 where a section of fields belongs",
        f"{section}.{first}",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.steps", True),
        ("seed", False),
        ("eval.batch_size", True),
        ("split.fractions", (True, 0.5, 0.5)),
    ],
)
def test_true_is_not_a_number(name, value):
    c = phantom.get_config()
    *sections, field = name.split(".")
    section = get_field(c, sections[0]) if sections else c
    with section.ignore_type():
        section[field] = value
    refused(lambda: check_config(c), name, repr(value))


@pytest.mark.parametrize("value", ["many", (3,), 2.5, {"a": 1}])
def test_the_wrong_type_from_python_is_refused_at_once_or_by_the_check(value):
    c = phantom.get_config()
    with pytest.raises(TypeError):
        c.train.steps = value
    with c.train.ignore_type():
        c.train.steps = value
    refused(lambda: check_config(c), "train.steps")


def test_a_network_of_ones_own_needs_no_section_in_the_default(monkeypatch):
    monkeypatch.setitem(NETWORKS, "mine", UNet)
    c = with_field("networks.mine.channels", (4, 4, 8, 8, 8), "unet,toy")
    c.network = "mine"
    check_config(c.lock())
    refused(
        lambda: check_config(with_field("networks.mine.channel", (4, 4), "unet,toy")),
        "networks.mine.channel ((4, 4))",
        "Use networks.mine.channels,",
    )


def test_a_field_added_to_the_default_is_known(tmp_path, monkeypatch):
    first = "    c = ConfigDict()\n"
    text = (
        pathlib.Path(known_fields.DEFAULT)
        .read_text()
        .replace(first, f"{first}    c.my_own = 3\n")
    )
    (tmp_path / "default.py").write_text(text)
    refused(lambda: check_config(with_field("my_own", 4)), "my_own (4)")
    monkeypatch.setattr(known_fields, "DEFAULT", str(tmp_path / "default.py"))
    check_config(with_field("my_own", 4))


def test_a_default_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "default.py").write_text("def get_config():\n    return 1 / 0\n")
    monkeypatch.setattr(known_fields, "DEFAULT", str(tmp_path / "default.py"))
    refused(
        lambda: check_config(phantom.get_config()),
        "default.py fails with ZeroDivisionError",
    )


def test_without_the_configs_beside_the_package_no_field_is_unknown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(known_fields, "DEFAULT", str(tmp_path / "default.py"))
    check_config(with_field("my_own", 4))
    assert known_fields.unknown(phantom.get_config()) == []


@pytest.mark.parametrize(
    ("chosen", "read", "unread"),
    [
        (
            None,
            ["networks.biedsnet.fold", "diffusion.schedule", "loss.name", "fusion"],
            ["networks.unet.channels"],
        ),
        (
            "unet",
            ["networks.unet.channels", "loss.name"],
            ["networks.unetpp.channels", "diffusion.x", "sampler.x"],
        ),
        (
            "direct",
            ["networks.biedsnet.fold", "train.steps"],
            ["diffusion.schedule", "sampler.steps", "fusion"],
        ),
        (
            "medsegdiff",
            ["networks.medsegdiff.version", "diffusion.timesteps"],
            ["loss.name", "networks.biedsnet.fold"],
        ),
    ],
)
def test_what_a_run_reads(chosen, read, unread):
    fields = flat(phantom.get_config(chosen))
    read, unread = (
        [*read, "data.phantom.seed", "data.size", "seed", "new.section"],
        [*unread, "data.tfds.name"],
    )
    assert [known_fields.is_used(name, fields) for name in read] == [True] * len(read)
    assert [known_fields.is_used(name, fields) for name in unread] == [False] * len(
        unread
    )
