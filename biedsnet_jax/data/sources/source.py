"""Defines what a source of slices is, and keeps one in memory.

A source is random access in numpy: `len`, `.cases` (the case of every index) and `[i]`,
an example. That is a dict of image "h w c" in the file's own values, upright, mask uint8
"h w k" of 0 and 1, case, slice, spacing (row, column) in mm or None, and path. A source
whose labels are not complete has also known, uint8 "h w k", in every example: 1 where the
truth of a class is known, and 0 where mask is 0 for want of an annotation. `scans` gives
whole scans of a case with their true masks, as mode predict would read the files.
"""

# `hidden` is `dataclasses.field`, which this rule allows by that name alone.
# ruff: noqa: RUF009

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput

Example = dict[str, Any]
# With a smaller share of slices, the masks are most likely read wrongly.
FEWEST_WITH_FOREGROUND = 1 / 200


def hidden(default_factory: Any = MISSING) -> Any:
    """Declares a field that a dataclass sets itself: no argument, never compared."""
    return field(default_factory=default_factory, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Facts:
    """Facts that a source knows of its data beside the slices."""

    # Case -> its files; empty where no files are read.
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    # Case -> "train", "val" or "test", where folders name sides of the split.
    sides: Mapping[str, str] = field(default_factory=dict)
    # Files that are not read.
    passed: Sequence[PassedOver] = ()
    # Warnings for the user, a line each.
    notes: Sequence[str] = ()
    # The plane in which volumes are cut; "" where no volumes are.
    plane: str = ""
    # Names of classes and channels, and the label to ignore, as the data's own file has
    # them; empty where it has none.
    class_names: Sequence[str] = ()
    channel_names: Sequence[str] = ()
    ignore: str = ""


@dataclass(frozen=True)
class LabelledScan:
    """A scan as mode predict reads it, and the true mask of every pixel of its grid."""

    case: str
    # Name of the scan, where a case has several volumes; else empty.
    name: str
    # In the file's own values.
    slices: Shaped[np.ndarray, "d h w c"]
    # 0 and 1 for each class.
    truth: UInt8[np.ndarray, "d h w k"]
    # Names of the slices within their case, as examples have them.
    slice_names: Sequence[str]
    # Index of each slice in the source; None where the source leaves it out.
    indices: Sequence[int | None]
    # Whether the slices stand one on another; else each is a picture by itself.
    is_volume: bool
    # mm between rows and columns, of a volume between slices first; None if unknown.
    spacing: tuple[float, ...] | None = None
    # 1 where the truth of a class is known; None where all is.
    known: UInt8[np.ndarray, "d h w k"] | None = None


@runtime_checkable
class Source(Protocol):
    """Interface of a source for splits and the pipeline; `Phantom` is one too."""

    @property
    def cases(self) -> Sequence[str]: ...

    @property
    def facts(self) -> Facts: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Reads the scans of a case one after another, each with all its slices."""

    def verify(self) -> None:
        """Reads every file once. Raises the BadInput of the first that does not fit."""


@dataclass(frozen=True)
class Around:
    """What a source that changes another one's examples has in common with it."""

    source: Source

    @property
    def cases(self) -> Sequence[str]:
        return self.source.cases

    @property
    def facts(self) -> Facts:
        return self.source.facts

    def __len__(self) -> int:
        return len(self.source)

    def verify(self) -> None:
        self.source.verify()


@dataclass(frozen=True)
class Cached(Around):
    """Keeps every example of a source in memory once it is read.

    Its arrays are read-only, since all readers share them.
    """

    _kept: dict[int, Example] = hidden(dict)

    def __getitem__(self, index: int) -> Example:
        # Two threads may both read an example. They store the same: no lock is needed.
        if index not in self._kept:
            example = self.source[index]
            for name in {"image", "mask", "known"} & example.keys():
                example[name].flags.writeable = False
            self._kept[index] = example
        return dict(self._kept[index])

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Reads the scans of a case; they are not kept, since each is read once."""
        return self.source.scans(case)


def scans_of_pictures(source: Source, case: str) -> Iterator[LabelledScan]:
    """Yields each slice of a case as a scan by itself, for sources of pictures."""
    for index, name in enumerate(source.cases):
        if name != case:
            continue
        example = source[index]
        yield LabelledScan(
            case=case,
            name="",
            slices=example["image"][None],
            truth=example["mask"][None],
            slice_names=(example["slice"],),
            indices=(index,),
            is_volume=False,
            spacing=example["spacing"],
            known=stacked_known([example]),
        )


def each_class(
    known: Bool[np.ndarray, "h w"], classes: int
) -> UInt8[np.ndarray, "h w k"]:
    """Says of every class alike where the truth is known; a view, to take no memory."""
    return np.broadcast_to(known.view(np.uint8)[..., None], (*known.shape, classes))


def stacked_known(examples: Sequence[Example]) -> UInt8[np.ndarray, "d h w k"] | None:
    """Stacks known of some examples; None where all is known."""
    if "known" not in examples[0]:
        return None
    return np.stack([example["known"] for example in examples])


def stamp(path: Path) -> tuple[str, int, int]:
    """Place, size and time of a file, which change when its content does."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def check_foreground(found: int, of: int, where: str) -> None:
    """Raises BadInput where too few slices have any foreground to trust their masks."""
    if found == 0 or found < FEWEST_WITH_FOREGROUND * of:
        raise BadInput(
            f"{found} of {of} masks in {where} have any foreground. "
            "Check the masks, data.classes and data.labels, or go on with data.verify=False."
        )
