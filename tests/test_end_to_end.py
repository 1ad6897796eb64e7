"""Trains and scores a toy network from the first command to the last file.

Runs are real processes: killed, resumed, scored and scored again. They share one compile
cache, and the tests that look at a run share the run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import csv_files
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from evaluated_workdir import closing_lines
from PIL import Image
from places import ROOT

from biedsnet_jax.config import run_config
from biedsnet_jax.errors import BadInput, Diverged, Preempted
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.training import run_log, train, validation
from configs import folder, phantom

# Not every accelerator gives the same bits twice.
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}
STEPS = 30
TOY = {
    "data.size": 16,
    "networks.biedsnet.channels": (8, 16),
    "networks.biedsnet.blocks_per_level": 1,
    "networks.biedsnet.reduction": 4,
    "loss.supervision_weights": (1.0,),
    "train.batch_size": 8,
    "eval.batch_size": 8,
    "sampler.steps": 3,
    "sampler.ensemble": 2,
    "log.images": 2,
}
RUN = TOY | {
    "data.phantom.n_cases": 6,
    "data.phantom.slices_per_case": 3,
    "split.fractions": (0.5, 0.17, 0.33),
    "train.steps": STEPS,
    "eval.every": 10,
    "checkpoint.every": 3,
    "log.every": 1,
}


def command(workdir: Path, cache: Path) -> list[str]:
    fields = [
        f"--config.{name}={value}"
        for name, value in (RUN | {"compile_cache": cache}).items()
    ]
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        "--config=configs/phantom.py",
        f"--workdir={workdir}",
    ]
    return line + fields


def finish(line: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def stop(line: list[str], when, how: signal.Signals) -> tuple[int, str]:
    """Starts a process and sends it a signal as soon as `when()` is true.

    Returns its exit code and stderr. Fails if it ends before.
    """
    # A shell that runs the tests in the background ignores SIGINT, and children inherit
    # that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            line,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None and not when():
            time.sleep(0.002)
        process.send_signal(how)
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0, f"it ended by itself:\n{err}"
    return process.returncode, err


def metrics(workdir: Path) -> list[dict]:
    """Reads the lines of metrics.jsonl that are complete."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [
        json.loads(line)
        for line in text.splitlines(keepends=True)
        if line.endswith("\n")
    ]


def last_step(workdir: Path) -> int:
    return max((line["step"] for line in metrics(workdir)), default=0)


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    """(workdir, process) of a run that one process trained and tested."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    done = finish(command(workdir, cache))
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture(scope="module")
def broken(tmp_path_factory, cache, unbroken):
    """The same command, stopped by Ctrl-C, then killed during a save, then left alone."""
    workdir = tmp_path_factory.mktemp("broken") / "run"
    line = command(workdir, cache)
    interrupted = stop(line, lambda: last_step(workdir) >= 7, signal.SIGINT)
    after_interrupt = last_step(workdir)
    killed = stop(
        line,
        lambda: last_step(workdir) >= (17 if saving(workdir) else 26),
        signal.SIGKILL,
    )
    after_kill = last_step(workdir)
    done = finish(line)
    assert done.returncode == 0, done.stderr
    return {
        "workdir": workdir,
        "interrupted": interrupted,
        "killed": killed,
        "stopped at": (after_interrupt, after_kill),
        "done": done,
    }


def state_at(step: int, workdir: Path) -> dict[str, tuple]:
    """Type, shape and bytes of every array of a checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(p): (x.dtype.name, x.shape, np.asarray(x).tobytes())
        for p, x in leaves
    }


# --- stopped and resumed ---


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_exit_code_130(broken):
    code, err = broken["interrupted"]
    assert code == 130 and "Traceback" not in err
    *progress, last = err.splitlines()
    step = broken["stopped at"][0]
    assert last.startswith("biedsnet: ")
    assert "Ctrl-C" in last and f"step {step}" in last
    assert not any("biedsnet:" in line for line in progress)


@pytest.mark.slow
def test_the_run_was_really_broken_twice(broken):
    assert broken["killed"][0] == -signal.SIGKILL
    first, second = broken["stopped at"]
    assert 7 <= first < second < STEPS
    start = int(broken["done"].stdout.split("going on from step ")[1].split()[0])
    # Checkpoints come every three steps and after the validation of step 10.
    assert 0 < start <= second and start % 3 in (0, 1)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits(unbroken, broken):
    expected, found = (
        state_at(STEPS, workdir) for workdir in (unbroken[0], broken["workdir"])
    )
    assert any("params" in name for name in expected) and any(
        "opt_state" in name for name in expected
    )
    assert found == expected


