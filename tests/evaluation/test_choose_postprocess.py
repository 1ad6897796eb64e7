"""Tests what is decided on the validation cases, with predictions made up so that the right
answer is known.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_predictions import ONE, predicted
from stubs import Stub

from biedsnet_jax.config import build_data
from biedsnet_jax.evaluation import choose_postprocess, evaluate, scan_pixels
from biedsnet_jax.prediction import outputs, predictor
from biedsnet_jax.prediction.postprocess import Postprocess
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices
from biedsnet_jax.scoring import postprocess_text
from biedsnet_jax.segmenters import macs
from configs import phantom

SIZE = 24


def choose(cases, labels=ONE):
    pixels = [scan_pixels.pixels_of(*case, 0.1) for case in cases]
    return choose_postprocess.choose(pixels, 0.5, labels)


def drawn(truth, *, found=0.9, false=0.05, size=SIZE, depth=1):
    """Makes (probability, truth) of one class: a lesion of `truth` rows of 6 pixels."""
    lesion = np.zeros((depth, size, size, 1), bool)
    lesion[:, 1 : 1 + truth, 2:8] = True
    return np.where(lesion, found, false), lesion


def steps_kept(steps):
    return [(one["step"], one["class"]) for one in steps if one["kept"]]


@pytest.mark.parametrize(
    ("spacing", "unit", "smallest"),
    [
        # A false object of 4 pixels; the lesions have 24 and more.
        (None, "pixels", 5),
        ((0.5, 2.0), "mm2", 5),
        ((0.5, 0.5), "mm2", 2),
        # Of two slices: 8 voxels of 0.75 mm3.
        ((3.0, 0.5, 0.5), "mm3", 10),
    ],
)
def test_false_objects_of_every_case_are_removed(spacing, unit, smallest):
    cases = []
    for n, name in enumerate("abcd"):
        depth = 2 if unit == "mm3" else 1
        probability, truth = drawn(4 + n, depth=depth)
        probability[:, 15:17, 15:17] = 0.9
        cases.append(predicted(name, probability, truth, spacing=spacing))
    rules, steps = choose(cases)
    assert steps_kept(steps) == [("smallest", 1)]
    assert (rules.unit, rules.smallest) == (unit, (smallest,))
    assert (rules.thresholds, rules.holes, rules.largest) == ((), (), ())
    assert rules.reason == ""
    assert rules.cases == 4
    # Lesions of 24, 30, 36 and 42 pixels, and 4 false ones.
    dice = [2 * true / (2 * true + 4) for true in (24, 30, 36, 42)]
    assert rules.before == pytest.approx(np.mean(dice))
    assert rules.after == 1.0
    assert f"under {smallest} " in postprocess_text.sentence(rules.to_json())


def test_where_nothing_helps_the_answer_is_none():
    cases = [predicted(name, *drawn(3 + n)) for n, name in enumerate("abc")]
    rules, steps = choose(cases)
    assert not rules.changes_masks
    assert (rules.before, rules.after) == (1.0, 1.0)
    assert len(steps) == 4
    assert not steps_kept(steps)
    assert rules.reason
    assert postprocess_text.sentence(rules.to_json()) == f"none; {rules.reason}"


def test_a_lower_threshold_is_found():
    rng = np.random.default_rng(0)
    cases = []
    for n, name in enumerate("abc"):
        probability, truth = drawn(6 + n)
        probability[truth] = rng.uniform(0.31, 0.6, truth.sum())
        probability[~truth] = rng.uniform(0.1, 0.29, (~truth).sum())
        cases.append(predicted(name, probability, truth))
    rules, steps = choose(cases)
    assert rules.thresholds == (0.3,)
    assert steps_kept(steps) == [("thresholds", 1)]
    assert rules.after == 1.0 > rules.before


def test_holes_are_filled_and_the_largest_object_kept():
    cases = []
    for n, name in enumerate("abcd"):
        probability, truth = drawn(7)
        # A hole in the lesion.
        probability[:, 3, 4:6] = 0.06
        # False objects of 30 to 36 pixels; the lesion has 42. No size tells them apart.
        probability[:, 15:21, 15 : 20 + n % 2] = 0.9
        cases.append(predicted(name, probability, truth))
    rules, steps = choose(cases)
    assert steps_kept(steps) == [("holes", 1), ("largest", 1)]
    assert (rules.holes, rules.largest, rules.smallest) == ((True,), (True,), ())
    assert rules.after == 1.0


def test_the_luck_of_one_case_decides_nothing():
    cases = []
    for n, name in enumerate("abcd"):
        probability, truth = drawn(4 + n)
        if name == "b":
            probability[:, 12:17, 12:17] = 0.9
        cases.append(predicted(name, probability, truth))
    rules, steps = choose(cases)
    assert steps_kept(steps) == []
    assert not rules.changes_masks
    of_size = next(one for one in steps if one["step"] == "largest")
    assert of_size["best"] is True
    assert of_size["after"] > of_size["before"] + 0.05


def test_each_class_has_rules_of_its_own():
    labels = ((1,), (2,))
    cases = []
    for n, name in enumerate("abcd"):
        probability = np.full((1, SIZE, SIZE, 2), 0.05)
        truth = np.zeros(probability.shape, bool)
        # The first class is one pixel, the second has false pixels.
        truth[0, 2, 2, 0] = True
        truth[0, 10 : 14 + n, 10:15, 1] = True
        probability[truth] = 0.9
        probability[0, 20, 3:5, 1] = 0.9
        cases.append(predicted(name, probability, truth, labels))
    rules, steps = choose(cases, labels)
    assert steps_kept(steps) == [("smallest", 2)]
    assert rules.smallest == (0.0, 5)
    assert rules.after == 1.0


@pytest.mark.parametrize("lesions", [0, 1])
def test_fewer_than_two_cases_with_a_lesion_decide_nothing(lesions):
    cases = []
    for n, name in enumerate("abc"):
        probability, truth = drawn(4)
        probability[:, 15:17, 15:17] = 0.9
        if n >= lesions:
            truth[:] = False
        cases.append(predicted(name, probability, truth))
    rules, steps = choose(cases)
    assert not rules.changes_masks
    assert (rules.cases, rules.before, steps) == (lesions, None, [])
    assert f"validation has {lesions} " in rules.reason


def test_scans_and_slices_of_a_case_count_together_and_healthy_cases_not():
    cases = [
        predicted("a", *drawn(4)),
        predicted("a", *drawn(2, found=0.1)),
        predicted("b", *drawn(3)),
        predicted("c", *drawn(0)),
    ]
    rules, _ = choose(cases)
    # Of case a 24 pixels are found and 12 missed.
    assert rules.before == pytest.approx((2 * 24 / (24 + 36) + 1) / 2)
    assert rules.cases == 2


@pytest.mark.parametrize("labels", [((1,), (2,)), ((1, 2), (2,)), ((1,),)])
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.5)])
def test_what_is_scored_is_the_label_map_that_would_be_written(labels, spacing):
    rng = np.random.default_rng(2)
    classes = len(labels)
    cases = []
    for name in "ab":
        probability = rng.random((3, 9, 10, classes)) ** 2
        truth = rng.random((3, 9, 10, classes)) < 0.3
        if classes == 2:
            exclusive = labels == ((1,), (2,))
            truth[..., 1] &= ~truth[..., 0] if exclusive else truth[..., 0]
        # Some empty margin, which the box leaves out.
        probability[:, 7:], truth[:, 7:] = 0.0, False
        cases.append(predicted(name, probability, truth, labels, spacing))
    unit = "mm3" if spacing else "pixels"
    every = [
        Postprocess(),
        Postprocess(thresholds=(0.3,) * classes),
        Postprocess(
            thresholds=(0.2, 0.45)[:classes],
            holes=(True, False)[:classes],
            smallest=(4.0, 9.0)[:classes],
            largest=(False, True)[:classes],
            unit=unit,
        ),
    ]
    pixels = [scan_pixels.pixels_of(*case, 0.1) for case in cases]
    score = choose_postprocess.Scorer(pixels, 0.5, labels)
    found = score(every)
    for n, (scan, made) in enumerate(cases):
        for rules, dice in zip(every, found[:, n]):
            label_map = dataclasses.replace(made, postprocess=rules).label_map
            written = outputs.masks_of(label_map, labels)
            each = []
            for k in range(classes):
                one, true = written[..., k], scan.truth[..., k] > 0
                each.append(2 * (one & true).sum() / (one.sum() + true.sum()))
            assert dice == pytest.approx(np.mean(each), abs=1e-12)
    np.testing.assert_array_equal(score(every[:2], sparse=True), found[:2])


def test_nothing_counts_where_the_truth_is_not_known():
    pixels = []
    for n, name in enumerate("abcd"):
        probability, truth = drawn(4 + n)
        # A false object, of which nobody knows, and one that is false indeed.
        probability[:, 15:17, 15:17] = 0.9
        probability[:, 20, 3] = 0.9
        known = np.ones(truth.shape, np.uint8)
        known[:, 14:18, 14:18] = 0
        scan, made = predicted(name, probability, truth)
        scan = dataclasses.replace(scan, known=known)
        pixels.append(scan_pixels.pixels_of(scan, made, 0.1))
    score = choose_postprocess.Scorer(pixels, 0.5, ONE)
    dice = [2 * true / (2 * true + 1) for true in (24, 30, 36, 42)]
    for sparse in (True, False):
        np.testing.assert_allclose(score([Postprocess()], sparse=sparse)[0], dice)
    rules, _ = choose_postprocess.choose(pixels, 0.5, ONE)
    # 2 is enough: the other object neither helps nor harms.
    assert rules.smallest == (2.0,)
    assert rules.after == 1.0


# ---- In a workdir


class Bright(Stub):
    """Is sure of the brightest pixels and half sure of some more."""

    def predict(self, variables, image, keys, *, ensemble):
        return jax.nn.sigmoid(9.0 * (image - variables["above"]))[None]


class NoTest:
    """A source that raises where a case of the test is opened."""

    def __init__(self, source, data):
        self.source = source
        self.closed = {source.cases[i] for i in data.test}
        self.cases = source.cases
        self.facts = source.facts

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        assert self.cases[index] not in self.closed
        return self.source[index]

    def scans(self, case):
        assert case not in self.closed
        return self.source.scans(case)

    def verify(self):
        raise AssertionError


def opened(**fields):
    cfg = phantom.get_config()
    cfg.data.size = 32
    cfg.data.phantom.update(n_cases=8, slices_per_case=3, empty_fraction=0.0)
    cfg.split.fractions = (0.25, 0.5, 0.25)
    cfg.eval.batch_size = 8
    cfg.eval.pictures = 0
    cfg.update_from_flattened_dict(fields)
    data = build_data.open_data(cfg)
    data = dataclasses.replace(data, source=NoTest(data.source, data))
    variables = {"above": jnp.float32(0.7), "params": {}}
    mesh = devices.make_mesh(jax.devices()[:1])
    return predictor.of_model(Trained(cfg, Bright(), variables, 7, mesh)), data


def test_the_test_is_not_opened_and_the_file_holds_what_is_applied(
    tmp_path, capsys, monkeypatch
):
    made, data = opened()
    decided = choose_postprocess.decide(made, tmp_path, data)
    written = json.loads((tmp_path / "postprocess.json").read_text())
    assert written["checkpoint_step"] == 7
    assert written["threshold"] == 0.5
    rules = decided.model.postprocess
    assert rules.to_json() == written["rules"]
    assert rules.cases == 4
    assert rules.changes_masks
    assert rules.after > rules.before
    # Each step begins where the one before it ended.
    mean = rules.before
    for step in written["steps"]:
        assert step["before"] == pytest.approx(mean)
        mean = step["after"] if step["kept"] else mean
    assert mean == pytest.approx(rules.after)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "post-processing" in line]
    assert f"{rules.after:.4f}" in line
    # The same checkpoint again: nothing is predicted.
    monkeypatch.setattr(predictor.Predictor, "predict", None)
    again = choose_postprocess.decide(made, tmp_path, data)
    assert again.model.postprocess == rules
    # Another one: it is decided anew.
    later = dataclasses.replace(made, model=dataclasses.replace(made.model, step=8))
    with pytest.raises(TypeError):
        choose_postprocess.decide(later, tmp_path, data)


def test_what_it_gave_is_what_the_scores_of_the_validation_say(tmp_path, monkeypatch):
    monkeypatch.setattr(macs, "prediction_gmacs", lambda *args, **fields: 0.0)
    made, data = opened()
    decided = choose_postprocess.decide(made, tmp_path, data)
    found = {}
    whole = dataclasses.replace(data, source=data.source.source, test=data.val)
    for name, model in (("before", made.model), ("after", decided.model)):
        folder = tmp_path / name
        folder.mkdir()
        results = evaluate.evaluate(model, folder, whole)
        lines = (folder / "cases.csv").read_text().splitlines()
        column = lines[0].split(",").index("dice")
        found[name] = np.mean([float(line.split(",")[column]) for line in lines[1:]])
        assert results["postprocess"] == model.postprocess.to_json()
    rules = decided.model.postprocess
    assert found["before"] == pytest.approx(rules.before)
    assert found["after"] == pytest.approx(rules.after)


def test_one_validation_case_is_not_even_predicted(tmp_path, monkeypatch):
    made, data = opened()
    first = data.source.cases[data.val[0]]
    alone = [i for i in data.val if data.source.cases[i] == first]
    data = dataclasses.replace(data, val=alone)
    monkeypatch.setattr(predictor.Predictor, "predict", None)
    decided = choose_postprocess.decide(made, tmp_path, data)
    assert not decided.model.postprocess.changes_masks
    written = json.loads((tmp_path / "postprocess.json").read_text())
    assert "validation has 1 " in written["rules"]["reason"]


def test_too_many_pixels_to_keep_decide_nothing(tmp_path, monkeypatch):
    made, data = opened()
    monkeypatch.setattr(scan_pixels, "MOST_PIXELS", 1000)
    decided = choose_postprocess.decide(made, tmp_path, data)
    assert not decided.model.postprocess.changes_masks
    assert "1000 pixels" in decided.model.postprocess.reason
