"""Scores of a volume whose truth is known in part, against slow loops over the rest."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.spatial.distance import cdist

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.sources.source import LabelledScan
from biedsnet_jax.evaluation.scan_scores import Scores
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.scoring import calibration, lesions, metrics, volumes
from configs import phantom

SPACING = (3.0, 0.5, 0.8)
SHAPE = (5, 12, 12, 2)
COUNTS = ("tp", "fp", "fn", "tn")


def drawn(seed):
    """Probability, truth and known of a volume; the truth is nothing where not known."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), (1, 1.5, 1.5, 0)) * 8
    # An empty rim, so that no border lies on the volume's own.
    field[[0, -1]] = field[:, [0, -1]] = field[:, :, [0, -1]] = -9
    truth = field > 0.6
    wrong = ndimage.gaussian_filter(rng.normal(size=SHAPE), (1, 1, 1, 0)) * 6
    probability = 1 / (1 + np.exp(-4 * (field + wrong - 0.6)))
    probability[[0, -1]] = probability[:, [0, -1]] = probability[:, :, [0, -1]] = 0
    known = rng.random((*SHAPE[:3], 1)) < 0.8
    known = np.repeat(known, 2, axis=-1)
    return probability.astype(np.float32), truth & known, known


def scored(probability, truth, known):
    """Scores of the volume, whose classes may overlap."""
    cfg = phantom.get_config()
    cfg.data.classes = 2
    cfg.eval.update(lesions=True, paper=True, nsd_tolerance_mm=1.0)
    scan = LabelledScan(
        case="a",
        name="",
        slices=np.zeros((*SHAPE[:3], 1), np.int16),
        truth=truth.astype(np.uint8),
        slice_names=tuple("01234"),
        indices=(0, 1, 2, 3, 4),
        is_volume=True,
        spacing=SPACING,
        known=known.astype(np.uint8),
    )
    prediction = Prediction(
        way=Fit(SHAPE[1:3]).way(SHAPE[1:3]),
        maps={"probability": probability},
        samples_kept=None,
        threshold=0.5,
        # Nested, so that the mask of each is what exceeds the threshold.
        labels=((1, 2), (2,)),
        seconds=0.0,
    )
    scores = Scores(cfg, Tally(2, 0.5))
    scores.add(scan, prediction)
    return scores


def nested(probability):
    """The masks that a label map of regions can hold: the second within the first."""
    above = probability > 0.5
    above[..., 0] |= above[..., 1]
    return above


def counted(pred, truth, known):
    """Counts the known pixels one by one."""
    found = dict.fromkeys(COUNTS, 0)
    for p, t, is_known in zip(pred.flat, truth.flat, known.flat):
        if is_known:
            right = "t" if p == t else "f"
            found[right + ("p" if p else "n")] += 1
    return found


def border(mask):
    """The voxels of a mask with a face neighbour outside it, in mm."""
    found = []
    for place in np.argwhere(mask):
        around = [
            place + step for step in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int))
        ]
        if not all(mask[tuple(one)] for one in around):
            found.append(place * np.array(SPACING))
    return np.array(found)


@pytest.mark.parametrize("seed", range(3))
def test_a_volume_of_which_a_part_is_known(seed):
    probability, truth, known = drawn(seed)
    scores = scored(probability, truth, known)
    pred = nested(probability)
    for row in scores.volume_rows:
        k = row["class"] - 1
        expected = counted(pred[..., k], truth[..., k], known[..., k])
        assert {name: row[name] for name in COUNTS} == expected
        ours = border(pred[..., k] & known[..., k])
        pairs = cdist(ours, border(truth[..., k]))
        there, back = pairs.min(1), pairs.min(0)
        assert row["hd_mm"] == pytest.approx(max(there.max(), back.max()))
        assert row["assd_mm"] == pytest.approx((there.mean() + back.mean()) / 2)
        near = (there <= 1).sum() + (back <= 1).sum()
        assert row["nsd_mm"] == pytest.approx(near / sum(pairs.shape))
        ml = math.prod(SPACING) / 1000
        assert row["predicted_ml"] == pytest.approx(
            (expected["tp"] + expected["fp"]) * ml
        )
    assert len(scores.volume_rows) == 2


