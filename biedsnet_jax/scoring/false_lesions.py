"""Counts slices and cases without a lesion that got one, and says so in words.

No mean of the standard convention shows a lesion where there is none, because Dice is
undefined there. Imports no jax.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from biedsnet_jax.scoring.class_names import titled


class Mask(NamedTuple):
    """Whether the mask of one class in one slice has a pixel, true and predicted."""

    case: str
    slice: str
    label: str  # the class, from 1
    true: bool
    predicted: bool


class Counts(NamedTuple):
    """Slices, and cases as a whole, without a lesion, and how many of them got one."""

    slices: int
    false_slices: int
    cases: int
    false_cases: int
    with_lesion: int  # slices that have a lesion


def count(masks: Iterable[Mask]) -> Counts:
    """Counts over a test; a slice has a lesion where it has one of any class."""
    slices = _joined(((mask.case, mask.slice), mask) for mask in masks)
    cases = {}
    for (case, _), (true, predicted) in slices.items():
        before = cases.get(case, (False, False))
        cases[case] = before[0] or true, before[1] or predicted
    without = _without(slices)
    of_cases = _without(cases)
    return Counts(
        slices=len(without),
        false_slices=sum(without),
        cases=len(of_cases),
        false_cases=sum(of_cases),
        with_lesion=len(slices) - len(without),
    )


def added(counts: Iterable[Counts]) -> Counts:
    """Adds up the counts of several tests."""
    return Counts(*map(sum, zip(*counts)))


def sentences(every: Counts, classes: Mapping[str, Counts]) -> list[str]:
    """Puts counts into words; no sentence where every slice has a lesion of every class.

    `classes` has the counts of each class, by number and name, where there are several.
    """
    found = [_of_all(every)] if every.slices else []
    for label, of_class in classes.items():
        if of_class.slices:
            found.append(f"class {label}: {_of_class(of_class, every)}")
    return found


def of_results(results: Mapping) -> list[str]:
    """Puts a results.json into words; no sentence where an earlier version counted none."""
    if "without_lesion" not in results:
        return []
    classes = {
        titled(label, results.get("class_names")): Counts(**of_class["without_lesion"])
        for label, of_class in results.get("classes", {}).items()
    }
    return sentences(Counts(**results["without_lesion"]), classes)


def _joined(pairs):
    """Joins masks of one key: (any has a true pixel, any has a predicted one)."""
    found = {}
    for key, mask in pairs:
        true, predicted = found.get(key, (False, False))
        found[key] = true or mask.true, predicted or mask.predicted
    return found


def _without(found):
    """Lists, for each that has no lesion, whether it got one."""
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
    """Writes a count with its noun: "1 slice", "2 slices"."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
