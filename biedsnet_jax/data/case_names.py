"""Finds the case of each file, and the side of the split that its folder names.

A case is what must not lie on two sides: a patient. Folders called train, val and test
are sides. The folder below names the case, or else the file's own name does.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from biedsnet_jax.errors import BadInput

AUTO = "auto"
# The rule of earlier versions: each folder is a case, and each file of a flat folder.
EACH = ""
SIDES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Cases:
    """Cases, slices and sides of the split by the names of files."""

    # Name of a file -> its case.
    of: Mapping[str, str]
    # Name of a file -> its name within the case; "" where it is called like the case.
    slices: Mapping[str, str]
    # Case -> side of the split; empty where folders do not name sides.
    sides: Mapping[str, str] = field(default_factory=dict)
    # Warnings for the user, a line each.
    notes: Sequence[str] = ()


def find(
    names: Sequence[str], rule: str, *, where: str, volumes: bool = False
) -> Cases:
    """Finds the case of every file by its name.

    A name is the path below `where` without extension, parts joined by "/". `rule` says
    what a case is. AUTO: a folder; in a flat folder the files whose names agree up to
    the first number that varies, if further numbers vary too. EACH: a folder, also one
    called train, and each file of a flat folder. Anything else is a regular expression:
    its first group, or all that it matches, is the case.

    Each of `volumes` is a case, in folders too, unless AUTO finds two numbers or the
    expression says otherwise. Volumes that differ in one number alone are patients,
    which needs no warning.

    Raises BadInput for a rule that does not fit a file, and for a case on two sides.
    """
    if rule == EACH:
        return _each(names, volumes=volumes)
    side_of = _sides(names, where)
    if side_of:
        inner = {name: name.partition("/")[2] for name in names}
    else:
        inner = {name: name for name in names}
    of, notes = _cases(
        list(dict.fromkeys(inner.values())),
        rule,
        where=where,
        volumes=volumes,
        has_sides=set(side_of.values()) == set(SIDES.values()),
    )
    case_of = {name: of[short] for name, short in inner.items()}
    if side_of:
        case_of, more = _separate_numbers(case_of, side_of, inner)
        notes = [*notes, *more]
    sides = _one_side_each(case_of, side_of, where)
    slices = {name: _rest(short, of[short]) for name, short in inner.items()}
    # Outputs are called by case and slice, so two slices of a case need two names.
    count = Counter((case_of[name], rest) for name, rest in slices.items())
    for name, rest in slices.items():
        if count[case_of[name], rest] > 1:
            slices[name] = name
    return Cases(case_of, slices, sides, notes)


def compiled(rule: str) -> re.Pattern | None:
    """Compiles the expression of a rule; None for AUTO and EACH.

    Raises BadInput for a broken expression.
    """
    if rule in (AUTO, EACH):
        return None
    try:
        return re.compile(rule)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(
            f"data.case is {rule!r}, which is no regular expression: {error}. "
            r"Give one such as '(patient_\d+)', or 'auto'."
        ) from error


def _each(names: Sequence[str], *, volumes: bool) -> Cases:
    """Finds cases as earlier versions did; warns of folders called like sides."""
    of = _by_folders(names, volumes=volumes)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    called = sorted(top for top in tops if top.lower() in SIDES)
    notes = []
    if len(called) > 1:
        notes.append(
            f"The folders {' and '.join(called)} are taken for cases, not for sides of the split, "
            "since data.case is '', as in earlier versions. Set data.case='auto' to change that."
        )
    slices = {name: _rest(name, of[name]) for name in names}
    return Cases(of, slices, notes=notes)


def _by_folders(names: Sequence[str], *, volumes: bool) -> dict[str, str]:
    """Takes a file's first folder for its case, or the whole name of a volume."""
    if volumes:
        return {name: name for name in names}
    return {name: name.partition("/")[0] for name in names}


def _sides(names: Sequence[str], where: str) -> dict[str, str]:
    """Maps names to sides where the top folders are sides; empty where they are cases.

    Raises BadInput where folders for training and for another side have others, or
    files, beside them.
    """
    # A file without a folder has the top "".
    tops = {name: name.rpartition("/")[0].partition("/")[0] for name in names}
    called = {top: SIDES[top.lower()] for top in tops.values() if top.lower() in SIDES}
    others = sorted(set(tops.values()) - called.keys())
    if called and not others:
        return {name: called[top] for name, top in tops.items()}
    if "train" in called.values() and len(set(called.values())) > 1:
        stray = others[0]
        if not stray:
            stray = f"the file {next(name for name in names if '/' not in name)}"
        raise BadInput(
            f"{where} has the folders {', '.join(sorted(called))}, and beside them {stray}, which "
            "lies on no side. Move it into one of them, or take it away."
        )
    return {}


def _one_side_each(
    case_of: Mapping[str, str], side_of: Mapping[str, str], where: str
) -> dict[str, str]:
    """Maps cases to sides. Raises BadInput for a case on two of them."""
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


