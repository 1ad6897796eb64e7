"""What to try next: an ordered table of rules, each of figures that a verdict shows.

A rule gives an advice where its figures call for it, and None where they do not or are
not known. The first rules make the scores themselves surer, the later ones better.
"""

from typing import NamedTuple

from biedsnet_jax.reporting.evidence import SMALL, Evidence
from biedsnet_jax.scoring.comparison import FEWEST_CASES
from biedsnet_jax.scoring.false_lesions import number

# Cross-validation takes at most so many folds, each with at least two cases.
MOST_FOLDS = 5
# Small lesions are missed so much more often than large ones, and at least so many.
TIMES_AS_OFTEN = 2
FEWEST_MISSED = 3
# Share of the slices without a lesion that got one, and at least so many.
FALSE_SHARE = 0.1
FEWEST_FALSE = 3


class Advice(NamedTuple):
    """One thing to try: what, on which figures, with which flags."""

    what: str
    why: str
    flags: str


def percent(share: float, digits: int = 0) -> str:
    """Writes a share: "95 %"."""
    return f"{100 * share:.{digits}f} %"


def advise(evidence: Evidence) -> list[Advice]:
    """Applies all RULES, in their order."""
    found = [rule(evidence) for rule in RULES]
    return [advice for advice in found if advice]


def few_cases(evidence: Evidence) -> Advice | None:
    """Fewer than FEWEST_CASES test cases: cross-validate, or finish doing so."""
    if evidence.test_cases >= FEWEST_CASES or not evidence.own_test:
        return None
    tested = f"{number(evidence.test_cases, 'test case')} can mislead"
    if evidence.folds:
        if evidence.folds_here == evidence.folds:
            return None
        return Advice(
            "Test the other folds",
            f"{tested}, and {evidence.folds_here} of {evidence.folds} folds are here. Train "
            "each fold into a workdir of its own and give all of them to --mode=report.",
            f"--config.split.folds={evidence.folds} --config.split.fold=K",
        )
    folds = count_folds(evidence.all_cases or 0)
    if not folds:
        return None
    return Advice(
        "Test every case",
        f"{tested}. Train {folds} folds, K from 0 to {folds - 1}, each into a workdir of its "
        f"own, and give all of them to --mode=report: then {evidence.all_cases} cases are "
        "tested, each once, by a model that never saw it.",
        f"--config.split.folds={folds} --config.split.fold=K",
    )


def count_folds(cases: int) -> int:
    """Folds that suit a data set of so many cases; 0 where there are too few."""
    # Two folds of two cases are the least that says more than one test.
    return min(MOST_FOLDS, cases // 2) if cases >= 4 else 0


def falling_loss(evidence: Evidence) -> Advice | None:
    """A loss that was still falling: train longer."""
    falling = [trend for trend in evidence.trends if trend.falling]
    if not falling or not evidence.train_steps:
        return None
    trend = min(falling, key=lambda trend: trend.share)
    return Advice(
        "Train longer",
        f"The training loss fell by {percent(-trend.share)} over its last {trend.lines} log lines. "
        f"Take twice the {evidence.train_steps} steps, in a new workdir.",
        f"--config.train.steps={2 * evidence.train_steps}",
    )


def small_lesions(evidence: Evidence) -> Advice | None:
    """Small lesions missed much more often than large ones: larger images."""
    missed = evidence.missed
    if not missed or missed.small_missed < FEWEST_MISSED or not missed.large:
        return None
    share = missed.small_missed / missed.small
    large_share = missed.large_missed / missed.large
    if share < TIMES_AS_OFTEN * large_share or not evidence.size:
        return None
    return Advice(
        "Use larger images",
        f"Under {SMALL} pixels {missed.small_missed} of {missed.small} were missed, from there "
        f"on {missed.large_missed} of {missed.large}. Twice the {evidence.size} pixels a side "
        "give a lesion four times its pixels, where the files have them.",
        f"--config.data.size={2 * evidence.size}",
    )


def false_lesions(evidence: Evidence) -> Advice | None:
    """Many slices without a lesion got one: a higher threshold."""
    healthy = evidence.healthy
    if not healthy or healthy.false_slices < FEWEST_FALSE:
        return None
    if healthy.false_slices < FALSE_SHARE * healthy.slices:
        return None
    return Advice(
        "Raise the threshold",
        f"{healthy.false_slices} of {number(healthy.slices, 'slice')} without a lesion got one. "
        "Choose T on the validation's precision-recall curve in TensorBoard, not on the test, "
        "and score again with --mode=evaluate.",
        "--config.threshold=T",
    )


def uncounted_lesions(evidence: Evidence) -> Advice | None:
    """Whole slices missed, and lesions not counted: count them."""
    missed = evidence.missed
    if not missed or missed.kind == "lesion":
        return None
    count = missed.small_missed + missed.large_missed
    if not count:
        return None
    slices = number(count, "slice")
    return Advice(
        "Count lesion by lesion",
        f"In {slices} with a lesion none was found; how many lesions were missed, and of what "
        "size, is not known. Score again with --mode=evaluate.",
        "--config.eval.lesions=True",
    )


# A score that misleads is mended before the model is.
RULES = (
    few_cases,
    falling_loss,
    small_lesions,
    false_lesions,
    uncounted_lesions,
)
