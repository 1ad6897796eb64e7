"""Configs: every file and variant is valid and survives its workdir, and every
impossible value is refused by name.
"""

import json
import math

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.config import rules, run_config
from biedsnet_jax.config.check import FIELDS, check_config, network_rule
from biedsnet_jax.config.fields import flat, get_field
from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks import NETWORKS
from configs import covid, default, folder, phantom, variants


def base():
    """A valid config of three levels."""
    c = phantom.get_config()
    c.data.size, c.train.batch_size = 64, 8
    c.networks.biedsnet.channels, c.loss.supervision_weights = (16, 32, 64), (0.7, 0.3)
    return c


def with_case_rule(case: str):
    """A config that reads a folder and tells cases by the rule `case`."""
    c = base()
    c.data.source, c.data.case = "folder", case
    return c


def write_from_before_data_case(path, stored: str | None):
    """Writes a config.json from before data.case was a field.

    `stored` is the field's value where a later version went on with the run.
    """
    fields = json.loads(with_case_rule("").to_json_best_effort())
    del fields["data"]["case"]
    if stored is not None:
        fields["data"]["case"] = stored
    path.write_text(json.dumps(fields))


def changed(name: str, value):
    """`base` with one field set, whatever its type."""
    c = base()
    above, _, field = name.rpartition(".")
    section = get_field(c, above) if above else c
    with section.ignore_type():
        section[field] = value
    return c


# --- what is accepted ----------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen", [None, *variants.VARIANTS, "unet,row2", "lineage,direct"]
)
@pytest.mark.parametrize("file", [phantom, covid, folder])
def test_every_variant_passes_and_comes_back_from_its_workdir(tmp_path, file, chosen):
    c = file.get_config(chosen)
    check_config(c)
    run_config.save(c, tmp_path / "config.json")
    back = run_config.load(tmp_path)
    assert back.to_dict() == c.to_dict()
    assert type(back.networks.biedsnet.channels) is tuple and back.data.root is None
    run_config.check_trained(c, tmp_path)
    # An unset string can still be set.
    back.data.root = "elsewhere"


def test_cpu_makes_a_variant_smaller():
    for file in (covid, folder):
        full, small = file.get_config("unet"), file.get_config("unet,cpu")
        assert full.network == small.network == "unet"
        assert small.data.size < full.data.size
        check_config(small)


def test_tiles_change_the_way_to_the_network_alone():
    plain, tiled = (flat(covid.get_config(name)) for name in ("cpu", "cpu,tiles"))
    changed = {name: tiled[name] for name in plain if plain[name] != tiled[name]}
    assert changed == {"data.size": 128, "data.fit": "tile", "data.foreground": 0.33}
    c = covid.get_config("cpu,tiles")
    c.data.root = "data"
    check_config(c)


def test_quarter_narrows_every_network_to_a_quarter_and_nothing_else():
    full = flat(covid.get_config().networks)
    c = covid.get_config("quarter")
    quarter = flat(c.networks)
    narrowed = {name for name, value in full.items() if value != quarter[name]}
    assert {name.partition(".")[0] for name in narrowed} == set(c.networks)
    for name in narrowed:
        assert np.array_equal(full[name], 4 * np.array(quarter[name])), name
    kept = {name.rpartition(".")[2] for name in set(full) - narrowed}
    widths = (
        "channels embed_dim hidden mlp resnet_width decoder groups highway_channels"
    )
    assert not kept & set(widths.split())
    assert c.data.size == 64 and c.train.steps == covid.get_config("cpu").train.steps
    check_config(c)


def test_paper_takes_back_what_measurement_changed():
    """Of the sections in which the paper leaves choices."""
    chosen, paper = covid.get_config(), covid.get_config("paper")
    plain = default.get_config()
    measured = flat(chosen.diffusion).items() - flat(plain.diffusion).items()
    assert measured == {("mask_scale", 0.1)}
    for section in ("networks", "diffusion", "loss", "sampler"):
        assert paper[section].to_dict() == plain[section].to_dict()
    assert (paper.row, chosen.row) == ("paper", "")


@pytest.mark.parametrize(
    ("chosen", "name", "value"),
    [
        ("no_bffm", "networks.biedsnet.bffm", False),
        ("no_attention", "networks.biedsnet.attention", "none"),
        ("direct", "method", "direct"),
    ],
)
def test_a_part_taken_away_is_all_that_differs(chosen, name, value):
    whole, without = flat(covid.get_config()), flat(covid.get_config(chosen))
    assert without.items() - whole.items() == {("row", chosen), (name, value)}


