"""Results kept in the project: what is copied, and the pages that are made of them."""

import json
import tarfile

import evaluated_workdir
import pytest
from refusals import refused

from benchmarks.tables import results_page

RUNS = [("unet", 0), ("unet", 1), ("biedsnet", 0)]


@pytest.fixture
def kept(tmp_path):
    """results/toy_set of two rows, of two folds and one; a third run is not finished."""
    for seed, (row, fold) in enumerate(RUNS):
        workdir = tmp_path / "out" / row / "seed0" / f"fold{fold}"
        evaluated_workdir.write(
            workdir, seed=seed, row=row, network=row, dataset="toy", fold=[fold, 2]
        )
        (workdir / "command.txt").write_text(
            f"python -m biedsnet_jax.main --config=c.py:{row} --config.split.fold={fold}\n"
        )
    (tmp_path / "out" / "unext").mkdir()
    (tmp_path / "out" / "unext" / "config.json").write_text("{}")
    folder = tmp_path / "results" / "toy_set"
    assert results_page.keep(str(tmp_path / "out"), folder) == len(RUNS)
    return folder


def made(folder, name):
    results_page.write(folder)
    return (folder / f"{name}.md").read_text()


def test_the_flags_say_what_is_kept_and_where(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results_page, "ROOT", tmp_path / "other")
    words = ["x", f"--name={kept.name}", f"--keep={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", words)
    assert results_page.main() == 0
    assert f"{len(RUNS)} runs kept" in capsys.readouterr().out
    folder = tmp_path / "other" / "results" / kept.name
    assert (folder / "report.md").read_text() == made(kept, "report")


def test_numbers_are_kept_and_nothing_else(kept):
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert names == {"results.json", "command.txt", "scores.tar.xz"}
    assert not (kept / "unext").exists()


def test_the_archive_holds_the_scores_byte_for_byte_and_no_name_of_a_user(kept):
    out = kept.parents[1] / "out"
    with tarfile.open(kept / "scores.tar.xz") as archive:
        members = archive.getmembers()
        assert {member.uname for member in members} == {""}
        for member in members:
            packed = archive.extractfile(member).read()
            assert packed == (out / member.name).read_bytes()
    assert len(members) >= len(RUNS)


def test_the_pages_have_the_tables_and_the_fields_of_each_run(kept):
    report = made(kept, "report")
    assert "## Table 1, standard convention" in report
    assert "## Table 1, paper convention" in report
    assert "| SwinUNet | not measured |" in report
    lines = made(kept, "trials").splitlines()
    for row, seed, fold in (("biedsnet", 2, 0), ("unet", 0, 0), ("unet", 1, 1)):
        fields = f"`--config=c.py:{row} split.fold={fold}`"
        assert f"| {row}, seed {seed}, fold {fold} | {fields} |" in lines


def test_the_same_results_make_the_same_pages(kept):
    assert made(kept, "report") == made(kept, "report")


def test_what_every_caption_begins_with_is_said_once(kept):
    report = made(kept, "report")
    assert report.count("Data set toy, test split") == 1


def test_what_a_search_tried_is_kept_and_shown(kept):
    assert "What was tried" not in made(kept, "trials")
    out = kept.parents[1] / "out"
    for fold in (0, 1):
        trial = {
            "row": "unet",
            "fields": {"train.learning_rate": 0.1, "train.steps": 9},
            "choice": False,
            "seconds": 1.0,
            "dice": {"3": 0.25},
        }
        (out / f"fold{fold}.json").write_text(json.dumps([trial]))
    results_page.keep(str(out), kept)
    trials = made(kept, "trials")
    line = "| unet | learning_rate=0.1 | 9 | **0.2500, 3** | **0.2500, 3** | 0.2500 |"
    assert "## What was tried" in trials
    assert line in trials
    # None was tried.
    assert "Open choices" not in trials


def test_what_is_said_of_all_runs_begins_each_page(kept):
    (kept / "about.txt").write_text("Small networks,\ntwo folds.\n")
    for name in ("report", "trials"):
        assert made(kept, name).count("Small networks,\ntwo folds.") == 1


def test_a_folder_without_results_is_refused(tmp_path):
    refused(lambda: results_page.write(tmp_path / "other"), "is no folder", "other")
