"""Splits by case: a case's slices are near-copies of each other, so they never lie on
two sides.

A split is a dict name -> ascending indices of the source. Balanced means: cases are
taken in a shuffled order and each goes to the side that lacks most slices, so sides
come within about one case of their share.
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
    """train, val and test with about these fractions of the slices, none empty; `cases`
    is the case of every index.

    Raises BadInput if there are fewer than three cases or a fraction is not positive.
    """
    if len(fractions) != 3 or not (
        min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-6
    ):
        raise BadInput(
            f"split fractions, {tuple(fractions)}, train, val, test; give three positive ones that sum to 1"
        )
    sides = _deal(_shuffled(cases, seed), Counter(cases), fractions)
    return named(cases, **dict(zip(SIDES, sides)))


def k_fold(cases: Sequence[str], folds: int, fold: int, seed: int = 0) -> Splits:
    """Fold `fold` of `folds` is test, the rest is train and val: over all folds each
    case is tested exactly once.

    A tenth of the slices that are not test is val. Raises BadInput if the cases do not
    suffice.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise BadInput(
            f"split.fold is {fold} of split.folds={folds}. Give at least 2 folds, and a fold from 0 to split.folds - 1."
        )
    slices, order = Counter(cases), _shuffled(cases, seed)
    # every fold is alike, so the largest cases may go first, which balances best
    tests = _deal(
        sorted(order, key=lambda case: -slices[case]), slices, [1 / folds] * folds
    )
    tested = set(tests[fold])
    rest = [case for case in order if case not in tested]
    train, val = _deal(rest, slices, [0.9, 0.1])
    return named(cases, train=train, val=val, test=tests[fold])


def by_folder(
    cases: Sequence[str],
    sides: Mapping[str, str],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Splits:
    """The split that folders give: `sides` says of each case whether it is of train,
    val or test.

    Where none is of val, cases of train become it, as many as the first two fractions
    say. Raises BadInput where none is of train or of test.
    """
    of = {
        side: [case for case in dict.fromkeys(cases) if sides[case] == side]
        for side in SIDES
    }
    for side in ("train", "test"):
        if not of[side]:
            there = " and ".join(side for side in SIDES if of[side])
            raise BadInput(
                f"The data have a folder for {there} and none for {side}. Make a folder {side} beside it, or move the "
                "cases one folder up so that split.fractions deals them out."
            )
    if of["val"]:
        return named(cases, **of)
    if len(fractions) != 3 or not min(fractions) > 0:
        raise BadInput(
            f"split fractions, {tuple(fractions)}, train, val, test; give three positive ones that sum to 1"
        )
    both = fractions[0] + fractions[1]
    trained = [case for case in cases if sides[case] == "train"]
    train, val = _deal(
        _shuffled(trained, seed),
        Counter(trained),
        [fractions[0] / both, fractions[1] / both],
    )
    return named(cases, train=train, val=val, test=of["test"])


def named(
    cases: Sequence[str],
    *,
    train: Sequence[str],
    val: Sequence[str],
    test: Sequence[str],
) -> Splits:
    """The split by case names, or by patterns such as "patient_1*"; cases that no side
    names are left out.

    Raises BadInput for an empty side, a name that is no case, a pattern that fits none
    and a case on two sides.
    """
    wanted, known = {}, set(cases)
    for side, names in zip(SIDES, (train, val, test)):
        if not names:
            raise BadInput(
                f"split.{side} names no case, and another side does. Name at least one case for each side."
            )
        wanted[side] = set().union(*(fitting(name, known, side) for name in names))
    splits = {
        side: [i for i, case in enumerate(cases) if case in names]
        for side, names in wanted.items()
    }
    check_disjoint(cases, splits)
    return splits


def fitting(name: str, known: set[str], side: str) -> set[str]:
    """The case of this name, else all that fit it as a pattern of *, ? and [...].

    Raises BadInput where there is none.
    """
    found = {name} & known or {
        case for case in known if fnmatch.fnmatchcase(case, name)
    }
    if not found:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
        raise BadInput(
            f"unknown case, {name}, split {side}; the nearest is {', '.join(near) or 'none'}"
        )
    return found


def check_disjoint(cases: Sequence[str], splits: Splits) -> None:
    """Raises BadInput, naming the case and both sides, if a case has slices in two
    splits.
    """
    owner: dict[str, str] = {}
    for side, indices in splits.items():
        for index in indices:
            first = owner.setdefault(cases[index], side)
            if first != side:
                raise BadInput(
                    f"one case on two sides, {cases[index]}, splits {first} and {side}; keep it in one"
                )


def _shuffled(cases: Sequence[str], seed: int) -> list[str]:
    """Every case once; the order depends on the names and the seed, not on the order of
    the slices.
    """
    names = sorted(set(cases))
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _deal(
    order: Sequence[str], slices: Counter[str], fractions: Sequence[float]
) -> list[list[str]]:
    """Give each case in turn to the side that lacks most slices; the last cases fill
    sides that are still empty.
    """
    if len(order) < len(fractions):
        raise BadInput(
            f"too few cases, {len(order)}, data; splitting by case into {len(fractions)} needs as many"
        )
    total = sum(slices[case] for case in order)
    lack = [fraction * total for fraction in fractions]
    sides: list[list[str]] = [[] for _ in fractions]
    for taken, case in enumerate(order):
        empty = [i for i, side in enumerate(sides) if not side]
        open_sides = empty if len(empty) == len(order) - taken else range(len(sides))
        best = max(open_sides, key=lambda i: lack[i])
        sides[best].append(case)
        lack[best] -= slices[case]
    return sides
