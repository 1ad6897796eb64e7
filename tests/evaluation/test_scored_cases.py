"""What mode evaluate scores: the recorded test, named cases, all of another data set;
and what of it was trained on.
"""

import json
import shutil

import pytest
from case_folders import cfg_of, sides, start, write
from refusals import refused

from biedsnet_jax.config import split_record
from biedsnet_jax.evaluation import scored_cases

CASES = ["p1", "p2", "p3", "p4", "p5", "p6"]
NAMED = {
    "split__train": ("p1", "p2", "p3"),
    "split__val": ("p4",),
    "split__test": ("p5", "p6"),
}
OWN = {"train": ["p1", "p2", "p3"], "val": ["p4"], "test": ["p5", "p6"]}


@pytest.fixture
def run(tmp_path):
    """Begins a run on six cases; returns (root, workdir)."""
    root = write(tmp_path / "ours", CASES)
    workdir = tmp_path / "run"
    start(cfg_of(root, **NAMED), workdir)
    return root, workdir


def opened(root, workdir, *test, **fields):
    named = {"split__test": test} if test else {}
    return scored_cases.open_data(cfg_of(root, **(NAMED | named | fields)), workdir)


def own_test(scope):
    """Whether a scope is the run's own test, with the fingerprint of some files."""
    expected = scored_cases.Scope(fingerprint=scope.fingerprint)
    return scope == expected and scope.fingerprint is not None


def test_the_run_itself_is_the_recorded_test(run, capsys):
    data, scope = opened(*run)
    assert sides(data) == OWN
    assert own_test(scope)
    assert scored_cases.of_training(run[1], data) == scope
    assert capsys.readouterr().err == ""


def test_what_was_added_is_left_out_and_what_is_missing_stops(run, capsys):
    root, workdir = run
    write(root, ["p0", "p7"], first=20)
    data, scope = opened(root, workdir)
    assert sides(data) == OWN
    assert own_test(scope)
    assert "Left out: 2 cases (p0, p7)" in capsys.readouterr().err
    for case in ("p5", "p4", "p1"):
        for kind in ("images", "masks"):
            shutil.move(root / kind / case, root / f"{kind} {case}")
        refused(lambda: opened(root, workdir), f"1 case ({case}) of the 6", root)
        for kind in ("images", "masks"):
            shutil.move(root / f"{kind} {case}", root / kind / case)
    assert sides(opened(root, workdir)[0]) == OWN


@pytest.mark.parametrize("there", [CASES, ["p5", "p6"], ["p1", "p5", "p6"]])
def test_the_same_data_elsewhere_are_the_runs_own(run, tmp_path, there):
    root, workdir = run
    for case in there:
        for kind in ("images", "masks"):
            shutil.copytree(root / kind / case, tmp_path / "moved" / kind / case)
    data, scope = opened(tmp_path / "moved", workdir)
    assert data.cases("test") == ["p5", "p6"]
    assert own_test(scope)


def test_a_link_to_the_data_is_the_data(run, tmp_path):
    (tmp_path / "link").symlink_to(run[0])
    assert own_test(opened(tmp_path / "link", run[1])[1])


