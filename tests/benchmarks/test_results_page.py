"""Results kept in the project: what is copied, and the page that is made of them."""

import json

import evaluated_workdir
import pytest
from refusals import refused

from benchmarks.tables import results_page


@pytest.fixture
def kept(tmp_path):
    """results/ of two rows, of two folds and one, and a run that is not finished."""
    for seed, (row, fold) in enumerate([("unet", 0), ("unet", 1), ("biedsnet", 0)]):
        workdir = tmp_path / "out" / row / "seed0" / f"fold{fold}"
        evaluated_workdir.write(
            workdir, seed=seed, row=row, network=row, dataset="toy", fold=[fold, 2]
        )
        (workdir / "command.txt").write_text(
            f"python -m biedsnet_jax.main --config=c.py:{row} --fold={fold}\n"
        )
    (tmp_path / "out" / "unext").mkdir()
    (tmp_path / "out" / "unext" / "config.json").write_text("{}")
    assert (
        results_page.keep(str(tmp_path / "out"), tmp_path / "results" / "toy_set") == 3
    )
    return tmp_path / "results"


def test_numbers_are_kept_and_nothing_else(kept):
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {
        "results.json",
        "slices.csv",
        "command.txt",
    }
    assert not (kept / "toy_set" / "unext").exists()
    source = kept.parent / "out" / "unet" / "seed0" / "fold1" / "slices.csv"
    assert (
        kept / "toy_set" / "unet" / "seed0" / "fold1" / "slices.csv"
    ).read_bytes() == source.read_bytes()


def test_each_place_gets_the_tables_of_its_folder_and_the_rest_stays(kept):
    page = "# Results\nBefore.\n<!-- results/toy_set -->\nearlier tables\n<!-- end -->\nAfter.\n"
    made = results_page.filled(page, kept)
    assert made.startswith(
        "# Results\nBefore.\n<!-- results/toy_set -->\n"
    ) and made.endswith("<!-- end -->\nAfter.\n")
    assert (
        "earlier tables" not in made
        and "### Table 1, standard convention" in made
        and "### Table 1, paper convention" in made
    )
    assert "| SwinUNet | not measured |" in made
    commands = [line for line in made.splitlines() if "python -m" in line]
    assert commands == [
        f"| {row}, seed {seed}, fold {fold} | `python -m biedsnet_jax.main --config=c.py:{row} --fold={fold}` |"
        for row, seed, fold in (("biedsnet", 2, 0), ("unet", 0, 0), ("unet", 1, 1))
    ]
    assert results_page.filled(made, kept) == made


def test_what_a_search_tried_is_kept_and_shown(kept):
    page = "<!-- results/toy_set -->\n<!-- end -->\n"
    assert "What was tried" not in results_page.filled(page, kept)
    for fold in (0, 1):
        fields = {"train.learning_rate": 0.1, "train.steps": 9}
        trial = {
            "row": "unet",
            "fields": fields,
            "choice": False,
            "seconds": 1.0,
            "dice": {"3": 0.25},
        }
        (kept.parent / "out" / f"fold{fold}.json").write_text(json.dumps([trial]))
    results_page.keep(str(kept.parent / "out"), kept / "toy_set")
    line = "| unet | learning_rate=0.1 | 9 | **0.2500, 3** | **0.2500, 3** | 0.2500 |"
    assert "### What was tried" in results_page.filled(
        page, kept
    ) and line in results_page.filled(page, kept)
    # none was tried
    assert "Open choices" not in results_page.filled(page, kept)


def test_what_is_said_of_all_runs_begins_the_caption_of_each_table_of_scores(kept):
    page = "<!-- results/toy_set -->\n<!-- end -->\n"
    before = results_page.filled(page, kept).split("\n\n")
    (kept / "toy_set" / "about.txt").write_text("Small networks,\ntwo folds.\n")
    after = results_page.filled(page, kept).split("\n\n")
    changed = [
        i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new
    ]
    assert all(after[i] == f"Small networks, two folds. {before[i]}" for i in changed)
    tables = [
        i
        for i, part in enumerate(before)
        if part.startswith("### ") and "again" not in part
    ]
    assert changed == [i + 1 for i in tables] and len(tables) > 2


def test_a_page_without_a_place_or_with_one_of_no_results_is_refused(kept):
    refused(
        lambda: results_page.filled("# Results\n", kept),
        "no place for tables",
        "<!-- results/NAME -->",
    )
    refused(
        lambda: results_page.filled("<!-- results/other -->\n<!-- end -->\n", kept),
        "is no folder",
        "other",
    )
