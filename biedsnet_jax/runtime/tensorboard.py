"""TensorBoard: files of events and their contents, by means of tensorboardX.

It is imported inside the functions, since only the extra `train` brings it.
"""

import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

# Name of the folder in a workdir.
FOLDER = "tensorboard"
_FILES = "events"

# A Summary of tensorboardX.
Summary = Any


class Board:
    """A file of events.

    A file that goes on `after` a step marks later steps of earlier files as void.
    """

    # tensorboardX's own writer is not used, since its thread dies of a full disk and
    # then everyone waits for it.

    def __init__(self, folder: pathlib.Path, suffix: str, *, after: int | None = None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        folder.mkdir(exist_ok=True)
        # A suffix, since names hold the second of the start, so that another file of
        # the same second would replace this one.
        self._file = EventsWriter(str(folder / _FILES), suffix)
        if after is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._file.write_event(
                event_pb2.Event(
                    wall_time=time.time(), step=after + 1, session_log=start
                )
            )

    def add(self, step: int, summaries: Iterable[Summary]) -> None:
        """Writes the summaries of a step, and flushes them."""
        from tensorboardX.proto import event_pb2

        for one in summaries:
            self._file.write_event(
                event_pb2.Event(wall_time=time.time(), step=step, summary=one)
            )
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def files_of(folder: pathlib.Path, suffix: str) -> set[pathlib.Path]:
    """The files of events in a folder whose names end in `suffix`."""
    return {
        path
        for path in folder.glob(f"{_FILES}.out.tfevents.*")
        if path.name.endswith(suffix)
    }


def scalars(values: Mapping[str, float]) -> list[Summary]:
    """A summary for each number."""
    from tensorboardX import summary

    return [summary.scalar(name, value) for name, value in values.items()]


def picture(name: str, grey: Float[np.ndarray, "h w"]) -> Summary:
    """A picture of grey values from 0 to 1."""
    from tensorboardX import summary

    return summary.image(name, grey, dataformats="HW")


def table(name: str, fields: Mapping[str, Any]) -> Summary:
    """A table of fields and their values."""
    from tensorboardX import summary

    rows = "".join(f"| {field} | {_cell(value)} |\n" for field, value in fields.items())
    return summary.text(name, f"| field | value |\n| :-- | :-- |\n{rows}")


def pr_curve(name: str, curve: Mapping[str, np.ndarray]) -> Summary:
    """A precision-recall curve, as `pr_curve.Counts` gives it for a class."""
    from tensorboardX import summary

    return summary.pr_curve_raw(name, **curve, num_thresholds=len(curve["tp"]))


def hparams(
    fields: Mapping[str, Any], present: Iterable[str], metrics: Iterable[str]
) -> list[Summary]:
    """A finished run on TensorBoard's page HPARAMS, with the `present` fields' values.

    All `fields`, and the tags of the `metrics`, are columns, since TensorBoard shows
    only those that some run names.
    """
    from tensorboardX import summary

    columns, *_ = summary.hparams(fields, dict.fromkeys(metrics, 0.0))
    _, start, end = summary.hparams({name: fields[name] for name in present}, {})
    return [columns, start, end]


def _cell(value):
    text = " ".join(str(value).split())
    if not text:
        return ""
    return "`" + text.replace("|", r"\|").replace("`", "'") + "`"