def test_every_network_has_its_fields():
    assert set(default.get_config().networks) == set(NETWORKS)


def test_every_field_has_a_rule_that_allows_its_default():
    fields = flat(default.get_config())
    for name, value in fields.items():
        rule = FIELDS.get(name)
        if rule is None:
            _, network, field = name.split(".")
            rule = network_rule(NETWORKS[network], field)
        rule.check(name, value)
    assert FIELDS.keys() <= fields.keys()


# --- what is refused -----------------------------------------------------------------


def test_an_unknown_variant():
    with pytest.raises(ValueError, match=r"--config .*row9.* row1, row2"):
        phantom.get_config("unet,row9")


@pytest.mark.parametrize(
    ("network", "method"), [("unet", "diffusion"), ("medsegdiff", "direct")]
)
def test_a_method_that_a_network_does_not_have(network, method):
    c = phantom.get_config(network)
    c.method = method
    refused(lambda: check_config(c), "method", repr(method), network, "'auto'")


IMPOSSIBLE = [
    ("network", "unett", "one of 'biedsnet', 'unet', 'unetpp', "),
    ("network", 3, "one of"),
    ("method", "both", "one of 'auto', 'diffusion', 'direct'"),
    ("method", ("auto",), "one of"),
    ("data.channels", 2, "1 (grey) or 3 (colour)"),
    ("data.window", (250, -1250), "(low, high), such as (-1250, 250)"),
    ("data.window", (1,), "(low, high)"),
    ("data.window", (-math.inf, math.inf), "a finite (low, high)"),
    ("data.context", 1, "Use 0, or data.source='nifti'"),
    ("data.labels", ((1,),), "Use ()"),
    ("data.labels", ((1,), ()), "a tuple for each class, such as ((1,), (2, 3))"),
    ("data.source", "zip", "one of 'folder', 'nifti', 'tfds', 'phantom'"),
    ("data.size", 62.5, "a whole number from 1"),
    ("data.verify", "no", "True or False"),
    ("data.root", 5, "a folder"),
    ("data.case", "(patient", "expression"),
    ("data.case", "[", "'auto'"),
    ("data.case", 7, "a text"),
    ("data.phantom.n_cases", 2.5, "a whole number from 1"),
    ("seed", -1, "a whole number from 0"),
    ("split.fractions", (0.5, "x", 0.5), "three finite numbers"),
    ("split.fractions", (0.5, 0.5), "such as (0.8, 0.1, 0.1)"),
    ("split.fractions", (math.nan, 0.5, 0.5), "three finite numbers"),
    ("split.train", "abc", "names of cases, such as ('a', 'b')"),
    ("loss.smooth_l1_beta", math.inf, "a finite number above 0"),
    ("loss.supervision_weights", (1.0, math.inf), "finite numbers"),
    ("diffusion.mask_scale", math.inf, "a finite number above 0"),
    ("sampler.method", "euler", "one of 'ddpm', 'ddim', 'dpm_solver'"),
    ("train.steps", 0, "a whole number from 1"),
    ("train.learning_rate", 0.0, "a finite number above 0"),
    ("train.learning_rate", math.nan, "a finite number above 0"),
    ("train.learning_rate", math.inf, "a finite number above 0"),
    ("train.clip_norm", 0.0, "a number above 0, or inf"),
    ("train.ema", math.nan, "a number from 0 to 1"),
    ("train.weight_decay", -1.0, "a finite number from 0"),
    ("train.accumulate", 3, "a divisor of 8"),
    ("threshold", 1.5, "a number from 0 to 1"),
    ("data.foreground", 1.5, "a number from 0 to 1"),
    ("data.fit", "crop", "one of 'squash', 'pad', 'tile'"),
    ("data.spacing", "0.8;0.7", 'such as "0.8" or "0.8,0.7", "" or "auto"'),
    ("data.spacing", "0.8,0.7,3", "mm"),
    ("data.spacing", "0", "mm"),
    ("data.spacing", "-1", "mm"),
    ("data.spacing", "nan", "mm"),
    ("data.spacing", "inf", "mm"),
    ("data.spacing", 0.8, "mm"),
    ("data.plane", "frontal", "one of 'auto', 'axial', 'coronal', 'sagittal'"),
    ("data.plane", "coronal", "Use 'auto', or data.source='nifti'"),
    ("data.target", "soft", "one of 'hard', 'share'"),
    ("data.ignore", "0", "a label from '1' to '65535'"),
    ("data.ignore", "65536", "a label from '1' to '65535'"),
    ("data.ignore", "9" * 50, "'#ff0000'"),
    ("data.ignore", "-1", "or ''"),
    ("data.ignore", "²", "a label"),
    ("data.ignore", "#ff000", "'#ff0000'"),
    ("data.ignore", 255, "a label"),
    ("data.ignore", "255", "Use ''"),
    ("data.unannotated", "a", "such as (('site_b_*', (2,)),), or ()"),
    ("data.unannotated", (("a",),), "cases and their classes"),
    ("data.unannotated", (("a", ()),), "cases and their classes"),
    ("data.unannotated", (("a", 2),), "cases and their classes"),
    ("data.class_names", "lung", "such as ('lung', 'lesion'), or ()"),
    ("data.class_names", ("a", "a"), "different names"),
    ("data.class_names", ("a", ""), "different names"),
    ("data.class_names", (" ",), "different names"),
    ("data.class_names", ("a\n",), "different names"),
    ("data.class_names", ("background",), "other than 'background'"),
    ("data.channel_names", ("CT", "CT"), "different names"),
    ("augment.scale", 1.0, "a number from 0, below 1"),
    ("augment.intensity", 1.5, "a number from 0 to 1"),
    ("augment.zoom", 1.5, "a number from 0 to 1"),
    ("augment.elastic", math.nan, "a number from 0 to 1"),
    ("augment.noise", "often", "a number from 0 to 1"),
    ("augment.blur", None, "a number from 0 to 1"),
    ("augment.brightness", 2, "a number from 0 to 1"),
    ("augment.contrast", -1, "a number from 0 to 1"),
    ("augment.low_resolution", 1.01, "a number from 0 to 1"),
    ("augment.inverted_gamma", 9.0, "a number from 0 to 1"),
    ("postprocess", "no", "True or False"),
    ("postprocess", 1, "True or False"),
    ("eval.paper", 1, "True or False"),
    ("augment.gamma", -0.1, "a number from 0 to 1"),
    ("init.freeze", "condition", "patterns of paths"),
    ("init.freeze", ("condition",), "init.source is empty"),
    ("init.source", 3, "a text"),
    ("checkpoint.every", 0, "a whole number from 1"),
    ("eval.nsd_tolerance", -0.5, "a finite number from 0"),
    ("eval.nsd_tolerance_mm", math.inf, "a finite number from 0"),
    ("eval.lesion_overlap", 1.5, "a number from 0 to 1"),
    ("sampler.steps", 2000, "at most 1000"),
    ("sampler.mirror", "up", "one of '', 'lr', 'ud', 'lr,ud'"),
    ("sampler.mirror", "ud,lr", "one of '', 'lr', 'ud', 'lr,ud'"),
    ("networks.biedsnet.norm", "layer", "one of 'group', 'batch'"),
    ("networks.biedsnet.bffm", 1, "True or False"),
    ("networks.biedsnet.channels", (), "whole numbers"),
    ("networks.biedsnet.channels", (8,), "two whole numbers from 2"),
    ("networks.biedsnet.channels", (8, 1), "two whole numbers from 2"),
]


