"""The interface of all sources of slices, what they know of their data, and one kept in
memory.

A source is random access in numpy: `len`, `.cases` (the case of every index) and `[i]`
-> an example, a dict of image "h w c" in the file's own values, upright, mask uint8 "h
w k" of 0 and 1, case, slice, spacing (row, column) in mm or None, and path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput

Example = dict[str, Any]
# of all slices: where fewer have any, the masks are most likely read wrongly
FEWEST_WITH_FOREGROUND = 1 / 200


@dataclass(frozen=True)
class Facts:
    """What a source knows of its data beside the slices."""

    # of each case; none where nothing is read
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    # case -> "train", "val" or "test", where folders say so
    sides: Mapping[str, str] = field(default_factory=dict)
    passed: Sequence[PassedOver] = ()  # files that are not read
    notes: Sequence[str] = ()  # warnings, a line each


@runtime_checkable
class Source(Protocol):
    """What splits and the pipeline need of a source; `data.phantom.Phantom` is one too."""

    @property
    def cases(self) -> Sequence[str]: ...

    @property
    def facts(self) -> Facts: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def verify(self) -> None:
        """Read every file once. Raises the BadInput of the first that does not fit."""


@dataclass(frozen=True)
class Cached:
    """`source` with every example kept in memory after its first reading, read-only
    since all readers share it.
    """

    source: Source
    _kept: dict[int, Example] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def cases(self) -> Sequence[str]:
        return self.source.cases

    @property
    def facts(self) -> Facts:
        return self.source.facts

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        # two threads may both read it: they store the same
        if index not in self._kept:
            example = self.source[index]
            example["image"].flags.writeable = example["mask"].flags.writeable = False
            self._kept[index] = example
        return dict(self._kept[index])

    def verify(self) -> None:
        self.source.verify()


def check_foreground(found: int, of: int, where: str) -> None:
    """Raises BadInput where so few slices have any foreground that their masks are most
    likely read wrongly.
    """
    if found == 0 or found < FEWEST_WITH_FOREGROUND * of:
        raise BadInput(
            f"{found} of {of} masks in {where} have any foreground. Check the masks, data.classes and data.labels, "
            "or go on with data.verify=False."
        )
