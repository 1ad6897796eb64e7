"""How long a call takes: repeated after warm-up, waiting for the device; median and
spread; two of them compared.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import numpy as np

# a repeat
_MOST_CALLS = 100


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a call, one figure a repeat; a repeat is `calls` calls in a row, as in a
    loop that does not wait.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """The middle repeat."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Of the middle half of the repeats: upper less lower quartile."""
        return _spread(self.seconds)


def measure(
    call: Callable,
    *,
    repeats: int,
    least: float = 0.2,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `call()`, which returns arrays. Two calls warm up; from the second follows
    how many fill `least` seconds.
    """
    jax.block_until_ready(call())
    start = clock()
    jax.block_until_ready(call())
    calls = min(_MOST_CALLS, math.ceil(least / max(clock() - start, 1e-9)))
    seconds = []
    for _ in range(repeats):
        start = clock()
        for _ in range(calls):
            done = call()
        jax.block_until_ready(done)
        seconds.append((clock() - start) / calls)
    return Timing(tuple(seconds), calls)


def summary(timing: Timing, batch: int) -> dict:
    """What a benchmark keeps of a program that takes `batch` images: milliseconds a
    call, and images a second.
    """
    milliseconds = [1e3 * s for s in timing.seconds]
    rates = [batch / s for s in timing.seconds]
    return {
        "milliseconds": {
            "median": 1e3 * timing.median,
            "spread": 1e3 * timing.spread,
            "repeats": milliseconds,
        },
        "images_per_second": {
            "median": float(np.median(rates)),
            "spread": _spread(rates),
        },
        "calls_per_repeat": timing.calls,
    }


def change(name: str, new: dict, old: dict) -> str:
    """One line on two summaries' "milliseconds": a difference counts where it exceeds
    the sum of both spreads.
    """
    was, now = old["median"], new["median"]
    margin = old["spread"] + new["spread"]
    line = f"{name}: {now:.4g} ms, was {was:.4g} ms"
    if abs(now - was) <= margin:
        return f"{line}: no difference beyond the spread, {margin:.2g} ms"
    return f"{line}: {abs(now - was) / was:.1%} {'SLOWER' if now > was else 'faster'}"


def _spread(values) -> float:
    low, high = np.percentile(values, (25, 75))
    return float(high - low)
