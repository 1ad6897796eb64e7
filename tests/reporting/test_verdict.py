"""The verdict on one's own runs: each finding with its figure, each advice with the
figures that call for it, and nothing where a figure is not known.
"""

import dataclasses
import json

import evaluated_workdir
import numpy as np
import pytest

from biedsnet_jax.reporting import advice, report, run_tables, verdict
from biedsnet_jax.reporting.evidence import SMALL, Evidence, Missed, gather
from biedsnet_jax.reporting.learning import Trend
from biedsnet_jax.scoring import false_lesions, lesions, metrics, results
from biedsnet_jax.scoring.calibration import Confidence, confidence

FALLING = Trend(8, 170, 240, start=0.8, end=0.6, error=0.02)
FLAT = Trend(8, 170, 240, start=0.8, end=0.79, error=0.02)
# No figure of it calls for anything.
FINE = Evidence(
    test_cases=20,
    all_cases=100,
    slices=200,
    missed=Missed("lesion", 10, 0, 10, 0),
    healthy=false_lesions.Counts(50, 0, 2, 0, 150),
    confidence=Confidence(error=0.001, foreground=0.05, sureness=0.99, right=0.989),
    trends=[FLAT],
    size=64,
    train_steps=240,
)


def test_what_is_small_is_a_size_of_lesions_too():
    assert SMALL in lesions.BINS


def advised(**fields):
    return advice.advise(dataclasses.replace(FINE, **fields))


@pytest.mark.parametrize(
    ("fields", "flags", "figures"),
    [
        ({"test_cases": 2, "all_cases": 8}, "--config.split.folds=4", "2 test cases"),
        ({"test_cases": 1, "all_cases": 4}, "--config.split.folds=2", "1 test case "),
        ({"test_cases": 4, "all_cases": 40}, "--config.split.folds=5", "40 cases"),
        (
            {"test_cases": 2, "folds": 4, "folds_here": 1},
            "--config.split.folds=4",
            "1 of 4",
        ),
        ({"trends": [FLAT, FALLING]}, "--config.train.steps=480", "25 %"),
        (
            {"missed": Missed("lesion", 20, 9, 30, 1)},
            "--config.data.size=128",
            "9 of 20",
        ),
        (
            {"healthy": false_lesions.Counts(10, 4, 0, 0, 9)},
            "--config.threshold=T",
            "4 of 10",
        ),
        (
            {"missed": Missed("slice with a lesion", 9, 1, 9, 1)},
            "--config.eval.lesions=True",
            "2 slices",
        ),
    ],
)
def test_figures_that_call_for_it_bring_one_advice(fields, flags, figures):
    (found,) = advised(**fields)
    assert flags in found.flags
    assert figures in found.why


@pytest.mark.parametrize(
    "fields",
    [
        {},
        # Other data, or too few cases in all, for folds.
        {"test_cases": 2, "own_test": False},
        {"test_cases": 1, "all_cases": 3},
        {"test_cases": 2, "all_cases": None},
        {"test_cases": 5, "folds": 5, "folds_here": 5},
        {"trends": []},
        # Large lesions are missed as often, or there are none.
        {"missed": Missed("lesion", 10, 4, 10, 3)},
        {"missed": Missed("lesion", 10, 4, 0, 0)},
        {"missed": Missed("lesion", 10, 2, 10, 0)},
        {"missed": None, "healthy": None, "confidence": None},
        {"healthy": false_lesions.Counts(100, 5, 0, 0, 9)},
        {"healthy": false_lesions.Counts(4, 2, 0, 0, 9)},
    ],
)
def test_no_advice_is_given_that_the_figures_do_not_call_for(fields):
    assert advised(**fields) == []


def test_advice_comes_in_the_order_of_its_rules():
    counts = false_lesions.Counts(10, 4, 0, 0, 9)
    found = advised(test_cases=2, trends=[FALLING], healthy=counts)
    assert [one.what for one in found] == [
        "Test every case",
        "Train longer",
        "Raise the threshold",
    ]


def judged(*folders):
    runs = [results.load(folder) for folder in folders]
    shown = run_tables.evaluated(runs)
    return verdict.judge(shown), gather(shown)


