"""The line at a training's start that names split.folds where few cases are tested."""

import pytest
from case_folders import cfg_of, start, write

from biedsnet_jax.training import few_cases


def line_of(tmp_path, cases, **fields):
    root = write(tmp_path / "data", [f"p{n}" for n in range(cases)])
    cfg = cfg_of(root, **fields)
    return few_cases.line(cfg, start(cfg, tmp_path / "run"))


@pytest.mark.parametrize(
    ("cases", "tested", "folds"), [(4, 1, 2), (5, 1, 2), (8, 2, 4), (11, 2, 5)]
)
def test_few_tested_cases_name_as_many_folds_as_suit(tmp_path, cases, tested, folds):
    shares = (1 - 2 * tested / cases, tested / cases, tested / cases)
    line = line_of(tmp_path, cases, split__fractions=shares)
    assert line.startswith(f"{tested} test case")
    assert f"all {cases}" in line
    assert f"split.folds={folds} with --config.split.fold=0 to {folds - 1}," in line


@pytest.mark.parametrize(
    ("cases", "fields"),
    [
        (3, {"split__fractions": (0.4, 0.3, 0.3)}),
        (12, {"split__fractions": (0.5, 0.25, 0.25)}),
        (6, {"split__folds": 3}),
    ],
)
def test_none_with_three_cases_too_few_cases_or_a_fold(tmp_path, cases, fields):
    assert line_of(tmp_path, cases, **fields) == ""


def test_sides_that_are_named_or_are_folders_must_go_first(tmp_path):
    named = {"train": ("p0", "p1", "p2"), "val": ("p3",), "test": ("p4",)}
    fields = {f"split__{side}": names for side, names in named.items()}
    line = line_of(tmp_path / "named", 5, **fields)
    assert "leave out split.train" in line
    root = tmp_path / "folders" / "data"
    for number, side in enumerate(("train", "val", "test")):
        cases = [f"{side}/p{2 * number}", f"{side}/p{2 * number + 1}"]
        write(root, cases, first=2 * number)
    cfg = cfg_of(root)
    line = few_cases.line(cfg, start(cfg, tmp_path / "folders" / "run"))
    assert "into one folder" in line
    assert "split.folds=3" in line


def test_a_student_keeps_the_split_of_its_teacher(tmp_path):
    root = write(tmp_path / "data", [f"p{n}" for n in range(6)])
    cfg = cfg_of(root)
    data = start(cfg, tmp_path / "run")
    assert few_cases.line(cfg, data)
    with cfg.unlocked():
        cfg.distill = {"teacher": "x"}
    assert few_cases.line(cfg, data) == ""
