"""Reads the cases, channels and labels of Medical Decathlon's and nnU-Net's lists.

A label called "ignore" is of no class: its voxels were not annotated.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.errors import BadInput, reason, shown

NAME = "dataset.json"
# Names of a channel that holds Hounsfield units.
CT = "ct"
_IGNORE = re.compile(r"\s*ignored?(?![a-z])", re.IGNORECASE)


class Damaged(BadInput):
    """The file is no dataset.json, or is broken."""


@dataclass(frozen=True)
class DatasetJson:
    """Content of a dataset.json that training must know."""

    path: Path
    # Image and label of each case in the list, as written.
    training: list[tuple[str, str]]
    # Names of the channels; empty where the file has none.
    channels: tuple[str, ...]
    # Name and values of each label, or region of labels, but the background; empty where
    # the file names none.
    labels: tuple[tuple[str, tuple[int, ...]], ...] = ()
    # Value of the label called "ignore"; None where there is none.
    ignore: int | None = None

    def check_channels(self, count: int) -> None:
        """Raises BadInput where images have another number of channels than named."""
        if self.channels and len(self.channels) != count:
            names = shown(", ".join(self.channels))
            noun = "channel" if len(self.channels) == 1 else "channels"
            raise BadInput(
                f"{self.path} names {len(self.channels)} {noun} ({names}), but the images hold "
                f"{count}. Add the missing files, or correct the names."
            )

    def check_labels(self, classes: int, groups: Sequence[Sequence[int]]) -> None:
        """Raises BadInput where data.labels, or data.classes, do not fit the names.

        `groups` are the label values of each class, see `NiftiFolder`.
        """
        values = set().union(*(own for _, own in self.labels))
        if not values or (classes == 1 and not groups):
            return
        named = shown(", ".join(f"{_plus(own)} {name}" for name, own in self.labels))
        other = sorted(set().union(*groups) - values)
        if other:
            raise BadInput(
                f"data.labels has {other[0]}, which {self.path} does not name: it has {named}. "
                "Give values of these, or correct the file."
            )
        if groups or (values == set(range(1, classes + 1)) and self._are_single()):
            return
        count = f"data.classes={len(self.labels)}"
        sets = tuple(own for _, own in self.labels)
        fix = f"Set {count}"
        if values != set(range(1, len(self.labels) + 1)) or not self._are_single():
            fix += f" and data.labels={str(sets).replace(' ', '')}"
        raise BadInput(
            f"{self.path} names the labels {named}, and data.classes is {classes}. "
            f"{fix}, or correct the file."
        )

    def class_names(
        self, classes: int, groups: Sequence[Sequence[int]]
    ) -> tuple[str, ...]:
        """Names each class by its labels; empty where one of them has no name.

        A class of several labels has the name of that region where the file has it, else
        the names of its labels, joined by "+".
        """
        if not groups:
            groups = [(k,) for k in range(1, classes + 1)]
            if classes == 1:
                groups = [own for _, own in self.labels if len(own) == 1]
                groups = [tuple(value for own in groups for value in own)]
        names = tuple(map(self._name, groups))
        return names if all(names) else ()

    def _name(self, group) -> str:
        of_region = {frozenset(own): name for name, own in self.labels}
        if name := of_region.get(frozenset(group)):
            return name
        parts = [of_region.get(frozenset([value]), "") for value in group]
        return "+".join(parts) if all(parts) else ""

    def _are_single(self) -> bool:
        return all(len(own) == 1 for _, own in self.labels)


def read(root: Path) -> DatasetJson | None:
    """Reads the file in a folder; None where there is none.

    It may be in UTF-8 (with a byte order mark or without), UTF-16 or UTF-32. Raises
    Damaged for a damaged file, and BadInput for channels that are not numbered from 0
    and for a label called "ignore" that has no value from 1.
    """
    path = root / NAME
    if not path.exists():
        return None
    check_regular(path)
    try:
        # Bytes, since json finds out the encoding by itself.
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} where fields were expected")
        entries = content.get("training") or []
        training = [(str(one["image"]), str(one["label"])) for one in entries]
    except UnicodeDecodeError as error:
        raise Damaged(
            f"{path} is not UTF-8: {reason(error)}. Save it as UTF-8."
        ) from error
    except KeyError as error:
        raise _damaged(path, f"an entry of its list lacks {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, reason(error)) from error
    names = content.get("channel_names") or content.get("modality") or ()
    labels, ignore = _read_labels(content.get("labels"), path)
    return DatasetJson(path, training, _channel_names(names, path), labels, ignore)


def _damaged(path: Path, what: str) -> Damaged:
    return Damaged(f"{path} is damaged: {what}. Restore or remove it.")


def _channel_names(names: Any, path: Path) -> tuple[str, ...]:
    """Reads names given by number in a dict, in order in a list, or as the one name."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict):
        numbers = sorted(int(key) for key in names if str(key).isdecimal())
        if len(numbers) == len(names) and numbers != list(range(len(numbers))):
            listed = ", ".join(map(str, numbers))
            raise BadInput(
                f"{path} numbers its channels {listed}. Number them from 0, without a gap."
            )
        return tuple(map(str, names.values()))
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _read_labels(labels: Any, path: Path) -> tuple[tuple, int | None]:
    """Reads (name, values) of each label but the background, and the value to ignore.

    Medical Decathlon maps numbers to names, nnU-Net names to numbers or, for regions, to
    lists of numbers. An entry of another form is passed over.
    """
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if not isinstance(labels, dict):
        return (), None
    found = []
    ignore = None
    for key, value in labels.items():
        names, numbers = value, key
        if _numbers(key) is None or not any(_texts(value)):
            names, numbers = key, value
        texts = list(_texts(names))
        name = shown("+".join(texts))
        values = _numbers(numbers)
        if any(map(_IGNORE.match, texts)):
            ignore = _ignored(name, values if len(texts) == 1 else (), path)
        elif name and values and values != (0,):
            found.append((name, values))
    return tuple(found), ignore


def _ignored(name, values, path) -> int:
    if not values or len(values) > 1 or values[0] < 1:
        numbers = ", ".join(map(str, values or ())) or "no one label"
        raise BadInput(
            f"{path} calls {numbers} {name!r}. Give it the one number, from 1, that such "
            "voxels have, or take the name away."
        )
    return values[0]


def _numbers(value: Any) -> tuple[int, ...] | None:
    """Whole numbers from 0, given as one or in a list; None for anything else."""
    every = value if isinstance(value, list) else [value]
    # To Python True is the number 1.
    texts = [str(one) for one in every if not isinstance(one, bool)]
    if not every or len(texts) < len(every) or not all(map(str.isdecimal, texts)):
        return None
    return tuple(map(int, texts))


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a nested list that is no number."""
    if isinstance(value, str):
        if not value.isdecimal():
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _plus(values: Sequence[int]) -> str:
    return "+".join(map(str, values))