@pytest.mark.parametrize(("name", "value", "fix"), IMPOSSIBLE)
def test_an_impossible_value(name, value, fix):
    refused(lambda: check_config(changed(name, value)), f"{name} is {value!r}", fix)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"data.fit": "tile", "data.size": 63},
            ["data.size is 63", "data.fit is 'tile'", "an even number"],
        ),
        (
            {"data.source": "nifti", "data.ignore": "#ff0000"},
            ["data.ignore is '#ff0000'", "'nifti'", "a label value"],
        ),
        (
            {"data.source": "folder", "data.classes": 2, "data.ignore": "2"},
            ["data.ignore is '2'", "a label of a class", "another label"],
        ),
        (
            {"data.source": "nifti", "data.labels": ((7,),), "data.ignore": "7"},
            ["data.ignore is '7'", "a label of a class", "data.labels"],
        ),
        (
            {"data.unannotated": (("b*", (2,)),)},
            ["data.unannotated has class 2 for 'b*'", "classes from 1 to 1"],
        ),
        (
            {"data.unannotated": (("b*", (0,)),)},
            ["data.unannotated has class 0 for 'b*'", "classes from 1 to 1"],
        ),
        (
            {"data.classes": 2, "data.class_names": ("lung",)},
            ["data.class_names has 1 names", "one for each class"],
        ),
        (
            {"data.channel_names": ("T1", "T2")},
            ["data.channel_names has 2 names", "one for each channel"],
        ),
    ],
)
def test_fields_of_the_data_that_do_not_fit_each_other(fields, says):
    cfg = base()
    cfg.update_from_flattened_dict(fields)
    refused(lambda: check_config(cfg), *says)


