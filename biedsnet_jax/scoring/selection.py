"""Chooses among candidates by the scores of a few cases, and says whether to trust it.

The best of many candidates looks better than it is on the cases that chose it. So each
case is scored with the candidate that is the best of the *other* cases: its gain there is
held out. The candidate is kept where the held-out gains are more than MARGIN on average
and more than 0 by a one-sided paired t-test at LEVEL:

    mean > t(1 - LEVEL, n - 1) * standard error

Where one of n cases gains g and the others nothing, mean and standard error are both g / n,
and t is above 1: one case alone is never enough.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

# Dice that a step must bring.
MARGIN = 0.001
# Probability of the test to keep what gains nothing.
LEVEL = 0.05
# Fewer cases cannot be held out against one another.
FEWEST_CASES = 2
# Two ways of rounding the same number differ by less.
_ROUNDING = 1e-9


class Selection(NamedTuple):
    """The best of some candidates, by number."""

    best: int
    # Mean score of candidate 0, which changes nothing, and of the best.
    before: float
    after: float
    # Mean of the held-out gains, and what it must exceed.
    gain: float
    needed: float
    kept: bool


def select(scores: Float[np.ndarray, "candidates cases"]) -> Selection:
    """Chooses the candidate with the highest mean; of equal ones the first.

    Candidate 0 changes nothing. The others should come with the smallest change first.
    There must be FEWEST_CASES cases or more.
    """
    gains = scores - scores[0]
    best = int(gains.mean(axis=1).argmax())
    cases = scores.shape[1]
    held_out = np.empty(cases)
    for i in range(cases):
        others = np.delete(gains, i, axis=1)
        held_out[i] = gains[others.mean(axis=1).argmax(), i]
    gain = float(held_out.mean())
    error = float(held_out.std(ddof=1)) / math.sqrt(cases)
    needed = max(MARGIN, float(special.stdtrit(cases - 1, 1 - LEVEL)) * error)
    return Selection(
        best=best,
        before=float(scores[0].mean()),
        after=float(scores[best].mean()),
        gain=gain,
        needed=needed,
        kept=best > 0 and gain > needed + _ROUNDING,
    )
