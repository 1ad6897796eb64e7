"""Scores what a network must beat: the best intensity threshold, and the best band.

    python benchmarks/threshold_baseline.py --config=configs/phantom.py
    python benchmarks/threshold_baseline.py --config=configs/covid.py:cpu \
        --config.data.root=DIR [--workdir=DIR]

Split and size are those of the config. With the workdir of a run the split is the one
that the run has recorded, whatever was added to the data since. Both are chosen on the
training slices by mean Dice per image, and scored on the test slices. Predicting
nothing scores 0.
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from biedsnet_jax.config import build_data, run_split
from biedsnet_jax.config.check import check_config
from biedsnet_jax.data import pipeline

_CONFIG = config_flags.DEFINE_config_file("config")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "a run of this config, whose split is taken"
)
# Intensities that may bound a band: quantiles of the training slices.
LEVELS = 33


def main(_) -> None:
    cfg = _CONFIG.value
    check_config(cfg)
    if _WORKDIR.value:
        data = run_split.open_training(cfg, Path(_WORKDIR.value))
    else:
        data = build_data.open_data(cfg)
    # Every fourth slice, since the neighbours of a slice look like it.
    train = _slices(cfg, data, data.train[::4])
    test = _slices(cfg, data, data.test)
    intensities = np.concatenate([image.ravel() for image, _ in train])
    levels = np.quantile(intensities, np.linspace(0, 1, LEVELS))
    bands = [(low, high) for low in levels for high in levels if high > low]
    # A threshold is a band that is open at one end.
    thresholds = [
        (low, high) for low, high in bands if low == levels[0] or high == levels[-1]
    ]
    for name, candidates in (("threshold", thresholds), ("band", bands)):
        low, high = max(candidates, key=lambda band: _mean_dice(train, *band))
        dice = _mean_dice(test, low, high)
        print(
            f"best {name}: {low:.3f} to {high:.3f}, Dice {dice:.4f} "
            f"on {len(test)} test slices with truth"
        )


def _slices(cfg, data, indices):
    """(image, truth) of each slice that has truth."""
    batches = pipeline.eval_batches(
        data.source, indices, prepare=build_data.make_prepare(cfg), batch_size=1
    )
    pairs = [
        (batch["image"][0, ..., 0], batch["mask"][0].any(-1)) for batch, _ in batches
    ]
    return [(image, truth) for image, truth in pairs if truth.any()]


def _mean_dice(slices, low, high):
    """Mean Dice per image of the mask of intensities from `low` to `high`."""
    scores = []
    for image, truth in slices:
        mask = (image >= low) & (image <= high)
        scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    return float(np.mean(scores))


if __name__ == "__main__":
    app.run(main)
