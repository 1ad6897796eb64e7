"""What a run of mode predict writes scan by scan, so that a kill or a power cut may
come anywhere.

First the old figures and the old record of a scan go, then its files are written, then
its figures, then the record of what they were made from. Only a scan that has all of
them is finished.
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
    """The files, figures and records of the scans in `todo`, which says why each is
    done again.

    Of several processes each writes a part of the figures and the records.
    """

    def __init__(self, job: Job, todo: Mapping[str, str], *, part: int | None = None):
        self.job, self.todo = job, todo
        self._summary = outputs.Summary(job.folder, classes=job.classes, part=part)
        self._record = made_from.Record(job.folder, part=part)

    def forget(self, names: Iterable[str]) -> None:
        """Say of these scans, before their files change, that they are not finished."""
        self._record.forget(names)
        self._summary.forget(names)

    def save(
        self, scan: Scan, prediction: Prediction, inputs: Sequence[made_from.File]
    ) -> None:
        """Write all of a scan.

        Raises OSError where its own files cannot be written; a full disk and whatever
        keeps every scan from being written is BadInput.
        """
        where = self.job.where[scan.item]
        with files.writing(self.job.folder, another="--output"):
            self.forget([scan.item.name])
        try:
            for path in self.job.not_written[scan.item]:
                path.unlink(missing_ok=True)
            rows = outputs.write(scan, prediction, where)
            written = made_from.describe(where.values(), folder=self.job.folder)
        except OSError as error:
            if not files.is_full(error) and error.errno != errno.EROFS:
                raise
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
        with files.writing(self.job.folder, another="--output"):
            self._summary.add(rows)
            self._record.add(made)

    def try_to_save(
        self, scan: Scan, prediction: Prediction, inputs: Sequence[made_from.File]
    ) -> BadInput | None:
        """Write all of a scan; returns what is wrong where this one alone cannot be
        written.
        """
        mask, source = self.job.where[scan.item]["mask"], scan.item.files[0]
        try:
            self.save(scan, prediction, inputs)
            return None
        except MemoryError:
            what = BadInput(f"{source} is too large for the memory. Cut it into parts.")
        except OSError as error:
            what = BadInput(
                f"Cannot write the masks of {source} as {mask}: {reason(error)}. "
                "Rename the scan or give another --output."
            )
        # Some files may be of this prediction and some of an earlier one.
        for path in self.job.where[scan.item].values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return what

    def fail(self, item: Item) -> str:
        """Rename masks of what a scan was before it failed; returns a sentence that
        says so.
        """
        with files.writing(self.job.folder, another="--output"):
            self.forget([item.name])
            every = [*self.job.where[item].values(), *self.job.not_written[item]]
            aside = [outputs.set_aside(path) for path in every if _is_there(path)]
        if not aside:
            return ""
        return (
            f" Its earlier masks are kept under other names, such as {aside[0].name}."
        )

    def merge_parts(self) -> None:
        """Take over what the processes of a run wrote, each for itself."""
        self._summary.merge_parts(self.job.classes)
        self._record.merge_parts()


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Such as a name that this file system does not take.
        return False
