"""Folders of evaluations: names, numbers and the index; whole evaluations of a made-up
model, the run's own and others.
"""

import csv
import functools
import hashlib
import itertools
import json
import os
import shutil

import optax
import pytest
from bright_model import Bright, in_place
from case_folders import cfg_of, start, write
from refusals import refused

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import run_config, split_record
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.data import walk
from biedsnet_jax.data.sources.image_folder import ImageFolder
from biedsnet_jax.evaluation import closing, evaluate, evaluations
from biedsnet_jax.reporting import report
from biedsnet_jax.runtime import lock
from biedsnet_jax.scoring import results
from biedsnet_jax.scoring.results import EVALUATIONS
from biedsnet_jax.segmenters import macs
from configs import folder, phantom

# ---- Names


@pytest.mark.parametrize(
    ("differs", "name"),
    [
        ({"data.root": ["/a/ours", "/b/theirs"]}, "theirs"),
        (
            {"sampler.steps": [1, 20], "sampler.ensemble": [5, 9]},
            "sampler.steps=20,sampler.ensemble=9",
        ),
        ({"data.root": ["/a", "/b/c"], "threshold": [0.5, 0.25]}, "c,threshold=0.25"),
        ({"data.root": ["", "/"]}, "data"),
        ({"data.root": ["/a", "/b/../.hidden dir"]}, "hidden_dir"),
        ({"split.test": [[], ["*"]]}, "split.test=all"),
        ({"split.test": [[], ["p 1", "site/b?*"]]}, "split.test=p_1+site_b_"),
        ({"data.root": ["/a", "/b/Zürich\n..\udcff"]}, "Zürich_.._"),
        ({"data.root": ["/a", "/b/Zu\u0308rich"]}, "Zürich"),
        ({"members": [["/a/f0"], ["/a/f0", "/b/f1"]]}, "ensemble_f0+f1"),
        (
            {"data.root": ["/a", "/theirs"], "members": [["/f0"], ["/f0", "/f1"]]},
            "theirs,ensemble_f0+f1",
        ),
    ],
)
def test_a_name_is_made_of_what_differs(tmp_path, differs, name):
    assert evaluations.folder_name(differs) == name.rstrip("._")
    (tmp_path / evaluations.folder_name(differs)).mkdir()


@pytest.mark.parametrize("letter", ["a", "é", "漢"])
def test_long_names_are_cut_and_told_apart(letter):
    one, other = (
        evaluations.folder_name({"data.root": ["/a", f"/{letter * 90}{end}"]})
        for end in "xy"
    )
    short = evaluations.folder_name({"data.root": ["/a", f"/{letter * 20}"]})
    if letter != "a":
        assert one != other
        assert max(len(name.encode()) for name in (one, other)) <= 100
    assert short == letter * 20
    names = [f"p{n}" for n in range(100)]
    many = [
        evaluations.folder_name({"split.test": [[], names[:count]]})
        for count in (99, 100)
    ]
    assert len(set(many)) == 2
    assert all(len(name) <= 100 for name in many)


def finished(folder, differs, root, **fields):
    folder.mkdir(parents=True)
    content = {
        "differs": differs,
        "data": root,
        "cases": ["a", "b"],
        "standard": {"dice": {"mean": 0.5}},
    }
    (folder / "results.json").write_text(json.dumps(content | fields))


def test_the_same_again_has_the_same_place_and_another_of_its_name_a_number(tmp_path):
    first, second, third = ({"data.root": ["/ours", f"/{n}/theirs"]} for n in "abc")
    place = functools.partial(evaluations.place, tmp_path)
    assert place({}) == tmp_path
    assert place(first) == tmp_path / EVALUATIONS / "theirs"
    finished(tmp_path / EVALUATIONS / "theirs", first, "/a/theirs")
    assert place(second).name == "theirs_2"
    finished(tmp_path / EVALUATIONS / "theirs_2", second, "/b/theirs")
    assert [place(one).name for one in (first, second, third)] == [
        "theirs",
        "theirs_2",
        "theirs_3",
    ]
    # The place of the run's own data does not matter.
    assert place({"data.root": ["/moved", "/b/theirs"]}).name == "theirs_2"


