"""The benchmark of sampling steps chooses well, and goes on where it was stopped."""

import argparse
import json
import sys

import pytest
from places import ROOT

from benchmarks import quality_vs_steps


def scored(steps, dice, ensemble=5):
    return quality_vs_steps.row("ddim", steps) | {"dice": dice, "ensemble": ensemble}


@pytest.mark.parametrize(
    ("table", "chosen"),
    [
        # 0.797 is within 0.003 of 0.8, 0.796 is not.
        ([(1, 0.7), (2, 0.796), (5, 0.797), (50, 0.8)], 2),
        ([(1, 0.9), (50, 0.8)], 0),
        # Of two that are equally quick the better one is chosen.
        ([(2, 0.798), (2, 0.799), (50, 0.8)], 1),
        # 2 steps of 10 samples take 20 evaluations, 3 of 5 take 15.
        ([(2, 0.8, 10), (3, 0.8, 5)], 1),
    ],
)
def test_the_fewest_evaluations_within_the_margin(table, chosen):
    rows = [scored(*entry) for entry in table]
    assert quality_vs_steps.choose(rows) is rows[chosen]


def test_the_sweep_has_every_sampler_and_all_of_t_and_no_row_twice():
    rows = quality_vs_steps.sweep(1000)
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    assert {row["steps"] for row in rows if row["method"] == "ddim"} == set(
        quality_vs_steps.STEPS
    )
    assert [row["method"] for row in rows if row["steps"] == 1000] == ["ddpm"]
    assert max(row["steps"] for row in quality_vs_steps.sweep(30)) == 30


def test_methods_leave_their_plain_rows_and_a_name_that_is_none_is_refused(
    monkeypatch, capsys
):
    arguments = argparse.Namespace(methods=("ddpm",), most_steps=10)
    left = [
        row
        for row in quality_vs_steps.sweep(1000)
        if quality_vs_steps.is_wanted(row, arguments)
    ]
    assert left == [
        quality_vs_steps.row("ddpm", steps)
        for steps in quality_vs_steps.STEPS
        if 1 < steps <= 10
    ]
    monkeypatch.setattr(sys, "argv", ["x", "--workdir=w", "--methods=ddpm,euler"])
    with pytest.raises(SystemExit):
        quality_vs_steps.main()
    assert "euler. Give some of ddim, dpm_solver, ddpm" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_trains_scores_and_goes_on(tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    rows = [quality_vs_steps.row("ddim", 1), quality_vs_steps.row("ddpm", 2)]
    monkeypatch.setattr(quality_vs_steps, "sweep", lambda timesteps: rows[:asked])
    monkeypatch.setattr(quality_vs_steps, "SAMPLES", (1,))
    line = ["x", f"--workdir={workdir}", "--samples=1", "--images=2"]
    line.append("--most-steps=2")
    first = [
        f"--config={ROOT / 'configs' / 'phantom.py'}:toy",
        "--config.train.batch_size=8",
    ]
    first += [
        "--config.eval.batch_size=8",
        "--config.compile_cache=",
        "--config.log.tensorboard=False",
    ]
    asked = 1
    monkeypatch.setattr(sys, "argv", [*line, *first])
    assert quality_vs_steps.main() == 0
    (kept,) = json.loads((workdir / "quality_vs_steps.json").read_text())
    assert (kept["method"], kept["steps"], kept["images"], kept["checkpoint_step"]) == (
        "ddim",
        1,
        2,
        4,
    )
    assert 0 <= kept["dice"] <= 1 and kept["seconds_per_image"] > 0

    asked, done = 2, json.dumps(kept | {"dice": 0.125})
    # A row that was measured again would not have 0.125.
    (workdir / "quality_vs_steps.json").write_text(f"[{done}]")
    # Without --config, config and weights are those of the workdir.
    monkeypatch.setattr(sys, "argv", line)
    capsys.readouterr()
    assert quality_vs_steps.main() == 0
    found = json.loads((workdir / "quality_vs_steps.json").read_text())
    assert [(row["method"], row["steps"]) for row in found] == [
        ("ddim", 1),
        ("ddpm", 2),
    ]
    printed = capsys.readouterr().out
    assert f"| ddim | 1 | trailing | 1 | 0.1250 | {kept['hd95']:.2f} |" in printed
    assert f"| ddpm | 2 | trailing | 1 | {found[1]['dice']:.4f} |" in printed
    assert (
        f"best: {'ddim 1' if found[1]['dice'] < 0.125 else 'ddpm 2'} trailing 1, Dice"
        in printed
    )
