"""Each table of the paper comes from one command, here on the phantom at toy width."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_rows import TABLE_1, TABLE_2
from places import ROOT

ROWS = {"table1": TABLE_1, "table2": TABLE_2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "dtype", "pictures"),
    [("table1", "bfloat16", 3), ("table2", "float32", 0)],
)
def test_a_table_from_one_command(table, dtype, pictures, tmp_path):
    # The scripts take the interpreter of the tests.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    }
    flags = [
        "--variant=toy",
        "--config.train.steps=2",
        "--config.compile_cache=",
        f"--config.dtype={dtype}",
    ]
    flags += [f"--config.eval.pictures={pictures}"]
    command = [ROOT / "launch" / f"{table}.sh", "phantom", tmp_path, *flags]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]

    results = {
        row: json.loads((tmp_path / row / "seed0" / "results.json").read_text())
        for row in ROWS[table]
    }
    assert {row: value["row"] for row, value in results.items()} == {
        row: row for row in ROWS[table]
    }
    # All rows were scored on the same slices.
    assert len({value["n_images"] for value in results.values()}) == 1
    # Every step was finite.
    for row in ROWS[table]:
        lines = (tmp_path / row / "seed0" / "metrics.jsonl").read_text().splitlines()
        logged = [line for line in map(json.loads, lines) if "loss" in line]
        assert logged and all(line["skipped_steps"] == 0 for line in logged), row
    report = (tmp_path / "report.md").read_text()
    for row in ROWS[table]:
        assert f"{results[row]['standard']['dice']['mean']:.4f}" in report
    assert "<table" in (tmp_path / "report.html").read_text()
