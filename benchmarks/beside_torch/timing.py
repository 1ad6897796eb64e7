"""Times calls in turns, and PyTorch's at the fastest of its settings."""

import time
from collections.abc import Callable, Mapping

import numpy as np

Call = Callable[[], object]

UNTIMED = 2


def compare(
    name: str, ours: Call, theirs: Mapping[str, Call], *, trials: int, repeats: int
) -> dict:
    """A row of the report: our call beside PyTorch's at the setting that is fastest.

    `theirs` has a call for each setting, by its name. Where there are several, `trials` timed calls
    of each, in turns, choose; then the fastest and ours are timed `repeats` times anew.
    """
    tried = {}
    fastest = next(iter(theirs))
    if len(theirs) > 1:
        times = in_turns(trials, *theirs.values())
        tried = {
            setting: float(np.median(each)) for setting, each in zip(theirs, times)
        }
        fastest = min(tried, key=tried.get)
    ours_s, theirs_s = in_turns(repeats, ours, theirs[fastest])
    return {
        **row(name, summary(ours_s), summary(theirs_s), setting=fastest),
        "tried_ms": {setting: 1e3 * s for setting, s in tried.items()},
    }


def row(name: str, ours: dict, theirs: dict, *, setting: str) -> dict:
    """A row of the report, from the summaries of both; its ratio is that of medians."""
    return {
        "name": name,
        "ours": ours,
        "torch": theirs,
        "torch_setting": setting,
        "ratio": theirs["median_ms"] / ours["median_ms"],
    }


def summary(seconds: list[float]) -> dict:
    """Median, quartiles and each of some times, in milliseconds."""
    low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
    return {
        "median_ms": 1e3 * median,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "calls_ms": [1e3 * s for s in seconds],
    }


def in_turns(repeats: int, *calls: Call) -> list[list[float]]:
    """Seconds of each call, `repeats` times, after `UNTIMED` calls of each.

    The order turns around from one turn to the next, so that none always goes first.
    """
    times = [[] for _ in calls]
    order = list(zip(calls, times))
    for turn in range(-UNTIMED, repeats):
        order.reverse()
        for call, seconds in order:
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds.append(time.perf_counter() - start)
    return times


def table(rows: list[dict]) -> str:
    """The rows as aligned text."""
    titles = ["ms: median (quartiles)", "ours", "PyTorch", "PyTorch / ours", "setting"]
    lines = [titles]
    lines += [
        [
            row["name"],
            _cell(row["ours"]),
            _cell(row["torch"]),
            f"{row['ratio']:.2f}",
            row["torch_setting"],
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cell(times):
    low, high = times["quartiles_ms"]
    return f"{times['median_ms']:.4g} ({low:.4g} to {high:.4g})"
