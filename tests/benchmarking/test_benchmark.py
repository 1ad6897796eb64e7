"""Mode benchmark: arithmetic on injected times, costs of loops, JSON, baselines.

No figure here depends on a clock.
"""

import functools
import json
import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from refusals import refused

from biedsnet_jax.benchmarking import baseline, benchmark, roofline, timing
from biedsnet_jax.diffusion import schedule
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.networks import NETWORKS
from biedsnet_jax.prediction.trained import make_predict
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import losses, macs
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from configs import phantom

# --- times ----------------------------------------------------------------------------


def test_calls_of_a_repeat_fill_the_least_time_and_are_shared_out():
    # The second warm-up call takes 0.0625 s, so 4 calls fill 0.25 s; the repeats then
    # take 0.5, 1 and 2 s.
    ticks, called = iter([0.0, 0.0625, 10.0, 10.5, 20.0, 21.0, 30.0, 32.0]), []
    timed = timing.measure(
        lambda: called.append(1), repeats=3, least=0.25, clock=lambda: next(ticks)
    )
    assert timed == timing.Timing((0.125, 0.25, 0.5), calls=4)
    assert len(called) == 2 + 3 * 4


@pytest.mark.parametrize(("warm", "calls"), [(5.0, 1), (0.0, 100), (0.001, 100)])
def test_a_repeat_is_one_call_to_a_hundred(warm, calls):
    ticks = iter([0.0, warm, 1.0, 2.0])
    timed = timing.measure(
        lambda: None, repeats=1, least=0.25, clock=lambda: next(ticks)
    )
    assert timed.calls == calls


def test_median_and_spread_by_hand():
    timed = timing.Timing((0.001, 0.002, 0.004, 0.005, 0.1), calls=3)
    # The quartiles are 2 and 5 ms.
    assert (timed.median, timed.spread) == (0.004, pytest.approx(0.003))
    kept = timing.summary(timed, batch=8)
    assert kept["milliseconds"]["median"] == pytest.approx(4)
    assert kept["milliseconds"]["spread"] == pytest.approx(3)
    assert kept["images_per_second"] == pytest.approx(
        {"median": 2000, "spread": 4000 - 1600}
    )
    assert kept["calls_per_repeat"] == 3


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (13.0, "step: 13 ms, was 10 ms: no difference beyond the spread, 3 ms"),
        (13.5, "step: 13.5 ms, was 10 ms: 35.0% SLOWER"),
        (6.5, "step: 6.5 ms, was 10 ms: 35.0% faster"),
    ],
)
def test_slower_is_what_exceeds_both_spreads(now, expected):
    new, old = {"median": now, "spread": 2.0}, {"median": 10.0, "spread": 1.0}
    assert timing.change("step", new, old) == expected


# --- cost and roofline ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flop", "bytes_", "expected"),
    [
        (600.0, 10.0, (3.0, "arithmetic")),
        (600.0, 45.0, (4.5, "memory")),
        (None, 1.0, None),
        (1.0, None, None),
    ],
)
def test_roofline_by_hand(flop, bytes_, expected):
    cost = roofline.Cost(flop, bytes_)
    assert roofline.roofline(cost, peak=200.0, copy=10.0) == expected


def test_fraction_by_hand():
    ceilings = roofline.Ceilings(
        {"float32": {"8": 100.0, "16": 200.0}, "bfloat16": {"8": 50.0}}, copy=10.0
    )
    fields = {"milliseconds": {"median": 6000.0}}
    expected = {"roofline_milliseconds": 3000.0, "bound": "arithmetic", "fraction": 0.5}
    assert benchmark.against(roofline.Cost(600.0, 10.0), fields, ceilings) == expected
    unknown = benchmark.against(roofline.Cost(None, 10.0), fields, ceilings)
    assert unknown == dict.fromkeys(expected)


def refuses():
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: {"flops": 8.0, "bytes accessed": 4.0}, (8.0, 4.0)),
        (lambda: {"flops": -1.0, "bytes accessed": float("nan")}, (None, None)),
        (lambda: {"flops": 8.0}, (8.0, None)),
        (lambda: None, (None, None)),
        (refuses, (None, None)),
    ],
)
def test_whatever_the_compiler_answers(answer, expected):
    compiled = types.SimpleNamespace(cost_analysis=answer)
    assert roofline.reported_cost(compiled) == roofline.Cost(*expected)


