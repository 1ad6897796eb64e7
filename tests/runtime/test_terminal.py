"""Output on a pseudo-terminal, in pipes and with --quiet: bar, tables, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import terminals
from evaluated_workdir import closing_lines

from biedsnet_jax import main
from biedsnet_jax.evaluation import closing
from biedsnet_jax.prediction.closing import Counts, segmented

TOY = {
    "data.size": 16,
    "data.phantom.n_cases": 6,
    "data.phantom.slices_per_case": 3,
    "split.fractions": (0.5, 0.17, 0.33),
    "networks.biedsnet.channels": (8, 16),
    "networks.biedsnet.blocks_per_level": 1,
    "networks.biedsnet.reduction": 4,
    "loss.supervision_weights": (1.0,),
    "train.batch_size": 8,
    "train.steps": 4,
    "log.every": 1,
    "log.images": 1,
    "eval.every": 2,
    "eval.batch_size": 8,
    "sampler.steps": 1,
}
CURSOR = re.compile(r"\x1b\[\?25([hl])")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(workdir of a training, all that it wrote to a terminal)."""
    folder = tmp_path_factory.mktemp("terminal")
    fields = [
        f"--config.{name}={value}"
        for name, value in (TOY | {"compile_cache": folder / "cache"}).items()
    ]
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        "--config=configs/phantom.py",
        f"--workdir={folder}/run",
    ]
    code, written = terminals.run(line + fields)
    assert code == 0, written
    return folder / "run", written


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


# --- a terminal -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_bars_have_rate_time_to_go_loss_and_dice(trained):
    lines = terminals.screen(trained[1]).splitlines()
    number = r"[\d.e+-]+"
    (train,) = [line for line in lines if line.startswith("train ━")]
    assert re.search(
        rf"━ 4/4  {number}/s  ETA 0:00  loss {number}  Dice {number} +\d:\d\d:\d\d$",
        train,
    ), train
    (test,) = [line for line in lines if line.startswith("test ━")]
    dice = results(trained[0])["standard"]["dice"]["mean"]
    expected = rf"━ 6/6  \S+/s  ETA \S+  Dice {dice:.4g} +\d:\d\d:\d\d$"
    assert re.search(expected, test), test


@pytest.mark.slow
def test_a_start_names_slices_cases_device_and_parameters(trained):
    lines = terminals.screen(trained[1]).splitlines()
    parameters = results(trained[0])["parameters"]
    for expected in (
        "train 9 slices of 3 cases, val 3 of 1, test 6 of 2",
        f"{parameters:,} parameters",
        "testing 6 slices of 2 cases",
    ):
        assert expected in lines
    (line,) = [line for line in lines if line.startswith("compiling ")]
    assert "1 x cpu" in line


@pytest.mark.slow
def test_a_clock_runs_while_the_step_is_compiled_and_goes_away(trained):
    written = trained[1]
    clocks = re.findall(r"compiling (?:\x1b\[[\d;]*m)*(\d:\d\d:\d\d)", written)
    # Compiling takes seconds, and the clock is drawn several times in each.
    assert len(clocks) > 2 and clocks[-1] > clocks[0]
    assert not re.search(r"compiling \d", terminals.screen(written))


@pytest.mark.slow
def test_notes_and_what_others_print_stay_above_the_bar(trained):
    lines = terminals.screen(trained[1]).splitlines()
    notes = [
        line for line in lines if re.match(r"step [24]  validation Dice 0\.", line)
    ]
    assert len(notes) == 2
    (bar,) = [line for line in lines if line.startswith("train ━")]
    assert max(map(lines.index, notes)) < lines.index(bar)


@pytest.mark.slow
def test_the_table_has_the_numbers_of_the_results(trained):
    workdir, written = trained
    found, r = terminals.screen(written), results(workdir)
    assert f"test: 6 slices of 2 cases, {r['n_empty']} of 6 masks empty" in found
    table = {
        line.split("  ")[0].strip(): line.split("  ", 1)[1].split()
        for line in found.splitlines()
        if "  " in line
    }
    for key, name in closing.SCORES.items():
        entry = r["standard"][key]
        low, high = entry["ci95"]
        expected = [
            f"{x:.4f}" for x in (entry["mean"], low, high, entry["per_case_mean"])
        ]
        assert [cell for cell in table[name] if cell != "to"] == expected, name
    assert (
        re.fullmatch(r"0:\d\d:\d\d,", table["time"][0])
        and f"{r['seconds_per_image']:.3f}" in table["time"]
    )
    assert table["scores"][0].startswith(f"{workdir}/results.json"[:60])
    shown = "".join(line.strip() for line in found.splitlines())
    assert (
        f"{workdir}/report.html" in shown and f"tensorboard --logdir={workdir}" in shown
    )


