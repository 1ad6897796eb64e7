"""Real processes over loopback: each layout of four devices does as one device does."""

import json
import os
import shutil
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import csv_files
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from many_processes import CUT, STEPS, restored
from PIL import Image
from places import ROOT
from refusals import refused

from biedsnet_jax.prediction import made_from
from biedsnet_jax.runtime import devices, lock, processes

# Processes x devices of a layout, and its parallel.fsdp.
FSDP = {"1x1": 1, "1x4": 2, "2x2": 4, "4x1": 1}
LAYOUTS = tuple(FSDP)


def together(
    count: int, devices_each: int, folder: Path, jobs: list[dict]
) -> list[str]:
    """Runs jobs in `count` processes of `devices_each` devices; returns all output."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spec = folder / f"{count}.json"
    spec.write_text(
        json.dumps(
            {"port": port, "processes": count, "devices": devices_each, "jobs": jobs}
        )
    )
    env = os.environ | {
        "TEST_COMPILE_CACHE": str(folder / "cache"),
        # As users' programs are compiled, not as conftest.py asks: without fusion
        # emitters sums round so coarsely that the same step, fused otherwise, comes to
        # gradients a thousandth apart.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    script = ROOT / "tests" / "helpers" / "many_processes.py"
    started = [
        subprocess.Popen(
            [sys.executable, script, spec, str(i)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes == [0] * count, "\n".join(outputs)
    return outputs


def halfway(workdir: Path, copy: Path) -> Path:
    """A copy of a workdir as it was at step CUT."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    (copy / "results.json").unlink()
    return copy


def job(workdir: Path, **fields) -> dict:
    return {"mode": "train", "workdir": str(workdir), "fields": fields}


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 20), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of workdirs: each layout from scratch, and from others' checkpoints."""
    root = tmp_path_factory.mktemp("layouts")
    write_pictures(root / "pictures")

    def scored(by):
        shutil.copytree(root / "1x1", root / f"1x1 scored by {by}")
        (root / f"1x1 scored by {by}" / "results.json").unlink()
        return {"mode": "evaluate", "workdir": str(root / f"1x1 scored by {by}")}

    def restore(source, target):
        output = str(root / f"{source} on {target}.json")
        return {
            "mode": "restore",
            "workdir": str(root / source),
            "fsdp": FSDP[target],
            "output": output,
        }

    predict = {
        "mode": "predict",
        "workdir": str(root / "1x1"),
        "input": str(root / "pictures"),
        "code": 3,
    }
    together(
        1,
        1,
        root,
        [job(root / "1x1"), predict | {"output": str(root / "masks of one")}],
    )
    together(1, 4, root, [job(root / "1x4", parallel__fsdp=2)])
    stopped = job(root / "stopped", parallel__fsdp=4, train__steps=400) | {
        "terminate_at": 2
    }
    jobs = [
        scored("2x2"),
        job(root / "2x2", parallel__fsdp=4),
        restore("1x1", "2x2"),
        restore("1x4", "2x2"),
    ]
    jobs.append(predict | {"output": str(root / "masks")})
    shutil.copytree(root / "masks of one", root / "masks gone on")
    (root / "masks gone on" / "2_mask.png").unlink()
    jobs.append(predict | {"output": str(root / "masks gone on")})
    (root / "locked").mkdir()
    jobs.append(predict | {"output": str(root / "locked"), "code": 2})
    with lock.Lock(root / "locked", another="--output"):
        outputs = together(2, 2, root, [*jobs, stopped])
    (root / "outputs.json").write_text(json.dumps(outputs))
    restores = [restore(source, "4x1") for source in ("1x1", "1x4", "2x2")]
    going_on = job(
        halfway(root / "2x2", root / "2x2 to 4x1"),
        parallel__fsdp=2,
        eval__every=STEPS,
        eval__val_images=5,
    )
    together(4, 1, root, [scored("4x1"), job(root / "4x1"), *restores, going_on])
    return root


def losses(workdir: Path) -> dict[int, float]:
    lines = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def rows(workdir: Path) -> list[list[int]]:
    """Checksums of the rows of each step's batch, the processes' put together."""
    parts = [
        json.loads(path.read_text()) for path in sorted(workdir.glob("rows_*.json"))
    ]
    return [[row for part in step for row in part] for step in zip(*parts)][:STEPS]


