"""What a network must beat: the best intensity threshold, and the best band, over the
same split and size.

    python benchmarks/threshold_baseline.py --config=configs/phantom.py
    python benchmarks/threshold_baseline.py --config=configs/covid.py:cpu --config.data.root=DIR [--workdir=DIR]

With the workdir of a run its split is the one that the run has recorded, whatever was
added to the data since. Chosen on the training slices by mean Dice per image, scored on
the test slices. Predicting nothing scores 0.
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
LEVELS = 33


def main(_) -> None:
    cfg = _CONFIG.value
    check_config(cfg)
    workdir = _WORKDIR.value
    data = (
        run_split.open_training(cfg, Path(workdir))
        if workdir
        else build_data.open_data(cfg)
    )
    train, test = _slices(cfg, data, data.train[::4]), _slices(cfg, data, data.test)
    levels = np.quantile(
        np.concatenate([image.ravel() for image, _ in train]), np.linspace(0, 1, LEVELS)
    )
    bands = [(low, high) for low in levels for high in levels if high > low]
    thresholds = [
        (low, high) for low, high in bands if low == levels[0] or high == levels[-1]
    ]
    for name, candidates in (("threshold", thresholds), ("band", bands)):
        low, high = max(candidates, key=lambda band: _mean_dice(train, *band))
        dice = _mean_dice(test, low, high)
        print(
            f"best {name}: {low:.3f} to {high:.3f}, Dice {dice:.4f} on {len(test)} test slices with truth"
        )


def _slices(cfg, data, indices):
    """(image, truth) of the slices that have truth."""
    batches = pipeline.eval_batches(
        data.source, indices, prepare=build_data.make_prepare(cfg), batch_size=1
    )
    pairs = [
        (batch["image"][0, ..., 0], batch["mask"][0].any(-1)) for batch, _ in batches
    ]
    return [(image, truth) for image, truth in pairs if truth.any()]


def _mean_dice(slices, low, high):
    masks = [((image >= low) & (image <= high), truth) for image, truth in slices]
    return float(
        np.mean(
            [
                2 * (mask & truth).sum() / (mask.sum() + truth.sum())
                for mask, truth in masks
            ]
        )
    )


if __name__ == "__main__":
    app.run(main)
