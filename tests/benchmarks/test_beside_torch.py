"""The PyTorch program computes what ours does; the comparison chooses and refuses well."""

import importlib.util
import re
import shutil
import sys

import absl_flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT
from refusals import refused

from benchmarks.beside_torch import run, timing
from biedsnet_jax.config import build_model
from biedsnet_jax.config.check import FIELDS
from configs import default

if importlib.util.find_spec("torch"):
    import torch

    from benchmarks.beside_torch import equal, method, network

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="no torch: pip install torch==2.13.0",
)
# They say how ours is computed: the result is the same.
SAME_RESULT = ("fold", "remat")
# Widths with a group of one channel and of two, and three levels for a side head.
SMALL = {"channels": (4, 8, 32), "blocks_per_level": 2}


def config(**fields):
    cfg = default.get_config()
    cfg.data.size = 8
    cfg.networks.biedsnet.update(**SMALL | fields)
    return cfg


def other_values(name: str, value) -> list:
    """Values that a field of the network may have beside `value`."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value // 2]
    if isinstance(value, tuple):
        return [tuple(2 * each for each in value)]
    names = re.findall(r"'(\w+)'", FIELDS[f"networks.biedsnet.{name}"].says)
    return [other for other in names if other != value]


CHANGES = [
    (name, other)
    for name, value in config().networks.biedsnet.items()
    for other in other_values(name, value)
]


def twin(cfg, variables):
    """PyTorch's network of a config, with our weights."""
    found = network.BIEDSNet(
        image_channels=1, classes=1, fields=cfg.networks.biedsnet
    ).eval()
    equal.load_variables(found, variables)
    return found


def logits(cfg):
    """Logits of all heads "b h w c" on random input: (ours, PyTorch's)."""
    rng = np.random.default_rng(2)
    variables = equal.random_variables(cfg)
    x_t, image = (rng.normal(size=(2, 8, 8, 1)).astype(np.float32) for _ in range(2))
    t = np.array([3, 990])
    # Without jit, since compiling takes longer than computing.
    inputs = map(jnp.asarray, (x_t, image, t))
    final, out = build_model.make_network(cfg).apply(
        jax.device_put(variables), *inputs, train=False
    )
    with torch.inference_mode():
        theirs = twin(cfg, variables)(
            *(torch.tensor(x.transpose(0, 3, 1, 2)) for x in (x_t, image)),
            torch.tensor(t),
        )
    ours = [final, *out["supervision"]]
    return (
        [np.asarray(x) for x in ours],
        [x.numpy().transpose(0, 2, 3, 1) for x in theirs],
    )


def test_every_field_of_the_network_is_read():
    """Also where PyTorch is not installed; the next test looks at what they do."""
    text = (ROOT / "benchmarks" / "beside_torch" / "network.py").read_text()
    read = set(re.findall(r"fields\.(\w+)", text))
    assert read | {"fold"} == set(default.get_config().networks.biedsnet)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), CHANGES, ids=[f"{name}={value}" for name, value in CHANGES]
)
def test_every_field_does_what_it_does_in_ours(name, value):
    ours, theirs = logits(config(**{name: value}))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * np.abs(a).max())
    usual, _ = logits(config())
    same = len(usual) == len(ours) and np.allclose(ours[0], usual[0], rtol=1e-3)
    # Else this test would not see what the field does.
    assert same == (name in SAME_RESULT)


@needs_torch
def test_what_is_computed_again_changes_no_gradient():
    cfg = config()
    variables = equal.random_variables(cfg)
    noise = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    gradients = []
    for remat in (False, True):
        found = twin(config(remat=remat), variables).train()
        sum(head.sum() for head in found(noise, noise, torch.tensor([3, 9]))).backward()
        gradients.append([p.grad for p in found.parameters()])
    torch.testing.assert_close(*gradients)


@needs_torch
@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
def test_a_compiled_program_gives_the_same():
    setting = method.Setting("contiguous", compiled=True, threads=1)
    x = torch.linspace(-1, 1, 7)
    compiled = setting.prepare(lambda x: 3 * torch.relu(x) + 1)
    torch.testing.assert_close(compiled(x), 3 * x.clamp(min=0) + 1)


