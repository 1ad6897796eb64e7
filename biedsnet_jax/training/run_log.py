"""What a run writes as it goes: `metrics.jsonl`, one line a log step, and what
TensorBoard shows.

Only the first of several processes writes. A full disk costs lines, not the run.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import files, processes, tensorboard
from biedsnet_jax.scoring import pr_curve

_GOES_ON = "the same command then goes on from its last checkpoint"


class RunLog:
    """The logs of one workdir. A run that goes on from `step` first drops the lines its
    forerunner wrote after it.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int, to_tensorboard: bool):
        self._lines, self._board, self._warned = workdir / "metrics.jsonl", None, False
        self._folder_is = files.identity(workdir)
        if not processes.is_first():
            return
        try:
            _drop_after(self._lines, step)
        except OSError as error:
            self._lost(step, error)
        if to_tensorboard:
            self._board = self._open_board(workdir / tensorboard.FOLDER, step)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._board:
            with contextlib.suppress(OSError):
                self._board.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars after `step` updates. Raises BadInput where the file cannot be
        written, the disk not being full.
        """
        if not processes.is_first():
            return
        if files.identity(self._lines.parent) != self._folder_is:
            raise BadInput(
                f"The folder {self._lines.parent} is gone, at step {step}. Bring it back; {_GOES_ON}."
            )
        try:
            files.append_json_line(
                self._lines, {"step": step, "time": round(time.time(), 3), **scalars}
            )
        except OSError as error:
            self._lost(step, error)
        if self._board:
            self._show(step, tensorboard.scalars(scalars))

    def config(self, step: int, fields: Mapping[str, Any]) -> None:
        """What a run starts with, or goes on with from `step`, as a text; for
        TensorBoard alone, as are the next.
        """
        if self._board:
            self._show(step, [tensorboard.table("config", fields)])

    def curves(self, step: int, counts: pr_curve.Counts) -> None:
        """Precision by recall, a curve a class."""
        if self._board:
            curves = counts.curves()
            names = (
                ["pr_curve"]
                if len(curves) == 1
                else [f"pr_curve/class_{k + 1}" for k in range(len(curves))]
            )
            self._show(
                step,
                [
                    tensorboard.pr_curve(name, curve)
                    for name, curve in zip(names, curves)
                ],
            )

    def panel(
        self,
        step: int,
        image: Float[np.ndarray, "b h w c"],
        truth: Float[np.ndarray, "b h w k"],
        probability: Float[np.ndarray, "b h w k"],
    ) -> None:
        """Image, truth and probability side by side, a row a slice and class."""
        if self._board:
            self._show(
                step,
                [tensorboard.picture("validation", _panel(image, truth, probability))],
            )

    def _open_board(self, folder, step):
        try:
            return tensorboard.Board(folder, f".from_{step}", after=step)
        except OSError as error:
            if not files.is_full(error):
                raise BadInput(
                    f"Cannot write to {folder}: {reason(error)}. "
                    "Make it a folder that can be written, or take it away."
                ) from error
            self._lost(step, error)
            return None

    def _show(self, step: int, summaries: Iterable[tensorboard.Summary]) -> None:
        try:
            self._board.add(step, summaries)
        except OSError as error:
            self._lost(step, error)

    def _lost(self, step, error):
        if not files.is_full(error):
            raise BadInput(
                f"Cannot write to {self._lines}: {reason(error)}. Make it writable; {_GOES_ON}."
            ) from error
        if not self._warned:
            processes.say(
                f"warning: disk full, logs of step {step} lost, {self._lines.parent}; training goes on"
            )
        # what follows a cut record could not be read
        self._warned, self._board = True, None


def _panel(image, truth, probability):
    grey = image.mean(-1)
    low, high = grey.min((1, 2), keepdims=True), grey.max((1, 2), keepdims=True)
    grey = (grey - low) / np.maximum(high - low, 1e-6)
    rows = [
        np.concatenate([grey[i], truth[i, ..., k], probability[i, ..., k]], axis=1)
        for i in range(len(image))
        for k in range(truth.shape[-1])
    ]
    return np.clip(np.concatenate(rows, axis=0), 0.0, 1.0)


def _drop_after(path, step):
    if not path.exists():
        return
    kept = []
    # By lines of bytes: what a power cut leaves is no text, and other line ends stand
    # in no line.
    for line in path.read_bytes().split(b"\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            # the end of a line that a kill cut short, or what a power cut left of it
            continue
    files.write_bytes(path, b"".join(line + b"\n" for line in kept))
