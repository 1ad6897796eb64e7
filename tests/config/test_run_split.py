"""A run keeps the split that it was started with: cases added, taken away, changed,
moved; students; old workdirs.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from case_folders import SLICES, cfg_of, sides, start, write
from refusals import refused

from biedsnet_jax.config import build_data, run_config, run_split, split_record
from biedsnet_jax.data import splits, walk
from biedsnet_jax.data.sources.source import Facts
from configs import phantom

CASES = [f"p{n:02d}" for n in range(1, 9)]
THIRDS = {"split__fractions": (0.5, 0.25, 0.25)}


@pytest.fixture
def run(tmp_path):
    """(config, workdir, root, sides) of a run that was started on eight cases."""
    root, workdir = write(tmp_path / "data", CASES), tmp_path / "run"
    cfg = cfg_of(root, **THIRDS)
    return cfg, workdir, root, sides(start(cfg, workdir))


def test_the_record_is_what_was_dealt(run):
    cfg, workdir, root, at_start = run
    cases = [case for case in CASES for _ in range(SLICES)]
    dealt = splits.by_case(cases, (0.5, 0.25, 0.25), cfg.split.seed)
    assert at_start == {
        side: sorted({cases[i] for i in numbers}) for side, numbers in dealt.items()
    }
    record = split_record.load(workdir)
    assert (record.root, dict(record.sides)) == (str(root), at_start)
    assert len(set(record.fingerprints.values())) == len(record.fingerprints) == 8


@pytest.mark.parametrize(
    ("added", "fields"),
    [
        (["p09"], THIRDS),
        (["a", "p00", "p045"], THIRDS),
        (["p09", "p10"], {"split__folds": 4, "split__fold": 1}),
        (
            ["p09"],
            {
                "split__train": ("p0[1-5]",),
                "split__val": ("p06",),
                "split__test": ("p0*7", "p09*"),
            },
        ),
    ],
)
def test_cases_that_are_added_lie_on_no_side_and_move_no_other(
    tmp_path, capsys, added, fields
):
    root, workdir = write(tmp_path / "data", CASES), tmp_path / "run"
    if "split__test" in fields:
        # Fits nothing that was added later: p09 is there at first.
        write(root, ["p09_first"], first=50)
    cfg = cfg_of(root, **fields)
    before = start(cfg, workdir)
    slices = [before.source[i] for i in before.train + before.val + before.test]
    assert capsys.readouterr().err == ""
    write(root, added, first=20)
    again = start(cfg, workdir)
    assert sides(again) == sides(before) and (again.train, again.test) == (
        before.train,
        before.test,
    )
    for i, one in zip(again.train + again.val + again.test, slices):
        np.testing.assert_array_equal(again.source[i]["image"], one["image"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: Left out: {len(added)} case") and all(
        case in line for case in added
    )
    assert not set(added) & split_record.load(workdir).cases


def test_cases_that_were_left_out_at_the_start_are_not_called_new(tmp_path, capsys):
    root = write(tmp_path / "data", CASES)
    cfg = cfg_of(root, split__train=("p01",), split__val=("p02",), split__test=("p03",))
    start(cfg, tmp_path / "run")
    start(cfg, tmp_path / "run")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("side", split_record.SIDES)
def test_a_missing_case_stops_with_its_name(run, side):
    cfg, workdir, root, at_start = run
    gone = at_start[side][0]
    for kind in ("images", "masks"):
        shutil.rmtree(root / kind / gone)
    refused(
        lambda: start(cfg, workdir),
        f"Missing from {root}: 1 case ({gone}) of the 8",
        workdir,
    )
    # as many cases as before are not enough
    write(root, ["another"], first=30)
    refused(lambda: start(cfg, workdir), gone)


@pytest.mark.parametrize("kind", ["images", "masks", "a slice more"])
def test_a_case_with_other_bytes_is_named(run, capsys, kind):
    cfg, workdir, root, at_start = run
    if kind == "a slice more":
        for folder in ("images", "masks"):
            shutil.copy(
                root / folder / "p03" / "0.png", root / folder / "p03" / "9.png"
            )
    else:
        shutil.copy(root / kind / "p04" / "0.png", root / kind / "p03" / "0.png")
    assert sides(start(cfg, workdir)) == at_start
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: Changed since") and "1 case (p03)" in line


def test_a_moved_root_has_the_same_split(run, tmp_path, capsys):
    _, workdir, root, at_start = run
    moved = cfg_of(shutil.move(root, tmp_path / "elsewhere"), **THIRDS)
    write(tmp_path / "elsewhere", ["p00"], first=40)
    assert sides(start(moved, workdir)) == at_start
    assert "Left out: 1 case (p00)" in capsys.readouterr().err


class Made:
    """A source with two slices a case, one case without any, files and warnings."""

    def __init__(self, facts, cases=("a", "a", "b", "c", "d")):
        self.facts, self.cases = facts, cases

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        return {}

    def verify(self):
        pass


@pytest.fixture
def sourced(monkeypatch):
    """Has a folder's source be `Made` of these arguments."""

    def use(*arguments):
        monkeypatch.setattr(
            build_data, "ImageFolder", lambda *_, **fields: Made(*arguments)
        )

    return use


