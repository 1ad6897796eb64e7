"""`launch/folds.sh` trains every fold once and reports on all.

A stand-in for `python` records what it was called with; one test trains at toy size.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in
from places import ROOT

SCRIPT = ROOT / "launch" / "folds.sh"

# It leaves config.json and results.json as training does. FAIL_<fold> is the exit code of a
# fold that is to fail, SPACING what the first fold chooses, KILL a fold that
# ends before it leaves anything.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
if sys.argv[1] == "-c":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
flags = dict(argument.split("=", 1) for argument in sys.argv[3:])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(flags) + "\\n")
if flags.get("--mode") == "report":
    sys.exit(int(os.environ.get("FAIL_report", 0)))
if os.environ.get("KILL") == flags["--config.split.fold"]:
    sys.exit(137)
workdir = pathlib.Path(flags["--workdir"])
workdir.mkdir(parents=True, exist_ok=True)
split = {{"folds": int(flags["--config.split.folds"])}}
data = {{"spacing": os.environ.get("SPACING", "auto"), "plane": "coronal"}}
(workdir / "config.json").write_text(json.dumps({{"data": data, "split": split}}, indent=2))
code = int(os.environ.get("FAIL_" + flags["--config.split.fold"], 0))
if code == 0:
    (workdir / "results.json").write_text("{{}}")
sys.exit(code)
"""


@pytest.fixture
def folds(tmp_path):
    """`folds(*words)` gives the finished process and the flags of each call of python."""
    call = stand_in.caller(tmp_path, STAND_IN)
    return lambda *words, **environment: call(SCRIPT, *words, **environment)


def test_each_fold_is_trained_in_a_workdir_of_its_own_then_all_are_reported(folds):
    done, calls = folds("folder:cpu", "my runs", "3", "--config.data.root=a b")
    assert done.returncode == 0, done.stderr
    *runs, report = calls
    assert [flags["--workdir"] for flags in runs] == [
        f"my runs/fold{fold}" for fold in range(3)
    ]
    assert [flags["--config.split.fold"] for flags in runs] == ["0", "1", "2"]
    for flags in runs:
        assert flags["--config"] == "folder:cpu"
        assert flags["--config.split.folds"] == "3"
        assert flags["--config.data.root"] == "a b"
    workdirs = "my runs/fold0,my runs/fold1,my runs/fold2"
    assert report == {
        "--mode": "report",
        "--workdir": workdirs,
        "--output": "my runs/report.html",
    }
    # The advice can be copied into a shell.
    advice = done.stdout.splitlines()[-1].partition(": ")[2]
    assert shlex.split(advice) == ["--mode=predict", f"--workdir={workdirs}"]


def test_what_the_first_fold_chose_holds_for_all(folds):
    _, calls = folds("c.py", "out", "3", SPACING="0.8,0.7")
    assert "--config.data.spacing" not in calls[0]
    assert [flags["--config.data.spacing"] for flags in calls[1:3]] == ["0.8,0.7"] * 2
    assert [flags["--config.data.plane"] for flags in calls[1:3]] == ["coronal"] * 2
    # What was asked for comes after it, and wins.
    _, calls = folds("c.py", "other", "2", "--config.data.spacing=2", SPACING="0.8")
    assert calls[1]["--config.data.spacing"] == "2"


def test_a_fold_that_died_before_it_chose_takes_the_choice_of_the_others(folds):
    done, calls = folds("c.py", "out", "3", KILL="0", SPACING="0.8")
    assert done.returncode == 3
    assert "  fold 0: exit code 137" in done.stderr.splitlines()
    assert "--config.data.spacing" not in calls[1]
    assert calls[2]["--config.data.spacing"] == "0.8"
    _, calls = folds("c.py", "out", "3")
    assert calls[0]["--workdir"] == "out/fold0"
    assert calls[0]["--config.data.spacing"] == "0.8"


def test_the_same_command_goes_on_with_what_is_not_done(folds):
    done, calls = folds("c.py", "out", "3", FAIL_1="1")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "  fold 1: exit code 1"
    assert calls[-1]["--workdir"] == "out/fold0,out/fold2"
    done, calls = folds("c.py", "out", "3")
    assert done.returncode == 0, done.stderr
    assert [flags["--workdir"] for flags in calls] == [
        "out/fold1",
        "out/fold0,out/fold1,out/fold2",
    ]
    assert done.stdout.count("done before") == 2


def test_nothing_is_reported_where_no_fold_is_done(folds):
    done, calls = folds("c.py", "out", "2", FAIL_0="2", FAIL_1="2")
    assert done.returncode == 3
    assert not any("--mode" in flags for flags in calls)
    done, _ = folds("c.py", "out", "2", FAIL_report="2")
    assert done.returncode == 3
    assert "  report: exit code 2" in done.stderr.splitlines()


def test_an_interrupt_stops_all_folds(folds):
    done, calls = folds("c.py", "out", "3", FAIL_1="130")
    assert done.returncode == 130
    assert len(calls) == 2


def test_folds_of_another_number_are_not_taken_for_these(folds):
    folds("c.py", "out", "3")
    done, calls = folds("c.py", "out", "30")
    assert done.returncode == 2
    assert not calls
    assert re.fullmatch(
        r"launch: out/fold0 is not one of 30 folds. Give .*\n", done.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: launch/folds.sh CONFIG WORKDIR K"),
        (["c.py", "out"], "usage: launch/folds.sh CONFIG WORKDIR K"),
        (["c.py", "out", "1"], "K is 1"),
        (["c.py", "out", "many"], "K is many"),
        (["--config=c.py", "--workdir=out", "3"], "--config=c.py"),
        (["c.py", "out", "3", "unet"], "unet .*--name=value"),
        (["c.py", "out", "3", "--config.split.fold=1"], "--config.split.fold=1"),
        (["c.py", "out", "3", "--workdir=there"], "--workdir=there"),
    ],
)
def test_wrong_arguments_start_nothing(folds, arguments, message):
    done, calls = folds(*arguments)
    assert done.returncode == 2
    assert not calls
    assert re.search(message, done.stderr)


def test_usage(folds):
    done, calls = folds("-h")
    assert done.returncode == 0
    assert not calls
    assert "usage: launch/folds.sh CONFIG WORKDIR K" in done.stdout


@pytest.mark.slow
def test_every_case_is_tested_once_and_the_models_predict_together(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags = [
        "--config.train.steps=2",
        "--config.compile_cache=",
        "--config.eval.pictures=0",
        "--config.data.phantom.n_cases=6",
        "--config.data.phantom.slices_per_case=2",
    ]
    done = subprocess.run(
        [SCRIPT, "phantom:unet,toy", tmp_path / "cv", "3", *flags],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    workdirs = [tmp_path / "cv" / f"fold{fold}" for fold in range(3)]
    results = [json.loads((one / "results.json").read_text()) for one in workdirs]
    tested = [case for one in results for case in one["cases"]]
    assert len(tested) == len(set(tested)) == 6
    report = (tmp_path / "cv" / "report.md").read_text()
    for one in results:
        assert f"{one['standard']['dice']['mean']:.4f}" in report
    command = [sys.executable, "-m", "biedsnet_jax.main", "--mode=evaluate"]
    together = ",".join(map(str, workdirs))
    done = subprocess.run(
        [*command, f"--workdir={together}", "--config.compile_cache="],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "not unseen: the model was trained or validated on 2 of these 2" in done.stdout
    )
    place = workdirs[0] / "evaluations" / "ensemble_fold0+fold1+fold2"
    assert len(json.loads((place / "results.json").read_text())["members"]) == 3
