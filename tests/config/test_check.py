"""Configs: every file and variant is valid and survives its workdir, every impossible
value is named.
"""

import json
import math

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.config import rules, run_config
from biedsnet_jax.config.check import FIELDS, check_config, network_rule
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
    """The config.json of a run of an earlier version; `stored` where a later one went
    on with it.
    """
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


@pytest.mark.parametrize(
    "chosen", [None, *variants.VARIANTS, "unet,row2", "lineage,direct"]
)
@pytest.mark.parametrize("file", [phantom, covid, folder])
def test_every_variant_passes_and_comes_back_from_a_workdir_as_it_was(
    tmp_path, file, chosen
):
    c = file.get_config(chosen)
    check_config(c)
    run_config.save(c, tmp_path / "config.json")
    back = run_config.load(tmp_path)
    assert back.to_dict() == c.to_dict()
    assert type(back.networks.biedsnet.channels) is tuple and back.data.root is None
    run_config.check_trained(c, tmp_path)
    # an unset string stays one that may be set
    back.data.root = "elsewhere"


def test_cpu_makes_a_variant_smaller():
    for file in (covid, folder):
        full, small = file.get_config("unet"), file.get_config("unet,cpu")
        assert (
            small.network == full.network == "unet" and small.data.size < full.data.size
        )
        check_config(small)


def test_quarter_narrows_every_network_to_a_quarter_and_nothing_else():
    full, quarter = (
        dict(_fields(covid.get_config(chosen).networks)) for chosen in (None, "quarter")
    )
    changed = {name for name, value in full.items() if value != quarter[name]}
    assert {name.partition(".")[0] for name in changed} == set(
        covid.get_config().networks
    )
    for name in changed:
        assert np.array_equal(full[name], 4 * np.array(quarter[name])), name
    kept = {name.rpartition(".")[2] for name in set(full) - changed}
    widths = (
        "channels embed_dim hidden mlp resnet_width decoder groups highway_channels"
    )
    assert not kept & set(widths.split())
    c = covid.get_config("quarter")
    assert c.data.size == 64 and c.train.steps == covid.get_config("cpu").train.steps
    check_config(c)


def test_paper_takes_back_what_measurement_changed():
    """Of the network, the diffusion and the loss, which is where the paper leaves
    choices.
    """
    chosen, paper, plain = (
        covid.get_config(),
        covid.get_config("paper"),
        default.get_config(),
    )
    assert dict(_fields(chosen.diffusion)).items() - dict(
        _fields(plain.diffusion)
    ).items() == {("mask_scale", 0.1)}
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
    whole, without = (
        set(_fields(covid.get_config(variant))) for variant in (None, chosen)
    )
    assert without - whole == {("row", chosen), (name, value)}


def test_a_variant_that_is_not_there():
    with pytest.raises(ValueError, match=r"variant, row9, .* row1, row2"):
        phantom.get_config("unet,row9")