@pytest.mark.slow
def test_both_runs_logged_the_same(unbroken, broken):
    def logged(workdir):
        clocks = ("time", "steps_per_second")
        return [
            {name: x for name, x in line.items() if name not in clocks}
            for line in metrics(workdir)
        ]

    expected = logged(unbroken[0])
    assert [line["step"] for line in expected if "loss" in line] == list(
        range(1, STEPS + 1)
    )
    assert [line["step"] for line in expected if "val_dice" in line] == [10, 20, 30]
    assert logged(broken["workdir"]) == expected


@pytest.mark.slow
def test_nothing_of_the_broken_saves_is_left(broken, unbroken):
    names = {path.name for path in (broken["workdir"] / "checkpoints").iterdir()}
    assert (
        names == {path.name for path in (unbroken[0] / "checkpoints").iterdir()}
        and str(STEPS) in names
    )
    assert {path.name for path in broken["workdir"].iterdir()} == {
        ".evaluate.lock", ".lock", "cases.csv", "checkpoints", "config.json", "metrics.jsonl",
        "postprocess.json", "report.html", "report.md",
        "report_data.npz", "results.json", "slices.csv", "split.json", "tensorboard",
    }  # fmt: skip


@pytest.mark.slow
def test_both_runs_tested_the_same(unbroken, broken):
    for name in ("cases.csv", "slices.csv", "report_data.npz"):
        assert (broken["workdir"] / name).read_bytes() == (
            unbroken[0] / name
        ).read_bytes()
    assert scores(broken["workdir"]) == scores(unbroken[0])


# --- scored ---


def results(workdir: Path) -> dict:
    return json.loads(
        (workdir / "results.json").read_text(), parse_constant=pytest.fail
    )


def scores(workdir: Path) -> dict:
    """Reads results.json without the time that it took."""
    return {
        name: value
        for name, value in results(workdir).items()
        if name != "seconds_per_image"
    }


def rows(workdir: Path) -> list[dict]:
    return csv_files.read(workdir / "slices.csv")


def test_results_have_the_agreed_fields(unbroken):
    r = results(unbroken[0])
    assert (r["network"], r["dataset"], r["split"]) == ("biedsnet", "phantom", "test")
    assert (r["n_images"], r["n_cases"]) == (6, 2) and type(r["n_empty"]) is int
    assert r["sampler"] == {
        "method": "ddim",
        "steps": 3,
        "eta": 0.0,
        "spacing": "trailing",
        "ensemble": 2,
    }
    assert 0 < r["seconds_per_image"] < 10
    assert {
        "dice",
        "iou",
        "accuracy",
        "recall",
        "precision",
        "hd",
        "hd95",
        "assd",
    } <= set(r["standard"])
    for name, entry in r["standard"].items():
        assert {"mean", "ci95", "per_case_mean", "pooled"} <= set(entry), name
        low, high = entry["ci95"]
        assert low <= entry["mean"] <= high
    assert r["grid"] == "file"
    # The phantom is drawn at the network's size, so both grids are one.
    assert r["network_grid"] == r["standard"]
    # Made for tables beside the paper's alone.
    assert "paper" not in r


def test_results_are_the_means_of_a_row_a_slice(unbroken):
    table, r = rows(unbroken[0]), results(unbroken[0])
    assert (
        len({(row["case"], row["slice"]) for row in table})
        == len(table)
        == r["n_images"]
        == 6
    )
    assert sorted({row["case"] for row in table}) == r["cases"]
    counts = np.array(
        [[int(row[name]) for name in ("tp", "fp", "fn", "tn")] for row in table]
    )
    assert (counts.sum(axis=1) == 16 * 16).all()
    tp, fp, fn, _ = counts.T
    present = tp + fn > 0
    assert r["n_empty"] == np.count_nonzero(~present)
    dice = 2 * tp[present] / (2 * tp + fp + fn)[present]
    assert r["standard"]["dice"]["mean"] == pytest.approx(dice.mean(), rel=1e-12)
    assert r["standard"]["dice"]["pooled"] == pytest.approx(
        2 * tp.sum() / (2 * tp + fp + fn).sum(), rel=1e-12
    )


def test_the_best_checkpoint_is_the_one_tested(unbroken):
    dice = {
        line["step"]: line["val_dice"]
        for line in metrics(unbroken[0])
        if "val_dice" in line
    }
    assert len(set(dice.values())) > 1
    assert results(unbroken[0])["checkpoint_step"] == max(
        dice, key=lambda step: (dice[step], step)
    )