def _separate_numbers(
    case_of: Mapping[str, str], side_of: Mapping[str, str], inner: Mapping[str, str]
) -> tuple[Mapping[str, str], list[str]]:
    """Makes files of two sides that share a number different cases, with a warning.

    A number alone is no patient's name, so test/7 need not be the patient of train/7.
    """
    sides_of = defaultdict(set)
    for name, short in inner.items():
        if short.isdecimal() and case_of[name] == short:
            sides_of[short].add(side_of[name])
    twice = sorted(number for number, sides in sides_of.items() if len(sides) > 1)
    if not twice:
        return case_of, []
    separate = dict(case_of)
    for name, short in inner.items():
        if short in sides_of:
            separate[name] = f"{side_of[name]}/{short}"
    note = (
        f"Folders of two sides have files called by the same number, such as {twice[0]}. "
        "They are taken for different cases."
    )
    return separate, [note]


def _cases(
    names: Sequence[str], rule: str, *, where: str, volumes: bool, has_sides: bool
) -> tuple[dict[str, str], list[str]]:
    """Maps names to cases, and collects warnings.

    `has_sides` says that folders already put every case on its side of the split.
    """
    pattern = compiled(rule)
    if pattern:
        return {name: _matched(name, pattern, where) for name in names}, []
    folders = _by_folders(names, volumes=volumes)
    flat = [name for name in names if volumes or "/" not in name]
    if not flat:
        return folders, []
    found, notes = _by_numbers(flat, volumes=volumes, has_sides=has_sides)
    return {**folders, **found}, notes


def _matched(name: str, pattern: re.Pattern, where: str) -> str:
    match = pattern.search(name)
    case = match and (match.group(1) if pattern.groups else match.group())
    if not case:
        raise BadInput(
            f"data.case, {pattern.pattern!r}, finds no case in the name {name} of {where}. Change "
            "it so that it fits every name, or rename the file."
        )
    return case


def _by_numbers(
    names: Sequence[str], *, volumes: bool, has_sides: bool
) -> tuple[dict[str, str], list[str]]:
    """Finds cases by numbers: `patient_1_slice_7` is of `patient_1` where both vary."""
    shapes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        words = _NUMBER.split(name)[::2]
        # Words may differ between names of one shape: a_1_s_2 and b_3_s_4.
        shape = "#".join(re.sub(r"[^\W\d_]+", "A", word) for word in words)
        shapes[shape]["#".join(words)].append(name)
    cases: dict[str, str] = {}
    grouped: list[list[str]] = []
    alone: list[list[str]] = []
    for of_shape in shapes.values():
        column, varying = _case_column(list(of_shape.values()))
        for alike in of_shape.values():
            for name in alike:
                cases[name] = name if column is None else _up_to(name, column)
            if len(alike) > 1 and column is not None:
                grouped.append(alike)
            elif len(alike) > 1 and (varying > 1 or not volumes):
                alone.append(alike)
    notes = []
    if grouped:
        notes.append(_grouped_note(max(grouped, key=len), cases))
    if alone and not has_sides:
        notes.append(_alone_note(max(alone, key=len)))
    return cases, notes


def _case_column(groups: Sequence[Sequence[str]]) -> tuple[int | None, int]:
    """Finds the number that ends the case's name, and counts the numbers that vary.

    It is the first number that varies with at least three cases by it, and never the
    last one that varies, which counts slices. None where there is no such number.
    """
    columns = [
        list(zip(*(_NUMBER.findall(name) for name in names))) for names in groups
    ]
    # Names of one shape have the same count of numbers.
    varying = [
        i
        for i in range(len(columns[0]))
        if any(len(set(of_group[i])) > 1 for of_group in columns)
    ]
    for column in varying[:-1]:
        if len({_up_to(name, column) for names in groups for name in names}) >= 3:
            return column, len(varying)
    return None, len(varying)


def _up_to(name: str, column: int) -> str:
    """Cuts a name after its number `column`."""
    return "".join(_NUMBER.split(name)[: 2 * column + 2])


def _rest(name: str, case: str) -> str:
    """Drops the case from the front of a file's name; the whole where it has none."""
    if name.startswith(f"{case}/"):
        return name[len(case) + 1 :]
    if name.startswith(case):
        return name[len(case) :].lstrip("_-. ")
    return name


def _grouped_note(names: Sequence[str], cases: Mapping[str, str]) -> str:
    first, *others = sorted(names)
    of_first = [name for name in others if cases[name] == cases[first]]
    second = of_first[0] if of_first else others[-1]
    return (
        f"By their names, {first} is of the case {cases[first]}, and {second} of {cases[second]}, "
        "as are others like them. If that is wrong, set data.case to a regular expression of the "
        "case, or to '' for a case a file."
    )


def _by_number(name: str) -> tuple:
    """Sort key of names that differ in their numbers alone."""
    return tuple(int(number) for number in _NUMBER.findall(name)), name


def _alone_note(names: Sequence[str]) -> str:
    first = min(names, key=_by_number)
    last = max(names, key=_by_number)
    return (
        f"Every file is a case of its own, such as {first} and {last}. If some are slices of one "
        "patient, set data.case to a regular expression of the patient, or put them into a "
        "folder for each patient."
    )
