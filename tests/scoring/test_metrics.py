"""Metrics against numbers worked out by hand, a slow plain reference, scipy and
SimpleITK.
"""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import directed_hausdorff

from biedsnet_jax.errors import BadInput
from biedsnet_jax.scoring import metrics


def mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "1" for letter in row] for row in rows])


def row(
    case: str, slice: int | str, pred: str, truth: str, label: int = 1, spacing=None
) -> dict:
    """The row of a slice one pixel high: every mask pixel is border, and distances can
    be counted off the string.
    """
    of_slice = metrics.slice_row(
        pred=mask(pred),
        truth=mask(truth),
        case=case,
        slice=str(slice),
        label=label,
        spacing=spacing,
    )
    return of_slice | metrics.paper_columns(pred=mask(pred), truth=mask(truth))


def disc(*, radius: float, column: int) -> np.ndarray:
    i, j = np.ogrid[:100, :120]
    return (i - 50) ** 2 + (j - column) ** 2 <= radius**2


def blobs(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping random masks with holes, islands and contact with the image edge."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 2)
    other = field + 0.5 * gaussian_filter(rng.normal(size=shape), 2)
    return field > 0.5 * field.std(), other > 0.4 * other.std()


# ---- One class, one image

PRED = mask("111", "000", "000")
# tp 1, fp 2, fn 1, tn 5
TRUTH = mask("100", "100", "000")


def test_three_by_three_by_hand():
    # Directed distances: pred -> truth 0, 1, 2; truth -> pred 0, 1 (in mm 0, 0.5, 1 and
    # 0, 3).
    expected = {
        "dice": 2 / 5,
        "iou": 1 / 4,
        "accuracy": 6 / 9,
        "recall": 1 / 2,
        "precision": 1 / 3,
        "hd": 2.0,
        "hd95": 1.9,
        "assd": (1 + 1 / 2) / 2,
        # All but the prediction's far end lie within 1 pixel.
        "nsd": 4 / 5,
        "hd_mm": 3.0,
        "hd95_mm": 2.85,
        "assd_mm": (0.5 + 1.5) / 2,
        # The tolerance is 0.5 mm.
        "nsd_mm": 3 / 5,
    }
    values = metrics.standard(
        pred=PRED,
        truth=TRUTH,
        spacing=(3.0, 0.5),
        nsd_tolerance=1.0,
        nsd_tolerance_mm=0.5,
    )
    assert values == pytest.approx(expected)


def test_paper_three_by_three_by_hand():
    # Rows as points: 111 lies sqrt(2) from 100, the nearest row of truth; 100 lies 1
    # from 000.
    expected = {
        "dice": (2 + 1) / (5 + 1),
        "hd": math.sqrt(2),
        "iou": (1 + 1e-5) / (4 + 1e-5),
        "accuracy": 6 / (9 + 1e-10),
        "recall": 1 / (2 + 1e-10),
        "precision": 1 / (3 + 1e-10),
    }
    assert metrics.paper(pred=PRED, truth=TRUTH) == pytest.approx(expected, rel=1e-12)


def test_border_is_four_connected():
    """A pixel whose only outside neighbour is a diagonal one is no border pixel."""
    truth = mask("00000", "00110", "01110", "01110", "00000")
    centre = mask("00000", "00000", "00100", "00000", "00000")
    expected = ((4 + 3 * math.sqrt(2)) / 7 + 1) / 2
    assert metrics.standard(pred=centre, truth=truth)["assd"] == pytest.approx(expected)


def test_image_edge_is_border():
    centre = mask("00000", "00000", "00100", "00000", "00000")
    values = metrics.standard(pred=centre, truth=np.ones((5, 5), bool))
    frame = (4 * math.sqrt(8) + 4 * 2 + 8 * math.sqrt(5)) / 16
    assert values["hd"] == pytest.approx(math.sqrt(8))
    assert values["assd"] == pytest.approx((frame + 2) / 2)


def test_shifted_discs_lie_their_shift_apart():
    pred = disc(radius=20, column=52)
    truth = disc(radius=20, column=40)
    values = metrics.standard(pred=pred, truth=truth, spacing=(0.5, 0.5))
    assert (values["hd"], values["hd_mm"]) == (12.0, 6.0)


def test_concentric_discs_lie_their_radii_apart():
    values = metrics.standard(
        pred=disc(radius=10, column=60), truth=disc(radius=30, column=60)
    )
    assert [values[name] for name in ("hd", "hd95", "assd")] == pytest.approx(
        [20, 20, 20], abs=1
    )


def square(column: int) -> np.ndarray:
    """Makes a square of four by four pixels, twelve of them border, from `column` on."""
    mask = np.zeros((8, 14), bool)
    mask[2:6, column : column + 4] = True
    return mask


@pytest.mark.parametrize(
    # Border pixels, of twelve, that lie near enough; alike in both directions.
    ("shift", "tolerance", "within"),
    [
        (0, 0.0, 12),
        # Top and bottom rows coincide in three pixels each.
        (1, 0.0, 6),
        (1, 1.0, 12),
        # Pixels inside of the other square are on no border of it.
        (2, 0.0, 4),
        # All but the outer column lie near.
        (2, 1.0, 8),
        (2, 2.0, 12),
        # All four pixels of the column that both have lie near.
        (3, 0.0, 4),
        (3, 1.0, 6),
        (3, 2.0, 8),
        (3, 3.0, 12),
    ],
)
def test_nsd_of_shifted_squares(shift, tolerance, within):
    """Columns are 0.1 mm apart, and rows too far to count."""
    values = metrics.standard(
        pred=square(3 + shift),
        truth=square(3),
        spacing=(5.0, 0.1),
        nsd_tolerance=tolerance,
        nsd_tolerance_mm=tolerance / 10,
    )
    assert values["nsd_mm"] == pytest.approx(within / 12)
    assert values["nsd"] == pytest.approx(within / 12)


def test_nsd_tolerances_are_two_each_by_default():
    values = metrics.standard(pred=square(5), truth=square(3), spacing=(1.0, 1.1))
    assert (values["nsd"], values["nsd_mm"]) == (1.0, pytest.approx(8 / 12))


@pytest.mark.parametrize(
    "shape, spacing",
    [((24, 31), (1.0, 1.0)), ((24, 31), (0.7, 2.5)), ((9, 12, 10), (3.0, 1.0, 0.5))],
)
def test_distances_equal_plain_loops(shape, spacing):
    pred, truth = blobs(3, shape)
    ours = metrics.standard(
        pred=pred, truth=truth, spacing=spacing, nsd_tolerance_mm=1.3
    )
    expected = slow_distances(pred, truth, spacing, tolerance=1.3)
    assert [ours[name] for name in metrics.SURFACE_MM] == pytest.approx(expected)
    assert 0 < ours["nsd_mm"] < 1


def slow_distances(pred, truth, spacing, tolerance) -> list[float]:
    def border(mask):
        for point in np.ndindex(mask.shape):
            if mask[point]:
                steps = [
                    s * step for step in np.eye(mask.ndim, dtype=int) for s in (-1, 1)
                ]
                around = [tuple(np.add(point, step)) for step in steps]
                if not all(
                    all(0 <= i < n for i, n in zip(p, mask.shape)) and mask[p]
                    for p in around
                ):
                    yield [i * mm for i, mm in zip(point, spacing)]

    def percentile_95(values):
        values, where = sorted(values), 0.95 * (len(values) - 1)
        low = values[math.floor(where)]
        return low + (values[math.ceil(where)] - low) * (where % 1)

    p = list(border(pred))
    t = list(border(truth))
    there = [min(math.dist(a, b) for b in t) for a in p]
    back = [min(math.dist(a, b) for a in p) for b in t]
    hd95 = max(percentile_95(there), percentile_95(back))
    near = [distance <= tolerance for distance in there + back]
    return [
        max(there + back),
        hd95,
        (sum(there) / len(there) + sum(back) / len(back)) / 2,
        sum(near) / len(near),
    ]


@pytest.mark.parametrize("seed, spacing", [(0, (1.0, 1.0)), (1, (0.8, 2.0))])
def test_simple_itk_agrees(seed, spacing):
    sitk = pytest.importorskip("SimpleITK")
    masks = blobs(seed, (48, 60))
    ours = metrics.standard(pred=masks[0], truth=masks[1], spacing=spacing)
    # Its Hausdorff filter takes whole sets: give it the borders, of masks padded so
    # that the image edge is one.
    pred, truth = (sitk.GetImageFromArray(np.pad(m, 1).astype(np.uint8)) for m in masks)
    contours = [sitk.LabelContour(image, False) for image in (pred, truth)]
    for contour in contours:
        contour.SetSpacing(spacing[::-1])
    distance = sitk.HausdorffDistanceImageFilter()
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    distance.Execute(*contours)
    overlap.Execute(pred, truth)
    assert ours["hd_mm"] == pytest.approx(distance.GetHausdorffDistance(), rel=1e-5)
    assert ours["assd_mm"] == pytest.approx(
        distance.GetAverageHausdorffDistance(), rel=1e-5
    )
    assert ours["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert ours["iou"] == pytest.approx(overlap.GetJaccardCoefficient())
    assert ours["recall"] == pytest.approx(1 - overlap.GetFalseNegativeError())
    assert ours["precision"] == pytest.approx(1 - overlap.GetFalseDiscoveryRate())


@pytest.mark.parametrize("seed", range(3))
def test_paper_hausdorff_is_scipy_on_the_arrays(seed):
    pred, truth = blobs(seed, (40, 56))
    p = pred.astype(float)
    t = truth.astype(float)
    expected = max(directed_hausdorff(p, t)[0], directed_hausdorff(t, p)[0])
    for a, b in [(pred, truth), (truth, pred)]:
        assert metrics.paper(pred=a, truth=b)["hd"] == pytest.approx(
            expected, rel=1e-12
        )


# ---- Empty masks, all four kinds

FULL = np.ones((3, 5), bool)
NONE = np.zeros((3, 5), bool)
TWO = mask("01100", "00000", "00000")
NAN = math.nan


@pytest.mark.parametrize(
    # In order: dice, iou, accuracy, recall, precision.
    "pred, truth, overlaps, distance, distance_mm",
    [
        (FULL, FULL, [1, 1, 1, 1, 1], 0, 0),
        (NONE, TWO, [0, 0, 13 / 15, 0, 0], math.hypot(2, 4), math.hypot(2 * 2, 4 * 3)),
        (TWO, NONE, [NAN, NAN, 13 / 15, NAN, NAN], NAN, NAN),
        (NONE, NONE, [NAN, NAN, 1, NAN, NAN], NAN, NAN),
    ],
)
def test_standard_on_empty_masks(pred, truth, overlaps, distance, distance_mm):
    values = metrics.standard(pred=pred, truth=truth, spacing=(2.0, 3.0))
    assert [values[name] for name in metrics.OVERLAPS] == pytest.approx(
        overlaps, nan_ok=True
    )
    # NSD is as Dice: 1, 0, and undefined without truth.
    nsd = overlaps[0]
    assert [values[name] for name in metrics.SURFACE] == pytest.approx(
        [distance] * 3 + [nsd], nan_ok=True
    )
    assert [values[name] for name in metrics.SURFACE_MM] == pytest.approx(
        [distance_mm] * 3 + [nsd], nan_ok=True
    )


@pytest.mark.parametrize(
    # In order: dice, hd, iou, accuracy, recall, precision.
    "pred, truth, expected",
    [
        (FULL, FULL, [1, 0, 1, 1, 1, 1]),
        (NONE, TWO, [1 / 3, math.sqrt(2), 1e-5 / (2 + 1e-5), 13 / 15, 0, 0]),
        (TWO, NONE, [1 / 3, math.sqrt(2), 1e-5 / (2 + 1e-5), 13 / 15, 0, 0]),
        (NONE, NONE, [1, 0, 1, 1, 0, 0]),
    ],
)
def test_paper_on_empty_masks(pred, truth, expected):
    values = metrics.paper(pred=pred, truth=truth)
    assert [values[name] for name in metrics.PAPER] == pytest.approx(expected)


@pytest.mark.parametrize(
    "spacing", [(1.0,), (1.0, 1.0, 1.0), (0.0, 1.0), (1.0, math.inf), (1.0, NAN)]
)
def test_bad_spacing_is_refused(spacing):
    with pytest.raises(BadInput, match="2 positive numbers"):
        metrics.standard(pred=TWO, truth=TWO, spacing=spacing)


# ---- Averages


@pytest.fixture
def rows() -> list[dict]:
    return [
        # Dice 2/3, HD 1.
        row("a", 0, pred="1000", truth="1100"),
        # Dice 6/7, HD 1.
        row("a", 1, pred="1111", truth="1110"),
        # Dice 1, HD 0.
        row("a", 2, pred="0110", truth="0110"),
        # Dice 2/3, HD 1.
        row("b", 0, pred="1100", truth="1000"),
        # Nothing to find, two false pixels.
        row("b", 1, pred="0011", truth="0000"),
        # Missed: Dice 0, HD the diagonal 3.
        row("b", 2, pred="0000", truth="0001"),
        # Nothing to find, nothing found.
        row("b", 3, pred="0000", truth="0000"),
    ]


def test_row_is_flat_and_in_reading_order(rows):
    names = "case slice class tp fp fn tn dice iou accuracy recall precision hd hd95 assd nsd"
    paper_names = (
        "paper_dice paper_hd paper_iou paper_accuracy paper_recall paper_precision"
    )
    assert list(rows[0]) == f"{names} {paper_names}".split()
    assert list(rows[0].values())[:7] == ["a", "0", 1, 1, 0, 1, 2]
    with_mm = row("a", 0, pred="1000", truth="1100", spacing=(1.0, 2.0))
    assert (
        list(with_mm) == f"{names} hd_mm hd95_mm assd_mm nsd_mm {paper_names}".split()
    )


def test_averages_by_hand(rows):
    summary = metrics.summarise(rows)
    assert (
        summary["n_images"],
        summary["n_cases"],
        summary["n_empty"],
        summary["n_missed"],
    ) == (7, 2, 2, 1)
    assert summary["false_positive_slices"] == [
        {"case": "b", "slice": "1", "class": 1, "pixels": 2}
    ]
    # Volumes: a has tp 6, fp 1, fn 1, tn 4; b has tp 1, fp 3, fn 1, tn 11.
    expected = {
        "dice": (
            (2 / 3 + 6 / 7 + 1 + 2 / 3 + 0) / 5,
            (12 / 14 + 2 / 6) / 2,
            14 / 20,
            5,
        ),
        "iou": ((1 / 2 + 3 / 4 + 1 + 1 / 2 + 0) / 5, (6 / 8 + 1 / 5) / 2, 7 / 13, 5),
        "accuracy": (
            (3 / 4 + 3 / 4 + 1 + 3 / 4 + 1 / 2 + 3 / 4 + 1) / 7,
            (10 / 12 + 12 / 16) / 2,
            22 / 28,
            7,
        ),
        "recall": ((1 / 2 + 1 + 1 + 1 + 0) / 5, (6 / 7 + 1 / 2) / 2, 7 / 9, 5),
        "precision": ((1 + 3 / 4 + 1 + 1 / 2 + 0) / 5, (6 / 7 + 1 / 4) / 2, 7 / 11, 5),
        "hd": ((1 + 1 + 0 + 1 + 3) / 5, (2 / 3 + 4 / 2) / 2, None, 5),
        "nsd": ((1 + 1 + 1 + 1 + 0) / 5, (1 + 1 / 2) / 2, None, 5),
    }
    for name, values in expected.items():
        entry = summary["standard"][name]
        assert [
            entry[key] for key in ("mean", "per_case_mean", "pooled", "n")
        ] == pytest.approx(values), name
    assert list(summary["standard"]) == [*metrics.OVERLAPS, *metrics.SURFACE]


def test_paper_average_keeps_empty_truth(rows):
    by_slice = [3 / 4, 7 / 8, 1, 3 / 4, 1 / 3, 1 / 2, 1]
    assert metrics.summarise(rows)["paper"]["dice"] == pytest.approx(sum(by_slice) / 7)


@pytest.mark.parametrize("empty_cases", ["", "c"])
def test_bootstrap_of_two_cases_spans_them(rows, empty_cases):
    """Of two cases, a quarter of the draws holds only the first and a quarter only the
    second.

    A third that has nothing to find is never drawn.
    """
    rows += [row(case, 0, pred="1000", truth="0000") for case in empty_cases]
    ci95 = metrics.summarise(rows)["standard"]["dice"]["ci95"]
    assert ci95 == pytest.approx([(2 / 3 + 0) / 2, (2 / 3 + 6 / 7 + 1) / 3])


def test_bootstrap_equals_all_draws_of_four_cases():
    """Against the exact distribution over 4^4 draws of whole cases, each slice weighing
    the same.
    """
    # True positives of 10 pixels, so recall in tenths.
    hits = {"a": [1, 9], "b": [3], "c": [8, 7, 9], "d": [5, 2]}
    rows = [
        row(case, i, pred="1" * n + "0" * (10 - n), truth="1" * 10)
        for case, ns in hits.items()
        for i, n in enumerate(ns)
    ]
    means = sorted(
        np.mean(np.concatenate(draw)) / 10
        for draw in itertools.product(hits.values(), repeat=4)
    )
    exact = means[math.floor(0.025 * 256)], means[math.floor(0.975 * 256)]
    got = metrics.summarise(rows)["standard"]["recall"]["ci95"]
    assert got == pytest.approx(exact, abs=0.01)


def test_identical_cases_have_no_spread():
    rows = [
        row(case, i, pred=p, truth="1110")
        for case in "abc"
        for i, p in enumerate(["1000", "1111"])
    ]
    summary = metrics.summarise(rows)
    for name, entry in summary["standard"].items():
        assert entry["ci95"] == pytest.approx([entry["mean"]] * 2), name
    for name, mean in summary["paper"].items():
        assert summary["paper_ci95"][name] == pytest.approx([mean] * 2), name


@pytest.mark.parametrize(
    "kept", [[0, 1, 2], [0, 1, 2, 4]], ids=["one case", "one case with a value"]
)
def test_one_case_has_no_interval(rows, kept):
    dice = metrics.summarise([rows[i] for i in kept])["standard"]["dice"]
    assert dice["ci95"] == [None, None]
    assert dice["mean"] == pytest.approx((2 / 3 + 6 / 7 + 1) / 3)


def test_intervals_do_not_depend_on_the_order_of_the_rows():
    rows = [
        row(f"case{i:02}", 0, pred="1" * i + "0" * (30 - i), truth="1" * 30)
        for i in range(1, 30)
    ]
    ours, reversed_rows = (
        metrics.summarise(some)["standard"]["dice"]["ci95"]
        for some in (rows, rows[::-1])
    )
    assert ours == reversed_rows
    assert ours[0] < ours[1]


def test_nothing_to_find_is_none_in_json():
    rows = [
        row(case, 0, pred="0100", truth="0000", spacing=(1.0, 1.0)) for case in "ab"
    ]
    summary = json.loads(json.dumps(metrics.summarise(rows), allow_nan=False))
    undefined = {
        "mean": None,
        "ci95": [None, None],
        "per_case_mean": None,
        "pooled": None,
        "n": 0,
    }
    assert summary["standard"].pop("accuracy")["mean"] == 0.75
    others = [
        "dice",
        "iou",
        "recall",
        "precision",
        *metrics.SURFACE,
        *metrics.SURFACE_MM,
    ]
    assert summary["standard"] == dict.fromkeys(others, undefined)
    assert (summary["n_empty"], len(summary["false_positive_slices"])) == (2, 2)


def test_millimetres_count_only_the_slices_that_have_them():
    rows = [
        row("a", 0, pred="1000", truth="1100", spacing=(1.0, 2.0)),
        row("b", 0, pred="1000", truth="1100"),
    ]
    standard = metrics.summarise(rows)["standard"]
    assert (standard["hd"]["mean"], standard["hd"]["n"]) == (1, 2)
    assert (
        standard["hd_mm"]["mean"],
        standard["hd_mm"]["per_case_mean"],
        standard["hd_mm"]["n"],
    ) == (2, 2, 1)


def test_classes_count_alike_and_stand_alone():
    second = [
        row("a", 0, label=2, pred="0010", truth="0011"),
        row("b", 0, label=2, pred="0100", truth="0000"),
    ]
    first = [
        row("a", 0, pred="1000", truth="1000"),
        row("b", 0, pred="1000", truth="1110"),
    ]
    summary = metrics.summarise(first + second)
    assert (summary["n_images"], summary["n_cases"], summary["n_empty"]) == (2, 2, 1)
    assert summary["false_positive_slices"] == [
        {"case": "b", "slice": "0", "class": 2, "pixels": 1}
    ]
    # The volumes are (a, 1), (b, 1), (a, 2); (b, 2) has nothing to find.
    dice = summary["standard"]["dice"]
    assert (
        dice["mean"] == dice["per_case_mean"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    )
    assert dice["pooled"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 3))
    assert summary["classes"] == {
        "1": metrics.summarise(first),
        "2": metrics.summarise(second),
    }


def test_no_rows_is_refused():
    with pytest.raises(BadInput, match="at least one"):
        metrics.summarise([])
