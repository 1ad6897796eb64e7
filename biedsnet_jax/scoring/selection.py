"""Chooses among candidates by the scores of a few cases, and says whether to trust it.

The best of many candidates looks better than it is, on the cases that chose it. So each
case is scored with the candidate that is the best of the *other* cases: its gain there is
held out. The candidate is kept where the mean of these gains exceeds MARGIN and its own
standard error (the one-standard-error rule of Breiman et al. 1984, "Classification and
regression trees"). A gain of one case alone, g of n, has the mean g / n and the standard
error g / n: it is never enough.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Dice that a step must bring.
MARGIN = 0.001
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
    # Mean of the held-out gains, and its standard error.
    gain: float
    error: float
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
    error = float(held_out.std(ddof=1) / np.sqrt(cases))
    return Selection(
        best=best,
        before=float(scores[0].mean()),
        after=float(scores[best].mean()),
        gain=gain,
        error=error,
        kept=best > 0 and gain > max(MARGIN, error) + _ROUNDING,
    )
