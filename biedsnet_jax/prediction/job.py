"""What a run of mode predict has to do: which scans, into which files, with which model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biedsnet_jax.prediction import outputs
from biedsnet_jax.prediction.scans import Item


@dataclass(frozen=True)
class Job:
    """The scans, files and settings of a run, the same on all of its processes."""

    folder: Path
    items: Sequence[Item]
    classes: int
    # Samples of an image; 0 for a method that draws none.
    samples: int
    keep_samples: bool
    # The settings in predict.json.
    settings: Mapping[str, Any]
    # Digest of the model's arrays.
    weights: str
    # The files of each scan, by what they hold.
    where: Mapping[Item, Mapping[str, Path]] = field(init=False)
    # Files of samples that an earlier run kept, which do not belong to new masks.
    not_written: Mapping[Item, Sequence[Path]] = field(init=False)

    def __post_init__(self):
        where, not_written = {}, {}
        kept = self.samples if self.keep_samples else 0
        for item in self.items:
            where[item] = self._paths(item, kept)
            every = self._paths(item, self.samples)
            not_written[item] = [
                path for name, path in every.items() if name not in where[item]
            ]
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "not_written", not_written)

    def _paths(self, item, samples):
        return outputs.paths(
            self.folder,
            item,
            classes=self.classes,
            diffusion=self.samples > 0,
            samples=samples,
        )
