"""Slices and cases without a lesion, how many of them got one, and the words for it. No
jax.

No mean of the standard convention shows a lesion where there is none: Dice is undefined
there.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Mask(NamedTuple):
    """The mask of one class in one slice, true and predicted."""

    case: str
    slice: str
    label: str  # the class, from 1
    true: bool  # whether it has a pixel
    predicted: bool


class Counts(NamedTuple):
    """How many slices, and cases as a whole, are without lesion, and how many of these
    got one.
    """

    slices: int
    false_slices: int
    cases: int
    false_cases: int
    with_lesion: int  # slices that have one


def count(masks: Iterable[Mask]) -> Counts:
    """The counts of a test; of several classes a slice has a lesion where it has one of
    any.
    """
    slices = _joined(((mask.case, mask.slice), mask) for mask in masks)
    cases = {}
    for (case, _), (true, predicted) in slices.items():
        before = cases.get(case, (False, False))
        cases[case] = before[0] or true, before[1] or predicted
    without, of_cases = _without(slices), _without(cases)
    return Counts(
        slices=len(without),
        false_slices=sum(without),
        cases=len(of_cases),
        false_cases=sum(of_cases),
        with_lesion=len(slices) - len(without),
    )


def added(counts: Iterable[Counts]) -> Counts:
    """The counts of several tests together."""
    return Counts(*map(sum, zip(*counts)))


def sentences(every: Counts, classes: Mapping[str, Counts]) -> list[str]:
    """What there is to say; nothing where every slice has a lesion of every class.

    `classes` has the counts of each class where there are several.
    """
    found = [_of_all(every)] if every.slices else []
    for label, of_class in classes.items():
        if of_class.slices:
            found.append(f"class {label}: {_of_class(of_class, every)}")
    return found


def of_results(results: Mapping) -> list[str]:
    """The sentences of a results.json; none where an earlier version did not count."""
    if "without_lesion" not in results:
        return []
    classes = {
        label: Counts(**of_class["without_lesion"])
        for label, of_class in results.get("classes", {}).items()
    }
    return sentences(Counts(**results["without_lesion"]), classes)


def _joined(pairs):
    """(has a true pixel, has a predicted one) of each key."""
    found = {}
    for key, mask in pairs:
        true, predicted = found.get(key, (False, False))
        found[key] = true or mask.true, predicted or mask.predicted
    return found


def _without(found):
    """Of each that has no lesion: whether it got one."""
    return [predicted for true, predicted in found.values() if not true]


def _of_all(every):
    if not every.with_lesion:
        return f"no slice of the test has a lesion: Dice is undefined; {_false(every)}"
    return _shares(every)


def _of_class(of_class, every):
    if of_class.with_lesion:
        return _shares(of_class)
    if every.with_lesion:
        return (
            f"no slice of the test has one: its Dice is undefined; {_false(of_class)}"
        )
    return _false(of_class)


def _shares(counts):
    text = f"{_of(counts.false_slices, counts.slices, 'slice')} without lesion got one"
    if counts.cases:
        text += (
            f", {_of(counts.false_cases, counts.cases, 'case')} without lesion got one"
        )
    return text


def _false(counts):
    slices = _of(counts.false_slices, counts.slices, "slice")
    return (
        f"{slices} got a false one, in {_of(counts.false_cases, counts.cases, 'case')}"
    )


def _of(part, whole, name):
    return f"{part} of {number(whole, name)}"


def number(count: int, name: str) -> str:
    """1 slice, 2 slices."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