@pytest.mark.parametrize(
    "there", ["a file", "damaged", "no fields", "a dangling link", "interrupted"]
)
def test_what_is_no_evaluation_of_the_same_is_left_alone(tmp_path, there):
    path = tmp_path / EVALUATIONS / "theirs"
    path.parent.mkdir()
    if there == "a file":
        path.write_text("")
    elif there == "a dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    if there in ("damaged", "no fields"):
        (path / "results.json").write_text("{" if there == "damaged" else "[]")
    found = evaluations.place(tmp_path, {"data.root": ["/a", "/theirs"]})
    assert found.name == ("theirs" if there == "interrupted" else "theirs_2")


def test_the_index_follows_the_folders_and_changes_nothing_else(tmp_path):
    finished(tmp_path / EVALUATIONS / "x", {}, "/x")
    finished(
        tmp_path / EVALUATIONS / "y",
        {},
        None,
        cases=["c"],
        standard={"dice": {"mean": None}},
    )
    finished(tmp_path / EVALUATIONS / "damaged", {}, "/z", standard=None)
    # Without results of its own a workdir keeps no index.
    evaluations.update_index(tmp_path)
    assert not (tmp_path / "results.json").exists()
    (tmp_path / "results.json").write_text(json.dumps({"cases": ["p"], "n": 1.5}))
    os.utime(tmp_path / "results.json", ns=(10**18, 10**18))
    evaluations.update_index(tmp_path)
    unknown = {"trained_on": None, "grid": None, "ci95": None, "hd95": None}
    expected = {
        "x": {"data": "/x", "cases": 2, "dice": 0.5} | unknown,
        "y": {"data": None, "cases": 1, "dice": None} | unknown,
    }
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "cases": ["p"],
        "n": 1.5,
        EVALUATIONS: expected,
    }
    # The time of the file stays that of the scores.
    assert (tmp_path / "results.json").stat().st_mtime_ns == 10**18
    shutil.rmtree(tmp_path / EVALUATIONS / "x")
    evaluations.update_index(tmp_path)
    assert set(json.loads((tmp_path / "results.json").read_text())[EVALUATIONS]) == {
        "y"
    }


# ---- Which settings make a score another one


@pytest.mark.parametrize(
    ("field", "value", "counts", "counts_without_diffusion"),
    [
        ("sampler.steps", 7, True, False),
        ("sampler.ensemble", 3, True, False),
        ("sampler.eta", 1.0, True, False),
        ("fusion", "majority", True, False),
        ("sampler.mirror", "lr", True, True),
        ("threshold", 0.4, True, True),
        ("postprocess", False, True, True),
        ("eval.nsd_tolerance", 1.0, True, True),
        ("eval.nsd_tolerance_mm", 1.0, True, True),
        ("eval.lesions", True, True, True),
        # Counts only with eval.lesions.
        ("eval.lesion_overlap", 0.5, False, False),
        ("eval.batch_size", 2, False, False),
        ("eval.pictures", 3, False, False),
        ("data.cache", False, False, False),
        ("log.tensorboard", False, False, False),
    ],
)
def test_settings_that_change_scores(field, value, counts, counts_without_diffusion):
    for chosen, expected in (
        (phantom.get_config(), counts),
        (folder.get_config("unet"), counts_without_diffusion),
    ):
        other = chosen.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        before = get_field(chosen, field)
        found = evaluations.differences(chosen, other)
        if field == "eval.lesions":
            found.pop("eval.lesion_overlap")
        assert found == ({field: [before, value]} if expected else {})


def test_models_of_one_pass_are_fused_where_there_are_several():
    cfg = folder.get_config("unet")
    other = cfg.copy_and_resolve_references()
    other.fusion = "staple"
    found = evaluations.differences(cfg, other, pooled=True)
    assert found == {"fusion": ["mean", "staple"]}


