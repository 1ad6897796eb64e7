"""Marks classes that nobody annotated in some cases of a source.

There the truth of such a class is not known, whatever its mask holds.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from biedsnet_jax.data import splits
from biedsnet_jax.data.sources.source import Around, Example, LabelledScan

# Names or patterns of cases, and the numbers, from 1, of the classes that they lack.
Declared = Sequence[Sequence]


@dataclass(frozen=True)
class Unannotated(Around):
    """A source of which `declared` says what was not annotated.

    Every example has known. In it, and in mask, such a class is 0.
    """

    declared: Declared

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        known, mask = self._cut(example["case"], example["mask"], example.get("known"))
        return {**example, "mask": mask, "known": known}

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Reads the scans of a case, with known."""
        for scan in self.source.scans(case):
            known, truth = self._cut(case, scan.truth, scan.known)
            yield replace(scan, truth=truth, known=known)

    def _cut(self, case, mask, known):
        """Known and mask "*space k" without what was not annotated in a case."""
        annotated = np.ones(mask.shape[-1], np.uint8)
        for k in self._missing(case):
            annotated[k - 1] = 0
        if known is None:
            known = np.ones_like(mask)
        return known * annotated, mask * annotated

    def _missing(self, case: str) -> frozenset[int]:
        """Numbers of the classes that were not annotated in a case."""
        found = [classes for cases, classes in self._fitting if case in cases]
        return frozenset().union(*found)

    @functools.cached_property
    def _fitting(self) -> list[tuple[set[str], Sequence[int]]]:
        """The cases that each name fits, and the classes that they lack.

        A name is looked up among all cases: that of one is no pattern for others.
        """
        known = set(self.source.cases)
        return [
            (splits.matching(name, known), classes) for name, classes in self.declared
        ]
