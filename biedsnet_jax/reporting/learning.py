"""What `metrics.jsonl` says of a training: its lines, and whether the loss still fell.

Imports no jax.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

# The end of a training is the last third of its log lines, and never fewer than these.
FEWEST_LINES = 6
# A fall counts from this share of the loss on, and from so many standard errors.
LEAST_FALL = 0.05
LEAST_ERRORS = 2.5


class Trend(NamedTuple):
    """A straight line through the training loss at the end of a training."""

    lines: int  # log lines that it rests on
    first_step: int
    last_step: int
    start: float  # the line's loss at first_step
    end: float  # the line's loss at last_step
    error: float  # standard error of start - end

    @property
    def share(self) -> float:
        """Change from start to end as a share of start, below 0 where the loss fell."""
        return self.end / self.start - 1

    @property
    def falling(self) -> bool:
        """Whether the loss was still falling, beyond the noise of its lines.

        The line must fall by LEAST_FALL of the loss, so that a fall too small to matter
        does not count, and by LEAST_ERRORS standard errors, so that chance does not.
        """
        fall = self.start - self.end
        return fall >= LEAST_FALL * self.start and fall >= LEAST_ERRORS * self.error


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """Reads the whole lines of metrics.jsonl that have a step; none without a file."""
    try:
        text = (workdir / "metrics.jsonl").read_text(errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        # A kill can cut a line short.
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append({k: v for k, v in value.items() if isinstance(v, int | float)})
    return lines


def loss_trend(lines: list[dict]) -> Trend | None:
    """Fits a line by least squares to the loss of the last third of the log lines.

    Each log line holds the mean loss since the one before, so their noise is nearly
    independent, and the residuals give the standard error of the fall. None where fewer
    than FEWEST_LINES lines have a finite loss above 0.
    """
    # A resumed training logs some steps twice: the later line counts.
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    known = [pair for pair in sorted(losses.items()) if 0 < pair[1] < math.inf]
    if len(known) < FEWEST_LINES:
        return None
    count = max(FEWEST_LINES, len(known) // 3)
    step, loss = np.array(known[-count:], float).T
    centred = step - step.mean()
    spread = (centred**2).sum()
    slope = (centred * loss).sum() / spread
    residual = loss - loss.mean() - slope * centred
    # A line has two parameters.
    slope_error = math.sqrt((residual**2).sum() / (count - 2) / spread)
    return Trend(
        lines=count,
        first_step=int(step[0]),
        last_step=int(step[-1]),
        start=float(loss.mean() + slope * centred[0]),
        end=float(loss.mean() + slope * centred[-1]),
        error=float(slope_error * (step[-1] - step[0])),
    )
