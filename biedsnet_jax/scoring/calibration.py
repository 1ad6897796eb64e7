"""How well probabilities tell error: calibration, risk by coverage, and entropy."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_RELIABILITY_BINS = 20
# Of the histogram, over probabilities 0 to 1.
BINS = 1000
# A slice's mean entropy is over pixels at least so probable: elsewhere it is 0, and
# there is a lot of elsewhere.
LIKELY = 0.05
# Error as a share of the foreground, up to which calibration is good, and fair.
GOOD = 0.1
FAIR = 0.3


class Confidence(NamedTuple):
    """How far a test's probabilities are off, and to which side, over all its pixels."""

    error: float  # the expected calibration error
    foreground: float  # share of pixels that are truly foreground
    sureness: float  # mean of max(p, 1 - p)
    right: float  # share of pixels on the right side of 0.5

    @property
    def grade(self) -> str:
        """Calibration in one word: "good", "fair" or "poor".

        Most pixels are sure background and keep the error small whatever the model says
        of lesions. The error is therefore measured against the foreground: up to GOOD
        of it is good, up to FAIR fair.
        """
        if self.error <= GOOD * self.foreground:
            return "good"
        return "fair" if self.error <= FAIR * self.foreground else "poor"

    @property
    def direction(self) -> str:
        """ "overconfident", "underconfident", or "neither".

        A model is overconfident where it is surer than it is right (Guo et al. 2017).
        It is neither where less than half of the error is left when bins of too much
        and of too little confidence cancel.
        """
        surplus = self.sureness - self.right
        if abs(surplus) <= self.error / 2:
            return "neither"
        return "overconfident" if surplus > 0 else "underconfident"


def mean_entropy(p: Float[np.ndarray, "*pixels"]) -> float:
    """Mean entropy of the pixels that are LIKELY, in bits; 0 where none is.

    It says how unsure a slice's mask is.
    """
    p = p[p >= LIKELY].astype(np.float64)
    if not p.size:
        return 0.0
    q = 1 - p
    log_q = np.log2(np.where(q > 0, q, 1))
    bits = -(p * np.log2(p) + q * log_q)
    return float(bits.mean())


def calibration(
    histogram: Int[np.ndarray, "k bins 2 2"],
) -> tuple[list[float], list[float], list[int]]:
    """Mean probability, share of truth and number of pixels of each of 20 bins that has
    any.
    """
    # By bin, finer bin and truth.
    count = histogram.sum((0, 3)).reshape(_RELIABILITY_BINS, -1, 2)
    centres = (np.arange(BINS) + 0.5) / BINS
    centres = centres.reshape(_RELIABILITY_BINS, -1)
    total = count.sum((1, 2))
    sum_predicted = (count.sum(2) * centres).sum(1)
    sum_observed = count[..., 1].sum(1)
    some = total > 0
    total = total[some]
    predicted = sum_predicted[some] / total
    observed = sum_observed[some] / total
    return predicted.tolist(), observed.tolist(), total.tolist()


def expected_calibration_error(histogram: Int[np.ndarray, "k bins 2 2"]) -> float:
    """Mean of |probability - share of truth| over the bins of `calibration`, weighed by
    pixels (Guo et al. 2017); NaN without pixels.
    """
    predicted, observed, count = map(np.array, calibration(histogram))
    if not len(count):
        return math.nan
    error = np.abs(predicted - observed)
    return float((error * count).sum() / count.sum())


def confidence(histogram: Int[np.ndarray, "k bins 2 2"]) -> Confidence | None:
    """Sums up `calibration` over all pixels; None where none is truly foreground."""
    predicted, observed, count = map(np.array, calibration(histogram))
    foreground = (observed * count).sum()
    if not foreground:
        return None
    sure = np.maximum(predicted, 1 - predicted)
    right = np.where(predicted > 0.5, observed, 1 - observed)
    return Confidence(
        error=expected_calibration_error(histogram),
        foreground=float(foreground / count.sum()),
        sureness=float((sure * count).sum() / count.sum()),
        right=float((right * count).sum() / count.sum()),
    )


def pixel_risk_coverage(
    histogram: Int[np.ndarray, "k bins 2 2"],
) -> tuple[list[float], list[float]]:
    """(share kept, share of those wrong), pixels kept from the surest probability to
    0.5 (El-Yaniv & Wiener 2010).
    """
    wrong = histogram[..., 0, 1] + histogram[..., 1, 0]
    sureness = np.abs(np.arange(BINS) + 0.5 - BINS / 2)
    order = np.argsort(-sureness, kind="stable")
    # Pairs, because p and 1 - p have the same entropy.
    order = order.reshape(-1, 2)
    count = histogram.sum((0, 2, 3))
    kept = count[order].sum(1).cumsum()
    errors = wrong.sum(0)[order].sum(1).cumsum()
    some = kept > 0
    coverage = kept[some] / kept[-1]
    risk = errors[some] / kept[some]
    return coverage.tolist(), risk.tolist()


def slice_risk_coverage(
    dice: Float[np.ndarray, " rows"], uncertainty: Float[np.ndarray, " rows"]
) -> tuple[list[float], list[float]]:
    """(share kept, mean of 1 - Dice of those), rows with a Dice kept from the least
    uncertain on.
    """
    known = np.flatnonzero(~np.isnan(dice))
    order = known[np.argsort(uncertainty[known], kind="stable")]
    number = np.arange(1, len(order) + 1)
    coverage = number / max(1, len(order))
    risk = (1 - dice[order]).cumsum() / number
    return coverage.tolist(), risk.tolist()
