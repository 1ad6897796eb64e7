"""Configs: every file and variant is valid and survives its workdir, every impossible value is named."""

import json
import math

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.config import run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks import NETWORKS
from configs import covid, default, folder, phantom, variants


def base():
    """A valid config of three levels."""
    c = phantom.get_config()
    c.data.size, c.train.batch_size = 64, 8
    c.networks.biedsnet.channels, c.loss.supervision_weights = (16, 32, 64), (0.7, 0.3)
    return c


def of_folder(case: str):
    """A config that reads a folder, where `case` is the rule of its cases."""
    c = base()
    c.data.source, c.data.case = "folder", case
    return c


def write_from_before_data_case(path, stored: str | None):
    """The config.json of a run of an earlier version; `stored` where a later one went on with it."""
    fields = json.loads(of_folder("").to_json_best_effort())
    del fields["data"]["case"]
    fields["data"] |= {} if stored is None else {"case": stored}
    path.write_text(json.dumps(fields))


def changed(name: str, value):
    """`base` with one field set, whatever its type."""
    c = base()
    section = c if "." not in name else get_field(c, name.rpartition(".")[0])
    with section.ignore_type():
        section[name.rpartition(".")[2]] = value
    return c


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [None, *variants.VARIANTS, "unet,row2", "lineage,direct"])
@pytest.mark.parametrize("file", [phantom, covid, folder])
def test_every_variant_passes_and_comes_back_from_a_workdir_as_it_was(tmp_path, file, chosen):
    c = file.get_config(chosen)
    check_config(c)
    run_config.save(c, tmp_path / "config.json")
    back = run_config.load(tmp_path)
    assert back.to_dict() == c.to_dict()
    assert type(back.networks.biedsnet.channels) is tuple and back.data.root is None
    run_config.check_trained(c, tmp_path)
    back.data.root = "elsewhere"  # an unset string stays one that may be set


def test_cpu_makes_a_variant_smaller():
    for file in (covid, folder):
        full, small = file.get_config("unet"), file.get_config("unet,cpu")
        assert small.network == full.network == "unet" and small.data.size < full.data.size
        check_config(small)


def test_quarter_narrows_every_network_to_a_quarter_and_nothing_else():
    full, quarter = (dict(_fields(covid.get_config(chosen).networks)) for chosen in (None, "quarter"))
    changed = {name for name, value in full.items() if value != quarter[name]}
    assert {name.partition(".")[0] for name in changed} == set(covid.get_config().networks)
    for name in changed:
        assert np.array_equal(full[name], 4 * np.array(quarter[name])), name
    kept = {name.rpartition(".")[2] for name in set(full) - changed}
    widths = "channels embed_dim hidden mlp resnet_width decoder groups highway_channels"
    assert not kept & set(widths.split())
    c = covid.get_config("quarter")
    assert c.data.size == 64 and c.train.steps == covid.get_config("cpu").train.steps
    check_config(c)


def test_paper_takes_back_what_measurement_changed():
    """Of the network, the diffusion and the loss, which is where the paper leaves choices."""
    chosen, paper, plain = covid.get_config(), covid.get_config("paper"), default.get_config()
    assert dict(_fields(chosen.diffusion)).items() - dict(_fields(plain.diffusion)).items() == {("mask_scale", 0.1)}
    for part in ("networks", "diffusion", "loss", "sampler"):
        assert paper[part].to_dict() == plain[part].to_dict()
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
    whole, without = (set(_fields(covid.get_config(variant))) for variant in (None, chosen))
    assert without - whole == {("row", chosen), (name, value)}


def test_a_variant_that_is_not_there():
    with pytest.raises(ValueError, match=r"variant, row9, .* row1, row2"):
        phantom.get_config("unet,row9")


@pytest.mark.parametrize(
    ("network", "method", "says"),
    [("unet", "diffusion", "no diffusion network, unet, in method"), ("medsegdiff", "direct", "no direct form")],
)
def test_a_method_that_a_network_has_not(network, method, says):
    c = phantom.get_config(network)
    c.method = method
    refused(lambda: check_config(c), says, "'auto'")


