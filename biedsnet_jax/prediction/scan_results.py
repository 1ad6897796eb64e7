"""Writes the results of mode predict scan by scan, safe against a kill or a power cut.

First the old record and figures of a scan are removed. Then its files are written, then
its figures, then the record of what they were made from. Only a scan that has all of
these is finished.
"""

import contextlib
import errno
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.prediction import made_from, output_folder, outputs
from biedsnet_jax.prediction.job import Job
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.prediction.scans import Item, Scan
from biedsnet_jax.runtime import files


class Results:
    """The files, figures and records of the scans in `todo`.

    `todo` maps each to the reason to segment it again. Each of several processes writes
    a `part` of the figures and of the records.
    """

    def __init__(self, job: Job, todo: Mapping[str, str], *, part: int | None = None):
        self.job, self.todo = job, todo
        self._summary = outputs.Summary(
            job.folder, classes=job.classes, part=part, named=bool(job.class_names)
        )
        self._record = made_from.Record(job.folder, part=part)

    def forget(self, names: Iterable[str]) -> None:
        """Marks scans as unfinished, before their files change."""
        self._record.forget(names)
        self._summary.forget(names)

    def save(
        self, scan: Scan, prediction: Prediction, inputs: Sequence[made_from.File]
    ) -> None:
        """Writes everything of one scan.

        Raises OSError where only its own files cannot be written, and BadInput for a
        full disk and whatever else stops every scan.
        """
        where = self.job.where[scan.item]
        with self.job.writing():
            self.forget([scan.item.name])
        try:
            for path in self.job.not_written[scan.item]:
                path.unlink(missing_ok=True)
            rows = outputs.write(scan, prediction, where)
            written = made_from.describe(where.values(), folder=self.job.folder)
        except OSError as error:
            if not files.is_full(error) and error.errno != errno.EROFS:
                raise
            # Raised again as BadInput.
            with files.writing(where["mask"], another="--output"):
                raise
        made = made_from.Made(
            name=scan.item.name,
            why=self.todo[scan.item.name],
            weights=self.job.weights,
            settings=output_folder.digest(self.job.settings),
            reading=made_from.READING,
            inputs=tuple(inputs),
            outputs=tuple(written),
        )
        with self.job.writing():
            self._summary.add(rows)
            self._record.add(made)

    def try_to_save(
        self, scan: Scan, prediction: Prediction, inputs: Sequence[made_from.File]
    ) -> BadInput | None:
        """Writes everything of one scan.

        Returns what is wrong where this scan alone cannot be written.
        """
        mask = self.job.where[scan.item]["mask"]
        source = scan.item.files[0]
        try:
            self.save(scan, prediction, inputs)
            return None
        except MemoryError:
            what = f"{source} is too large for the memory. Cut it into parts."
        except OSError as error:
            what = (
                f"Cannot write the masks of {source} as {mask}: {reason(error)}. "
                "Rename the scan or give another --output."
            )
        # Some files may be of this prediction and others of an earlier one.
        for path in self.job.where[scan.item].values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return BadInput(what)

    def fail(self, item: Item) -> str:
        """Renames the masks that a scan had before it failed.

        Returns a sentence that says so; empty where there were none.
        """
        with self.job.writing():
            self.forget([item.name])
            every = [*self.job.where[item].values(), *self.job.not_written[item]]
            aside = [outputs.set_aside(path) for path in every if _exists(path)]
        if not aside:
            return ""
        example = aside[0].name
        return f" Its earlier masks are kept under other names, such as {example}."

    def merge_parts(self) -> None:
        """Joins the parts that the processes of a run wrote."""
        self._summary.merge_parts(self.job.classes)
        self._record.merge_parts()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Such as for a name that this file system does not take.
        return False
