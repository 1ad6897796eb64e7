"""What a run of mode predict has to do: which scans, into which files, with which model."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from biedsnet_jax.prediction import outputs
from biedsnet_jax.prediction.scans import Item
from biedsnet_jax.runtime import files


@dataclass(frozen=True)
class Job:
    """The scans, files and settings of a run, the same on all of its processes."""

    folder: Path
    items: Sequence[Item]
    classes: int
    # Samples of an image; 0 where there is one pass of one model.
    samples: int
    # Names of the maps of how unsure the samples are.
    uncertainties: Sequence[str]
    keep_samples: bool
    # The settings in predict.json.
    settings: Mapping[str, Any]
    # Digest of the model's arrays.
    weights: str
    # Names of the classes; empty where they have none.
    class_names: Sequence[str] = ()

    @cached_property
    def where(self) -> dict[Item, dict[str, Path]]:
        """Files of each scan, by what they hold."""
        kept = self.samples if self.keep_samples else 0
        return {item: self._paths(item, kept) for item in self.items}

    @cached_property
    def not_written(self) -> dict[Item, list[Path]]:
        """Files of samples that an earlier run kept, which do not belong to new masks."""
        found = {}
        for item, written in self.where.items():
            every = self._paths(item, self.samples).values()
            found[item] = [path for path in every if path not in written.values()]
        return found

    def writing(self) -> AbstractContextManager[None]:
        """Turns an OSError in its block into BadInput that names the output folder."""
        return files.writing(self.folder, another="--output")

    def _paths(self, item, samples):
        return outputs.paths(
            self.folder,
            item,
            classes=self.classes,
            uncertainties=self.uncertainties,
            samples=samples,
        )