def test_every_network_has_its_fields():
    assert set(default.get_config().networks) == set(NETWORKS)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("network", "unett", ["network is 'unett'", "unetpp"]),
        ("method", "both", ["'both', in method", "'auto' or 'diffusion' or 'direct'"]),
        ("data.channels", 2, ["2, in data.channels", "1 (grey) or 3 (colour)"]),
        ("data.window", (250, -1250), ["no window, (250, -1250), in data.window", "(low, high)"]),
        ("data.window", (1,), ["no window, (1,), in data.window"]),
        ("data.context", 1, ["'phantom', for data.context", "data.source='nifti'"]),
        ("data.labels", ((1,),), ["'phantom', for data.labels"]),
        ("sampler.method", "euler", ["'euler', in sampler.method", "'ddim'"]),
        ("networks.biedsnet.norm", "layer", ["'layer', in networks.biedsnet.norm"]),
        ("seed", -1, ["-1, in seed", "0 or more"]),
        ("train.steps", 0, ["0, in train.steps", "1 or more"]),
        ("checkpoint.every", 0, ["0, in checkpoint.every"]),
        ("train.learning_rate", 0.0, ["0.0, in train.learning_rate", "above 0"]),
        ("train.learning_rate", math.nan, ["nan, in train.learning_rate"]),
        ("train.learning_rate", math.inf, ["train.learning_rate is infinite"]),
        ("diffusion.mask_scale", math.inf, ["diffusion.mask_scale is infinite"]),
        ("loss.smooth_l1_beta", math.inf, ["loss.smooth_l1_beta is infinite"]),
        ("threshold", 1.5, ["1.5, in threshold", "0 to 1"]),
        ("train.ema", math.nan, ["nan, in train.ema"]),
        ("eval.nsd_tolerance", -0.5, ["-0.5, in eval.nsd_tolerance", "0 or more"]),
        ("eval.nsd_tolerance_mm", math.inf, ["inf, in eval.nsd_tolerance_mm"]),
        ("eval.lesion_overlap", 1.5, ["1.5, in eval.lesion_overlap", "0 to 1"]),
        ("split.fractions", (0.5, "x", 0.5), ["split.fractions", "numbers"]),
        ("sampler.steps", 2000, ["2000, in sampler.steps", "at most 1000"]),
        ("train.accumulate", 3, ["batch of 8", "3 parts", "train.accumulate"]),
        ("networks.biedsnet.bffm", 1, ["1, in networks.biedsnet.bffm", "like True"]),
        ("networks.biedsnet.channels", (8,), ["too few levels, (8,)"]),
        ("networks.biedsnet.channels", (8, 1), ["(8, 1)", "networks.biedsnet.channels"]),
        ("networks.biedsnet.channels", (8, 16, 32, 64), ["2 weights for 3 heads", "loss.supervision_weights"]),
        ("data.size", 62.5, ["not a whole number, 62.5, in data.size"]),
        ("train.steps", 2**31, ["value too large, 2.15e+09, in train.steps"]),
        ("data.phantom.n_cases", 2.5, ["not a whole number, 2.5, in data.phantom.n_cases"]),
        ("train.weight_decay", -1.0, ["negative or not finite, -1.0, in train.weight_decay"]),
        ("data.window", (-math.inf, math.inf), ["no window, (-inf, inf), in data.window"]),
        ("split.fractions", (0.5, 0.5), ["2 fractions, in split.fractions", "three"]),
        ("split.fractions", (math.nan, 0.5, 0.5), ["nan", "in split.fractions"]),
        ("split.train", "abc", ["wrong kind of value, 'abc', in split.train", "names of cases"]),
        ("data.verify", "no", ["wrong kind of value, 'no', in data.verify", "True or False"]),
        ("data.name", {"a": 1}, ["many values where one belongs, a: 1, in data.name"]),
        ("data.case", "(patient", ["data.case is '(patient'", "no regular expression"]),
        ("data.case", "[", ["data.case is '['", "'auto'"]),
        ("data.case", 7, ["wrong kind of value, 7, in data.case"]),
        ("networks.biedsnet.channels", (), ["(), in networks.biedsnet.channels"]),
    ],
)
def test_a_value_that_cannot_be(name, value, says):
    refused(lambda: check_config(changed(name, value)), *says)


@pytest.mark.parametrize("chosen", ["unet", "medsegdiff"])
def test_a_network_that_cannot_see_its_last_prediction_is_not_asked_to(chosen):
    c = phantom.get_config(chosen)
    c.diffusion.self_condition = True
    refused(lambda: check_config(c), f"no network for it, {chosen}, in diffusion.self_condition", "use biedsnet")


def test_folded_maps_with_batch_norm_are_refused():
    c = base()
    c.networks.biedsnet.update(fold=True, norm="batch")
    with pytest.raises(BadInput, match=r"networks\.biedsnet\.fold; use norm='group' or fold=False"):
        check_config(c)