def looped(outer, inner):
    """A function of outer x (inner + 1) products, as two nested scans."""

    def body(a, _):
        return jax.lax.scan(lambda b, _: (b @ b, None), a, length=inner)[0] @ a, None

    return lambda a: jax.lax.scan(body, a, length=outer)[0]


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 6), (5, 1), (3, 7)])
def test_a_loop_counts_as_often_as_it_turns(outer, inner):
    a, fn = jnp.ones((64, 64)), looped(outer, inner)
    cost = roofline.program_cost(jax.jit(fn).lower(a).compile(), jax.jit(fn), a)
    assert cost.flop == pytest.approx(outer * (inner + 1) * 2 * 64**3, rel=1e-3)
    # b @ b reads one matrix, b @ a two; the loops also copy what they carry.
    moved = outer * (inner * 2 + 3) * 4 * 64**2
    assert moved <= cost.bytes <= 1.35 * moved


TOY = NETWORKS["biedsnet"](channels=(16, 32), blocks_per_level=1, dconv="lineage")


def predict_cost(steps, ensemble):
    """(cost, twice the multiply-adds) of predicting one image."""
    model = Diffusion(
        TOY, schedule.linear(100), losses.dice, sampling=Sampling(steps=steps)
    )
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), (32, 32, 1)))
    mesh = devices.make_mesh(jax.devices()[:1])
    cfg = phantom.get_config()
    cfg.sampler.ensemble = ensemble
    fn = make_predict(cfg, model, mesh)
    inputs = (
        variables,
        jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    cost = roofline.program_cost(fn.lower(*inputs).compile(), fn, *inputs)
    return cost, 2 * macs.count_macs(fn, *inputs)


@pytest.mark.slow
def test_a_prediction_costs_steps_times_samples_denoisings():
    (few, few_macs), (many, many_macs) = predict_cost(2, 2), predict_cost(5, 4)
    denoise, denoise_macs = (many.flop - few.flop) / 16, (many_macs - few_macs) / 16
    # The compiler also counts elementwise work, and not the taps that fall on padding.
    assert denoise == pytest.approx(denoise_macs, rel=0.15)
    assert many.flop == pytest.approx(many_macs, rel=0.15)


# --- the whole mode -------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(path of the JSON, what `run` returned) of a real run on eight devices."""
    cfg = phantom.get_config("toy,unet")
    cfg.train.batch_size = cfg.eval.batch_size = 8
    path = tmp_path_factory.mktemp("benchmark") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "CEILINGS", {"other": ((8, 16), 4096)})
        patch.setattr(timing, "measure", functools.partial(timing.measure, least=1e-9))
        result = benchmark.run(
            cfg, output=str(path), compare=None, repeats=2, command="a command"
        )
    jax.config.update("jax_enable_compilation_cache", True)
    return path, result


def test_the_kind_of_a_cpu_is_its_processor_and_the_cores_that_may_be_used(monkeypatch):
    mesh = devices.make_mesh()
    cpuinfo = "processor\t: 0\nmodel name\t: Some: CPU\nmodel name\t: Other\n"
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert devices.device_kind(mesh) == "Some: CPU, 2 cores"
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert devices.device_kind(mesh) == "Some: CPU, 1 core"


@pytest.mark.slow
def test_the_json_is_strict_and_whole(measured):
    path, result = measured
    kept = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert kept == result
    assert kept["command"] == "a command" and kept["repeats"] == 2
    assert kept["device"] == {
        "platform": "cpu",
        "kind": devices.device_kind(devices.make_mesh()),
        "count": 8,
    }
    assert kept["versions"]["jax"] == jax.__version__
    assert kept["config"]["data.size"] == 32
    assert kept["config"]["networks.biedsnet.channels"] == [8, 16]
    assert list(kept["ceilings"]["matmul_flop_per_second"]) == ["float32"]
    assert list(kept["programs"]) == ["predict", "train step"]
    for program in kept["programs"].values():
        assert program["batch"] == 8 and len(program["milliseconds"]["repeats"]) == 2
        assert program["peak_bytes_of"] == "process" and program["program_bytes"] > 0
        # Both are of one device's image.
        assert program["flop"] == pytest.approx(program["flop_products"], rel=0.3)
        least = program["roofline_milliseconds"] / program["milliseconds"]["median"]
        assert program["fraction"] == pytest.approx(least)


