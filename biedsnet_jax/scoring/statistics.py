"""Says how sure a mean is, by the one bootstrap of this package, over whole cases.

Slices of one patient are no independent sample. A draw therefore takes n whole cases,
with replacement, of the n that have a value at all, each with all its values. The
interval of the mean over values runs from the 2.5th to the 97.5th percentile of the
means of 50,000 such draws.

The draws depend on n alone, so the same mean always gets the same interval, to the last
digit. Imports no jax.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

# With 2000 the third digit of an interval is chance.
RESAMPLES = 50_000
_PERCENTILES = (2.5, 97.5)
# Draws of so few cases are kept for the next call: a byte holds each count.
_MOST_KEPT = 255
# So many counts are in memory at once, each 8 bytes.
_CHUNK = 2**21


def interval(
    values: Float[np.ndarray, " rows"], case: Sequence[str | int]
) -> tuple[float, float]:
    """Computes the 95 % interval of the mean of `values`; value i is of `case[i]`.

    NaN is left out. (NaN, NaN) where fewer than two cases have a value.
    """
    return intervals({"": values}, case)[""]


def intervals(
    columns: Mapping[str, Float[np.ndarray, " rows"]], case: Sequence[str | int]
) -> dict[str, tuple[float, float]]:
    """Computes `interval` of several columns, which share their draws."""
    number = _numbers(case)
    by_count = defaultdict(dict)
    for name, values in columns.items():
        sums, sizes = _by_case(values, number)
        by_count[len(sums)][name] = sums, sizes
    found = {}
    for count, of_cases in by_count.items():
        found |= _resampled(count, of_cases)
    return {name: found[name] for name in columns}


def _numbers(case):
    """Numbers the cases in the order of their names, whatever the order of the rows."""
    place = {name: i for i, name in enumerate(sorted(set(case)))}
    return np.array([place[name] for name in case], int)


def _by_case(
    values: Float[np.ndarray, " rows"], number: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " cases"], Float[np.ndarray, " cases"]]:
    """Adds up and counts the values of each case that has any."""
    known = ~np.isnan(values)
    # Without values bincount gives whole numbers, hence `astype`.
    sums = np.bincount(number[known], values[known]).astype(float)
    sizes = np.bincount(number[known]).astype(float)
    return sums[sizes > 0], sizes[sizes > 0]


def _resampled(count, of_cases):
    """Computes the interval of each column, whose `count` cases have sums and sizes."""
    if count < 2:
        return dict.fromkeys(of_cases, (math.nan, math.nan))
    means = {name: np.empty(RESAMPLES) for name in of_cases}
    start = 0
    for draws in _draws(count):
        stop = start + len(draws)
        totals = {}
        for name, (sums, sizes) in of_cases.items():
            # Most columns have values in the same rows.
            same = sizes.tobytes()
            if same not in totals:
                totals[same] = _product(draws, sizes)
            means[name][start:stop] = _product(draws, sums) / totals[same]
        start = stop
    return {name: _bounds(of_column) for name, of_column in means.items()}


def _product(draws, values):
    # `draws @ values` would round by the other columns and the threads of BLAS.
    return np.einsum("dc,c->d", draws, values)


def _bounds(means):
    low, high = np.percentile(means, _PERCENTILES)
    return float(low), float(high)


def _draws(count: int) -> Iterator[Float[np.ndarray, "draws cases"]]:
    """Yields how often each draw holds each of `count` cases, some draws at a time."""
    rows = max(1, _CHUNK // count)
    if count <= _MOST_KEPT:
        kept = _few(count)
        for start in range(0, RESAMPLES, rows):
            yield kept[start : start + rows].astype(float)
        return
    rng = np.random.default_rng(0)
    for start in range(0, RESAMPLES, rows):
        yield _many(rng, count, min(rows, RESAMPLES - start))


@functools.lru_cache(maxsize=8)
def _few(count):
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(
        np.uint8
    )


def _many(rng, count, draws):
    """Draws case by case and counts, ten times as fast as `_few` for many cases."""
    # Each draw has numbers of its own, so that one bincount counts all draws.
    drawn = rng.integers(count, size=(draws, count))
    drawn += count * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * count)
    return counts.reshape(draws, count).astype(float)
