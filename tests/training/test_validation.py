"""Validation of splits with and without something to find."""

import dataclasses
import types

import numpy as np
import pytest
from stubs import Stub

from biedsnet_jax.config import build_data
from biedsnet_jax.runtime import devices, progress
from biedsnet_jax.training import validation
from configs import phantom


class FakeLog:
    """Stands in for the run's log and keeps the scalars."""

    def __init__(self):
        self.written = []

    def write(self, step, scalars):
        self.written.append((step, scalars))


@pytest.fixture
def made(monkeypatch):
    """`made(truths)`: a Validation over these masks; each prediction is one pixel."""

    def make(truths):
        def split(self, data, indices, clock=None):
            for index in indices:
                probability = np.zeros((1, 4, 4, 1), np.float32)
                probability[0, 0, 0] = 1
                yield probability, {"mask": truths[index][None]}, []

        monkeypatch.setattr(validation.Trained, "predict_split", split)
        cfg = phantom.get_config()
        cfg.update_from_flattened_dict({"eval.val_images": 0, "log.tensorboard": False})
        data = dataclasses.replace(
            build_data.open_data(cfg), val=list(range(len(truths)))
        )
        return validation.Validation(cfg, Stub(), data, devices.make_mesh())

    return make


def mask(*pixels):
    truth = np.zeros((4, 4, 1), np.float32)
    for pixel in pixels:
        truth[pixel] = 1
    return truth


STATE = types.SimpleNamespace(ema_variables={})


def test_dice_is_the_mean_over_slices_with_a_lesion(made, capsys):
    log = FakeLog()
    # One pixel of three and one of one found: 2 * 1 / (1 + 3) and 1; the empty slice
    # does not count.
    validate = made([mask((0, 0), (1, 1), (2, 2)), mask(), mask((0, 0))])
    dice = validate.run(7, STATE, log)
    validate.report(progress.Progress("train", 9), 7, dice)
    assert dice == pytest.approx(0.75) and log.written == [(7, {"val_dice": dice})]
    assert capsys.readouterr().err == "step 7  validation Dice 0.7500\n"


def test_missing_every_lesion_is_a_dice_of_zero(made):
    log = FakeLog()
    assert made([mask((3, 3)), mask()]).run(7, STATE, log) == 0.0
    assert log.written == [(7, {"val_dice": 0.0})]


class BoardLog(FakeLog):
    """Keeps curves and pictures too."""

    def curves(self, step, counts):
        self.counts = counts.curves()

    def panel(self, step, *pictures):
        self.pictures = pictures


def test_what_is_not_known_counts_neither_in_dice_nor_in_curves(monkeypatch):
    rng = np.random.default_rng(0)
    probability = rng.random((3, 4, 4, 2)).astype(np.float32)
    known = (rng.random(probability.shape) < 0.7).astype(np.float32)
    # Of the second class of the last slice nothing is known.
    known[2, ..., 1] = 0
    truth = (rng.random(probability.shape) < 0.4) * known
    image = rng.random((3, 4, 4, 1))

    def split(self, data, indices, clock=None):
        for i in indices:
            one = slice(i, i + 1)
            batch = {"image": image[one], "mask": truth[one], "known": known[one]}
            yield probability[one], batch, []

    monkeypatch.setattr(validation.Trained, "predict_split", split)
    cfg = phantom.get_config()
    cfg.data.classes = 2
    cfg.log.update(tensorboard=True, images=2)
    data = dataclasses.replace(build_data.open_data(cfg), val=[0, 1, 2])
    log = BoardLog()
    validate = validation.Validation(cfg, Stub(), data, devices.make_mesh())
    dice = validate.run(3, STATE, log)

    each = []
    tp = np.zeros(2, int)
    for i, k in np.ndindex(3, 2):
        pixels = [
            (p > 0.5, t > 0.5)
            for p, t, is_known in zip(
                probability[i, ..., k].flat,
                truth[i, ..., k].flat,
                known[i, ..., k].flat,
            )
            if is_known
        ]
        shared = sum(p and t for p, t in pixels)
        tp[k] += shared
        if any(t for _, t in pixels):
            total = sum(p for p, _ in pixels) + sum(t for _, t in pixels)
            each.append(2 * shared / total)
    assert dice == pytest.approx(np.mean(each), abs=1e-12)
    # Threshold 63 of 126 is one half.
    assert [curve["tp"][63] for curve in log.counts] == tp.tolist()
    of_all = [curve["tp"][0] + curve["fp"][0] for curve in log.counts]
    assert of_all == known.sum((0, 1, 2)).tolist()
    # The picture shows the truth as far as it is known, and all that is predicted.
    shown = [0, 2]
    for picture, expected in zip(log.pictures, (image, truth, probability)):
        np.testing.assert_array_equal(picture, expected[shown])


@pytest.mark.parametrize("count", [0, 1, 12])
def test_no_lesion_is_an_undefined_dice_and_warned_of_once(made, capsys, count):
    log, bar = FakeLog(), progress.Progress("train", 20)
    validate = made([mask()] * count)
    for step in (5, 10, 15):
        dice = validate.run(step, STATE, log)
        validate.report(bar, step, dice)
        assert dice is None
    assert log.written == []
    (line,) = capsys.readouterr().err.splitlines()
    assert f"none of the {count} slices" in line and "latest checkpoint" in line