def test_the_command_says_what_it_did(unbroken):
    workdir, done = unbroken
    assert (
        done.stdout.endswith(closing_lines(results(workdir), workdir))
        and "\x1b" not in done.stdout + done.stderr
    )
    assert "train 9 slices of 3 cases, val 3 of 1, test 6 of 2\n" in done.stdout
    assert "testing 6 slices of 2 cases\n" in done.stdout
    lines = done.stderr.splitlines()
    assert (
        sum(line.startswith(f"train 7/{STEPS} ") and "loss" in line for line in lines)
        == 1
    )
    assert sum("validation Dice" in line for line in lines) == 3
    assert not any("warning" in line.lower() for line in lines), done.stderr


def test_tensorboard_was_written(unbroken):
    trained, tested = sorted((unbroken[0] / "tensorboard").iterdir())
    assert trained.name.endswith(".from_0") and tested.name.endswith(".test")
    content = trained.read_bytes()
    assert all(
        tag in content for tag in (b"loss", b"val_dice", b"learning_rate", b"\x89PNG")
    )


@pytest.mark.slow
def test_evaluate_takes_everything_from_the_workdir(tmp_path, unbroken, cache):
    workdir = tmp_path / "copy"
    shutil.copytree(unbroken[0], workdir)
    for name in (
        "results.json",
        "cases.csv",
        "slices.csv",
        "report_data.npz",
        "report.html",
        "report.md",
        ".evaluate.lock",
    ):
        (workdir / name).unlink()
    (line_of_hparams,) = (workdir / "tensorboard").glob("*.test")
    line_of_hparams.unlink()
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        "--mode=evaluate",
        f"--workdir={workdir}",
    ]
    again = finish(line)
    assert again.returncode == 0, again.stderr
    assert scores(workdir) == scores(unbroken[0])
    assert (workdir / "slices.csv").read_text() == (
        unbroken[0] / "slices.csv"
    ).read_text()

    # No probability is above 1, so with this threshold every mask is empty.
    other = finish(
        [
            *line,
            "--config.sampler.steps=1",
            "--config.eval.batch_size=4",
            "--config.threshold=1.0",
        ]
    )
    assert other.returncode == 0, other.stderr
    name = "sampler.steps=1,threshold=1.0"
    r = results(workdir / "evaluations" / name)
    assert other.stdout.endswith(
        f"{workdir}/evaluations/{name}/results.json has the rest\n"
    )
    assert (r["sampler"]["steps"], r["threshold"], r["evaluation"]) == (1, 1.0, name)
    assert r["differs"] == {"sampler.steps": [3, 1], "threshold": [0.5, 1.0]}
    ((listed, entry),) = results(workdir)["evaluations"].items()
    assert (listed, entry["data"], entry["cases"], entry["dice"]) == (name, None, 2, 0)
    own = scores(workdir) | {"evaluations": {}}
    assert own == scores(unbroken[0])
    assert r["n_missed"] == r["n_images"] - r["n_empty"] > 0
    assert r["standard"]["dice"]["mean"] == r["standard"]["recall"]["pooled"] == 0.0
    # The diagonal is the largest distance of two pixels.
    assert r["standard"]["hd"]["mean"] == pytest.approx(15 * 2**0.5)
    # The run itself stays as it was; only results are written.
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((workdir / "tensorboard").glob("*.test"))) == 1


# --- in this process, on eight devices ---


def toy(c, **fields):
    """Sets a config's fields to the toy's and to others; `__` stands for a dot."""
    c.update_from_flattened_dict(
        TOY | {name.replace("__", "."): value for name, value in fields.items()}
    )
    c.compile_cache = ""
    return c


def unet(c, **fields):
    """The toy with a UNet, for tests that any network passes: it compiles sooner."""
    return toy(c, network="unet", networks__unet__channels=(8, 16), **fields)


def test_divergence_stops_names_step_and_rate_and_leaves_a_good_checkpoint(tmp_path):
    cfg = unet(
        phantom.get_config(),
        train__steps=12,
        train__learning_rate=1e30,
        train__warmup_steps=0,
        train__max_bad_steps=3,
        train__clip_norm=1e30,
        eval__every=0,
        checkpoint__every=2,
        log__every=6,
        data__phantom__n_cases=3,
    )
    with pytest.raises(Diverged) as caught:
        train.train(cfg, str(tmp_path / "run"))
    # Step 1 is good, but its update leaves the range of float32: steps 2, 3 and 4 are
    # bad, as the log of step 6 tells.
    message = str(caught.value)
    assert "step 4" in message and "learning rate 9." in message and "e+29" in message
    assert "\n" not in message
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(tmp_path / "run" / "checkpoints" / "4" / "state")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))
    assert (int(state["bad_steps"]), int(state["skipped_steps"])) == (3, 3)
    (line,) = metrics(tmp_path / "run")
    assert line["step"] == 6 and line["loss"] is None and line["bad_steps"] == 5
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_run_that_sigterm_stops_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    fields = {
        "train__steps": 8,
        "eval__every": 0,
        "checkpoint__every": 4,
        "log__every": 1,
        "log__tensorboard": False,
        "data__phantom__n_cases": 3,
    }
    write = run_log.RunLog.write

    def write_then_terminate(self, step, scalars):
        write(self, step, scalars)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    def run(workdir):
        train.train(unet(phantom.get_config(), **fields), str(workdir))
        return state_at(8, workdir)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched, pytest.raises(Preempted, match="at step 5"):
        patched.setattr(run_log.RunLog, "write", write_then_terminate)
        run(stopped)
    assert (stopped / "checkpoints" / "5").is_dir()
    assert not (stopped / "results.json").exists()
    assert run(stopped) == run(tmp_path / "unbroken")
    # One line a step: it did not begin again.
    assert [line["step"] for line in metrics(stopped)] == list(range(1, 9))