def figures(found):
    return {one.name: one.figure for one in found.findings}


def test_figures_are_those_of_the_evaluation(tmp_path):
    probability, truth = evaluated_workdir.write(tmp_path / "run", count=8, classes=2)
    run = results.load(tmp_path / "run")
    found, evidence = judged(tmp_path / "run")
    standard = run.fields["standard"]["dice"]
    pred = probability > 0.5
    assert evidence.slice_dice.mean == pytest.approx(standard["mean"])
    bounds = (evidence.slice_dice.low, evidence.slice_dice.high)
    assert bounds == pytest.approx(standard["ci95"])
    assert evidence.volume_dice.mean == pytest.approx(standard["per_case_mean"])
    # The cases are slices 0 to 2, 3 to 5, and 6 and 7.
    for label in (1, 2):
        volumes = [
            metrics.standard(
                pred=pred[s, ..., label - 1], truth=truth[s, ..., label - 1]
            )
            for s in (slice(0, 3), slice(3, 6), slice(6, 8))
        ]
        mean = np.mean([volume["dice"] for volume in volumes])
        assert evidence.class_dice[str(label)] == pytest.approx(mean)
    names = list(figures(found))
    assert names[:3] == ["Volume Dice", "Slice Dice", "Test cases"]
    assert names[3:] == [
        "Lesions missed",
        "False lesions",
        "Calibration",
        "Training loss",
    ]
    assert figures(found)["Test cases"] == "3"
    assert figures(found)["Training loss"] == "still falling"
    page = tmp_path / "run" / "r.html"
    text = tmp_path / "run" / "r.md"
    report.run(str(tmp_path / "run"), str(page))
    for one in found.findings:
        assert f'<dd class="figure">{one.figure}</dd>' in page.read_text()
        assert f"- **{one.name}: {one.figure}**" in text.read_text()


def test_what_is_not_known_is_left_out(tmp_path):
    folder = tmp_path / "run"
    evaluated_workdir.write(folder)
    (folder / "report_data.npz").unlink()
    (folder / "metrics.jsonl").unlink()
    found, evidence = judged(folder)
    assert evidence.all_cases is None
    assert evidence.confidence is None
    assert not {"Calibration", "Training loss"} & figures(found).keys()


def test_without_truth_nothing_is_scored_or_missed(tmp_path):
    evaluated_workdir.write(tmp_path / "run", absent=(1,))
    found, _ = judged(tmp_path / "run")
    assert list(figures(found)) == ["Test cases", "False lesions", "Training loss"]


def test_lesions_count_where_they_were_counted(tmp_path):
    size = {"true": 5, "missed": 2, "from": 0, "below": 10}
    sizes = [
        size,
        size | {"from": 10, "below": 100},
        size | {"from": 100, "below": 1000},
        size | {"from": 1000, "below": None, "missed": 0},
    ]
    counts = {"by_pixels": sizes, "predicted": 30, "false": 7}
    evaluated_workdir.write(tmp_path / "run", lesions=counts)
    found, evidence = judged(tmp_path / "run")
    assert evidence.missed == Missed("lesion", 10, 4, 10, 2)
    assert figures(found)["Lesions missed"] == "6 of 20"
    (false,) = [one for one in found.findings if one.name == "False lesions"]
    assert "7 of 30" in false.text


def test_a_slice_is_missed_where_it_shares_no_pixel_with_the_truth(tmp_path):
    probability, truth = evaluated_workdir.write(
        tmp_path / "run", threshold=0.95, seed=3
    )
    _, evidence = judged(tmp_path / "run")
    pred = probability > 0.95
    size = truth.sum((1, 2, 3))
    missed = ~(pred & truth).any((1, 2, 3))
    small = (size > 0) & (size < 100)
    large = size >= 100
    counts = [
        int(some.sum()) for some in (small, small & missed, large, large & missed)
    ]
    assert evidence.missed == Missed("slice with a lesion", *counts)


