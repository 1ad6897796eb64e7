"""TensorBoard: files of events, and what goes into them. The only place that knows
tensorboardX.
"""

import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

# in the workdir
FOLDER = "tensorboard"
_FILES = "events"

Summary = summary.Summary


class Board:
    """One file. Not tensorboardX's own writer: its thread dies of a full disk, and then
    all wait for it.

    A file that goes on `after` a step says that later steps of earlier files no longer
    count.
    """

    def __init__(self, folder: pathlib.Path, suffix: str, *, after: int | None = None):
        folder.mkdir(exist_ok=True)
        # A suffix, since a file is named by the second and a second one would replace
        # it.
        self._file = EventsWriter(str(folder / _FILES), suffix)
        if after is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._file.write_event(
                event_pb2.Event(
                    wall_time=time.time(), step=after + 1, session_log=start
                )
            )

    def add(self, step: int, summaries: Iterable[Summary]) -> None:
        """Summaries of a step, on the disk at once."""
        for one in summaries:
            self._file.write_event(
                event_pb2.Event(wall_time=time.time(), step=step, summary=one)
            )
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def files_of(folder: pathlib.Path, suffix: str) -> set[pathlib.Path]:
    """Those with this suffix."""
    return {
        path
        for path in folder.glob(f"{_FILES}.out.tfevents.*")
        if path.name.endswith(suffix)
    }


def scalars(values: Mapping[str, float]) -> list[Summary]:
    """A number each."""
    return [summary.scalar(name, value) for name, value in values.items()]


def picture(name: str, grey: Float[np.ndarray, "h w"]) -> Summary:
    """Grey values from 0 to 1."""
    return summary.image(name, grey, dataformats="HW")


def table(name: str, fields: Mapping[str, Any]) -> Summary:
    """A text: fields and their values."""
    rows = "".join(f"| {field} | {_cell(value)} |\n" for field, value in fields.items())
    return summary.text(name, f"| field | value |\n| :-- | :-- |\n{rows}")


def pr_curve(name: str, curve: Mapping[str, np.ndarray]) -> Summary:
    """What `pr_curve.Counts` gives of a class."""
    return summary.pr_curve_raw(name, **curve, num_thresholds=len(curve["tp"]))


def hparams(
    fields: Mapping[str, Any], present: Iterable[str], metrics: Iterable[str]
) -> list[Summary]:
    """A finished run on the page HPARAMS: the values of those `fields` that are
    `present` in it.

    All `fields`, and the tags of the `metrics`, are columns: TensorBoard takes those
    that one run of many names.
    """
    columns, *_ = summary.hparams(fields, dict.fromkeys(metrics, 0.0))
    _, start, end = summary.hparams({name: fields[name] for name in present}, {})
    return [columns, start, end]


def _cell(value):
    text = " ".join(str(value).split())
    return "`" + text.replace("|", r"\|").replace("`", "'") + "`" if text else ""
