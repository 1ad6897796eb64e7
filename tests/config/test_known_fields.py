"""Fields that do not exist are refused at any depth, with the nearest one."""

import pytest
from ml_collections import ConfigDict
from refusals import refused

from biedsnet_jax.config import config_file, known_fields, run_config, student
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat, get_field, set_field
from biedsnet_jax.networks import NETWORKS
from biedsnet_jax.networks.unet import UNet
from configs import covid, default, folder, nifti, phantom, variants


def with_field(name: str, value, chosen: str | None = None) -> ConfigDict:
    """An unlocked config with one more field."""
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


def test_configs_of_a_workdir_and_of_a_student_are_locked(tmp_path):
    run_config.save(phantom.get_config(), tmp_path / "config.json")
    for c in (run_config.load(tmp_path), student.get_config(str(tmp_path))):
        assert c.is_locked and c.train.is_locked
        check_config(c)
    with pytest.raises(AttributeError, match="gird"):
        c.distill.gird = 3


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("train.learning_rte", 1.0, "train.learning_rate"),
        ("train.learning_rate_", 1.0, "train.learning_rate"),
        ("learning_rate", 1e-3, "train.learning_rate"),
        ("trehsold", 0.5, "threshold"),
        ("augment.h_flip", 0.5, "augment.hflip"),
        ("data.phantom.n_case", 3, "data.phantom.n_cases"),
        ("networks.biedsnet.channel", (8, 16), "networks.biedsnet.channels"),
        ("networks.unet.channel", (8, 16), "networks.unet.channels"),
        ("distill.gird", 3, "distill.grid"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest(name, value, nearest):
    c = with_field(name, value)
    refused(lambda: check_config(c), f"{name} ({value!r})", f"Use {nearest},")


@pytest.mark.parametrize(
    ("name", "section", "nearest"),
    [
        ("networks.unett.channels", "networks.unett", "networks.unet"),
        ("trian.steps", "trian", "train"),
        ("train.steps_of.many", "train.steps_of", "train"),
        ("distil.grid", "distil", "distill"),
    ],
)
def test_an_unknown_section_is_refused_with_the_nearest(name, section, nearest):
    c = with_field(name, 3)
    refused(lambda: check_config(c), f"{section} is not a section", f"Use {nearest},")


def with_value(name, value):
    """A config with a field or section set to any value."""
    c = phantom.get_config().unlock()
    above, _, last = name.rpartition(".")
    section = get_field(c, above) if above else c
    with section.ignore_type():
        section[last] = value
    return c


@pytest.mark.parametrize(
    ("section", "first"),
    [("train", "accumulate"), ("networks", ""), ("data.phantom", "")],
)
def test_a_value_in_the_place_of_a_section(section, first):
    c = with_value(section, 3)
    refused(lambda: check_config(c), f"{section} is 3", f"{section}.{first}")


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
    refused(lambda: check_config(with_value(name, value)), name, repr(value))


@pytest.mark.parametrize("value", ["many", (3,), 2.5, {"a": 1}])
def test_the_wrong_type_from_python_is_refused_at_once_or_by_the_check(value):
    with pytest.raises(TypeError):
        phantom.get_config().train.steps = value
    refused(lambda: check_config(with_value("train.steps", value)), "train.steps")


def test_a_users_network_needs_no_section_in_the_default(monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", UNet)
    c = with_field("networks.own.channels", (4, 4, 8, 8, 8), "unet,toy")
    c.network = "own"
    check_config(c.lock())
    wrong = with_field("networks.own.channel", (4, 4), "unet,toy")
    says = ("networks.own.channel ((4, 4))", "Use networks.own.channels,")
    refused(lambda: check_config(wrong), *says)


def test_a_field_added_to_the_default_is_known(tmp_path, monkeypatch):
    first = "    c = ConfigDict()\n"
    text = config_file.default().read_text()
    (tmp_path / "default.py").write_text(
        text.replace(first, f"{first}    c.my_own = 3\n")
    )
    refused(lambda: check_config(with_field("my_own", 4)), "my_own (4)")
    monkeypatch.setattr(config_file, "default", lambda: tmp_path / "default.py")
    check_config(with_field("my_own", 4))


def test_a_default_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "default.py").write_text("def get_config():\n    return 1 / 0\n")
    monkeypatch.setattr(config_file, "default", lambda: tmp_path / "default.py")
    c = phantom.get_config()
    refused(lambda: check_config(c), tmp_path / "default.py", "ZeroDivisionError")


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
            ["networks.unet.channels", "loss.name", "sampler.mirror"],
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
    for name in (*read, "data.phantom.seed", "data.size", "seed", "new.section"):
        assert known_fields.is_used(name, fields), name
    for name in (*unread, "data.tfds.name"):
        assert not known_fields.is_used(name, fields), name
