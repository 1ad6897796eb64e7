"""A run keeps the split that it was started with, whatever becomes of its data."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from case_folders import SLICES, cfg_of, sides, start, write
from refusals import refused

from biedsnet_jax.config import build_data, run_config, run_split, split_record
from biedsnet_jax.data import splits, walk
from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Facts
from configs import phantom

CASES = [f"p{n:02d}" for n in range(1, 9)]
THIRDS = {"split__fractions": (0.5, 0.25, 0.25)}


@pytest.fixture
def run(tmp_path):
    """Config, workdir, root and sides of a run that was started on eight cases."""
    root, workdir = write(tmp_path / "data", CASES), tmp_path / "run"
    cfg = cfg_of(root, **THIRDS)
    return cfg, workdir, root, sides(start(cfg, workdir))


def test_the_record_is_the_split_of_the_start(run):
    cfg, workdir, root, at_start = run
    cases = [case for case in CASES for _ in range(SLICES)]
    dealt = splits.by_case(cases, (0.5, 0.25, 0.25), cfg.split.seed)
    for side, numbers in dealt.items():
        assert at_start[side] == sorted({cases[i] for i in numbers})
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
def test_added_cases_lie_on_no_side_and_move_no_other(tmp_path, capsys, added, fields):
    root, workdir = write(tmp_path / "data", CASES), tmp_path / "run"
    if "split__test" in fields:
        # A case that the patterns fit, beside those that are added later.
        write(root, ["p09_first"], first=50)
    cfg = cfg_of(root, **fields)
    before = start(cfg, workdir)
    slices = [before.source[i] for i in before.train + before.val + before.test]
    assert capsys.readouterr().err == ""
    write(root, added, first=20)
    again = start(cfg, workdir)
    assert sides(again) == sides(before)
    assert (again.train, again.test) == (before.train, before.test)
    for i, one in zip(again.train + again.val + again.test, slices):
        np.testing.assert_array_equal(again.source[i]["image"], one["image"])
    warned_once(capsys, "Left out", f"{len(added)} case", *added)
    assert not set(added) & split_record.load(workdir).cases


def warned_once(capsys, *parts):
    """Asserts that stderr has one line, a warning with every part."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    for part in parts:
        assert str(part) in line


def test_cases_that_were_left_out_at_the_start_are_not_new(tmp_path, capsys):
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
    says = (root, f"1 case ({gone}) of the 8", workdir, "--workdir")
    refused(lambda: start(cfg, workdir), *says)
    # As many cases as before are not enough.
    write(root, ["another"], first=30)
    refused(lambda: start(cfg, workdir), gone)


@pytest.mark.parametrize("kind", ["images", "masks", "a slice more"])
def test_a_case_with_other_bytes_is_named(run, capsys, kind):
    cfg, workdir, root, at_start = run
    if kind == "a slice more":
        for folder in (root / "images" / "p03", root / "masks" / "p03"):
            shutil.copy(folder / "0.png", folder / "9.png")
    else:
        shutil.copy(root / kind / "p04" / "0.png", root / kind / "p03" / "0.png")
    assert sides(start(cfg, workdir)) == at_start
    warned_once(capsys, "Changed", "1 case (p03)", root)


def test_a_moved_root_has_the_same_split(run, tmp_path, capsys):
    _, workdir, root, at_start = run
    moved = cfg_of(shutil.move(root, tmp_path / "elsewhere"), **THIRDS)
    write(tmp_path / "elsewhere", ["p00"], first=40)
    assert sides(start(moved, workdir)) == at_start
    warned_once(capsys, "Left out", "1 case (p00)")


class Made:
    """A source of cases, files and warnings without slices to read."""

    def __init__(self, facts, cases=("a", "a", "b", "c", "d")):
        self.facts, self.cases = facts, cases

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        return {}

    def scans(self, case):
        return iter(())

    def verify(self):
        pass


@pytest.fixture
def sourced(monkeypatch):
    """`sourced(*arguments)` replaces the source of a folder by `Made(*arguments)`."""

    def use(*arguments):
        made = Made(*arguments)
        monkeypatch.setattr(build_data, "ImageFolder", lambda *_, **fields: made)

    return use


def test_a_case_without_slices_is_neither_missing_nor_new(tmp_path, sourced, capsys):
    paths = {}
    for case in "abcd":
        paths[case] = [tmp_path / case]
        paths[case][0].write_text(case)
    cfg = cfg_of(tmp_path, data__cache=False, data__verify=False)
    sourced(Facts(files=paths))
    at_start = sides(start(cfg, tmp_path / "run"))
    lost, *rest = at_start["train"]
    sourced(Facts(files=paths), [case for case in "aabcd" if case != lost])
    again = sides(start(cfg, tmp_path / "run"))
    assert again == at_start | {"train": rest}
    assert capsys.readouterr().err == ""
    bare = [case for case in "aabcd" if case not in at_start["test"]]
    sourced(Facts(files=paths), bare)
    refused(lambda: start(cfg, tmp_path / "run"), "side test")