@pytest.mark.parametrize(
    ("network", "method", "says"),
    [
        ("unet", "diffusion", "method is 'diffusion', which network unet has not"),
        (
            "medsegdiff",
            "direct",
            "method is 'direct', but network medsegdiff predicts noise",
        ),
    ],
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
        (
            "network",
            "unett",
            ["network is 'unett'. Use one of 'biedsnet', 'unet', 'unetpp', "],
        ),
        ("network", 3, ["network is 3. Use one of"]),
        (
            "method",
            "both",
            ["method is 'both'. Use one of 'auto', 'diffusion', 'direct'."],
        ),
        ("method", ("auto",), ["method is ('auto',). Use one of"]),
        (
            "data.channels",
            2,
            ["data.channels is 2. A picture has 1 (grey) or 3 (colour)."],
        ),
        (
            "data.window",
            (250, -1250),
            [
                "data.window is (250, -1250). Use a finite (low, high), such as (-1250, 250)"
            ],
        ),
        ("data.window", (1,), ["data.window is (1,)."]),
        (
            "data.context",
            1,
            [
                "data.context is 1, but data.source is 'phantom'. Use 0, or data.source='nifti'."
            ],
        ),
        (
            "data.labels",
            ((1,),),
            ["data.labels is ((1,),), but data.source is 'phantom'. Use ()"],
        ),
        (
            "data.labels",
            ((1,), ()),
            [
                "data.labels is ((1,), ()). Use a tuple for each class, such as ((1,), (2, 3))"
            ],
        ),
        (
            "data.source",
            "zip",
            ["data.source is 'zip'. Use one of 'folder', 'nifti', 'tfds', 'phantom'."],
        ),
        (
            "sampler.method",
            "euler",
            ["sampler.method is 'euler'. Use one of 'ddpm', 'ddim', 'dpm_solver'."],
        ),
        (
            "networks.biedsnet.norm",
            "layer",
            ["networks.biedsnet.norm is 'layer'. Use one of 'group', 'batch'."],
        ),
        ("seed", -1, ["seed is -1. Use a whole number from 0."]),
        ("train.steps", 0, ["train.steps is 0. Use a whole number from 1."]),
        ("checkpoint.every", 0, ["checkpoint.every is 0. Use a whole number from 1."]),
        (
            "train.learning_rate",
            0.0,
            ["train.learning_rate is 0.0. Use a finite number above 0."],
        ),
        (
            "train.learning_rate",
            math.nan,
            ["train.learning_rate is nan. Use a finite number above 0."],
        ),
        (
            "train.learning_rate",
            math.inf,
            ["train.learning_rate is inf. Use a finite number above 0."],
        ),
        (
            "diffusion.mask_scale",
            math.inf,
            ["diffusion.mask_scale is inf. Use a finite number above 0."],
        ),
        (
            "loss.smooth_l1_beta",
            math.inf,
            ["loss.smooth_l1_beta is inf. Use a finite number above 0."],
        ),
        (
            "train.clip_norm",
            0.0,
            ["train.clip_norm is 0.0. Use a number above 0, or inf."],
        ),
        ("threshold", 1.5, ["threshold is 1.5. Use a number from 0 to 1."]),
        ("train.ema", math.nan, ["train.ema is nan. Use a number from 0 to 1."]),
        (
            "eval.nsd_tolerance",
            -0.5,
            ["eval.nsd_tolerance is -0.5. Use a finite number from 0."],
        ),
        (
            "eval.nsd_tolerance_mm",
            math.inf,
            ["eval.nsd_tolerance_mm is inf. Use a finite number from 0."],
        ),
        (
            "eval.lesion_overlap",
            1.5,
            ["eval.lesion_overlap is 1.5. Use a number from 0 to 1."],
        ),
        (
            "split.fractions",
            (0.5, "x", 0.5),
            ["split.fractions is (0.5, 'x', 0.5). Use three finite numbers"],
        ),
        (
            "sampler.steps",
            2000,
            ["sampler.steps is 2000, more than diffusion.timesteps. Use at most 1000."],
        ),
        (
            "train.accumulate",
            3,
            [
                "train.accumulate is 3, which does not divide train.batch_size",
                "divisor of 8",
            ],
        ),
        (
            "networks.biedsnet.bffm",
            1,
            ["networks.biedsnet.bffm is 1. Use True or False."],
        ),
        (
            "networks.biedsnet.channels",
            (8,),
            ["networks.biedsnet.channels is (8,). Give two whole numbers from 2"],
        ),
        (
            "networks.biedsnet.channels",
            (8, 1),
            ["networks.biedsnet.channels is (8, 1). Give two whole numbers"],
        ),
        (
            "networks.biedsnet.channels",
            (8, 16, 32, 64),
            ["loss.supervision_weights has 2 weights for 3 heads."],
        ),
        ("data.size", 62.5, ["data.size is 62.5. Use a whole number from 1."]),
        (
            "train.steps",
            2**31,
            ["train.steps is 2.15e+09, beyond 32 bits. Use a whole number from 1."],
        ),
        (
            "data.phantom.n_cases",
            2.5,
            ["data.phantom.n_cases is 2.5. Use a whole number from 1."],
        ),
        (
            "train.weight_decay",
            -1.0,
            ["train.weight_decay is -1.0. Use a finite number from 0."],
        ),
        (
            "data.window",
            (-math.inf, math.inf),
            ["data.window is (-inf, inf). Use a finite (low, high)"],
        ),
        (
            "split.fractions",
            (0.5, 0.5),
            ["split.fractions is (0.5, 0.5). Use three", "such as (0.8, 0.1, 0.1)."],
        ),
        (
            "split.fractions",
            (math.nan, 0.5, 0.5),
            ["split.fractions is (nan, 0.5, 0.5)."],
        ),
        (
            "loss.supervision_weights",
            (1.0, math.inf),
            ["supervision_weights is (1.0, inf). Use finite numbers"],
        ),
        (
            "split.train",
            "abc",
            ["split.train is 'abc'. Use names of cases, such as ('a', 'b')"],
        ),
        ("data.verify", "no", ["data.verify is 'no'. Use True or False."]),
        ("data.name", {"a": 1}, ["data.name is a: 1. Use a text."]),
        ("data.root", 5, ["data.root is 5. Use a folder."]),
        ("data.case", "(patient", ["data.case is '(patient'", "no regular expression"]),
        ("data.case", "[", ["data.case is '['", "'auto'"]),
        ("data.case", 7, ["data.case is 7. Use a text."]),
        (
            "networks.biedsnet.channels",
            (),
            ["networks.biedsnet.channels is (). Use whole numbers"],
        ),
    ],
)
def test_a_value_that_cannot_be(name, value, says):
    refused(lambda: check_config(changed(name, value)), *says)


