"""Makes one row of a table out of several runs, and tests whether two rows differ.

An image's score is the mean over the runs (seeds, folds) that tested it. Slices of one
patient are no independent sample, so everything that says how sure a number is
resamples or pairs whole cases. Imports no jax.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from biedsnet_jax.scoring import statistics
from biedsnet_jax.scoring.results import Run

# With fewer, no two-sided signed-rank test can reach p < 0.05: 2 / 2^5 = 0.0625.
FEWEST_CASES = 6


class Pooled(NamedTuple):
    """The images of one row: the case of each, and its scores by column.

    The columns are those of `results.Run.scores`, truth_pixels and entropy. NaN where
    undefined.
    """

    case: np.ndarray
    scores: dict[str, Float[np.ndarray, " images"]]

    def cases(self) -> list[str]:
        """The names of the cases, sorted."""
        return sorted(set(self.case.tolist()))


class Difference(NamedTuple):
    """Row minus reference: the mean over cases of the case's mean score."""

    n: int  # cases with a score in both
    mean: float
    low: float  # 95 % paired bootstrap by case; NaN for fewer than two cases
    high: float
    # Wilcoxon signed rank, two-sided; NaN where fewer than FEWEST_CASES cases differ
    p: float


def pool(runs: Sequence[Run]) -> Pooled:
    """Averages the runs of one row, image by image."""
    images = [image for run in runs for image in run.images]
    number = {image: i for i, image in enumerate(dict.fromkeys(images))}
    where = np.array([number[image] for image in images])
    every = [
        run.scores
        | {
            "image_pixels": run.image_pixels,
            "truth_pixels": run.truth_pixels,
            "entropy": run.entropy,
        }
        for run in runs
    ]
    scores = {}
    for name in every[0]:
        # The paper's convention may be of some runs alone.
        if not all(name in columns for columns in every):
            continue
        values = np.concatenate([columns[name] for columns in every])
        scores[name] = _group_means(values, where, len(number))
    return Pooled(np.array([case for case, _, _ in number]), scores)


def mean(values: Float[np.ndarray, " images"]) -> float:
    """The mean of the values that are defined; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def interval(pooled: Pooled, column: str) -> tuple[float, float]:
    """The 95 % interval of the mean over images, see `statistics.interval`."""
    return statistics.interval(pooled.scores[column], pooled.case.tolist())


def difference(row: Pooled, reference: Pooled, column: str) -> Difference:
    """Compares `row` with `reference` over the cases that both were tested on."""
    ours = case_means(row, column)
    theirs = case_means(reference, column)
    both = sorted(ours.keys() & theirs.keys())
    deltas = np.array([ours[case] - theirs[case] for case in both])
    low, high = statistics.interval(deltas, range(len(deltas)))
    return Difference(len(deltas), mean(deltas), low, high, _signed_rank(deltas))


def case_means(pooled: Pooled, column: str) -> dict[str, float]:
    """The mean score of each case that has one."""
    names, case = np.unique(pooled.case, return_inverse=True)
    means = _group_means(pooled.scores[column], case, len(names))
    return {
        str(name): float(value)
        for name, value in zip(names, means)
        if not np.isnan(value)
    }


def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN where a value is NaN, or all of x or y are equal."""
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    # Importing it takes half a second, for which not every start needs to wait.
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def _group_means(values, group, groups):
    """The mean of each group's defined values; NaN where it has none."""
    known = ~np.isnan(values)
    sizes = np.bincount(group[known], minlength=groups)
    sums = np.bincount(group[known], values[known], minlength=groups)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), math.nan)


def _signed_rank(deltas):
    if np.count_nonzero(deltas) < FEWEST_CASES:
        return math.nan
    # Importing it takes half a second, for which not every start needs to wait.
    from scipy import stats

    with warnings.catch_warnings():
        # With ties and zeros scipy warns that it takes the normal approximation.
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(deltas).pvalue)
