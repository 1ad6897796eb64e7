"""Model cards: every figure is of the workdir, and the rest is called not measured."""

import json
import re

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.exporting import model_card
from biedsnet_jax.scoring import metrics

ABOUT = {
    "row": "row5",
    "network": "biedsnet",
    "parameters": 1234567,
    "dtype": "float32",
    "checkpoint_step": 80,
    "train_steps": 90,
    "threshold": 0.5,
    "postprocess": None,
    "not_applied": "",
    "classes": 1,
    "labels": [[1, 2]],
    "seed": 4,
    "fusion": "mean",
    "sampler": {"method": "ddim", "steps": 10, "ensemble": 5},
    "data": {
        "name": "my lungs",
        "size": 64,
        "channels": 1,
        "context": 0,
        "normalise": "minmax",
        "window": [-1250.0, 250.0],
        "prepare": ["Resize each slice."],
    },
    "split": {
        "fractions": [0.8, 0.1, 0.1],
        "seed": 6,
        "folds": 0,
        "fold": 0,
        "train": [],
        "val": [],
        "test": [],
    },
}


def evaluated(**fields):
    """Results of three cases: a mask that is half right, one missed, one made up."""
    truth = np.zeros((16, 16), bool)
    truth[2:6, 2:6] = True
    half, none = np.roll(truth, 2, axis=1), np.zeros_like(truth)
    masks = {"a": (half, truth), "b": (none, truth), "c": (half, none)}
    rows = [
        metrics.slice_row(pred=pred, truth=y, case=case, slice="1", spacing=(2.0, 2.0))
        for case, (pred, y) in masks.items()
    ]
    results = {name: ABOUT[name] for name in model_card.SHARED if name in ABOUT}
    results |= {
        "cases": list(masks),
        "nsd_tolerance": 2.0,
        "nsd_tolerance_mm": 3.0,
        "seconds_per_image": 0.125,
        "device": "1 x cpu",
    }
    return results | metrics.summarise(rows) | fields


def test_scores_are_those_of_the_workdir():
    scores = evaluated()
    text = model_card.card(ABOUT, scores)
    low, high = scores["standard"]["dice"]["ci95"]
    for part in (
        # (0.5 + 0) / 2
        f"| Dice | 0.250 | {low:.3f} to {high:.3f} | 0.250 |",
        "| HD95, mm |",
        "2 pixels, or 3 mm",
        "1 of 2 masks with truth",
        "1 of 1 without truth",
        "3 cases, 3 slices: a, b, c",
        "0.125 s a slice on 1 x cpu",
        "biedsnet, 1,234,567 parameters",
        "steps 10, samples 5",
        "window -1250.0, 250.0",
        "Not for diagnosis",
        "**Lesion by lesion**: not measured",
    ):
        assert part in text
    assert "other settings" not in text


def test_every_figure_is_one_of_the_workdirs():
    scores = evaluated(lesions={"found": 7, "true": 9, "false": 11, "predicted": 18})
    text = model_card.card(ABOUT, scores)
    text = text.replace("95 % by case", "").replace("HD95", "")
    numbers = re.findall(r"-?\d+(?:\.\d+)?", json.dumps([ABOUT, scores]))
    known = list(map(float, numbers))
    known.append(scores["n_images"] - scores["n_empty"])
    known.append(len(scores["false_positive_slices"]))
    for figure in re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?", text):
        value = float(figure.rstrip(",").replace(",", ""))
        digits = len(figure.partition(".")[2])
        # Half of the last digit that is shown.
        tolerance = 0.5001 * 10**-digits if digits else 0
        assert min(abs(value - x) for x in known) <= tolerance, figure


def test_without_scores_nothing_is_measured():
    text = model_card.card(ABOUT | {"sampler": None, "fusion": None}, None)
    for part in (
        "Not measured",
        "**Tested on**: not measured",
        "**Missed and made up**: not measured",
        "one pass",
    ):
        assert part in text
    assert "|" not in text and "samples 5" not in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": 0.3}, "threshold 0.5 there, 0.3 here"),
        ({"checkpoint_step": 70}, "checkpoint_step 80 there, 70 here"),
        ({"mirror": "lr"}, "mirror None there, lr here"),
        (
            {"sampler": ABOUT["sampler"] | {"steps": 1}},
            "steps 10, ensemble 5 there, method ddim, steps 1, ensemble 5 here",
        ),
    ],
)
def test_scores_of_other_settings_are_not_passed_off_as_its_own(change, says):
    text = model_card.card(ABOUT | change, evaluated())
    assert says in text and "this program's own scores are not measured" in text
    assert "**Missed and made up**: not measured" in text


def test_classes_and_intervals_that_are_not_there():
    full, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    one = metrics.slice_row(pred=full, truth=full, case="a", slice="1")
    two = metrics.slice_row(pred=empty, truth=empty, case="a", slice="1", label=2)
    scores = evaluated() | metrics.summarise([one, two]) | {"cases": ["a"]}
    text = model_card.card(ABOUT | {"classes": 2, "labels": [[1], [2]]}, scores)
    for part in (
        "| Dice | 1.000 | too few cases | 1.000 |",
        "| class 1, Dice | 1.000 |",
        "| class 2, Dice | undefined |",
        "0 of 1 masks with truth",
        "0 of 1 without truth",
    ):
        assert part in text
    assert "HD95, mm" not in text


def test_damaged_results_are_named(tmp_path):
    assert model_card.read_results(tmp_path) is None
    path = tmp_path / "results.json"
    path.write_text("[]")
    refused(lambda: model_card.read_results(tmp_path), path)