def test_a_case_without_slices_is_neither_missing_nor_new(tmp_path, sourced, capsys):
    paths = {}
    for case in "abcd":
        paths[case] = [tmp_path / case]
        paths[case][0].write_text(case)
    cfg = cfg_of(tmp_path, data__cache=False, data__verify=False)
    sourced(Facts(files=paths))
    at_start = sides(start(cfg, tmp_path / "run"))
    (lost, *_), others = (
        at_start["train"],
        {case for side in ("val", "test") for case in at_start[side]},
    )
    assert others.isdisjoint({lost})
    fewer = [case for case in "aabcd" if case != lost]
    sourced(Facts(files=paths), fewer)
    again = sides(start(cfg, tmp_path / "run"))
    assert again == at_start | {
        "train": [case for case in at_start["train"] if case != lost]
    }
    assert capsys.readouterr().err == ""
    bare = [case for case in "aabcd" if case not in at_start["test"]]
    sourced(Facts(files=paths), bare)
    refused(lambda: start(cfg, tmp_path / "run"), "no slices of the side test")


def test_what_is_passed_over_and_warned_of_is_told(tmp_path, sourced, capsys):
    passed = [walk.PassedOver(tmp_path / name, "hidden") for name in (".a", ".b")]
    facts = Facts(passed=passed, notes=["one thing", "another"])
    sourced(facts)
    start(cfg_of(tmp_path, data__verify=False), tmp_path / "run")
    assert capsys.readouterr().err == "warning: one thing\nwarning: another\n"
    lines = (tmp_path / "run" / walk.RECORD).read_text().splitlines()
    assert lines == ["file,why", f"{tmp_path}/.a,hidden", f"{tmp_path}/.b,hidden"]
    sourced(Facts())
    start(cfg_of(tmp_path, data__verify=False), tmp_path / "run")
    assert not (tmp_path / "run" / walk.RECORD).exists()


def test_a_case_of_the_test_that_training_has_under_another_name_is_told(
    tmp_path, capsys
):
    root = write(tmp_path / "data", CASES)
    for kind in ("images", "masks"):
        shutil.copytree(root / kind / "p01", root / kind / "p08", dirs_exist_ok=True)
    named = {
        "split__train": ("p0[1-4]",),
        "split__val": ("p05",),
        "split__test": ("p0[6-8]",),
    }
    start(cfg_of(root, **named), tmp_path / "run")
    assert "1 case (p08) with the same content" in capsys.readouterr().err


def test_a_source_that_reads_nothing_has_a_record_too(tmp_path):
    cfg = phantom.get_config()
    cfg.data.phantom.update(n_cases=5, slices_per_case=2)
    at_start = sides(start(cfg, tmp_path / "run"))
    record = split_record.load(tmp_path / "run")
    assert (record.root, record.fingerprints, dict(record.sides)) == ("", {}, at_start)
    assert sides(start(cfg, tmp_path / "run")) == at_start


# ---- When there is no record, or none that counts


def test_a_record_of_a_run_that_never_began_is_made_anew(run):
    cfg, workdir, root, at_start = run
    (workdir / "config.json").unlink()
    write(root, ["p09", "p10", "p11"], first=30)
    fresh = sides(start(cfg, workdir))
    assert fresh != at_start and "p10" in {
        case for names in fresh.values() for case in names
    }
    assert dict(split_record.load(workdir).sides) == fresh


def test_a_damaged_record_stops_before_anything_is_dealt(run):
    cfg, workdir, _, _ = run
    (workdir / split_record.NAME).write_bytes(b"\0" * 200)
    refused(lambda: start(cfg, workdir), workdir / split_record.NAME, "damaged")


def as_of_an_earlier_version(workdir, tested=None):
    """Without a record, with a step that was taken, and with results of these cases."""
    (workdir / split_record.NAME).unlink()
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    if tested is not None:
        (workdir / "results.json").write_text(json.dumps({"cases": tested}))