def scores(workdir: Path) -> dict:
    results = json.loads((workdir / "results.json").read_text())
    return {
        name: value
        for name, value in results.items()
        if name not in ("device", "seconds_per_image")
    }


def assert_close(a, b):
    """Compares scores but for rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name])
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=1e-5)
    else:
        assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts_train_to_the_same_losses_on_the_same_samples(root, layout):
    expected = losses(root / "1x1")
    assert list(expected) == list(range(1, STEPS + 1))
    assert len(set(expected.values())) == STEPS
    assert losses(root / layout) == pytest.approx(expected, abs=1e-5)
    assert rows(root / layout) == rows(root / "1x1")
    assert scores(root / layout)["n_images"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2x2", "4x1"])
def test_seven_images_score_the_same_over_any_processes(root, layout):
    assert scores(root / "1x1")["n_images"] == 7
    assert_close(scores(root / f"1x1 scored by {layout}"), scores(root / "1x1"))
    one, several = (
        csv_files.read(root / name / "slices.csv")
        for name in ("1x1", f"1x1 scored by {layout}")
    )
    assert len(one) == 7
    entropies = [[float(row.pop("entropy")) for row in each] for each in (one, several)]
    # Scores are of masks, so that all digits agree; entropies are of probabilities.
    assert one == several
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_in_another_layout_as_it_would_have(root):
    """FSDP is over both processes before step CUT, over pairs of four after it."""
    assert losses(root / "2x2 to 4x1") == pytest.approx(losses(root / "1x1"), abs=1e-5)
    assert rows(root / "2x2 to 4x1") == rows(root / "1x1")[CUT:]


def plain(workdir: Path, step: int = CUT) -> list[np.ndarray]:
    """The arrays of a step as they lie on disk."""
    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        there = checkpointer.metadata(folder).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        return jax.tree.leaves(
            checkpointer.restore(
                folder, args=ocp.args.PyTreeRestore(restore_args=arrays)
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("target", LAYOUTS)
def test_a_checkpoint_of_any_layout_restores_bit_for_bit_in_another(root, target):
    several = target in ("2x2", "4x1")
    sources = LAYOUTS[: LAYOUTS.index(target)] if several else LAYOUTS
    for source in sources:
        expected = sorted(zlib.crc32(leaf.tobytes()) for leaf in plain(root / source))
        if several:
            found = json.loads((root / f"{source} on {target}.json").read_text())
        else:
            count = int(target[-1])
            found = restored(
                root / source,
                devices.make_mesh(jax.devices()[:count], fsdp=FSDP[target]),
            )
        assert sorted(found.values()) == expected and len(expected) > 50


@pytest.mark.slow
def test_a_start_from_weights_is_the_same_in_any_layout(tmp_path):
    """Two processes of two devices, cut over both of each, begin with the bits of one."""
    source, one, four = (tmp_path / name for name in ("source", "one", "four"))
    fields = {
        "init__source": str(source),
        "data__classes": 2,
        "train__steps": 2,
        "data__phantom__seed": 1,
    }
    together(1, 1, tmp_path, [job(source, train__steps=2), job(one, **fields)])
    outputs = together(2, 2, tmp_path, [job(four, parallel__fsdp=2, **fields)])
    first, other = (
        [zlib.crc32(leaf.tobytes()) for leaf in plain(workdir, step=0)]
        for workdir in (one, four)
    )
    assert first == other and len(first) > 50
    assert losses(four) == pytest.approx(losses(one), abs=1e-5)
    assert f"starting from {source}" in outputs[0]
    assert "starting from" not in outputs[1]


@pytest.mark.slow
def test_only_the_first_process_writes(root):
    assert {path.name for path in (root / "2x2").iterdir()} == {
        ".evaluate.lock", ".lock", "cases.csv", "checkpoints", "config.json", "metrics.jsonl",
        "postprocess.json", "report.html", "report.md",
        "report_data.npz", "results.json", "rows_0.json", "rows_1.json", "slices.csv", "split.json",
    }  # fmt: skip
    outputs = json.loads((root / "outputs.json").read_text())
    assert "train 14 slices" in outputs[0] and "slices" not in outputs[1]
    assert "4 x cpu of 2 processes, fsdp 4" in outputs[0]


@pytest.mark.slow
def test_sigterm_on_one_stops_all_at_one_step_with_its_checkpoint(root):
    outputs = json.loads((root / "outputs.json").read_text())
    (first,), (second,) = [
        [line for line in text.splitlines() if line.startswith("PREEMPTED")]
        for text in outputs
    ]
    assert first == second
    step = max(int(path.name) for path in (root / "stopped" / "checkpoints").iterdir())
    assert f"Stopped by SIGTERM at step {step}" in first
    assert 2 <= step < 400


@pytest.mark.slow
def test_processes_share_scans_and_leave_what_one_leaves(root):
    """`seconds` aside; the last of the six is no picture."""

    def left(folder):
        table = sorted(
            [row | {"seconds": ""} for row in csv_files.read(folder / "summary.csv")],
            key=lambda row: row["name"],
        )
        masks = {
            path.name: path.read_bytes()
            for path in folder.iterdir()
            if path.name.endswith("_mask.png")
        }
        return table, masks, {path.name for path in folder.iterdir()}

    assert left(root / "masks") == left(root / "masks of one")
    assert len(left(root / "masks")[1]) == 5


@pytest.mark.slow
def test_several_processes_go_on_where_one_stopped(root):
    outputs = json.loads((root / "outputs.json").read_text())
    assert "4 done before. 1 made again" in outputs[0]
    assert "made again" not in outputs[1]
    found, before = (
        made_from.Record(root / name).made for name in ("masks gone on", "masks of one")
    )
    assert found.keys() == before.keys() and len(found) == 5
    assert [name for name in found if found[name] != before[name]] == ["2"]
    assert found["2"].weights == before["2"].weights
    mask = "2_mask.png"
    assert (root / "masks gone on" / mask).read_bytes() == (
        root / "masks of one" / mask
    ).read_bytes()


@pytest.mark.slow
def test_all_processes_are_refused_a_folder_in_use(root):
    for text in json.loads((root / "outputs.json").read_text()):
        (line,) = [line for line in text.splitlines() if line.startswith("REFUSED")]
        assert "locked is in use" in line and "--output" in line
    assert {path.name for path in (root / "locked").iterdir()} == {".lock"}


# --- in this process ------------------------------------------------------------------


def test_large_arrays_are_cut_along_their_largest_axis_that_divides():
    mesh = devices.make_mesh(fsdp=4)
    shapes = {
        "kernel": (3, 3, 64, 128),
        "turned": (128, 64),
        "odd": (4097,),
        "small": (63, 64),
        "square": (64, 64),
    }
    tree = {
        name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()
    }
    found = {
        name: tuple(sharding.spec)
        for name, sharding in devices.state_sharding(tree, mesh).items()
    }
    assert found == {
        "kernel": (None, None, None, "fsdp"),
        "turned": ("fsdp",),
        "odd": (),
        "small": (),
        "square": (None, "fsdp"),
    }
    whole = devices.state_sharding(tree, devices.make_mesh())
    assert all(sharding.is_fully_replicated for sharding in whole.values())


def test_a_mesh_that_does_not_divide_is_refused():
    refused(lambda: devices.make_mesh(fsdp=3), "parallel.fsdp is 3", "1, 2, 4, 8")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("localhost:1", None, 0), "Add --num_processes"),
        ((None, 2, None), "Add --coordinator and --process_id"),
        (("localhost", 2, 0), "--coordinator localhost"),
        (("localhost:1", 2, 2), "--process_id 2"),
    ],
)
def test_flags_of_many_processes_come_together_and_fit(flags, says):
    refused(lambda: processes.start(*flags), says)
    assert not jax.distributed.is_initialized()


def test_without_flags_or_cluster_a_process_is_alone(monkeypatch):
    for name in (
        "SLURM_STEP_NODELIST",
        "KUBERNETES_SERVICE_HOST",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    processes.start()
    assert processes.is_first() and not processes.several()
    assert processes.gather({"a": 1}) == [{"a": 1}]