def test_slices_in_both_conventions_and_what_is_counted_of_their_pixels():
    probability, truth, known = drawn(3)
    scores = scored(probability, truth, known)
    pred = nested(probability)
    histogram = np.zeros((2, 1000, 2, 2), int)
    for row, network, bits in zip(
        scores.rows, scores.network_rows, scores.tally.entropy
    ):
        place = (int(row["slice"]), ..., row["class"] - 1)
        t, is_known, p = truth[place], known[place], probability[place]
        expected = counted(pred[place], t, is_known)
        assert {name: row[name] for name in COUNTS} == expected
        above = counted(p > 0.5, t, is_known)
        assert {name: network[name] for name in COUNTS} == above
        overlap = 2 * above["tp"] + above["fp"] + above["fn"]
        assert row["paper_dice"] == pytest.approx((2 * above["tp"] + 1) / (overlap + 1))
        likely = [float(x) for x in p[is_known] if x >= 0.05]
        entropies = [stats.entropy([x, 1 - x], base=2) for x in likely]
        assert bits == pytest.approx(np.mean(entropies) if likely else 0, abs=1e-6)
        for x, y in zip(p[is_known], t[is_known]):
            cell = min(int(np.float32(x) * 1000), 999), int(y), int(x > 0.5)
            histogram[(place[-1], *cell)] += 1
    np.testing.assert_array_equal(scores.tally.histogram, histogram)
    assert histogram.sum() == known.sum()


def test_calibration_is_that_of_the_known_pixels():
    tally = Tally(1, 0.5)
    probability = np.array([[0.9, 0.9, 0.2, 0.2, 0.7]], np.float32)[..., None]
    truth = np.array([[1, 1, 0, 1, 0]], bool)[..., None]
    known = np.array([[1, 1, 1, 1, 0]], bool)[..., None]
    tally.add(probability, truth & known, [0.8], known)
    # Two pixels of 0.9 are both right, of two of 0.2 one; bins are read in their middle.
    expected = (2 * abs(0.9005 - 1) + 2 * abs(0.2005 - 0.5)) / 4
    found = calibration.expected_calibration_error(tally.histogram)
    assert found == pytest.approx(expected)
    confidence = calibration.confidence(tally.histogram)
    assert confidence.foreground == pytest.approx(3 / 4)
    coverage, risk = calibration.pixel_risk_coverage(tally.histogram)
    assert (coverage[-1], risk[-1]) == (1.0, 1 / 4)


def test_lesions_in_three_dimensions_end_where_the_truth_is_not_known():
    truth, predicted, known = np.zeros((3, *SHAPE), bool)
    known[:] = True
    known[:, 5:8] = False
    # A lesion of 3 x 2 x 2 voxels found in 2 of its slices.
    truth[1:4, 1:3, 1:3] = True
    predicted[2:4, 1:3, 1:3] = True
    # A false one, of which half is known, and one of which nothing is.
    predicted[1:3, 8, 5:7] = predicted[1:3, 7, 5:7] = True
    predicted[2, 6, 1:4] = True
    scores = scored(predicted.astype(np.float32), truth, known)
    found = [
        (row["mask"], row["pixels"], row["mm3"], row["found"])
        for row in scores.lesion_rows
        if row["class"] == 1
    ]
    voxel = math.prod(SPACING)
    assert found == [
        ("truth", 12, pytest.approx(12 * voxel), 1),
        ("prediction", 4, pytest.approx(4 * voxel), 0),
        ("prediction", 8, pytest.approx(8 * voxel), 1),
    ]
    assert lesions.summarise(scores.lesion_rows)["false"] == 2


def test_a_class_of_which_nothing_is_known_is_in_no_mean_and_no_interval():
    everything, without = [], []
    for seed, case in enumerate("abcd"):
        probability, truth, known = drawn(seed)
        if case in "cd":
            known[..., 1] = False
            truth[..., 1] = False
        scores = scored(probability, truth, known)
        rows = [row | {"case": case} for row in scores.rows]
        everything += rows
        without += [row for row in rows if case not in "cd" or row["class"] == 1]
        assert len(scores.volume_rows) == (1 if case in "cd" else 2)
        assert [math.isnan(bits) for bits in scores.tally.entropy] == [
            case in "cd" and row["class"] == 2 for row in rows
        ]
    found, expected = metrics.summarise(everything), metrics.summarise(without)
    assert found.pop("n_masks") == len(without)
    of_class = found["classes"]["2"]
    assert of_class.pop("n_masks") == 10
    assert (of_class["n_cases"], of_class["n_images"]) == (2, 10)
    # Means, intervals by case and counts are those without such rows, to the last bit.
    assert found.pop("paper") == expected.pop("paper")
    assert found == expected
    assert volumes.case_rows(everything) == volumes.case_rows(without)