@needs_torch
@pytest.mark.parametrize("layout", run.LAYOUTS)
def test_a_layout_is_that_of_maps_and_kernels(layout):
    setting = method.Setting(layout, compiled=False, threads=1)
    cpu = torch.device("cpu")
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    there = setting.to_torch(x, cpu)
    np.testing.assert_array_equal(there.numpy().transpose(0, 2, 3, 1), x)
    kernel = setting.place(network.conv(5, 2), cpu).weight
    for each in (there, kernel):
        last = each.is_contiguous(memory_format=torch.channels_last)
        assert last == (layout == "channels_last")


@needs_torch
def test_what_is_not_equal_is_not_timed(monkeypatch, capsys, tmp_path):
    found = {"logits": 2e-4, "loss": float("nan"), "gradient": 1e-2}
    monkeypatch.setattr(run, "differences", lambda *_: found)
    monkeypatch.setattr(run, "measure", None)
    output = tmp_path / "torch.json"
    words = ["--config=configs/covid.py:toy", "--config.compile_cache="]
    words += ["--compile=off", "--layouts=contiguous", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    monkeypatch.chdir(ROOT)
    precision = jax.config.jax_default_matmul_precision
    try:
        assert run.main() == 1
    finally:
        jax.config.update("jax_default_matmul_precision", precision)
        absl_flags.forget()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "logits (contiguous" in last and "loss (" in last
    assert "gradient (" not in last
    assert '"rows"' not in output.read_text()


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("network", "unet", "'biedsnet'"),
        ("method", "direct", "'auto'"),
        ("loss.name", "mse", "'joint'"),
        ("diffusion.self_condition", True, "False"),
        ("sampler.mirror", "lr", "''"),
        ("train.accumulate", 2, "1"),
    ],
)
def test_what_the_pytorch_program_does_not_have_is_refused(field, value, fix):
    cfg = default.get_config()
    cfg.update_from_flattened_dict({field: value})
    refused(lambda: run.check_comparable(cfg), field, repr(value), fix)


@pytest.mark.parametrize(
    "flag",
    ["--compile=maybe", "--layouts=rows", "--threads=0", "--threads=two", "--trials=0"],
)
def test_a_wrong_value_of_a_flag_is_refused(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--config=configs/covid.py", flag])
    with pytest.raises(SystemExit):
        run.main()
    assert flag.split("=")[0] in capsys.readouterr().err


class Clock:
    """Time that passes only in calls, each of which takes the next of its seconds."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def call(self, name, *seconds):
        left = list(seconds)

        def call():
            self.calls.append(name)
            self.now += left.pop(0)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_fastest_setting_is_timed_beside_ours(clock):
    """By hand: medians of 9 and 4 choose b, whose median 6 over our 3 is 2."""
    ours = clock.call("ours", 50, 50, 1, 2, 3, 4, 9)
    theirs = {
        "a": clock.call("a", 50, 50, 9, 1, 9),
        "b": clock.call("b", 50, 50, 4, 4, 70, 50, 50, 6, 6, 6, 2, 8),
    }
    row = timing.compare("step", ours, theirs, trials=3, repeats=5)
    assert row["tried_ms"] == {"a": 9000.0, "b": 4000.0}
    assert (row["name"], row["torch_setting"], row["ratio"]) == ("step", "b", 2.0)
    assert row["ours"] == {
        "median_ms": 3000.0,
        "quartiles_ms": [2000.0, 4000.0],
        "calls_ms": [1000.0, 2000.0, 3000.0, 4000.0, 9000.0],
    }
    assert row["torch"]["quartiles_ms"] == [6000.0, 6000.0]
    assert "3000 (2000 to 4000)" in timing.table([row]).splitlines()[1]


def test_the_order_turns_around_and_one_setting_needs_no_trial(clock):
    ours, theirs = (clock.call(name, *[1.0] * 5) for name in ("ours", "theirs"))
    row = timing.compare("step", ours, {"a": theirs}, trials=3, repeats=3)
    turn = ["theirs", "ours", "ours", "theirs"]
    assert clock.calls == [*turn, *turn, "theirs", "ours"]
    assert (row["tried_ms"], row["ratio"]) == ({}, 1.0)
