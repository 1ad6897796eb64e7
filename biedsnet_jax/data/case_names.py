"""Which case a file belongs to, and on which side of the split its folder puts it.

A case is what must not lie on two sides: a patient. Folders called train, val and test
are sides; the folder below, or else the file's name, tells the case.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from biedsnet_jax.errors import BadInput

AUTO = "auto"
# as earlier versions did: each folder is a case, and each file of a flat one
EACH = ""
SIDES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Cases:
    """What the names of files tell."""

    of: Mapping[str, str]  # name -> case
    slices: Mapping[
        str, str
    ]  # name -> what it is called within its case; "" where that is its name
    sides: Mapping[str, str] = field(
        default_factory=dict
    )  # case -> side; empty where folders do not say so
    notes: Sequence[str] = ()  # warnings


def find(
    names: Sequence[str], rule: str, *, where: str, volumes: bool = False
) -> Cases:
    """The case of every file, by its path below `where` without extension, parts joined
    by "/".

    `rule` AUTO: a folder is a case, and so are the files of a flat folder whose names
    agree up to the first number that varies, where further ones vary too. EACH: a
    folder is a case, also if it is called train, and so is each file of a flat folder.
    Else a regular expression, whose first group, or all that fits it, is the case.
    `volumes` are each a case by themselves, in folders too, but where AUTO finds two
    numbers or the expression says otherwise; those that differ in one number are
    patients, without a warning.

    Raises BadInput for a rule that does not fit a file, and for a case on two sides.
    """
    if rule == EACH:
        return _each(names, volumes=volumes)
    side_of = _sides(names, where)
    inner = {name: name.partition("/")[2] if side_of else name for name in names}
    dealt = not {"train", "val", "test"} <= set(side_of.values())
    of, notes = _cases(
        list(dict.fromkeys(inner.values())),
        rule,
        where=where,
        volumes=volumes,
        dealt=dealt,
    )
    case_of = {name: of[short] for name, short in inner.items()}
    if side_of:
        case_of, more = _told_apart(case_of, side_of, inner)
        notes = [*notes, *more]
    sides = _one_side_each(case_of, side_of, where)
    slices = {name: _rest(short, of[short]) for name, short in inner.items()}
    count = Counter((case_of[name], rest) for name, rest in slices.items())
    unique = {
        name: rest if count[case_of[name], rest] == 1 else name
        for name, rest in slices.items()
    }
    return Cases(case_of, unique, sides, notes)


def compiled(rule: str) -> re.Pattern | None:
    """The expression of a rule, None for AUTO and EACH. Raises BadInput for a broken
    one.
    """
    if rule in (AUTO, EACH):
        return None
    try:
        return re.compile(rule)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(
            f"data.case is {rule!r}, which is no regular expression: {error}. Give one such as "
            r"'(patient_\d+)', or 'auto'."
        ) from error


def _each(names: Sequence[str], *, volumes: bool) -> Cases:
    """Cases as earlier versions found them, with a warning where folders are called as
    sides.
    """
    of = _by_folders(names, volumes=volumes)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    called = sorted(top for top in tops if top.lower() in SIDES)
    note = (
        f"The folders {' and '.join(called)} are taken for cases and not for sides of the split, "
        "as data.case='' asks and earlier versions did. Set data.case='auto' to change that."
    )
    slices = {name: _rest(name, of[name]) for name in names}
    return Cases(of, slices, notes=[note] if len(called) > 1 else [])


def _by_folders(names: Sequence[str], *, volumes: bool) -> dict[str, str]:
    """The first folder of each file as its case, else the file; each volume is one."""
    return {name: name if volumes else name.partition("/")[0] for name in names}


def _sides(names: Sequence[str], where: str) -> dict[str, str]:
    """name -> side, where the folders directly below are sides; empty where they are
    cases.

    Raises BadInput where folders for training and for another side have others, or
    files, beside them.
    """
    tops = {name: name.partition("/")[0] if "/" in name else "" for name in names}
    told = {top: SIDES[top.lower()] for top in tops.values() if top.lower() in SIDES}
    others = sorted(set(tops.values()) - told.keys())
    if told and not others:
        return {name: told[top] for name, top in tops.items()}
    if "train" in told.values() and len(set(told.values())) > 1:
        stray = (
            others[0]
            or f"the file {next(name for name, top in tops.items() if not top)}"
        )
        raise BadInput(
            f"{where} has the folders {', '.join(sorted(told))}, and beside them {stray}, which "
            "lies on no side. Move it into one of them, or take it away."
        )
    return {}


def _one_side_each(
    case_of: Mapping[str, str], side_of: Mapping[str, str], where: str
) -> dict[str, str]:
    """case -> side."""
    sides: dict[str, str] = {}
    for name, side in side_of.items():
        case = case_of[name]
        if sides.setdefault(case, side) != side:
            raise BadInput(
                f"The case {case} lies in the folders for {sides[case]} and for {side} of "
                f"{where}. Move its files to one of them, rename what is another case, or say "
                "with data.case what a case is."
            )
    return sides


def _told_apart(case_of, side_of, inner) -> tuple[dict[str, str], list[str]]:
    """Files called by a number alone, which is no name, get their side into their case."""
    bare = {
        name
        for name, short in inner.items()
        if short.isdecimal() and case_of[name] == short
    }
    sides_of = defaultdict(set)
    for name in bare:
        sides_of[case_of[name]].add(side_of[name])
    twice = {case for case, sides in sides_of.items() if len(sides) > 1}
    if not twice:
        return case_of, []
    apart = {
        name: f"{side_of[name]}/{case}" if name in bare else case
        for name, case in case_of.items()
    }
    note = (
        f"Folders of two sides have files called by the same number, such as {sorted(twice)[0]}: "
        "they are taken for different cases."
    )
    return apart, [note]


def _cases(
    names: Sequence[str], rule: str, *, where: str, volumes: bool, dealt: bool
) -> tuple[dict[str, str], list[str]]:
    """(name -> case, warnings); `dealt`: whether cases are still to be dealt to sides."""
    pattern = compiled(rule)
    if pattern:
        return {name: _fitting(name, pattern, where) for name in names}, []
    folders = _by_folders(names, volumes=volumes)
    flat = [name for name in names if volumes or "/" not in name]
    if not flat:
        return folders, []
    found, notes = _by_numbers(flat, volumes=volumes, dealt=dealt)
    return {**folders, **found}, notes


def _fitting(name: str, pattern: re.Pattern, where: str) -> str:
    match = pattern.search(name)
    case = match and (match.group(1) if pattern.groups else match.group())
    if not case:
        raise BadInput(
            f"data.case, {pattern.pattern!r}, finds no case in the name {name} of {where}. Change "
            "it so that it fits every name, or rename the file."
        )
    return case


def _by_numbers(
    names: Sequence[str], *, volumes: bool, dealt: bool
) -> tuple[dict[str, str], list[str]]:
    """Cases by numbers in names: `patient_1_slice_7` is of `patient_1` where both vary."""
    shapes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        parts = _NUMBER.split(name)
        # words may differ between names of one shape: a_1_s_2 and b_3_s_4
        shape = "#".join(re.sub(r"[^\W\d_]+", "A", part) for part in parts[::2])
        shapes[shape]["#".join(parts[::2])].append(name)
    cases: dict[str, str] = {}
    grouped: list[list[str]] = []
    alone: list[list[str]] = []
    for of_shape in shapes.values():
        column, varying = _case_column(of_shape.values())
        for alike in of_shape.values():
            prefixes = {
                name: name if column is None else _up_to(name, column) for name in alike
            }
            cases |= prefixes
            if len(alike) > 1 and column is not None:
                grouped.append(alike)
            elif len(alike) > 1 and (varying > 1 or not volumes):
                alone.append(alike)
    notes = [_grouped_note(max(grouped, key=len), cases)] if grouped else []
    if alone and dealt:
        notes.append(_alone_note(max(alone, key=len)))
    return cases, notes


def _case_column(groups: Iterable[Sequence[str]]) -> tuple[int | None, int]:
    """(which of the numbers ends the case's name, how many vary); None where fewer than
    two do.

    The first that varies, or a later one but the last while there were fewer than three
    cases.
    """
    groups = list(groups)
    columns = [
        list(zip(*(_NUMBER.split(name)[1::2] for name in names))) for names in groups
    ]
    count = max(len(of_group) for of_group in columns)
    varying = [
        i
        for i in range(count)
        if any(len(set(of_group[i])) > 1 for of_group in columns)
    ]
    for column in varying[:-1]:
        if len({_up_to(name, column) for names in groups for name in names}) >= 3:
            return column, len(varying)
    return None, len(varying)


def _up_to(name: str, column: int) -> str:
    """The name up to the end of its number `column`."""
    return "".join(_NUMBER.split(name)[: 2 * column + 2])


def _rest(name: str, case: str) -> str:
    """What is left of a file's name once the front of it has told its case, else the
    whole.
    """
    if name.startswith(f"{case}/"):
        return name[len(case) + 1 :]
    return name[len(case) :].lstrip("_-. ") if name.startswith(case) else name


def _grouped_note(names: Sequence[str], cases: Mapping[str, str]) -> str:
    first = min(names)
    second = next(
        (
            name
            for name in sorted(names)
            if name != first and cases[name] == cases[first]
        ),
        max(names),
    )
    return (
        f"By their names, {first} is of the case {cases[first]}, and {second} of {cases[second]}, "
        "as are others like them. If that is wrong, set data.case to a regular expression of the "
        "case, or to '' for a case a file."
    )


def _by_number(name: str) -> tuple:
    """Sort key of names that differ in their numbers alone."""
    return tuple(int(number) for number in _NUMBER.findall(name)), name


def _alone_note(names: Sequence[str]) -> str:
    first, last = min(names, key=_by_number), max(names, key=_by_number)
    return (
        f"Every file is a case of its own, such as {first} and {last}. If some are slices of one "
        "patient, set data.case to a regular expression of the patient, or put them into a "
        "folder for each patient."
    )