def test_all_cases_of_another_data_set_are_scored(run, tmp_path, capsys):
    theirs = write(tmp_path / "theirs", [f"q{n}" for n in range(5)], first=30)
    data, scope = opened(theirs, run[1])
    assert sides(data) == {"train": [], "val": [], "test": [f"q{n}" for n in range(5)]}
    assert scope.differs == {"data.root": [str(run[0]), str(theirs)]}
    assert (scope.dataset, scope.trained_on, data.root) == ("theirs", {}, str(theirs))
    assert (
        opened(theirs, run[1], data__name="the other hospital")[1].dataset
        == "the other hospital"
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bytes_of", ["all", "the test"])
def test_the_same_names_with_other_bytes_are_another_data_set(run, tmp_path, bytes_of):
    write(tmp_path / "theirs", CASES, first=0 if bytes_of == "the test" else 40)
    if bytes_of == "the test":
        shutil.copy(
            tmp_path / "theirs" / "masks" / "p5" / "0.png",
            tmp_path / "theirs" / "masks" / "p6" / "0.png",
        )
    data, scope = opened(tmp_path / "theirs", run[1])
    assert data.cases("test") == CASES
    assert "data.root" in scope.differs
    # Recognised by content: a name alone says nothing on another data set.
    assert scope.trained_on == (
        {}
        if bytes_of == "all"
        else {"p1": "train", "p2": "train", "p3": "train", "p4": "val"}
    )


def test_a_larger_set_that_has_the_runs_cases_is_another_one(run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "theirs")
    write(tmp_path / "theirs", ["q1", "q2"], first=30)
    data, scope = opened(tmp_path / "theirs", run[1])
    assert data.cases("test") == [*CASES, "q1", "q2"]
    assert scope.trained_on == {
        "p1": "train",
        "p2": "train",
        "p3": "train",
        "p4": "val",
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "warning: The model was trained or validated on 4 of the 8 cases scored: "
        "p1 (train), p2 (train), p3 (train) and 1 more."
    )


def test_cases_of_the_training_are_known_by_content_under_any_name(run, tmp_path):
    for kind in ("images", "masks"):
        shutil.copytree(run[0] / kind / "p2", tmp_path / "theirs" / kind / "renamed")
        shutil.copytree(run[0] / kind / "p4", tmp_path / "theirs" / kind / "also")
        shutil.copytree(run[0] / kind / "p6", tmp_path / "theirs" / kind / "tested")
    write(tmp_path / "theirs", ["p1"], first=50)
    assert opened(tmp_path / "theirs", run[1])[1].trained_on == {
        "also": "val",
        "renamed": "train",
    }


@pytest.mark.parametrize(
    ("names", "scored", "trained_on"),
    [
        (("p5",), ["p5"], {}),
        (("p[56]", "p2"), ["p2", "p5", "p6"], {"p2": "train"}),
        (
            ("*",),
            [*CASES, "p7"],
            {"p1": "train", "p2": "train", "p3": "train", "p4": "val"},
        ),
        (("p7",), ["p7"], {}),
    ],
)
def test_cases_can_be_named_those_that_were_added_too(run, names, scored, trained_on):
    root, workdir = run
    write(root, ["p7"], first=20)
    data, scope = opened(root, workdir, *names)
    assert data.cases("test") == scored
    assert scope.trained_on == trained_on
    assert scope.differs == {"split.test": [["p5", "p6"], list(names)]}


def test_cases_of_another_data_set_can_be_named(run, tmp_path):
    theirs = write(tmp_path / "theirs", [*(f"q{n}" for n in range(3)), "7"], first=30)
    # Flags read a case called 7 as a number.
    data, scope = opened(theirs, run[1], "q1", 7)
    assert data.cases("test") == ["7", "q1"]
    assert set(scope.differs) == {
        "data.root",
        "split.test",
    }
    refused(lambda: opened(theirs, run[1], "r1"), "split.test", "r1", "q1")


@pytest.mark.parametrize(
    ("names", "first", "alike"),
    [
        (["p1", "p4", "p5"], 50, ["p1", "p4"]),
        (["p2"], 60, ["p2"]),
        (["p5", "q1"], 70, []),
        (["p1", "p2"], 0, []),
    ],
)
def test_other_data_with_names_of_the_training_are_named(
    run, tmp_path, capsys, names, first, alike
):
    theirs = write(tmp_path / "theirs", names, first=first)
    _, scope = opened(theirs, run[1])
    warned = capsys.readouterr().err
    assert scope.trained_on == ({} if first else {"p1": "train", "p2": "train"})
    assert ("have the name of a case" in warned) == bool(alike)
    if alike:
        assert f"{len(alike)} of the {len(names)} cases" in warned
        assert ": " + ", ".join(alike) + "." in warned


def test_one_case_is_enough(run, tmp_path):
    theirs = write(tmp_path / "theirs", ["only"], first=30)
    assert opened(theirs, run[1])[0].cases("test") == ["only"]


# ---- Workdirs of an earlier version


@pytest.fixture
def old(run):
    """Begins a run without a record; returns its config, workdir and tested cases."""
    root, workdir = run
    shutil.rmtree(workdir)
    cfg = cfg_of(root, split__fractions=(0.5, 0.2, 0.3))
    tested = start(cfg, workdir).cases("test")
    (workdir / split_record.NAME).unlink()
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    return cfg, workdir, tested


@pytest.mark.parametrize("agree", [True, None])
def test_an_old_workdir_is_recorded_only_where_its_results_agree(old, capsys, agree):
    cfg, workdir, tested = old
    if agree:
        (workdir / "results.json").write_text(json.dumps({"cases": tested}))
    data, scope = scored_cases.open_data(cfg, workdir)
    assert data.cases("test") == tested
    assert scope.differs == {}
    assert scope.trained_on == ({} if agree else None)
    assert (workdir / split_record.NAME).exists() == bool(agree)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{workdir} has no record of its split" in line
    assert ("recorded now" in line) == bool(agree)
    if agree:
        scored_cases.open_data(cfg, workdir)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("again", [1, 2, 3])
def test_scores_of_a_split_that_could_not_be_told_prove_nothing_later(old, again):
    cfg, workdir, tested = old
    for _ in range(again):
        _, scope = scored_cases.open_data(cfg, workdir)
        found = {"cases": tested, "trained_on": scope.trained_on}
        (workdir / "results.json").write_text(json.dumps(found))
    assert scope.trained_on is None
    assert not (workdir / split_record.NAME).exists()


def test_an_old_workdir_that_was_tested_on_others_stops_but_for_named_cases(old):
    cfg, workdir, tested = old
    (workdir / "results.json").write_text(json.dumps({"cases": ["p9", *tested]}))
    refused(
        lambda: scored_cases.open_data(cfg, workdir), "The data changed since", "p9"
    )
    cfg.split.test = ("p1",)
    data, scope = scored_cases.open_data(cfg, workdir)
    assert data.cases("test") == ["p1"]
    assert scope.trained_on is None
    assert not (workdir / split_record.NAME).exists()


@pytest.mark.parametrize("moved", [True, False])
def test_other_data_of_an_old_workdir_are_its_own_only_where_it_was_moved(
    old, tmp_path, capsys, moved
):
    cfg, workdir, tested = old
    (workdir / "results.json").write_text(json.dumps({"cases": tested}))
    (shutil.move if moved else shutil.copytree)(tmp_path / "ours", tmp_path / "there")
    cfg.data.root = str(tmp_path / "there")
    data, scope = scored_cases.open_data(cfg, workdir)
    assert data.cases("test") == (tested if moved else CASES)
    assert bool(scope.differs) != moved
    assert scope.trained_on == ({} if moved else None)
    assert ("unnoticed" in capsys.readouterr().err) != moved


# ---- Several workdirs as one model


@pytest.fixture
def folds(run, tmp_path):
    """A second run on the same data, with other sides; returns its workdir."""
    sides = {
        "split__train": ("p4", "p5"),
        "split__val": ("p1",),
        "split__test": ("p2", "p3"),
    }
    start(cfg_of(run[0], **sides), tmp_path / "other")
    return tmp_path / "other"


def together(root, workdirs, *test):
    named = {"split__test": test} if test else {}
    return scored_cases.open_together(cfg_of(root, **(NAMED | named)), workdirs)


def test_what_any_model_was_trained_on_is_recognised(run, folds, capsys):
    root, workdir = run
    data, scope = together(root, [workdir, folds])
    assert sides(data) == OWN
    # p6 lies on no side of the other run that it learned from.
    assert scope.trained_on == {"p5": "train"}
    assert "1 of the 2 cases scored: p5 (train)." in capsys.readouterr().err
    places = [str(workdir), str(folds)]
    assert scope.differs == {"members": [places[:1], places]}


def test_training_wins_over_validation_whichever_run_it_was(run, folds, tmp_path):
    root, workdir = run
    _, scope = together(root, [workdir, folds], "p1", "p4", "p6")
    # p1 was trained on by the first, p4 by the second.
    assert scope.trained_on == {"p1": "train", "p4": "train"}
    assert list(scope.differs) == ["split.test", "members"]


def test_other_data_is_compared_with_what_all_models_saw(run, folds, tmp_path):
    for kind in ("images", "masks"):
        for case in ("p5", "p6"):
            source = run[0] / kind / case
            shutil.copytree(source, tmp_path / "theirs" / kind / f"{case} again")
    data, scope = together(tmp_path / "theirs", [run[1], folds])
    assert data.cases("test") == ["p5 again", "p6 again"]
    assert scope.trained_on == {"p5 again": "train"}


def test_a_member_without_a_record_leaves_it_open(run, folds, tmp_path, capsys):
    shutil.copytree(folds, tmp_path / "older")
    (tmp_path / "older" / "split.json").unlink()
    _, scope = together(run[0], [run[1], tmp_path / "older"])
    assert scope.trained_on is None
    assert f"{tmp_path / 'older'} has no record" in capsys.readouterr().err
    # What is known of the others is said all the same.
    _, scope = together(run[0], [run[1], folds, tmp_path / "older"])
    assert scope.trained_on == {"p5": "train"}


def test_one_workdir_is_that_run(run):
    scope = together(run[0], [run[1]])[1]
    assert scope == scored_cases.Scope(fingerprint=scope.fingerprint)
    assert len(scope.fingerprint) == 32