@pytest.mark.parametrize("has_results", [False, True])
def test_an_old_workdir_goes_on_and_says_once_that_it_had_no_record(
    run, capsys, has_results
):
    cfg, workdir, _, at_start = run
    as_of_an_earlier_version(workdir, at_start["test"] if has_results else None)
    assert sides(start(cfg, workdir)) == at_start
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"warning: {workdir} has no record of its split")
        and "recorded now" in line
    )
    assert sides(start(cfg, workdir)) == at_start and capsys.readouterr().err == ""


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_an_old_workdir_whose_test_would_be_another_stops(run, change):
    cfg, workdir, root, at_start = run
    as_of_an_earlier_version(workdir, at_start["test"])
    if change == "added":
        write(root, [f"q{n}" for n in range(6)], first=30)
    for kind in ("images", "masks"):
        one = root / kind / at_start["test"][0]
        if change == "removed":
            shutil.rmtree(one)
        elif change == "renamed":
            one.rename(one.with_name("p99"))
    refused(
        lambda: start(cfg, workdir),
        f"The data changed since {workdir} was tested",
        "--config.split.test",
    )
    assert not (workdir / split_record.NAME).exists()


def test_a_damaged_results_file_is_no_reason_to_stop(run, capsys):
    cfg, workdir, _, at_start = run
    as_of_an_earlier_version(workdir)
    for text in ("{", "[]", '{"cases": null}', "\0" * 50):
        (workdir / "results.json").write_text(text)
        assert sides(start(cfg, workdir)) == at_start
        (workdir / split_record.NAME).unlink()


def test_an_imported_workdir_is_not_called_old(tmp_path, capsys):
    """It has a checkpoint of step 0 and no split until it is trained."""
    cfg, workdir = cfg_of(write(tmp_path / "data", CASES)), tmp_path / "run"
    (workdir / "checkpoints" / "0").mkdir(parents=True)
    run_config.save(cfg, workdir / "config.json")
    at_start = sides(start(cfg, workdir))
    assert (
        capsys.readouterr().err == ""
        and dict(split_record.load(workdir).sides) == at_start
    )


# ---- Students


def student_of(cfg, teacher):
    c = cfg.copy_and_resolve_references()
    with c.unlocked():
        c.distill = {"teacher": str(teacher), "step": 0, "grid": 5, "truth_weight": 1.0}
    return c


def test_a_student_has_its_teachers_sides_whatever_was_added(run, tmp_path, capsys):
    cfg, workdir, root, at_start = run
    write(root, ["p00", "p09", "p10"], first=30)
    student = student_of(cfg, workdir)
    assert sides(start(student, tmp_path / "student")) == at_start
    assert split_record.load(tmp_path / "student") == split_record.load(workdir)
    # it goes on without its teacher's record
    shutil.rmtree(workdir)
    assert sides(start(student, tmp_path / "student")) == at_start


def test_a_student_of_an_old_teacher_says_where_the_sides_are_recorded(
    run, tmp_path, capsys
):
    cfg, workdir, _, at_start = run
    as_of_an_earlier_version(workdir, at_start["test"])
    start(student_of(cfg, workdir), tmp_path / "student")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {workdir} has no record of its split")
    assert line.endswith(f"They are recorded now in {tmp_path / 'student'}.")
    assert not (workdir / split_record.NAME).exists()
    assert (tmp_path / "student" / split_record.NAME).exists()


def test_a_student_of_an_old_teacher_is_not_tested_on_what_it_was_trained_on(
    run, tmp_path
):
    cfg, workdir, root, at_start = run
    as_of_an_earlier_version(workdir, at_start["test"])
    student = student_of(cfg, workdir)
    assert sides(start(student, tmp_path / "one")) == at_start
    write(root, [f"q{n}" for n in range(6)], first=30)
    refused(
        lambda: start(student, tmp_path / "two"),
        f"The data changed since {workdir} was tested",
    )
    assert sides(start(student, tmp_path / "one")) == at_start


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 1), ("fractions", (0.6, 0.2, 0.2)), ("folds", 3), ("test", ("p01",))],
)
def test_a_student_with_another_split_than_its_teacher_is_refused(
    run, tmp_path, field, value
):
    cfg, workdir, _, _ = run
    student = student_of(cfg, workdir)
    student.split[field] = value
    refused(lambda: run_config.check_teacher(student), f"split.{field}", workdir)


def test_the_part_of_a_source_is_a_source():
    part = run_split.Part(Made(Facts(notes=["x"])), [1, 3])
    assert (len(part), part.cases, part.facts.notes) == (2, ["a", "c"], ["x"])
    assert dataclasses.is_dataclass(part) and part[0] == {}
