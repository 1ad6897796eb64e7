"""What a run of mode predict is to do: which scans, into which files, with which model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biedsnet_jax.prediction import outputs
from biedsnet_jax.prediction.scans import Item


@dataclass(frozen=True)
class Job:
    """What all processes of a run know of it."""

    folder: Path
    items: Sequence[Item]
    classes: int
    samples: int  # an image; 0 of a method that draws none
    keep_samples: bool
    settings: Mapping[str, Any]  # of predict.json
    weights: str  # digest of the model's arrays
    # the files of each scan
    where: Mapping[Item, Mapping[str, Path]] = field(init=False)
    # Samples that an earlier run kept, which would not be those of new masks.
    not_written: Mapping[Item, Sequence[Path]] = field(init=False)

    def __post_init__(self):
        where, not_written = {}, {}
        for item in self.items:
            every = self._paths(item, self.samples)
            where[item] = self._paths(item, self.samples if self.keep_samples else 0)
            not_written[item] = [
                path for name, path in every.items() if name not in where[item]
            ]
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "not_written", not_written)

    def _paths(self, item, samples):
        drawn = self.samples > 0
        return outputs.paths(
            self.folder, item, classes=self.classes, diffusion=drawn, samples=samples
        )