def test_a_name_has_the_samplers_fields_in_the_pages_order():
    cfg = phantom.get_config()
    other = cfg.copy_and_resolve_references()
    other.sampler.update(steps=20, ensemble=9, eta=1.0, method="ddpm")
    name = evaluations.folder_name(evaluations.differences(cfg, other))
    assert (
        name
        == "sampler.method=ddpm,sampler.steps=20,sampler.ensemble=9,sampler.eta=1.0"
    )


def test_a_finished_run_keeps_the_settings_of_its_scores(tmp_path):
    cfg = phantom.get_config()
    other = cfg.copy_and_resolve_references()
    other.update_from_flattened_dict(
        {"sampler.steps": 9, "threshold": 0.3, "eval.batch_size": 2}
    )
    # The workdir is empty.
    assert evaluations.config_of_run(other, tmp_path) is other
    run_config.save(cfg, tmp_path / "config.json")
    (tmp_path / "results.json").write_text("{}")
    # The run was tested on the way and not trained to its end.
    assert evaluations.config_of_run(other, tmp_path) is other
    (tmp_path / "checkpoints" / str(cfg.train.steps)).mkdir(parents=True)
    kept = evaluations.config_of_run(other, tmp_path)
    assert evaluations.differences(cfg, kept) == {}
    assert kept.eval.batch_size == 2
    # The caller's config is left alone.
    assert other.sampler.steps == 9