@pytest.mark.slow
def test_the_cursor_is_never_left_hidden(trained):
    codes = "".join(CURSOR.findall(trained[1]))
    # A clock and two bars hide the cursor, which is shown again at once.
    assert codes.count("l") == 3 and "ll" not in codes and codes.endswith("h")


def test_ctrl_c_leaves_the_cursor_and_a_new_line():
    code = """
import contextlib, time
from biedsnet_jax.runtime import progress
with contextlib.closing(progress.Progress("train", 10**6)) as bar:
    step = 0
    while True:
        step += 1
        bar.update(step, {"loss": 1.5})
        time.sleep(0.01)
"""

    def answer(written):
        nonlocal pressed
        if not pressed and "loss 1.5" in terminals.screen(written):
            pressed = True
            return b"\x03"

    pressed = False
    code, written = terminals.run([sys.executable, "-c", code], answer=answer)
    assert pressed and code == -signal.SIGINT
    after = written[written.rindex("loss 1.5") :]
    assert CURSOR.findall(written)[-1] == "h" and "KeyboardInterrupt" in after
    assert "\n" in after[: after.index("Traceback")]


# --- pipes and quiet ------------------------------------------------------------------


@pytest.mark.slow
def test_quiet_training_has_only_its_closing_lines(trained):
    """A finished run started again, on a terminal, has no announcement, note or bar."""
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        "--quiet",
        f"--workdir={trained[0]}",
    ]
    code, written = terminals.run(line)
    r = results(trained[0])
    assert (code, written.replace("\r\n", "\n")) == (0, closing_lines(r, trained[0]))


def test_without_a_terminal_rich_is_not_imported():
    code = """
import sys
import threading
from concurrent import futures
from biedsnet_jax.prediction import closing
from biedsnet_jax.runtime import progress
bar = progress.Progress("train", 2)
bar.update(2, {}, plain=True)
bar.close()
closing.segmented("out", closing.Counts(done=1, skipped=2, failed=3), seconds=4.0)
print([name for name in sys.modules if name.split(".")[0] in ("rich", "jax")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=terminals.ROOT, capture_output=True, text=True
    )
    assert (
        done.stdout
        == "3 of 6 scans segmented, in out; summary.csv has the figures\n[]\n"
    ), done.stderr
    assert done.stderr.startswith("train 2/2  ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("given", "expected"), [(None, "3"), ("0", "0")])
def test_alarms_of_xla_are_silent_unless_the_user_asks(monkeypatch, given, expected):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if given:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", given)
    assert main.run(["main", "--nosuchflag"]) == 2
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == expected


# --- the other closing words ----------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """`shown(function, ...)`: the screen after a call."""

    def call(function, *arguments, **options):
        # Not in the fixture, since pytest replaces stdout after the fixtures.
        monkeypatch.setattr(sys, "stdout", terminals.Terminal())
        monkeypatch.setenv("COLUMNS", str(terminals.COLUMNS))
        monkeypatch.setenv("TERM", "xterm")
        function(*arguments, **options)
        return terminals.screen(sys.stdout.getvalue())

    return call


def test_the_table_of_a_prediction(shown):
    found = shown(
        segmented, Path("out"), Counts(done=4, skipped=2, failed=1), seconds=3725.9
    )
    rows = [line.split() for line in found.splitlines()]
    for row in (
        ["done", "4"],
        ["skipped,", "done", "before", "2"],
        ["failed", "1"],
        ["time", "1:02:05"],
    ):
        assert row in rows
    assert ["masks", "out"] in rows and ["figures", "out/summary.csv"] in rows


def test_scores_that_are_undefined_classes_and_lesions(shown):
    dice = {"mean": 0.5, "ci95": [None, None], "per_case_mean": None}
    of_class = {"standard": {"dice": dice | {"mean": 0.25}}}
    counts = {"n_images": 3, "n_cases": 1, "n_empty": 2, "seconds_per_image": 0.0125}
    lesions = {"found": 1, "true": 2, "false": 3, "predicted": 4}
    r = counts | {
        "standard": {"dice": dice},
        "classes": {"1": of_class, "2": of_class},
        "lesions": lesions,
    }
    found = shown(closing.tested, r, "gone", seconds=1.0)
    assert "2 of 6 masks empty" in found
    assert "1 of 2 found, 3 of 4 false" in found
    assert "tensorboard" not in found
    rows = [line.split() for line in found.splitlines()]
    assert ["Dice", "0.5000", "none", "none"] in rows
    assert ["Dice,", "class", "2", "0.2500", "none", "none"] in rows