@pytest.mark.parametrize(
    ("variant", "size", "fits"),
    [
        ("biedsnet", 250, "240 or 256"),  # five levels: multiples of 16
        ("biedsnet,cpu", 60, "56 or 64"),  # four
        ("biedsnet", 3, "16"),
        ("unet", 40, "32 or 48"),
        ("unetpp", 40, "32 or 48"),
        ("attention_unet", 40, "32 or 48"),
        ("unext", 40, "32 or 64"),
        ("medsegdiff", 250, "224 or 256"),
        ("trans_unet", 250, "240 or 256"),
        ("swin_unet", 224, "128 or 256, or networks.swin_unet.window=7 or 14"),  # 56, 28, 14 and 7 patches
        ("swin_unet", 100, "64 or 128"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_answered_with_those_it_can(variant, size, fits):
    c = covid.get_config(variant)
    c.data.size = size
    refused(lambda: check_config(c), f", {size}, in data.size; use {fits}")


def _fields(c, prefix=""):
    for name, value in c.items():
        yield from _fields(value, f"{prefix}{name}.") if hasattr(value, "items") else [(prefix + name, value)]


@pytest.mark.parametrize("name", [name for name, _ in _fields(default.get_config())])
def test_no_value_of_any_field_breaks_the_check_itself(name):
    """What a hand-edited config.json may hold: refused with one line or accepted, never another exception."""
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
def test_a_field_that_is_not_there_is_told_the_nearest(asked, near):
    refused(
        lambda: get_field(phantom.get_config(), asked), f"field, {asked},", f"the nearest is --config.{near}"
    )


# --- a workdir -------------------------------------------------------------------------------------------------------


def test_fields_that_change_no_update_may_differ(tmp_path):
    run_config.save(phantom.get_config(), tmp_path / "config.json")
    c = phantom.get_config()
    c.data.root, c.compile_cache, c.threshold, c.fusion = "there", "", 0.3, "majority"
    c.sampler.update(steps=2, ensemble=1, method="ddpm")
    c.eval.every, c.log.every, c.checkpoint.every = 7, 7, 7
    run_config.check_same_run(c, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 5),
        ("train.steps", 12345),
        ("data.size", 4096),
        ("networks.biedsnet.channels", (8, 17)),
        ("split.test", ("a", "b")),
        ("dtype", "bfloat16"),
    ],
)
def test_fields_that_change_an_update_may_not(tmp_path, name, value):
    run_config.save(base(), tmp_path / "config.json")
    says = f"{name} is {get_field(base(), name)!r} there and {value!r} here"
    refused(lambda: run_config.check_same_run(changed(name, value), tmp_path), says, str(tmp_path), "another --workdir")


@pytest.mark.parametrize(("stored", "asked"), [(None, "auto"), (None, ""), ("", "auto"), ("", "")])
def test_a_run_from_before_data_case_goes_on_with_the_cases_it_had(tmp_path, stored, asked):
    write_from_before_data_case(tmp_path / "config.json", stored)
    # Twice, as a run that is killed goes on: config.json has the field from the first time on.
    for _ in range(2):
        c = of_folder(asked)
        run_config.check_same_run(c, tmp_path)
        assert c.data.case == ""
        run_config.save(c, tmp_path / "config.json")


@pytest.mark.parametrize("stored", [None, ""])
def test_a_run_from_before_data_case_does_not_take_a_rule(tmp_path, stored):
    write_from_before_data_case(tmp_path / "config.json", stored)
    says = "data.case is '' there and '(p)' here"
    refused(lambda: run_config.check_same_run(of_folder("(p)"), tmp_path), says)


def test_another_rule_of_cases_is_another_run(tmp_path):
    cfg = folder.get_config()
    run_config.save(cfg, tmp_path / "config.json")
    cfg.data.case = ""
    says = "data.case is 'auto' there and '' here"
    refused(lambda: run_config.check_same_run(cfg, tmp_path), says)


def test_a_rule_of_cases_that_is_not_used_may_differ(tmp_path):
    run_config.save(base(), tmp_path / "config.json")
    run_config.check_same_run(changed("data.case", ""), tmp_path)


def test_a_new_workdir_is_anyones(tmp_path):
    run_config.check_same_run(phantom.get_config(), tmp_path)
    refused(lambda: run_config.check_trained(phantom.get_config(), tmp_path), "no trained run", str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", '{"seed": 0', "[1, 2]", "7", "null", "\x00\xff"])
def test_a_damaged_config_json_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    refused(lambda: run_config.load(tmp_path), "damaged config", str(tmp_path / "config.json"))


def test_a_config_json_is_plain_json_and_replaced_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    run_config.save(phantom.get_config(), path)
    assert json.loads(path.read_text())["split"]["fractions"] == [0.8, 0.1, 0.1]
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