# ---- Whole evaluations


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Makes a run of the made-up model on six cases and tests it."""
    root = tmp_path_factory.mktemp("runs")
    named = {
        "split.train": ("p1", "p2", "p3"),
        "split.val": ("p4",),
        "split.test": ("p5", "p6"),
    }
    cfg = cfg_of(
        write(root / "ours", [f"p{n}" for n in range(1, 7)]),
        eval__batch_size=8,
        sampler__ensemble=2,
    )
    cfg.update_from_flattened_dict(
        named | {"data.size": 16, "data.normalise": "minmax", "eval.pictures": 0}
    )
    start(cfg, root / "run")
    with checkpoint.Checkpoints(root / "run") as checkpoints:
        checkpoints.save(
            train_state.create(Bright().init(None, None), optax.identity()),
            config=cfg.to_dict(),
        )
    with in_place(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(macs, "prediction_gmacs", lambda *_, **fields: 0.0)
        evaluate.run(run_config.load(root / "run"), str(root / "run"))
    return root


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """Copies the tested run, to evaluate it again."""
    monkeypatch.setattr(macs, "prediction_gmacs", lambda *_, **fields: 0.0)
    shutil.copytree(trained / "run", tmp_path / "run")
    with in_place():
        yield tmp_path / "run"


def again(run, **fields):
    cfg = run_config.load(run)
    cfg.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return evaluate.run(cfg, str(run))


def kept(run):
    """Reads every file of a workdir but its other evaluations.

    Returns the bytes by path, and results.json without their index and the clock.
    """
    files = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and EVALUATIONS not in path.parts
    }
    files.pop(run / evaluations.LOCK)
    fields = json.loads(files.pop(run / "results.json"))
    for path in (run / "report.html", run / "report.md"):
        files.pop(path)
    return files, {
        name: value
        for name, value in fields.items()
        if name not in (EVALUATIONS, "seconds_per_image")
    }


def test_the_runs_own_evaluation_again_is_the_same(run):
    before = kept(run)
    assert again(run, eval__batch_size=4)["evaluation"] is None
    files, fields = kept(run)
    assert fields == before[1]
    assert not (run / EVALUATIONS).exists()
    assert (fields["differs"], fields["trained_on"], fields["cases"]) == (
        {},
        {},
        ["p5", "p6"],
    )
    for name in ("cases.csv", "slices.csv"):
        assert files[run / name] == before[0][run / name]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"threshold": 0.25}, "threshold=0.25"),
        (
            {"sampler__ensemble": 3, "fusion": "majority"},
            "sampler.ensemble=3,fusion=majority",
        ),
        ({"eval__lesions": True}, "eval.lesions=True,eval.lesion_overlap=0.0"),
        ({"split__test": ("p1", "p5")}, "split.test=p1+p5"),
        ({"data__root": "theirs", "threshold": 0.4}, "theirs,threshold=0.4"),
    ],
)
def test_any_other_goes_whole_into_a_folder_of_its_own(run, tmp_path, fields, name):
    if "data__root" in fields:
        fields = fields | {
            "data__root": str(write(tmp_path / "theirs", ["q1", "q2", "q3"], first=30))
        }
    before = kept(run)
    found = again(run, **fields)
    there = run / EVALUATIONS / name
    assert kept(run) == before
    assert {path.name for path in (run / EVALUATIONS).iterdir()} == {name}
    assert found == json.loads((there / "results.json").read_text())
    assert found["evaluation"] == name
    expected = {
        "results.json",
        "cases.csv",
        "slices.csv",
        "report_data.npz",
        "report.html",
        "report.md",
    }
    if "eval__lesions" in fields:
        expected.add("lesions.csv")
    assert {path.name for path in there.iterdir()} == expected
    with (there / "cases.csv").open(newline="") as file:
        assert sorted({row["case"] for row in csv.DictReader(file)}) == found["cases"]
    entry = {
        "data": found["data"],
        "cases": len(found["cases"]),
        "trained_on": len(found["trained_on"]),
        "grid": "file",
        "dice": found["standard"]["dice"]["mean"],
        "ci95": found["standard"]["dice"]["ci95"],
        "hd95": found["standard"]["hd95"]["mean"],
    }
    assert json.loads((run / "results.json").read_text())[EVALUATIONS] == {name: entry}
    # Another evaluation of the run's own keeps the index.
    again(run)
    assert json.loads((run / "results.json").read_text())[EVALUATIONS] == {name: entry}


def test_another_data_set_is_named_and_what_was_trained_on_is_named(
    run, trained, tmp_path, capsys
):
    theirs = write(tmp_path / "theirs", ["q1", "q2"], first=30)
    for kind in ("images", "masks"):
        shutil.copytree(trained / "ours" / kind / "p3", theirs / kind / "q3")
    found = again(run, data__root=str(theirs))
    assert (found["data"], found["dataset"], found["cases"]) == (
        str(theirs),
        "theirs",
        ["q1", "q2", "q3"],
    )
    assert found["trained_on"] == {"q3": "train"}
    assert found["differs"] == {"data.root": [str(trained / "ours"), str(theirs)]}
    closing.tested(found, str(evaluations.folder_of(run, found)), seconds=1.0)
    printed = capsys.readouterr()
    assert "1 of these 3 cases: q3 (train)\n" in printed.out
    assert f"{run}/evaluations/theirs/results.json" in printed.out
    assert "1 of the 3 cases scored: q3 (train).\n" in printed.err
    again(run, data__root=str(theirs))
    assert [path.name for path in (run / EVALUATIONS).iterdir()] == ["theirs"]


def test_the_same_files_under_another_name_are_the_same_evaluation(
    run, tmp_path, capsys
):
    theirs = write(tmp_path / "theirs", ["q1", "q2"], first=30)
    first = again(run, data__root=str(theirs))
    shutil.copytree(theirs, tmp_path / "copy")
    copied = again(run, data__root=str(tmp_path / "copy"), data__name="other")
    assert (copied["evaluation"], copied["dataset"]) == ("theirs", "other")
    assert str(theirs) in capsys.readouterr().out
    # The cases may be called otherwise, too.
    for kind in ("images", "masks"):
        (tmp_path / "copy" / kind / "q1").rename(tmp_path / "copy" / kind / "z9")
    renamed = again(run, data__root=str(tmp_path / "copy"))
    assert (renamed["evaluation"], renamed["cases"]) == ("theirs", ["q2", "z9"])
    prints = {one["fingerprint"] for one in (first, copied, renamed)}
    assert len(prints) == 1
    # Other settings make another evaluation, and so do other pixels.
    changed = write(tmp_path / "changed", ["q1"], first=30)
    write(changed, ["q2"], first=32)
    found = again(run, data__root=str(changed))
    assert (found["evaluation"], {found["fingerprint"]} & prints) == ("changed", set())
    other = again(run, data__root=str(tmp_path / "copy"), threshold=0.4)
    assert other["evaluation"] == "copy,threshold=0.4"
    assert {path.name for path in (run / EVALUATIONS).iterdir()} == {
        "theirs",
        "changed",
        "copy,threshold=0.4",
    }


def test_files_of_the_runs_own_test_are_recognised_elsewhere(
    run, trained, tmp_path, capsys
):
    own = again(run)
    for kind in ("images", "masks"):
        for case in ("p5", "p6"):
            there = tmp_path / "x" / kind / f"renamed_{case}"
            shutil.copytree(trained / "ours" / kind / case, there)
    found = again(run, data__root=str(tmp_path / "x"))
    assert found["fingerprint"] == own["fingerprint"]
    assert "the run's own test" in capsys.readouterr().out
    assert found["standard"]["dice"] == own["standard"]["dice"]


def test_a_fingerprint_is_a_hash_of_the_sorted_hashes_of_the_cases():
    prints = ["b" * 32, "a" * 32]
    expected = hashlib.sha256(("a" * 32 + "b" * 32).encode()).hexdigest()[:32]
    assert split_record.joined(prints) == split_record.joined(prints[::-1]) == expected
    assert split_record.joined([]) is None


def test_the_report_of_the_run_lists_its_other_evaluations(run, tmp_path):
    before = (run / "report.md").read_text()
    theirs = write(tmp_path / "theirs", ["q1", "q2", "q3"], first=30)
    found = again(run, data__root=str(theirs))
    again(run, threshold=0.25)
    text = (run / "report.md").read_text()
    dice = found["standard"]["dice"]
    low, high = dice["ci95"]
    hd95 = found["standard"]["hd95"]["mean"]
    cells = [f"{dice['mean']:.4f}", f"{low:.4f} to {high:.4f}", f"{hd95:.2f}"]
    (row,) = (line for line in text.splitlines() if line.startswith("| theirs |"))
    written = [cell.strip() for cell in row.strip("|").split("|")]
    assert written[2:6] == ["3", *cells]
    assert "threshold=0.25" in text
    # The tables of the run's own test are as they were.
    assert before.split("## ")[1] == text.split("## ")[1]
    # A damaged table of the run's own test does not spoil another evaluation.
    (run / "slices.csv").write_text("case\n")
    assert again(run, threshold=0.3)["evaluation"] == "threshold=0.3"


def test_no_tensorboard_line_but_the_runs_own(run):
    lines = sorted((run / "tensorboard").iterdir())
    again(run, threshold=0.25)
    assert sorted((run / "tensorboard").iterdir()) == lines
    assert len(lines) == 1


def test_what_is_passed_over_is_recorded_where_the_scores_are(
    run, tmp_path, capsys, monkeypatch
):
    theirs = write(tmp_path / "theirs", ["q1", "q2"], first=30)
    passed = [walk.PassedOver(theirs / "x.nrrd", "not a format that is read (.nrrd)")]
    facts = ImageFolder.facts.fget

    def with_passed(source):
        found = facts(source)
        return type(found)(files=found.files, sides=found.sides, passed=passed)

    monkeypatch.setattr(ImageFolder, "facts", property(with_passed))
    found = again(run, data__root=str(theirs))
    assert (
        found["passed_over"]
        == "1 file passed over: 1 not a format that is read (.nrrd)"
    )
    assert (run / EVALUATIONS / "theirs" / walk.RECORD).exists()
    assert not (run / walk.RECORD).exists()
    capsys.readouterr()
    closing.tested(found, str(run), seconds=1.0)
    assert (
        "1 file passed over: 1 not a format that is read (.nrrd); passed_over.csv"
        in capsys.readouterr().out
    )


def test_two_at_once_are_refused_before_anything_is_scored(run):
    before = kept(run)
    with lock.Lock(run, name=evaluations.LOCK):
        refused(lambda: again(run, threshold=0.25), run, f"process {os.getpid()}")
    assert kept(run) == before
    assert not (run / EVALUATIONS).exists()
    assert again(run, threshold=0.25)["evaluation"]


def test_fields_that_an_evaluation_may_not_change(run):
    for field, value in (
        ("split__train", ("p1",)),
        ("data__size", 32),
        ("split__seed", 5),
        ("row", "x"),
    ):
        refused(
            lambda field=field, value=value: again(run, **{field: value}),
            field.replace("__", "."),
        )


# ---- The report


def test_a_report_finds_a_run_once_and_an_evaluation_where_it_is_given(run, tmp_path):
    again(run, threshold=0.25)
    again(run, threshold=0.75)
    names = ["threshold=0.25", "threshold=0.75"]
    each = [run / EVALUATIONS / name for name in names]
    assert results.find(str(run)) == ([run], []) == results.find(str(tmp_path))
    assert results.find(str(run / EVALUATIONS))[0] == each
    assert results.find(str(each[0]))[0] == [each[0]]
    report.run(str(each[1]), str(tmp_path / "r.html"))
    assert "threshold 0.75, of the run 0.5" in (tmp_path / "r.html").read_text()
    # Without results of its own a run is not finished.
    (run / "results.json").unlink()
    refused(lambda: results.find(str(run)), "no results.json")


def test_a_folder_of_workdirs_may_be_called_evaluations(run, tmp_path):
    for depth in ("evaluations", "a/evaluations", "evaluations/b"):
        shutil.copytree(run, tmp_path / "all" / depth / "seed0")
    found, _ = results.find(str(tmp_path / "all"))
    assert len(found) == 3
    assert [one.name for one, _ in itertools.groupby(found)] == ["seed0"] * 3


# ---- Several workdirs as one model


@pytest.fixture
def other(run):
    """A second run on the same data, whose test cases are p1 and p2."""
    cfg = run_config.load(run)
    sides = {"train": ("p4", "p5"), "val": ("p3", "p6"), "test": ("p1", "p2")}
    cfg.split.update(**sides)
    cfg.seed = 8
    workdir = run.with_name("other")
    start(cfg, workdir)
    variables = Bright().init(None, None)
    variables["params"]["above"] = variables["params"]["above"] * 1.2
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            train_state.create(variables, optax.identity()), config=cfg.to_dict()
        )
    return workdir


def test_an_ensemble_is_scored_on_the_test_of_the_first(run, other, capsys):
    before = kept(run)
    cfg = run_config.load(run)
    found = evaluate.run(cfg, [run, other])
    assert kept(run) == before
    place = run / EVALUATIONS / "ensemble_run+other"
    written = json.loads((place / "results.json").read_text())
    assert written == found
    assert found["cases"] == ["p5", "p6"]
    assert found["row"] == f"{before[1]['row']} (2 models)"
    assert found["fold"] is None
    places = [str(one.resolve()) for one in (run, other)]
    assert found["differs"] == {"members": [places[:1], places]}
    assert [one["workdir"] for one in found["members"]] == places
    assert [one["step"] for one in found["members"]] == [0, 0]
    assert len({one["weights"] for one in found["members"]}) == 2
    # The second model was trained on p5, and validated on p6.
    assert found["trained_on"] == {"p5": "train", "p6": "val"}
    err = capsys.readouterr().err
    assert (
        "trained or validated on 2 of the 2 cases scored: p5 (train), p6 (val)" in err
    )
    closing.tested(found, place, seconds=1.0)
    assert "not unseen: " in capsys.readouterr().out
    # The same again takes the same place; the other way round is of the other run.
    evaluate.run(cfg, f"{run},{other}")
    assert [path.name for path in (run / EVALUATIONS).iterdir()] == [place.name]
    # Both are told apart in one report.
    report.run(f"{run},{place}", str(run.parent / "report.html"))
    assert "2 models" in (run.parent / "report.md").read_text()


def test_a_run_alone_records_neither_members_nor_a_mirror(run):
    fields = kept(run)[1]
    assert "members" not in fields
    assert "mirror" not in fields
    assert "mirror" not in fields["sampler"]
    mirrored = again(run, sampler__mirror="lr")
    assert mirrored["mirror"] == "lr"
    assert mirrored["evaluation"] == "sampler.mirror=lr"