def test_folds_are_judged_together(tmp_path):
    for fold in range(2):
        evaluated_workdir.write(
            tmp_path / f"{fold}", seed=fold, count=3, fold=[fold, 2]
        )
        path = tmp_path / f"{fold}" / "slices.csv"
        path.write_text(path.read_text().replace("case 0", f"case {fold}"))
    runs = [results.load(tmp_path / f"{fold}") for fold in range(2)]
    found, evidence = judged(tmp_path / "0", tmp_path / "1")
    assert (evidence.test_cases, evidence.folds, evidence.folds_here) == (2, 2, 2)
    dice = [run.fields["standard"]["dice"]["per_case_mean"] for run in runs]
    assert evidence.volume_dice.mean == pytest.approx(np.mean(dice))
    assert figures(found)["Training loss"] == "2 of 2 falling"
    assert [row[0] for row in found.cases.rows] in (
        ["case 0", "case 1"],
        ["case 1", "case 0"],
    )


def test_seeds_count_a_case_once(tmp_path):
    for seed in range(2):
        evaluated_workdir.write(tmp_path / f"{seed}", seed=seed, count=6)
    found, evidence = judged(tmp_path / "0", tmp_path / "1")
    assert (evidence.test_cases, evidence.volume_dice.count) == (2, 2)
    assert len({row[0] for row in found.cases.rows}) == 4


def test_cases_that_were_trained_on_come_first(tmp_path):
    evaluated_workdir.write(tmp_path / "run", trained_on={"case 0": "train"})
    found, _ = judged(tmp_path / "run")
    assert found.findings[0][:2] == ("Not unseen", "1 of 3")


def test_an_evaluation_of_other_data_brings_no_folds(tmp_path):
    differs = {"data.root": ["ours", "theirs"]}
    evaluated_workdir.write(tmp_path / "run", differs=differs)
    found, evidence = judged(tmp_path / "run")
    assert not evidence.own_test
    assert not [one for one in found.advice if "folds" in one.flags]


def test_few_of_many_cases_are_listed_from_the_worst_on(tmp_path):
    evaluated_workdir.write(tmp_path / "run", count=40)
    table = judged(tmp_path / "run")[0].cases
    dice = [float(row[2]) for row in table.rows]
    assert len(dice) == verdict.MOST_CASES
    assert dice == sorted(dice)
    assert "of 14" in table.caption


def test_an_earlier_workdir_is_judged_the_same(tmp_path):
    """Its slices are in cases.csv, and it has no slices.csv."""
    evaluated_workdir.write(tmp_path / "run")
    before, _ = judged(tmp_path / "run")
    (tmp_path / "run" / "slices.csv").rename(tmp_path / "run" / "cases.csv")
    assert judged(tmp_path / "run")[0] == before


@pytest.mark.parametrize(
    ("probability", "share", "grade", "direction"),
    [
        (0.95, 0.95, "good", "neither"),
        (0.95, 0.80, "fair", "overconfident"),
        (0.95, 0.40, "poor", "overconfident"),
        (0.60, 0.80, "fair", "underconfident"),
    ],
)
def test_calibration_in_words(probability, share, grade, direction):
    """Of 200 pixels 100 are foreground with a probability, a share truly is,
    and 100 are sure background.
    """
    histogram = np.zeros((1, 1000, 2, 2), int)
    true = round(100 * share)
    histogram[0, int(probability * 1000), 1, 1] = true
    histogram[0, int(probability * 1000), 0, 1] = 100 - true
    histogram[0, 0, 0, 0] = 100
    found = confidence(histogram)
    assert (found.grade, found.direction) == (grade, direction)
    assert found.foreground == pytest.approx(share / 2)
    expected = abs(probability - share) / 2
    assert found.error == pytest.approx(expected, abs=1e-3)
    assert confidence(np.zeros((1, 1000, 2, 2), int)) is None


def test_results_json_may_lack_what_a_verdict_asks(tmp_path):
    """An earlier version wrote fewer fields."""
    evaluated_workdir.write(tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    fields = json.loads(path.read_text())
    for name in ("size", "train_steps", "sampler"):
        del fields[name]
    path.write_text(json.dumps(fields))
    found, _ = judged(tmp_path / "run")
    assert "Volume Dice" in figures(found)
