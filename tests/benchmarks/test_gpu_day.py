"""The day on a GPU: its order, its minutes, what it keeps, and what a later day does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import case_folders
import jax
import numpy as np
import pytest
from places import ROOT
from refusals import refused

from benchmarks import gpu_day
from benchmarks.gpu import agreement, child, plan, record, rows, speed
from benchmarks.gpu.child import Ended
from biedsnet_jax.benchmarking import benchmark, roofline

GPU = {"platform": "gpu", "kind": "NVIDIA H200", "count": 1}
VERSIONS = {"jax": "0.10.2", "python": "3.11.7"}
SPEED = {
    "milliseconds": {"median": 12.5, "spread": 0.1},
    "images_per_second": {"median": 640.0},
    "compile_seconds": 42.0,
    "program_bytes": 2.5e9,
    "fraction": 0.5,
}


class Machine:
    """A made-up GPU: each command takes `takes` seconds, or what its kind takes.

    `fails` gives the text with which the step of a name fails. Training takes a step a
    second, and saves the last one.
    """

    def __init__(self, out, *, takes=10.0, fails=None, device=GPU, steps=1000):
        self.out, self.takes, self.fails = out, takes, fails or {}
        self.device, self.steps = device, steps
        self.now = 0.0
        self.names = []

    def run(self, command, *, seconds, grace, log, environment):
        name = log.stem
        self.names.append(name)
        if name == "training":
            return self.train(seconds)
        took = min(self.takes, seconds)
        self.now += took
        if self.takes > seconds:
            return Ended(-15, took, True, "")
        if name in self.fails:
            return Ended(2, took, False, self.fails[name])
        output = next((w[9:] for w in command if w.startswith("--output=")), None)
        if output is None:
            plan_of = next(w[11:] for w in command if w.startswith("--expected="))
            Path(plan_of).write_bytes(b"")
        else:
            Path(output).write_text(json.dumps(self.result(name)))
        return Ended(0, took, False, "")

    def result(self, name):
        if name == "device":
            return {"device": self.device, "versions": VERSIONS, "memory_bytes": 1}
        if name.startswith("agreement"):
            off = {"logits": 1e-3, "loss": None, "gradient": 0.01, "probability": 0.0}
            return {
                "differences": off,
                "limits": dict.fromkeys(off, 0.02),
                "agrees": False,
                "repeats": True,
                "digest": "abc",
            }
        if name.startswith("torch"):
            row = {"name": "training step", "ours_s": [0.1], "torch_s": [0.2]}
            return {"rows": [row | {"ratio": 2.0}]}
        return {"programs": {"train step": SPEED, "predict": {"out_of_memory": "no"}}}

    def train(self, seconds):
        folder = self.out / "run" / "checkpoints"
        before = max((int(p.name) for p in folder.glob("*")), default=0)
        step = min(self.steps, before + int(seconds))
        (folder / str(step)).mkdir(parents=True, exist_ok=True)
        self.now += step - before
        logged = [{"step": 1, "steps_per_second": 0.5}, {"step": 2, "val_dice": 0.1}]
        lines = [json.dumps(line) + "\n" for line in logged]
        (self.out / "run" / "metrics.jsonl").write_text("".join(lines))
        if step == self.steps:
            (self.out / "run" / "results.json").write_text("{}")
        return Ended(0, step - before, step < self.steps, "")


@pytest.fixture
def torch(monkeypatch):
    """A function that says whether PyTorch is there."""

    def there(is_there):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: (
                is_there or None if name == "torch" else find(name, *rest)
            ),
        )

    there(True)
    return there


def a_day(machine, minutes, *, root="images", fields=None, precisions=("TF32",)):
    """Goes through a day; gives the steps that it took, and its record."""
    asked = plan.Asked(
        out=machine.out,
        words=["--config=c.py"],
        precisions=precisions,
        batches=(8, 64),
        repeats=1,
        root=root,
    )
    machine.names.clear()
    day = gpu_day.Day(
        asked,
        fields or {"seed": 0},
        machine.now + 60 * minutes,
        execute=machine.run,
        clock=lambda: machine.now,
    )
    day.run()
    return machine.names.copy(), record.read(machine.out)


DETERMINISTIC = [
    "agreement_TF32_deterministic",
    "agreement_TF32_deterministic_again",
    "speed_TF32_8_images_deterministic",
]
MEASURED = [
    "expected",
    "agreement_TF32",
    "speed_TF32_8_images",
    "torch_TF32_8_images",
    "speed_TF32_64_images",
    *DETERMINISTIC,
]


def test_the_most_valuable_comes_first_and_training_last(tmp_path, torch):
    names, kept = a_day(Machine(tmp_path), minutes=9)
    assert names == ["device", *MEASURED, "training"]
    assert [one["status"] for one in kept["steps"].values()] == ["done"] * 8
    assert kept["days"][0]["device"] == GPU
    entry = kept["steps"]["speed, TF32, 8 images"]
    assert entry["seconds"] == 10.0
    assert "python benchmarks/gpu/speed.py --config=c.py" in entry["command"]
    assert str(tmp_path) not in entry["command"] and "--batch=8" in entry["command"]
    again = kept["steps"]["agreement, TF32, deterministic again"]
    assert (
        again["command"].startswith("'XLA_FLAGS=")
        and plan.DETERMINISTIC in again["command"]
    )
    # 540 s, of which nine steps take 10 each, and the last 40 are for the checkpoint.
    assert kept["training"][0]["to_step"] == 540 - 90 - gpu_day.GRACE


def test_where_the_minutes_run_out_the_next_day_goes_on(tmp_path, torch):
    machine = Machine(tmp_path, takes=30.0)
    # 270 s: the first guesses are 180, 90, 90 and 120 s, then a step of a kind that was
    # seen needs 37.5.
    names, kept = a_day(machine, minutes=4.5)
    assert names == [
        "device",
        "expected",
        "agreement_TF32",
        "speed_TF32_8_images",
        "speed_TF32_64_images",
        *DETERMINISTIC[:2],
    ]
    assert kept["training"] == []
    names, kept = a_day(machine, minutes=9)
    missing = ["torch_TF32_8_images", "speed_TF32_8_images_deterministic"]
    assert names == ["device", *missing, "training"]
    saved = kept["training"][0]["to_step"]
    assert saved == 540 - 3 * 30 - gpu_day.GRACE
    names, kept = a_day(machine, minutes=20)
    assert names == ["device", "training"]
    assert kept["training"][1]["from_step"] == saved
    assert (len(kept["days"]), kept["training"][1]["to_step"]) == (3, 1000)
    # The training is finished.
    names, _ = a_day(machine, minutes=9)
    assert names == ["device"]


def test_what_does_not_fit_the_memory_is_a_result(tmp_path, torch):
    text = "...\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: 999 GB\n"
    machine = Machine(tmp_path, fails={"speed_TF32_64_images": text})
    _, kept = a_day(machine, minutes=9)
    entry = kept["steps"]["speed, TF32, 64 images"]
    assert entry["status"] == "out of memory" and "999 GB" in entry["error"]
    assert "speed_TF32_64_images" not in a_day(machine, minutes=9)[0]
    assert "| TF32, 64 images | out of memory |" in rows.text(kept)


def test_what_fails_is_tried_again_on_another_day(tmp_path, torch):
    machine = Machine(tmp_path, fails={"agreement_TF32": "a fault"})
    _, kept = a_day(machine, minutes=9)
    assert kept["steps"]["agreement, TF32"]["status"] == "failed"
    assert kept["steps"]["speed, TF32, 64 images"]["status"] == "done"
    machine.fails = {}
    names, kept = a_day(machine, minutes=9)
    assert names[:2] == ["device", "agreement_TF32"]
    assert kept["steps"]["agreement, TF32"]["status"] == "done"


def test_a_step_that_was_too_slow_waits_for_a_longer_day(tmp_path, torch):
    machine = Machine(tmp_path)
    machine.out.joinpath("expected.npz").write_bytes(b"")
    machine.takes = 170.0
    # 200 s are left for it and its end: it has 160 s, which is too few.
    names, kept = a_day(machine, minutes=(170 + 200) / 60)
    assert names == ["device", "agreement_TF32"]
    entry = kept["steps"]["agreement, TF32"]
    assert (entry["status"], entry["seconds"]) == ("out of time", 160.0)
    # It needs 1.25 times as long, others their first guess of 90 s.
    names, _ = a_day(machine, minutes=(170 + 239) / 60, precisions=("TF32",))
    assert names[:2] == ["device", "speed_TF32_8_images"]
    names, kept = a_day(machine, minutes=(170 + 241) / 60)
    assert names[:2] == ["device", "agreement_TF32"]
    assert kept["steps"]["agreement, TF32"]["status"] == "done"


def test_without_pytorch_the_rest_is_measured(tmp_path, torch):
    torch(False)
    machine = Machine(tmp_path)
    names, kept = a_day(machine, minutes=9)
    assert "torch_TF32_8_images" not in names
    assert kept["steps"]["torch, TF32, 8 images"]["status"] == "missing"
    torch(True)
    assert "torch_TF32_8_images" in a_day(machine, minutes=9)[0]
    torch(False)
    # What was measured stays.
    assert a_day(machine, minutes=9)[1]["steps"]["torch, TF32, 8 images"]["result"]


def test_without_data_nothing_is_trained(tmp_path, torch):
    machine = Machine(tmp_path, takes=100.0)
    # With time for a checkpoint the second of these, 180 s by guess, would not fit.
    names, kept = a_day(machine, minutes=310 / 60, root=None)
    assert names == ["device", "expected", "agreement_TF32"]
    assert kept["training"] == []


def test_without_what_a_cpu_computes_nothing_is_compared(tmp_path, torch):
    machine = Machine(tmp_path, fails={"expected": "a fault"})
    names, kept = a_day(machine, minutes=9)
    assert "agreement_TF32" not in names and "speed_TF32_8_images" in names
    assert kept["steps"]["expected"]["status"] == "failed"


def test_jax_without_a_gpu_is_refused(tmp_path, torch, monkeypatch):
    machine = Machine(tmp_path, device=GPU | {"platform": "cpu"})
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    refused(lambda: a_day(machine, minutes=9), "no GPU", "jax[cuda12]", "JAX_PLATFORMS")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "speed_TF32_8_images" in a_day(machine, minutes=9)[0]


def test_a_jax_that_does_not_start_is_refused(tmp_path, torch):
    machine = Machine(tmp_path, fails={"device": "cuInit failed"})
    refused(lambda: a_day(machine, minutes=9), "cuInit failed", "jax[cuda12]")


def test_another_device_or_config_needs_another_folder(tmp_path, torch):
    machine = Machine(tmp_path)
    a_day(machine, minutes=9)
    refused(lambda: a_day(machine, minutes=9, fields={"seed": 1}), "seed is 0", "--out")
    machine.device = GPU | {"kind": "NVIDIA A100"}
    refused(lambda: a_day(machine, minutes=9), "kind is NVIDIA H200", "A100", "--out")


@pytest.mark.parametrize("text", ["{", "[]", '{"steps": []}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / record.NAME).write_text(text)
    refused(lambda: record.read(tmp_path), record.NAME, "--out")


def test_the_rows(tmp_path, torch):
    _, kept = a_day(Machine(tmp_path), minutes=9)
    text = rows.text(kept)
    assert "NVIDIA H200, jax 0.10.2" in text
    agreed = "1.0e-03 (2e-02) | not finite (2e-02) | 1.0e-02 (2e-02) | 0.0e+00 (2e-02)"
    assert f"| TF32 | {agreed} | NO | yes | abc |" in text
    assert "| TF32, 8 images | train step | 12.5 | 640 | 42.0 | 2.50 | 50% |" in text
    assert "| TF32, 8 images | predict | out of memory |" in text
    assert "| TF32, 8 images | training step | 100 | 200 | 2.00 |" in text
    assert "| 1 | 0 to 410 | 410 | 0.5 | done |" in text
    assert rows.text(record.read(tmp_path / "none")).strip() == ""


def ended(script, *, seconds, grace, log):
    return child.run(
        ["sh", "-c", script],
        seconds=seconds,
        grace=grace,
        log=log,
        environment={"OF_THE_STEP": "here"},
    )


def test_a_process_is_asked_to_end_when_its_time_is_over(tmp_path):
    script = (
        "trap 'echo saved; exit 0' TERM; echo $OF_THE_STEP; while :; do sleep 0.1; done"
    )
    done = ended(script, seconds=3, grace=60, log=tmp_path / "logs" / "a.log")
    assert (done.code, done.stopped, done.text) == (0, True, "here\nsaved\n")


def test_a_process_that_does_not_end_is_killed(tmp_path):
    script = "trap '' TERM; while :; do sleep 0.1; done"
    done = ended(script, seconds=3, grace=0.1, log=tmp_path / "a.log")
    assert (done.code, done.stopped) == (-9, True)


def test_a_program_that_does_not_fit_leaves_the_other_one(monkeypatch):
    """Only the training step is too large, by a made-up error."""

    def measure(program, repeats):
        if program.name == "train step":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 GB")
        times = {"milliseconds": {"median": 4.0}}
        return program.name, times, roofline.Cost(2e9, 1e9)

    def programs(cfg, mesh):
        return [SimpleNamespace(name="predict"), SimpleNamespace(name="train step")]

    def ceilings(dtypes, **_):
        assert dtypes == {"float32", "bfloat16"}
        return roofline.Ceilings({"float32": {"8": 1e12}}, copy=1e12)

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "programs", programs)
    monkeypatch.setattr(roofline, "measure_ceilings", ceilings)
    cfg = SimpleNamespace(
        dtype="bfloat16", train=SimpleNamespace(batch_size=8), eval=None
    )
    mesh = SimpleNamespace(devices=np.array(jax.devices()[:1]))
    found = speed.measure(cfg, mesh, repeats=1)["programs"]
    assert "5 GB" in found["train step"]["out_of_memory"]
    # 2 GFLOP at 1 TFLOP/s are 2 ms of the 4.
    assert found["predict"]["fraction"] == 0.5

    monkeypatch.setattr(benchmark, "programs", lambda cfg, mesh: [None])
    with pytest.raises(AttributeError):
        speed.measure(cfg, mesh, repeats=1)


def test_differences_by_hand():
    expected = {
        "logits": np.array([[-4.0, 2.0]]),
        "loss": np.array(2.0),
        "gradient": np.array([3.0, 4.0]),
        "probability": np.array([0.5, 0.5]),
    }
    found = {
        "logits": np.array([[-4.0, 2.4]]),
        "loss": np.array(1.9),
        "gradient": np.array([3.0, 4.5]),
        "probability": np.array([0.6, 0.5]),
    }
    off = agreement.differences(found, expected)
    assert off == pytest.approx(
        {"logits": 0.1, "loss": 0.05, "gradient": 0.1, "probability": 0.05}
    )


def test_expected_values_are_of_one_config(tmp_path):
    path = tmp_path / "expected.npz"
    values = {"logits": np.arange(3.0)}
    agreement.keep(path, {"seed": 0, "sizes": (1, 2)}, values)
    assert list(agreement.read(path, {"sizes": (1, 2), "seed": 0})["logits"]) == [
        0,
        1,
        2,
    ]
    refused(lambda: agreement.read(path, {"seed": 1}), path, "--make")
    path.write_bytes(b"no archive")
    refused(lambda: agreement.read(path, {"seed": 0}), path, "--make")


@pytest.mark.slow
def test_a_whole_day_on_a_cpu(tmp_path):
    """Two calls as a user makes them; the second one finds all done.

    The network is UNet, which compiles in seconds; PyTorch's program has no UNet.
    """
    data = case_folders.write(tmp_path / "data", [f"p{n}" for n in range(8)])
    out = tmp_path / "day"
    command = [sys.executable, "benchmarks/gpu_day.py", f"--out={out}", "--minutes=30"]
    command += ["--precisions=bfloat16", "--batches=2", "--repeats=1"]
    command += [f"--root={data}", "--config=configs/covid.py:unet,toy"]
    command += ["--config.data.size=16", "--config.log.tensorboard=False"]
    # Unoptimised programs compile faster.
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    for day in (1, 2):
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        kept = record.read(out)
        assert len(kept["days"]) == day and len(kept["training"]) == 1
    steps = kept["steps"]
    found = steps["agreement, bfloat16"]["result"]
    assert found["repeats"]
    assert 1e-4 < found["differences"]["logits"] < 0.1
    programs = steps["speed, bfloat16, 2 images"]["result"]["programs"]
    assert {"predict", "train step"} == set(programs)
    beside = steps["torch, bfloat16, 2 images"]
    if importlib.util.find_spec("torch") is None:
        assert beside["status"] == "missing"
    else:
        assert beside["status"] == "failed" and "network is 'unet'" in beside["error"]
    assert kept["training"][0]["to_step"] == 4
    assert (out / "run" / "results.json").exists()
    assert "| bfloat16, 2 images | train step |" in done.stdout
    command = [sys.executable, "benchmarks/gpu_day.py", f"--out={out}", "--rows"]
    alone = subprocess.run(
        command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True
    )
    assert alone.stdout and done.stdout.endswith(alone.stdout)
