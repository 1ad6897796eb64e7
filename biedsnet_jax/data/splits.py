"""Splits by case: slices of a case are near-copies, so they never lie on two sides.

A split is a dict name -> ascending indices of the source. It is balanced: cases are
taken in a shuffled order, and each goes to the side that lacks most slices. So a side
misses its share by about one case at most.
"""

import difflib
import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from biedsnet_jax.errors import BadInput

Splits = dict[str, list[int]]

SIDES = ("train", "val", "test")


def by_case(
    cases: Sequence[str],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Splits:
    """Splits into train, val and test with about these fractions of the slices.

    `cases` is the case of every index. No side is empty. Raises BadInput for fewer than
    three cases, and for fractions that are not positive or do not sum to 1.
    """
    _check_fractions(fractions, sum(fractions))
    train, val, test = _deal(_shuffled(cases, seed), Counter(cases), fractions)
    return named(cases, train=train, val=val, test=test)


def k_fold(cases: Sequence[str], folds: int, fold: int, seed: int = 0) -> Splits:
    """Splits for cross-validation: fold `fold` of `folds` is test.

    Over all folds each case is tested exactly once. A tenth of the slices that are not
    test is val, the rest train. Raises BadInput for too few cases, and for a fold that
    there is not.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise BadInput(
            f"split.fold is {fold} of split.folds={folds}. "
            "Give at least 2 folds, and a fold from 0 to split.folds - 1."
        )
    slices = Counter(cases)
    order = _shuffled(cases, seed)
    # Folds have equal shares, so the largest cases may go first: it balances best.
    by_size = sorted(order, key=lambda case: -slices[case])
    test = _deal(by_size, slices, [1 / folds] * folds)[fold]
    tested = set(test)
    rest = [case for case in order if case not in tested]
    train, val = _deal(rest, slices, [0.9, 0.1])
    return named(cases, train=train, val=val, test=test)


def by_folder(
    cases: Sequence[str],
    sides: Mapping[str, str],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Splits:
    """Splits as folders say: `sides` has train, val or test for each case.

    Where no case is in val, it gets cases of train by the first two fractions. Raises
    BadInput where no case is in train or in test.
    """
    in_side: dict[str, list[str]] = {side: [] for side in SIDES}
    for case in dict.fromkeys(cases):
        in_side[sides[case]].append(case)
    train, val, test = in_side.values()
    for side in ("train", "test"):
        if not in_side[side]:
            there = " and ".join(side for side in SIDES if in_side[side])
            raise BadInput(
                f"The data have a folder for {there} and none for {side}. Make a folder {side} "
                "beside it, or move the cases one folder up so that split.fractions deals them out."
            )
    if not val:
        # Only the first two count, so these need not sum to 1.
        _check_fractions(fractions)
        both = fractions[0] + fractions[1]
        slices = Counter(case for case in cases if sides[case] == "train")
        shares = [fractions[0] / both, fractions[1] / both]
        train, val = _deal(_shuffled(train, seed), slices, shares)
    return named(cases, train=train, val=val, test=test)


def named(
    cases: Sequence[str],
    *,
    train: Sequence[str],
    val: Sequence[str],
    test: Sequence[str],
) -> Splits:
    """Splits by case names, or by patterns such as "patient_1*".

    Cases that no side names are left out. Raises BadInput for an empty side, a name that
    is no case, a pattern that fits none and a case on two sides.
    """
    wanted, known = {}, set(cases)
    for side, names in zip(SIDES, (train, val, test)):
        if not names:
            raise BadInput(
                f"split.{side} names no case, and another side does. "
                "Name at least one case for each side."
            )
        each = [fitting(name, known, f"split.{side}") for name in names]
        wanted[side] = set().union(*each)
    splits = {
        side: [i for i, case in enumerate(cases) if case in names]
        for side, names in wanted.items()
    }
    check_disjoint(cases, splits)
    return splits


def fitting(name: str, known: set[str], field: str) -> set[str]:
    """Finds the cases that match a name in a field of the config.

    Raises BadInput where there is none.
    """
    found = matching(name, known)
    if not found:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
        nearest = near[0] if near else "none"
        raise BadInput(
            f"{field} names {name}, which is no case and fits none. "
            f"The nearest case is {nearest}."
        )
    return found


def matching(name: str, known: set[str]) -> set[str]:
    """Finds the case of this name, else all that fit it as a pattern of *, ? and [...]."""
    if name in known:
        return {name}
    return set(fnmatch.filter(known, name))


def check_disjoint(cases: Sequence[str], splits: Splits) -> None:
    """Raises BadInput, naming case and sides, if a case has slices on two sides."""
    owner: dict[str, str] = {}
    for side, indices in splits.items():
        for index in indices:
            first = owner.setdefault(cases[index], side)
            if first != side:
                raise BadInput(
                    f"The case {cases[index]} is in split.{first} and in split.{side}. "
                    "Keep it in one of them."
                )


def _check_fractions(fractions: Sequence[float], total: float = 1.0) -> None:
    three = len(fractions) == 3 and min(fractions) > 0
    if not three or not abs(total - 1) < 1e-6:
        raise BadInput(
            f"split.fractions is {tuple(fractions)}. "
            "Give three positive fractions for train, val and test that sum to 1."
        )


def _shuffled(cases: Sequence[str], seed: int) -> list[str]:
    """Lists every case once, in an order that follows from the names and the seed.

    The order of the slices does not change it.
    """
    names = sorted(set(cases))
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _deal(
    order: Sequence[str], slices: Counter[str], fractions: Sequence[float]
) -> list[list[str]]:
    """Gives each case in turn to the side that lacks most slices.

    The last cases fill the sides that are still empty.
    """
    if len(order) < len(fractions):
        raise BadInput(
            f"The data have {len(order)} cases, too few to split into {len(fractions)}. "
            "Add cases, lower split.folds, or tell more cases apart with data.case."
        )
    total = sum(slices[case] for case in order)
    lack = [fraction * total for fraction in fractions]
    sides: list[list[str]] = [[] for _ in fractions]
    for taken, case in enumerate(order):
        # As many cases may be left as sides are empty: then each gets one.
        empty = [i for i, side in enumerate(sides) if not side]
        open_sides = empty if len(empty) == len(order) - taken else range(len(sides))
        best = max(open_sides, key=lambda i: lack[i])
        sides[best].append(case)
        lack[best] -= slices[case]
    return sides