@pytest.mark.parametrize("chosen", ["unet", "medsegdiff"])
def test_a_network_that_cannot_see_its_last_prediction_is_not_asked_to(chosen):
    c = phantom.get_config(chosen)
    c.diffusion.self_condition = True
    refused(
        lambda: check_config(c),
        f"diffusion.self_condition is True, which network {chosen} has not.",
        "Use False.",
    )


def test_folded_maps_with_batch_norm_are_refused():
    c = base()
    c.networks.biedsnet.update(fold=True, norm="batch")
    with pytest.raises(
        BadInput, match=r"networks\.biedsnet\.fold .*\. Use norm='group' or fold=False"
    ):
        check_config(c)


@pytest.mark.parametrize(
    ("variant", "size", "fits"),
    [
        # five levels: multiples of 16
        ("biedsnet", 250, "240 or 256"),
        # four
        ("biedsnet,cpu", 60, "56 or 64"),
        ("biedsnet", 3, "16"),
        ("unet", 40, "32 or 48"),
        ("unetpp", 40, "32 or 48"),
        ("attention_unet", 40, "32 or 48"),
        ("unext", 40, "32 or 64"),
        ("medsegdiff", 250, "224 or 256"),
        ("trans_unet", 250, "240 or 256"),
        # 56, 28, 14 and 7 patches
        ("swin_unet", 224, "128 or 256, or networks.swin_unet.window=7 or 14"),
        ("swin_unet", 100, "64 or 128"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_answered_with_those_it_can(
    variant, size, fits
):
    c = covid.get_config(variant)
    c.data.size = size
    refused(lambda: check_config(c), f"data.size {size}", fits)


def _fields(c, prefix=""):
    for name, value in c.items():
        yield from (
            _fields(value, f"{prefix}{name}.")
            if hasattr(value, "items")
            else [(prefix + name, value)]
        )


@pytest.mark.parametrize("name", [name for name, _ in _fields(default.get_config())])
def test_no_value_of_any_field_breaks_the_check_itself(name):
    """What a hand-edited config.json may hold: refused with one line or accepted, never
    another exception.
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
def test_a_field_that_is_not_there_is_told_the_nearest(asked, near):
    refused(
        lambda: get_field(phantom.get_config(), asked),
        f"{asked} is not a field",
        f"The nearest is --config.{near}",
    )


def test_every_field_of_the_default_has_a_rule_that_allows_its_default():
    for name, value in _fields(default.get_config()):
        _, network, field = (
            name.split(".") if name.startswith("networks.") else ("", "", "")
        )
        rule = FIELDS.get(name) or network_rule(NETWORKS[network], field)
        rule.check(name, value)
    assert not FIELDS.keys() - dict(_fields(default.get_config())).keys()


@pytest.mark.parametrize(
    ("usual", "taken", "refused_"),
    [
        ((8, 16), [(4,), [4, 8]], [(), 4, (0.5,), (True,), ("a",)]),
        (0.5, [0.5, 1], ["a", (1,), None]),
        (3, [0, 7], [0.5, True, "a"]),
        (True, [False], [1, "True"]),
        ("group", ["x"], [1, ("x",)]),
    ],
)
def test_a_networks_field_is_like_its_default(usual, taken, refused_):
    assert all(rules.like(usual).allows(value) for value in taken)
    assert not any(rules.like(usual).allows(value) for value in refused_)
    assert rules.like((8,), empty=True).allows(())


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
    refused(
        lambda: run_config.check_same_run(changed(name, value), tmp_path),
        says,
        str(tmp_path),
        "another --workdir",
    )


@pytest.mark.parametrize(
    ("stored", "asked"), [(None, "auto"), (None, ""), ("", "auto"), ("", "")]
)
def test_a_run_from_before_data_case_goes_on_with_the_cases_it_had(
    tmp_path, stored, asked
):
    write_from_before_data_case(tmp_path / "config.json", stored)
    # Twice, as a run that is killed goes on: config.json has the field from the first
    # time on.
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
    refused(
        lambda: run_config.check_trained(phantom.get_config(), tmp_path),
        "no trained run",
        str(tmp_path),
    )


@pytest.mark.parametrize(
    "text", ["", "{", '{"seed": 0', "[1, 2]", "7", "null", "\x00\xff"]
)
def test_a_damaged_config_json_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    refused(
        lambda: run_config.load(tmp_path),
        "damaged config",
        str(tmp_path / "config.json"),
    )


def test_a_config_json_is_plain_json_and_replaced_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    run_config.save(phantom.get_config(), path)
    assert json.loads(path.read_text())["split"]["fractions"] == [0.8, 0.1, 0.1]
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
