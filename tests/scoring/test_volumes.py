"""Rows of cases.csv, and which of two tables is of slices."""

import math

import evaluated_workdir
import numpy as np
import pytest

from biedsnet_jax.scoring import metrics, results, volumes


def slices(seed=0):
    """(rows of slices.csv, prediction, truth) of two cases of three slices each."""
    rng = np.random.default_rng(seed)
    pred, truth = rng.random((2, 6, 5, 4)) < 0.4
    truth[3:] = False
    rows = [
        metrics.slice_row(pred=pred[i], truth=truth[i], case="ab"[i // 3], slice=str(i))
        for i in range(6)
    ]
    return rows, pred, truth


def test_a_case_scores_as_its_stacked_masks():
    rows, pred, truth = slices()
    first, second = volumes.case_rows(rows)
    whole = metrics.standard(pred=pred[:3], truth=truth[:3])
    for name in ("dice", "iou", "recall", "precision"):
        assert first[name] == pytest.approx(whole[name])
    assert (first["case"], first["class"], first["slices"]) == ("a", 1, 3)
    assert first["truth_pixels"] == truth[:3].sum()
    assert first["predicted_pixels"] == pred[:3].sum()
    # No truth, so no Dice; what was predicted counts all the same.
    assert math.isnan(second["dice"])
    assert second["predicted_pixels"] == pred[3:].sum()


def test_the_mean_over_cases_is_that_of_results_json():
    rows, *_ = slices()
    mean = np.nanmean([row["dice"] for row in volumes.case_rows(rows)])
    assert metrics.summarise(rows)["standard"]["dice"][
        "per_case_mean"
    ] == pytest.approx(mean)


def test_areas_are_summed_slice_by_slice_and_lesions_counted():
    rows, pred, truth = slices()
    area = {(row["case"], row["slice"]): 0.5 + int(row["slice"]) for row in rows}
    lesions = [
        {"case": "a", "class": 1, "mask": mask, "found": found}
        for mask, found in (
            ("truth", 1),
            ("truth", 0),
            ("prediction", 0),
            ("prediction", 1),
        )
    ]
    first, second = volumes.case_rows(rows, lesions, area)
    by_slice = truth[:3].sum((1, 2)) @ [0.5, 1.5, 2.5]
    assert first["truth_mm2"] == pytest.approx(by_slice)
    assert first["predicted_mm2"] == pytest.approx(
        pred[:3].sum((1, 2)) @ [0.5, 1.5, 2.5]
    )
    counts = [
        [row[f"lesions{end}"] for end in ("", "_missed", "_false")]
        for row in (first, second)
    ]
    assert counts == [[2, 1, 1], [0, 0, 0]]


def test_a_workdir_of_either_version_reads_alike(tmp_path):
    evaluated_workdir.write(tmp_path / "run", count=5)
    run = results.load(tmp_path / "run")
    (tmp_path / "run" / "slices.csv").rename(tmp_path / "run" / "cases.csv")
    earlier = results.load(tmp_path / "run")
    assert earlier.images == run.images
    assert earlier.cases == run.cases
    np.testing.assert_array_equal(earlier.scores["dice"], run.scores["dice"])


def test_rows_of_cases_are_read_as_they_stand(tmp_path):
    evaluated_workdir.write(tmp_path / "run", count=5)
    (tmp_path / "run" / "cases.csv").write_text("case,class,dice,lesions\na,1,0.5,3\n")
    run = results.load(tmp_path / "run")
    assert run.cases == [{"case": "a", "class": "1", "dice": 0.5, "lesions": 3.0}]
    assert len(run.images) == 5
