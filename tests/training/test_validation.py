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


class Heard:
    """Stands in for the log: keeps what it is told."""

    def __init__(self):
        self.written = []

    def write(self, step, scalars):
        self.written.append((step, scalars))


@pytest.fixture
def made(monkeypatch):
    """`made(truths)`: a Validation over slices with these masks, predicted as one pixel
    each.
    """

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
    heard = Heard()
    # One pixel of three and one of one found: 2 * 1 / (1 + 3) and 1; the empty slice
    # does not count.
    validated = made([mask((0, 0), (1, 1), (2, 2)), mask(), mask((0, 0))])
    dice = validated.run(7, STATE, heard)
    validated.tell(progress.Progress("train", 9), 7, dice)
    assert dice == pytest.approx(0.75) and heard.written == [(7, {"val_dice": dice})]
    assert capsys.readouterr().err == "step 7  validation Dice 0.7500\n"


def test_missing_every_lesion_is_a_dice_of_zero(made):
    heard = Heard()
    assert made([mask((3, 3)), mask()]).run(7, STATE, heard) == 0.0
    assert heard.written == [(7, {"val_dice": 0.0})]


@pytest.mark.parametrize("count", [0, 1, 12])
def test_nothing_to_find_is_undefined_and_said_once(made, capsys, count):
    heard, bar = Heard(), progress.Progress("train", 20)
    validated = made([mask()] * count)
    for step in (5, 10, 15):
        dice = validated.run(step, STATE, heard)
        validated.tell(bar, step, dice)
        assert dice is None
    assert heard.written == []
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"none of the {count} slices has a lesion" in line
        and "latest checkpoint" in line
    )