def test_values_that_are_shown_in_another_way():
    def check(name, value):
        return lambda: check_config(changed(name, value))

    refused(check("train.steps", 2**31), "train.steps is 2.15e+09", "from 1")
    refused(check("data.name", {"a": 1}), "data.name is a: 1", "a text")
    heads = check("networks.biedsnet.channels", (8, 16, 32, 64))
    refused(heads, "loss.supervision_weights", "2 weights for 3 heads")


@pytest.mark.parametrize("chosen", ["unet", "medsegdiff"])
def test_self_conditioning_of_a_network_without_it(chosen):
    c = phantom.get_config(chosen)
    c.diffusion.self_condition = True
    fix = "Use False"
    refused(lambda: check_config(c), "diffusion.self_condition is True", chosen, fix)


def test_folded_maps_with_batch_norm():
    c = base()
    c.networks.biedsnet.update(fold=True, norm="batch")
    fix = "norm='group' or fold=False"
    refused(lambda: check_config(c), "networks.biedsnet.fold", fix)


@pytest.mark.parametrize(
    ("variant", "size", "fits"),
    [
        # Five levels take multiples of 16.
        ("biedsnet", 250, "240 or 256"),
        # This one has four levels.
        ("biedsnet,cpu", 60, "56 or 64"),
        ("biedsnet", 3, "16"),
        ("unet", 40, "32 or 48"),
        ("unetpp", 40, "32 or 48"),
        ("attention_unet", 40, "32 or 48"),
        ("unext", 40, "32 or 64"),
        ("medsegdiff", 250, "224 or 256"),
        ("trans_unet", 250, "240 or 256"),
        # Of 56, 28, 14 and 7 patches.
        ("swin_unet", 224, "128 or 256, or networks.swin_unet.window=7 or 14"),
        ("swin_unet", 100, "64 or 128"),
    ],
)
def test_a_size_that_a_network_cannot_take(variant, size, fits):
    c = covid.get_config(variant)
    c.data.size = size
    refused(lambda: check_config(c), "data.size", size, fits)


@pytest.mark.parametrize("name", flat(default.get_config()))
def test_no_value_of_any_field_breaks_the_check_itself(name):
    """A hand-edited config.json may hold anything: it is accepted, or refused with one
    line.
    """
    for value in ("nonsense", -1, 0, 2.5, math.nan, math.inf, True, (), ("x",), (0, 0)):
        try:
            check_config(changed(name, value))
        except BadInput as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("train.step", "train.steps"),
        ("learning_rate", "train.learning_rate"),
        ("model.supervision", "networks.biedsnet.supervision"),
        ("sampler.step.x", "sampler.steps"),
        ("train.steps.x", "train.steps"),
        ("zzz", ""),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(asked, near):
    c = phantom.get_config()
    refused(lambda: get_field(c, asked), asked, f"--config.{near}")


@pytest.mark.parametrize(
    ("default_value", "allowed", "forbidden"),
    [
        ((8, 16), [(4,), [4, 8]], [(), 4, (0.5,), (True,), ("a",)]),
        (0.5, [0.5, 1], ["a", (1,), None]),
        (3, [0, 7], [0.5, True, "a"]),
        (True, [False], [1, "True"]),
        ("group", ["x"], [1, ("x",)]),
    ],
)
def test_a_networks_field_is_like_its_default(default_value, allowed, forbidden):
    rule = rules.like(default_value)
    assert all(map(rule.allows, allowed)) and not any(map(rule.allows, forbidden))
    assert rules.like((8,), empty=True).allows(())


