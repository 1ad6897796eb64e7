"""What a run writes as it goes: `metrics.jsonl`, one line a log step, and TensorBoard scalars and pictures."""

import json
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from tensorboardX import SummaryWriter

from biedsnet_jax import files


class RunLog:
    """The logs of one workdir. A run that goes on from `step` first drops the lines its forerunner wrote after it."""

    def __init__(self, workdir: pathlib.Path, *, step: int, tensorboard: bool):
        self._lines = workdir / "metrics.jsonl"
        _drop_after(self._lines, step)
        self._board = None
        if tensorboard:  # a suffix, since a file is named by the second and a second one would replace it
            options = {"purge_step": step + 1, "filename_suffix": f".from_{step}", "flush_secs": 10}
            self._board = SummaryWriter(str(workdir / "tensorboard"), **options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._board:
            self._board.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars after `step` updates."""
        files.append_json_line(self._lines, {"step": step, "time": round(time.time(), 3), **scalars})
        if self._board:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def panel(
        self,
        step: int,
        image: Float[np.ndarray, "b h w c"],
        truth: Float[np.ndarray, "b h w k"],
        probability: Float[np.ndarray, "b h w k"],
    ) -> None:
        """Image, truth and probability side by side, a row a slice and class."""
        if self._board:
            self._board.add_image("validation", _panel(image, truth, probability), step, dataformats="HW")


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
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the end of a line that a kill cut short
    files.write_text(path, "".join(line + "\n" for line in kept))
