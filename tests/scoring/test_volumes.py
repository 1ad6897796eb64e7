"""Rows of cases.csv, and which of two tables is of slices."""

import math

import evaluated_workdir
import numpy as np
import pytest

from biedsnet_jax.scoring import distances, metrics, results, volumes


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


def test_a_volume_by_hand():
    # A column of three voxels, of which the prediction has two, 4 mm apart, and a fourth
    # voxel of its own, two columns to the right.
    truth = np.zeros((4, 1, 3), bool)
    pred = truth.copy()
    truth[:3, 0, 0] = True
    pred[:2, 0, 0] = True
    pred[2, 0, 2] = True
    row = metrics.volume_row(
        pred=pred,
        truth=truth,
        case="a",
        volume="",
        label=2,
        spacing=(4.0, 1.0, 1.5),
        nsd_tolerance_mm=3.0,
    )
    # Distances: there 0, 0 and 3 (to the voxel beside), back 0, 0 and 3.
    expected = {"case": "a", "volume": "", "class": 2, "slices": 4}
    expected |= {"tp": 2, "fp": 1, "fn": 1, "tn": 8}
    expected |= {"dice": 4 / 6, "iou": 0.5, "accuracy": 10 / 12}
    expected |= {"recall": 2 / 3, "precision": 2 / 3}
    expected |= {"hd_mm": 3.0, "hd95_mm": 2.7, "assd_mm": 1.0, "nsd_mm": 1.0}
    expected |= {"truth_ml": 0.018, "predicted_ml": 0.018}
    assert row == pytest.approx(expected)
    summary = metrics.summarise_volumes([row, row | {"case": "b", "dice": math.nan}])
    assert summary["n"] == 2
    assert summary["dice"]["mean"] == pytest.approx(4 / 6)
    assert summary["dice"]["n"] == 1
    assert summary["hd95_mm"]["ci95"] == pytest.approx([2.7, 2.7])


def test_without_a_spacing_a_volume_is_measured_in_voxels():
    truth = np.zeros((3, 4, 5), bool)
    truth[0, 0, 0] = True
    pred = np.roll(truth, (2, 3), axis=(0, 1))
    row = metrics.volume_row(pred=pred, truth=truth, case="a", volume="", label=1)
    assert row["hd"] == pytest.approx(13**0.5)
    assert "hd_mm" not in row
    assert "truth_ml" not in row


@pytest.mark.parametrize("shape", [(40, 50), (12, 20, 16)])
def test_many_border_pixels_have_the_distances_that_few_have(monkeypatch, shape):
    rng = np.random.default_rng(0)
    pred, truth = rng.random((2, *shape)) > 0.7
    spacing = (2.5, 0.8, 1.1)[: len(shape)]
    found = distances.borders(pred=pred, truth=truth)
    by_tree = distances.surface_distances(found, spacing=spacing, tolerance=1.0)
    monkeypatch.setattr(distances, "MOST_POINTS", 0)
    by_transform = distances.surface_distances(found, spacing=spacing, tolerance=1.0)
    assert by_transform == pytest.approx(by_tree, rel=1e-9)