def write_scans(root: Path) -> None:
    """Writes four cases of two slices with a bright ellipse to find; one slice is empty.

    Sizes differ from case to case, and pixels have 8 or 16 bits.
    """
    rng = np.random.default_rng(0)
    for case in range(4):
        for number in range(2):
            height, width = 24 + 4 * case, 30 + 2 * number
            y, x = np.mgrid[:height, :width]
            inside = ((y - height / 2) / 6) ** 2 + (
                (x - width / 2) / (4 + case)
            ) ** 2 < 1
            inside &= (case, number) != (3, 1)
            image = 90 + 60 * inside + rng.normal(0, 5, inside.shape)
            pixels = (
                image.astype(np.uint8) if case % 2 else (image * 256).astype(np.uint16)
            )
            for kind, values, extension in (
                ("images", pixels, "tif"),
                ("masks", inside.astype(np.uint8) * 255, "png"),
            ):
                path = root / kind / f"patient {case}" / f"{number}.{extension}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)


@pytest.mark.slow
def test_a_users_folder_trains_and_its_best_checkpoint_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(
        validation.Validation,
        "run",
        lambda self, step, state, log: {1: 0.9, 2: 0.1}[step],
    )
    write_scans(tmp_path / "scans")
    named = {
        "split.train": ("patient 0", "patient 1"),
        "split.val": ("patient 2",),
        "split.test": ("patient 3",),
    }
    cfg = unet(
        folder.get_config(),
        data__root=str(tmp_path / "scans"),
        train__steps=2,
        eval__every=1,
    )
    cfg.update_from_flattened_dict(
        named | {"train.learning_rate": 0.1, "train.warmup_steps": 0}
    )
    workdir = tmp_path / "run"
    returned = train.train(cfg, str(workdir))
    assert returned == results(workdir)
    assert (returned["n_images"], returned["n_cases"], returned["n_empty"]) == (2, 1, 1)
    assert returned["checkpoint_step"] == 1 and returned["cases"] == ["patient 3"]
    assert [(row["case"], row["slice"]) for row in rows(workdir)] == [
        ("patient 3", "0"),
        ("patient 3", "1"),
    ]
    # One case has no interval.
    assert returned["standard"]["dice"]["ci95"] == [None, None]
    # PNG and TIFF files do not say their spacing.
    assert "hd_mm" not in returned["standard"]

    trained = scores(workdir)
    evaluate.run(run_config.load(workdir), str(workdir))
    assert scores(workdir) == trained
    split = json.loads((workdir / "split.json").read_text())
    assert split["root"] == str(tmp_path / "scans") == trained["data"]
    assert split["sides"] == {
        side: list(cfg.split[side]) for side in ("train", "val", "test")
    }

    # The same command with another setting scores again, beside what the run has.
    cfg.threshold = 0.75
    assert train.train(cfg, str(workdir))["evaluation"] == "threshold=0.75"
    assert (
        scores(workdir) | {"evaluations": {}} == trained
        and run_config.load(workdir).threshold == 0.5
    )
    assert results(workdir / "evaluations" / "threshold=0.75")["threshold"] == 0.75


def test_a_file_that_breaks_while_training_is_still_named(tmp_path):
    """With `data.verify=False` no file is read before training."""
    write_scans(tmp_path / "scans")
    for path in (tmp_path / "scans" / "images" / "patient 1").iterdir():
        path.write_bytes(b"no image")
    cfg = unet(
        folder.get_config(),
        data__root=str(tmp_path / "scans"),
        data__verify=False,
        train__steps=2,
    )
    cfg.update_from_flattened_dict({"split.train": ("patient 0", "patient 1")})
    cfg.update_from_flattened_dict(
        {"split.val": ("patient 2",), "split.test": ("patient 3",)}
    )
    with pytest.raises(BadInput) as caught:
        train.train(cfg, str(tmp_path / "run"))
    message = str(caught.value)
    assert "patient 1" in message and "\n" not in message