@pytest.mark.parametrize(
    ("mirror", "hflip", "vflip", "refusal"),
    [
        ("", 0.0, 0.0, None),
        ("lr", 0.5, 0.0, None),
        ("ud", 0.0, 1.0, None),
        ("lr,ud", 0.1, 0.1, None),
        ("lr", 0.0, 0.5, "augment.hflip"),
        ("ud", 0.5, 0.0, "augment.vflip"),
        ("lr,ud", 0.5, 0.0, "augment.vflip"),
        ("lr,ud", 0.0, 0.5, "augment.hflip"),
    ],
)
@pytest.mark.parametrize("chosen", [None, "unet"])
def test_only_what_training_mirrored_is_mirrored(chosen, mirror, hflip, vflip, refusal):
    c = phantom.get_config(chosen)
    c.augment.update(hflip=hflip, vflip=vflip)
    c.sampler.mirror = mirror
    if refusal is None:
        return check_config(c)
    word = "lr" if refusal == "augment.hflip" else "ud"
    refused(
        lambda: check_config(c),
        f"sampler.mirror is {mirror!r}",
        f"{refusal} was 0",
        f"Leave {word!r} out",
    )


# --- a workdir -----------------------------------------------------------------------


def test_fields_that_change_no_update_may_differ(tmp_path):
    run_config.save(phantom.get_config(), tmp_path / "config.json")
    c = phantom.get_config()
    c.data.root, c.compile_cache, c.threshold, c.fusion = "there", "", 0.3, "majority"
    c.sampler.update(steps=2, ensemble=1, method="ddpm")
    c.eval.every, c.log.every, c.checkpoint.every = 7, 7, 7
    run_config.check_same_run(c, tmp_path)


def check_differs(cfg, workdir, name, there, here):
    """Asserts that the run in `workdir` is not this config's, for the field `name`."""
    says = f"{name} is {there!r} there and {here!r} here"
    check = run_config.check_same_run
    refused(lambda: check(cfg, workdir), says, workdir, "another --workdir")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 5),
        ("train.steps", 123),
        ("data.size", 4096),
        ("networks.biedsnet.channels", (8, 17)),
        ("split.test", ("a", "b")),
        ("dtype", "bfloat16"),
    ],
)
def test_fields_that_change_an_update_may_not_differ(tmp_path, name, value):
    run_config.save(base(), tmp_path / "config.json")
    there = get_field(base(), name)
    check_differs(changed(name, value), tmp_path, name, there, value)


def test_more_steps_may_follow_and_fewer_may_not(tmp_path):
    run_config.save(base(), tmp_path / "config.json")
    assert run_config.earlier_steps(base(), tmp_path) is None
    more = changed("train.steps", 12345)
    run_config.check_same_run(more, tmp_path)
    assert run_config.earlier_steps(more, tmp_path) == base().train.steps
    # A model of more steps is another one to evaluate.
    refused(lambda: run_config.check_trained(more, tmp_path), "train.steps", "12345")


@pytest.mark.parametrize(
    ("stored", "asked"), [(None, "auto"), (None, ""), ("", "auto"), ("", "")]
)
def test_a_run_from_before_data_case_goes_on_with_its_cases(tmp_path, stored, asked):
    write_from_before_data_case(tmp_path / "config.json", stored)
    # Twice, as a killed run goes on; after the first time config.json has the field.
    for _ in range(2):
        c = with_case_rule(asked)
        run_config.check_same_run(c, tmp_path)
        assert c.data.case == ""
        run_config.save(c, tmp_path / "config.json")


@pytest.mark.parametrize("stored", [None, ""])
def test_a_run_from_before_data_case_takes_no_other_rule(tmp_path, stored):
    write_from_before_data_case(tmp_path / "config.json", stored)
    check_differs(with_case_rule("(p)"), tmp_path, "data.case", "", "(p)")


def test_another_rule_of_cases_is_another_run(tmp_path):
    cfg = folder.get_config()
    run_config.save(cfg, tmp_path / "config.json")
    cfg.data.case = ""
    check_differs(cfg, tmp_path, "data.case", "auto", "")


def test_an_unused_rule_of_cases_may_differ(tmp_path):
    run_config.save(base(), tmp_path / "config.json")
    run_config.check_same_run(changed("data.case", ""), tmp_path)


def test_a_new_workdir_belongs_to_any_config_and_is_not_trained(tmp_path):
    c = phantom.get_config()
    run_config.check_same_run(c, tmp_path)
    refused(lambda: run_config.check_trained(c, tmp_path), tmp_path, "Train first")


@pytest.mark.parametrize(
    "text", ["", "{", '{"seed": 0', "[1, 2]", "7", "null", "\x00\xff"]
)
def test_a_damaged_config_json_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    refused(lambda: run_config.load(tmp_path), path, "damaged", "--workdir")


def test_a_config_json_is_plain_json_and_replaced_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    run_config.save(phantom.get_config(), path)
    assert json.loads(path.read_text())["split"]["fractions"] == [0.8, 0.1, 0.1]
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
