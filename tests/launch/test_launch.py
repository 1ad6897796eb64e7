"""The scripts that make Tables 1 and 2 start the right runs.

A stand-in for `python` records what it was called with.
"""

import re
import shlex
import sys

import pytest
import stand_in
from launch_rows import TABLE_1, TABLE_2
from places import ROOT

LAUNCH = ROOT / "launch"

# It leaves results.json as training does. FAIL_<what> is the exit code of a run that is to
# fail.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
flags = dict(argument.split("=", 1) for argument in sys.argv[3:])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps({{"module": sys.argv[1:3], "flags": flags, "cwd": os.getcwd()}}) + "\\n")
what = flags.get("--mode") or flags["--config"].split(":")[1].split(",")[0]
code = int(os.environ.get("FAIL_" + what, 0))
if code == 0 and what != "report":
    workdir = pathlib.Path(flags["--workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text("{{}}")
sys.exit(code)
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(script, *words)` gives the finished process and the calls of python."""
    call = stand_in.caller(tmp_path, STAND_IN)
    return lambda script, *words, **more: call(LAUNCH / script, *words, **more)


def configs(calls):
    return [
        call["flags"].get("--config", "report").removeprefix(f"{LAUNCH.parent}/")
        for call in calls
    ]


@pytest.mark.parametrize(
    ("script", "rows"), [("table1.sh", TABLE_1), ("table2.sh", TABLE_2)]
)
def test_every_row_is_trained_in_a_workdir_of_its_own_then_reported(
    launch, tmp_path, script, rows
):
    done, calls = launch(script, "phantom", "out")
    assert done.returncode == 0, done.stderr
    assert configs(calls) == [f"configs/phantom.py:{row}" for row in rows] + ["report"]
    assert [call["flags"]["--workdir"] for call in calls[:-1]] == [
        f"{tmp_path}/out/{row}/seed0" for row in rows
    ]
    assert {call["flags"]["--config.seed"] for call in calls[:-1]} == {"0"}
    out = str(tmp_path / "out")
    assert calls[-1]["flags"] == {
        "--mode": "report",
        "--workdir": out,
        "--output": f"{out}/report.html",
    }
    assert {(*call["module"], call["cwd"]) for call in calls} == {
        ("-m", "biedsnet_jax.main", str(tmp_path))
    }
    assert not any("--config.data.root" in call["flags"] for call in calls)


def test_seeds_variant_flags_and_names_with_spaces_reach_every_run(launch, tmp_path):
    (tmp_path / "my data").mkdir()
    flags = ["--variant=cpu", "--config.train.steps=20", "--config.split.test=('a b',)"]
    done, calls = launch("table2.sh", "my data", "my out, new", "--seeds=3,11", *flags)
    assert done.returncode == 0, done.stderr
    assert configs(calls) == [
        f"configs/covid.py:{row},cpu" for _ in range(2) for row in TABLE_2
    ] + ["report"]
    assert calls[5]["flags"] == {
        "--config": f"{LAUNCH.parent}/configs/covid.py:row1,cpu",
        "--config.data.root": str(tmp_path / "my data"),
        "--config.seed": "11",
        "--workdir": str(tmp_path / "my out, new" / "row1" / "seed11"),
        "--config.train.steps": "20",
        "--config.split.test": "('a b',)",
    }
    assert calls[-1]["flags"]["--workdir"] == str(tmp_path / "my out, new")
    command = (tmp_path / "my out, new" / "row1" / "seed11" / "command.txt").read_text()
    # The comma stays as it was given.
    assert " --config=configs/covid.py:row1,cpu " in command
    assert shlex.split(command)[3:] == [
        "--config=configs/covid.py:row1,cpu",
        "--config.seed=11",
        *flags[1:],
        "--config.data.root=DIR",
        "--workdir=WORKDIR",
    ]


def test_folds_are_runs_of_their_own_and_each_is_done_by_all_rows_before_the_next(
    launch, tmp_path
):
    done, calls = launch("table2.sh", "phantom", "out", "--folds=2")
    assert done.returncode == 0, done.stderr
    workdirs = [
        f"{tmp_path}/out/{row}/seed0/fold{fold}" for fold in (0, 1) for row in TABLE_2
    ]
    assert [call["flags"]["--workdir"] for call in calls[:-1]] == workdirs
    assert {call["flags"]["--config.split.folds"] for call in calls[:-1]} == {"2"}
    assert [call["flags"]["--config.split.fold"] for call in calls[:-1]] == [
        "0"
    ] * 5 + ["1"] * 5
    assert "== row5, seed 0, fold 1" in done.stdout
    command = tmp_path / "out" / "row5" / "seed0" / "fold1" / "command.txt"
    assert command.read_text() == (
        "python -m biedsnet_jax.main --config=configs/phantom.py:row5 --config.seed=0 "
        "--config.split.folds=2 --config.split.fold=1 --config.eval.paper=True "
        "--workdir=WORKDIR\n"
    )
    again, calls = launch("table2.sh", "phantom", "out", "--folds=2")
    assert again.returncode == 0 and configs(calls) == ["report"]


def test_settings_reach_the_run_of_their_row_and_fold(launch, tmp_path):
    lines = [
        f"{row} {fold} --config.train.learning_rate=0.0{i}{fold}"
        for i, row in enumerate(TABLE_2)
        for fold in (0, 1)
    ]
    # The fourth line is that of row2 and fold 1.
    lines[3] += " --config.augment.scale=0.25"
    (tmp_path / "settings.txt").write_text(
        "\n".join(lines) + "\nrow22 1 --config.seed=7\n"
    )
    done, calls = launch(
        "table2.sh",
        "phantom",
        "out",
        "--folds=2",
        "--settings=settings.txt",
        "--config.train.steps=9",
    )
    assert done.returncode == 0, done.stderr
    rates = [call["flags"]["--config.train.learning_rate"] for call in calls[:-1]]
    assert rates == [f"0.0{i}{fold}" for fold in (0, 1) for i in range(5)]
    scaled = [
        call["flags"]
        for call in calls[:-1]
        if "--config.augment.scale" in call["flags"]
    ]
    assert [flags["--workdir"] for flags in scaled] == [
        f"{tmp_path}/out/row2/seed0/fold1"
    ]
    command = (
        tmp_path / "out" / "row2" / "seed0" / "fold1" / "command.txt"
    ).read_text()
    given = "--config.train.learning_rate=0.011 --config.augment.scale=0.25 --config.train.steps=9"
    given += " --config.eval.paper=True"
    assert f"--config.split.fold=1 {given} --workdir" in command


def test_a_row_without_settings_is_listed_and_not_run_at_others(launch, tmp_path):
    (tmp_path / "settings.txt").write_text(
        "".join(f"{row} 0\n{row} 1\n" for row in TABLE_2 if row != "row3")
    )
    done, calls = launch(
        "table2.sh", "phantom", "out", "--folds=2", "--settings=settings.txt"
    )
    assert done.returncode == 3 and "configs/phantom.py:row3" not in configs(calls)
    where = tmp_path / "settings.txt"
    assert done.stderr.splitlines()[-2:] == [
        f"  row3, seed 0, fold {fold}: no line of it in {where}" for fold in (0, 1)
    ]


def test_a_failing_row_is_listed_and_the_same_command_tries_it_again_alone(launch):
    done, calls = launch(
        "table1.sh", "phantom", "out", FAIL_unetpp="1", FAIL_swin_unet="2"
    )
    assert done.returncode == 3
    assert len(configs(calls)) == len(TABLE_1) + 1 and configs(calls)[-1] == "report"
    assert done.stderr.splitlines()[-2:] == [
        "  unetpp, seed 0: exit code 1",
        "  swin_unet, seed 0: exit code 2",
    ]

    done, calls = launch("table1.sh", "phantom", "out")
    assert done.returncode == 0, done.stderr
    assert configs(calls) == [
        "configs/phantom.py:unetpp",
        "configs/phantom.py:swin_unet",
        "report",
    ]
    assert done.stdout.count("done before") == len(TABLE_1) - 2


def test_a_half_written_result_is_no_result(launch, tmp_path):
    for row in TABLE_2:
        (tmp_path / "out" / row / "seed0").mkdir(parents=True)
        (tmp_path / "out" / row / "seed0" / "results.json").write_text(
            "" if row == "row3" else "{}"
        )
    _, calls = launch("table2.sh", "phantom", "out")
    assert configs(calls) == ["configs/phantom.py:row3", "report"]


def test_nothing_is_reported_where_no_row_is_done(launch):
    done, calls = launch(
        "table2.sh", "phantom", "out", **{f"FAIL_{row}": "2" for row in TABLE_2}
    )
    assert done.returncode == 3 and "report" not in configs(calls)
    done, calls = launch("table2.sh", "phantom", "out", FAIL_report="2")
    assert done.returncode == 3 and "  report: exit code 2" in done.stderr.splitlines()


def test_an_interrupt_stops_all_rows(launch):
    done, calls = launch("table2.sh", "phantom", "out", FAIL_row2="130")
    assert done.returncode == 130
    assert configs(calls) == ["configs/phantom.py:row1", "configs/phantom.py:row2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: launch/table1.sh ROOT OUT"),
        (["phantom"], "usage: launch/table1.sh ROOT OUT"),
        (["nowhere", "out"], "ROOT .*nowhere"),
        (["phantom", "out", "--seeds=a"], "--seeds is a"),
        (["phantom", "out", "--folds=1"], "--folds is 1"),
        (
            ["phantom", "out", "--folds=2", "--settings=none.txt"],
            "--settings none.txt",
        ),
        (["phantom", "out", "--settings=calls"], "--settings calls .*--folds=K"),
        (["phantom", "out", "20"], "20 .*--name=value"),
    ],
)
def test_wrong_arguments_start_nothing(launch, arguments, message):
    done, calls = launch("table1.sh", *arguments)
    assert done.returncode == 2 and not calls
    assert re.search(message, done.stderr)


def test_usage(launch):
    done, calls = launch("table1.sh", "-h")
    assert done.returncode == 0 and not calls
    assert "usage: launch/table1.sh ROOT OUT" in done.stdout


def test_relative_paths_in_flags_are_those_of_the_users_folder(launch, tmp_path):
    done, calls = launch(
        "table2.sh",
        "phantom",
        "out",
        "--config.data.cache_dir=cache",
        "--config.compile_cache=xla",
    )
    assert done.returncode == 0, done.stderr
    assert {call["cwd"] for call in calls} == {str(tmp_path)}
    assert {call["flags"].get("--config.data.cache_dir") for call in calls[:-1]} == {
        "cache"
    }


def test_settings_in_the_home_folder(launch, tmp_path):
    (tmp_path / "settings.txt").write_text(
        "".join(f"{row} {fold}\n" for row in TABLE_2 for fold in (0, 1))
    )
    done, calls = launch(
        "table2.sh",
        "phantom",
        "out",
        "--folds=2",
        "--settings=~/settings.txt",
        HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert len(calls) == 11
