"""Scans with a truth and a prediction that are made up."""

import numpy as np

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.sources.source import LabelledScan
from biedsnet_jax.prediction.result import Prediction

# Labels of one class.
ONE = ((1,),)


def predicted(case, probability, truth, labels=ONE, spacing=None):
    """A scan with its truth, and the prediction of it, both "d h w k"."""
    depth, *size, _ = truth.shape
    scan = LabelledScan(
        case=case,
        name="",
        slices=np.zeros((depth, *size, 1), np.float32),
        truth=truth.astype(np.uint8),
        slice_names=[str(z) for z in range(depth)],
        indices=list(range(depth)),
        is_volume=len(spacing or ()) == 3,
        spacing=spacing,
    )
    made = Prediction(
        way=Fit(tuple(size)).way(tuple(size)),
        maps={"probability": probability.astype(np.float32)},
        samples_kept=None,
        threshold=0.5,
        labels=labels,
        seconds=0.0,
        spacing=spacing,
    )
    return scan, made
