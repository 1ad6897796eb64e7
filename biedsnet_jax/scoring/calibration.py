"""How well probabilities tell error: calibration, risk by coverage, and the entropy of
a map.
"""

import math

import numpy as np
from jaxtyping import Float, Int

_RELIABILITY_BINS = 20
# of the histogram, over probabilities 0 to 1
BINS = 1000
# mean entropy is over pixels at least so probable: elsewhere it is 0 and there is a lot
# of elsewhere
LIKELY = 0.05


def mean_entropy(p: Float[np.ndarray, "h w"]) -> float:
    """Of the pixels that are LIKELY, in bits: how unsure a slice's mask is. 0 where
    none is.
    """
    p = p[p >= LIKELY].astype(np.float64)
    q = 1 - p
    bits = -(p * np.log2(p) + q * np.log2(np.where(q > 0, q, 1)))
    return float(bits.mean()) if p.size else 0.0


def calibration(
    histogram: Int[np.ndarray, "k bins 2 2"],
) -> tuple[list[float], list[float], list[int]]:
    """Mean probability, share of truth and number of pixels of each of 20 bins that has
    any.
    """
    # bin, finer bin, truth
    count = histogram.sum((0, 3)).reshape(_RELIABILITY_BINS, -1, 2)
    centres = ((np.arange(BINS) + 0.5) / BINS).reshape(_RELIABILITY_BINS, -1)
    total = count.sum((1, 2))
    some = total > 0
    predicted = (count.sum(2) * centres).sum(1)[some] / total[some]
    observed = count[..., 1].sum(1)[some] / total[some]
    return predicted.tolist(), observed.tolist(), total[some].tolist()


def expected_calibration_error(histogram: Int[np.ndarray, "k bins 2 2"]) -> float:
    """Mean of |probability - share of truth| over the bins of `calibration`, weighed by
    pixels (Guo et al. 2017).
    """
    predicted, observed, count = map(np.array, calibration(histogram))
    return (
        float((np.abs(predicted - observed) * count).sum() / count.sum())
        if len(count)
        else math.nan
    )


def pixel_risk_coverage(
    histogram: Int[np.ndarray, "k bins 2 2"],
) -> tuple[list[float], list[float]]:
    """(share kept, share of those wrong), pixels kept from the surest probability to
    0.5 (El-Yaniv & Wiener 2010).
    """
    wrong = histogram[..., 0, 1] + histogram[..., 1, 0]
    order = np.argsort(-np.abs(np.arange(BINS) + 0.5 - BINS / 2), kind="stable")
    # p and 1 - p have the same entropy
    order = order.reshape(-1, 2)
    kept = histogram.sum((0, 2, 3))[order].sum(1).cumsum()
    errors = wrong.sum(0)[order].sum(1).cumsum()
    some = kept > 0
    return (kept[some] / kept[-1]).tolist(), (errors[some] / kept[some]).tolist()


def slice_risk_coverage(
    dice: Float[np.ndarray, " rows"], uncertainty: Float[np.ndarray, " rows"]
) -> tuple[list[float], list[float]]:
    """(share kept, mean of 1 - Dice of those), rows with a Dice kept from the least
    uncertain on.
    """
    known = np.flatnonzero(~np.isnan(dice))
    order = known[np.argsort(uncertainty[known], kind="stable")]
    number = np.arange(1, len(order) + 1)
    return (number / max(1, len(order))).tolist(), (
        (1 - dice[order]).cumsum() / number
    ).tolist()