@pytest.mark.slow
def test_the_table_is_aligned_and_says_what_is_not_known(measured):
    _, result = measured
    unknown = dict.fromkeys(("flop", "fraction", "bound"))
    programs = {"predict": result["programs"]["predict"] | unknown}
    lines = baseline.table(result | {"programs": programs}).splitlines()
    assert lines[0].startswith("8 x ") and lines[0].endswith("2 repeats")
    assert lines[1].startswith("matrix product, float32: ")
    rows = lines[lines.index("") + 1 :]
    assert len({len(row) for row in rows}) == 1
    assert [row.split("  ")[0] for row in rows if row.endswith("not known")] == [
        "GFLOP a device", "bound by", "fraction of the roofline",
    ]  # fmt: skip


@pytest.mark.slow
def test_changes_are_a_line_a_program(measured):
    result, old = (json.loads(json.dumps(measured[1])) for _ in range(2))
    for name, factor in (("predict", 0.5), ("train step", 2.0)):
        result["programs"][name]["milliseconds"]["spread"] = 0.0
        old["programs"][name]["milliseconds"] |= {
            "median": factor * result["programs"][name]["milliseconds"]["median"],
            "spread": 0.0,
        }
    rates = {
        "matmul_flop_per_second": {"float32": {"8": 2e9, "16": 3e9}},
        "copy_bytes_per_second": 5e9,
    }
    old["ceilings"] = rates
    result["ceilings"] = rates | {"copy_bytes_per_second": 2.5e9}
    slower, faster, device = baseline.changes(result, old)
    assert "product 3 GFLOP/s, was 3;" in device
    assert "copy 2.5 GB/s, was 5.0" in device
    assert slower.startswith("predict: ") and slower.endswith("100.0% SLOWER")
    assert faster.startswith("train step: ") and faster.endswith("50.0% faster")


# --- baselines ------------------------------------------------------------------------

HERE = {
    "device": {"platform": "cpu", "kind": "one", "count": 1},
    "config": {"data.size": 64, "data.root": None, "x": [1]},
}


def written(tmp_path, **fields):
    """The path of a baseline with these fields."""
    ceilings = {
        "matmul_flop_per_second": {"float32": {"8": 1e9}},
        "copy_bytes_per_second": 1e9,
    }
    usual = {"ceilings": ceilings, "programs": program(median=2.0, spread=0.1)}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(HERE | usual | fields))
    return str(path)


def test_a_baseline_may_lie_elsewhere(tmp_path):
    path = written(tmp_path, config=HERE["config"] | {"data.root": "there"})
    old = baseline.read_baseline(path, HERE)
    assert old["programs"]["predict"]["milliseconds"]["median"] == 2.0


def program(**milliseconds):
    return {"predict": {"milliseconds": milliseconds}}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"device": HERE["device"] | {"kind": "two"}}, ["kind", "two", "one"]),
        ({"device": HERE["device"] | {"count": 8}}, ["count", "8", "1"]),
        ({"config": HERE["config"] | {"data.size": 32}}, ["data.size", "32", "64"]),
        ({"config": {"x": [1]}}, ["data.size", "None", "64"]),
        ({"device": "cpu"}, ["--compare"]),
        ({"ceilings": {}}, ["--compare"]),
        ({"programs": {}}, ["--compare"]),
        ({"programs": program(median=1.0)}, ["--compare"]),
        ({"programs": program(median=0.0, spread=0.0)}, ["--compare"]),
        ({"programs": program(median=float("nan"), spread=0.0)}, ["--compare"]),
        ({"programs": program(median="1", spread=0.0)}, ["--compare"]),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(tmp_path, fields, says):
    path = written(tmp_path, **fields)
    refused(lambda: baseline.read_baseline(path, HERE), path, *says)


def test_sampling_and_batch_are_part_of_what_a_baseline_measured():
    kept = benchmark.flat(phantom.get_config())
    free = {name for name in kept if name.startswith(baseline.FREE)}
    assert {"data.root", "log.every", "checkpoint.every"} <= free
    assert not free & {
        "sampler.steps",
        "sampler.ensemble",
        "eval.batch_size",
        "train.batch_size",
        "fusion",
        "dtype",
    }
    assert json.dumps(kept, allow_nan=False)
