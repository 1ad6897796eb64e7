"""Time of a call, after warm-up and waiting for the device; comparison of two."""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import numpy as np

# Calls in a repeat at most.
_MOST_CALLS = 100


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a call, one figure a repeat.

    A repeat is `calls` calls in a row without waiting, as in a loop.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median of the repeats, in seconds."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Upper less lower quartile of the repeats, in seconds."""
        return _spread(self.seconds)


def measure(
    call: Callable,
    *,
    repeats: int,
    least: float = 0.2,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times `call()`, which returns arrays.

    Two calls warm up; the second tells how many calls fill `least` seconds.
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
    """Milliseconds a call and images a second of a program that takes `batch` images."""
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
    """A line that compares the "milliseconds" of two summaries.

    A difference counts where it exceeds the sum of both spreads.
    """
    was, now = old["median"], new["median"]
    margin = old["spread"] + new["spread"]
    line = f"{name}: {now:.4g} ms, was {was:.4g} ms"
    if abs(now - was) <= margin:
        return f"{line}: no difference beyond the spread, {margin:.2g} ms"
    verdict = "SLOWER" if now > was else "faster"
    return f"{line}: {abs(now - was) / was:.1%} {verdict}"


def _spread(values) -> float:
    low, high = np.percentile(values, (25, 75))
    return float(high - low)