def test_what_is_passed_over_is_recorded_and_notes_are_warnings(
    tmp_path, sourced, capsys
):
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


def test_a_tested_case_that_training_has_by_another_name_is_a_warning(tmp_path, capsys):
    root = write(tmp_path / "data", CASES)
    for kind in ("images", "masks"):
        shutil.copytree(root / kind / "p01", root / kind / "p08", dirs_exist_ok=True)
    cfg = cfg_of(
        root,
        split__train=("p0[1-4]",),
        split__val=("p05",),
        split__test=("p0[6-8]",),
    )
    start(cfg, tmp_path / "run")
    warned_once(capsys, "1 case (p08)")


def test_a_tested_case_that_the_run_to_start_from_has_seen_is_a_warning(run, capsys):
    cfg, workdir, root, at_start = run
    for kind in ("images", "masks"):
        (seen,) = at_start["val"][:1]
        shutil.copytree(root / kind / seen, root / kind / "z01")
    sides_of = {"split__train": ("p0[1-7]",), "split__val": ("p08",)}
    named = cfg_of(root, split__test=("z01",), **sides_of)
    data = build_data.open_data(named)
    capsys.readouterr()
    run_split.warn_seen(workdir, data)
    warned_once(capsys, "1 case (z01)", str(workdir), "split.test")
    # A file of weights and a run on other data say nothing.
    run_split.warn_seen(workdir / "config.json", data)
    kept = run_split.open_training(cfg, workdir)
    capsys.readouterr()
    run_split.warn_seen(workdir, kept)
    assert capsys.readouterr().err == ""


def test_a_source_that_reads_nothing_has_a_record_too(tmp_path):
    cfg = phantom.get_config()
    cfg.data.phantom.update(n_cases=5, slices_per_case=2)
    at_start = sides(start(cfg, tmp_path / "run"))
    record = split_record.load(tmp_path / "run")
    assert (record.root, record.fingerprints, dict(record.sides)) == ("", {}, at_start)
    assert sides(start(cfg, tmp_path / "run")) == at_start


# --- no record, or one that does not count -------------------------------------------


def test_the_record_of_a_run_that_never_began_is_made_anew(run):
    cfg, workdir, root, at_start = run
    (workdir / "config.json").unlink()
    write(root, ["p09", "p10", "p11"], first=30)
    fresh = sides(start(cfg, workdir))
    assert fresh != at_start and any("p10" in cases for cases in fresh.values())
    assert dict(split_record.load(workdir).sides) == fresh


def test_a_damaged_record_stops_before_anything_is_dealt(run):
    cfg, workdir, _, _ = run
    (workdir / split_record.NAME).write_bytes(b"\0" * 200)
    refused(lambda: start(cfg, workdir), workdir / split_record.NAME)


def as_of_an_earlier_version(workdir, tested=None):
    """Removes the record, adds a step, and results of the cases `tested`."""
    (workdir / split_record.NAME).unlink()
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    if tested is not None:
        (workdir / "results.json").write_text(json.dumps({"cases": tested}))


@pytest.mark.parametrize("has_results", [False, True])
def test_an_old_workdir_goes_on_with_one_warning(run, capsys, has_results):
    cfg, workdir, _, at_start = run
    as_of_an_earlier_version(workdir, at_start["test"] if has_results else None)
    assert sides(start(cfg, workdir)) == at_start
    warned_once(capsys, f"{workdir} has no record", "recorded now")
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
    refused(lambda: start(cfg, workdir), workdir, "--config.split.test")
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
    assert capsys.readouterr().err == ""
    assert dict(split_record.load(workdir).sides) == at_start


# --- students ------------------------------------------------------------------------


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
    # It goes on without its teacher's record.
    shutil.rmtree(workdir)
    assert sides(start(student, tmp_path / "student")) == at_start


def test_the_sides_of_an_old_teacher_are_recorded_for_its_student(
    run, tmp_path, capsys
):
    cfg, workdir, _, at_start = run
    as_of_an_earlier_version(workdir, at_start["test"])
    start(student_of(cfg, workdir), tmp_path / "student")
    warned_once(capsys, f"{workdir} has no record", f" in {tmp_path / 'student'}.")
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
    refused(lambda: start(student, tmp_path / "two"), workdir, "--config.split.test")
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


def test_a_part_of_a_source_gives_scans_with_its_own_numbers():
    phantom = Phantom(n_cases=3, slices_per_case=2, size=16)
    part = run_split.Part(phantom, [0, 1, 4])
    assert [scan.indices for scan in part.scans("phantom_002")] == [[2], [None]]
    first, _ = part.scans("phantom_000")
    np.testing.assert_array_equal(first.truth[0], part[0]["mask"])
