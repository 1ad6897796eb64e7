"""Each table of the paper comes from one command, here on the phantom at toy width."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

ROWS = {
    "table1": [
        "unet",
        "unetpp",
        "attention_unet",
        "unext",
        "swin_unet",
        "medsegdiff",
        "trans_unet",
        "biedsnet",
    ],
    "table2": ["row1", "row2", "row3", "row4", "row5"],
}


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
