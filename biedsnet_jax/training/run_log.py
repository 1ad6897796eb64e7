"""The logs of a run: `metrics.jsonl`, a line a log step, and TensorBoard's files.

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

_GOES_ON = "The same command then goes on from the last checkpoint."


class RunLog:
    """The logs of one workdir.

    A run that goes on from `step` first drops the lines written after that step.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int, to_tensorboard: bool):
        self._lines = workdir / "metrics.jsonl"
        self._board, self._warned = None, False
        # A folder made anew under the same name is not the run's.
        self._identity = files.identity(workdir)
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
        """Writes scalars after `step` updates.

        A full disk is only warned of. Raises BadInput where the file cannot be written
        for another reason.
        """
        if not processes.is_first():
            return
        if files.identity(self._lines.parent) != self._identity:
            raise BadInput(
                f"The folder {self._lines.parent} is gone, at step {step}. "
                f"Bring it back. {_GOES_ON}"
            )
        try:
            files.append_json_line(
                self._lines, {"step": step, "time": round(time.time(), 3), **scalars}
            )
        except OSError as error:
            self._lost(step, error)
        self._show(step, tensorboard.scalars(scalars))

    def config(self, step: int, fields: Mapping[str, Any]) -> None:
        """Shows the config that a run has from `step` on, in TensorBoard alone."""
        self._show(step, [tensorboard.table("config", fields)])

    def curves(self, step: int, counts: pr_curve.Counts) -> None:
        """Shows precision by recall in TensorBoard, a curve a class."""
        curves = counts.curves()
        names = ["pr_curve"]
        if len(curves) > 1:
            names = [f"pr_curve/class_{k + 1}" for k in range(len(curves))]
        self._show(step, map(tensorboard.pr_curve, names, curves))

    def panel(
        self,
        step: int,
        image: Float[np.ndarray, "b h w c"],
        truth: Float[np.ndarray, "b h w k"],
        probability: Float[np.ndarray, "b h w k"],
    ) -> None:
        """Shows image, truth and probability in TensorBoard, a row a slice and class."""
        panel = _panel(image, truth, probability)
        self._show(step, [tensorboard.picture("validation", panel)])

    def _open_board(self, folder, step):
        try:
            return tensorboard.Board(folder, f".from_{step}", after=step)
        except OSError as error:
            if not files.is_full(error):
                raise BadInput(
                    f"Cannot write to {folder}: {reason(error)}. "
                    "Make it a folder that can be written, or remove it."
                ) from error
            self._lost(step, error)
            return None

    def _show(self, step: int, summaries: Iterable[tensorboard.Summary]) -> None:
        try:
            if self._board:
                self._board.add(step, summaries)
        except OSError as error:
            self._lost(step, error)

    def _lost(self, step, error):
        if not files.is_full(error):
            raise BadInput(
                f"Cannot write to {self._lines}: {reason(error)}. "
                f"Make it writable. {_GOES_ON}"
            ) from error
        if not self._warned:
            processes.say(
                f"warning: the disk of {self._lines.parent} is full, so the logs of step "
                f"{step} are lost. Training goes on."
            )
        # TensorBoard reads nothing after a record that was cut short.
        self._warned, self._board = True, None


def _panel(image, truth, probability):
    """One grey picture; each image is stretched to its own range."""
    grey = image.mean(-1)
    low = grey.min((1, 2), keepdims=True)
    high = grey.max((1, 2), keepdims=True)
    grey = (grey - low) / np.maximum(high - low, 1e-6)
    rows = [
        np.concatenate([grey[i], truth[i, ..., k], probability[i, ..., k]], axis=1)
        for i in range(len(image))
        for k in range(truth.shape[-1])
    ]
    return np.clip(np.concatenate(rows, axis=0), 0.0, 1.0)


def _drop_after(path, step):
    """Drops the lines of a file of JSON lines that come after `step`."""
    if not path.exists():
        return
    kept = []
    # Split as bytes, since what a power cut leaves need not be text.
    for line in path.read_bytes().split(b"\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            # A kill or a power cut leaves lines that are cut short or damaged.
            continue
    files.write_bytes(path, b"".join(line + b"\n" for line in kept))
