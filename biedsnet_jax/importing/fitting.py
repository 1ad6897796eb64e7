"""Weights of another network, laid into one's own as far as they fit.

A tensor of the same path and shape is taken. A first convolution that reads another
number of image channels is spread: with n channels there and m here, each new one gets
the mean of the old ones times n / m, so that an image with the same value in every
channel gives what it gave. What it reads of a noisy mask of other classes gets zeros, so
that it makes no difference at first. In a head of other classes, each new class gets the
mean of the old ones: it starts as foreground. All else stays as it is drawn, and is named.

The head of a denoiser is drawn anew too. Its old ones are so sure that there is nothing
where their own lesions are not that training cannot move them: see docs/finetune.md.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from biedsnet_jax.errors import listed

# Tensors that are named in a line each; networks of other widths have hundreds.
_MOST_LINES = 20

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The channels of the image and of the mask that a network reads."""

    channels: int
    classes: int


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Arrays by path, of the shapes asked for, and a line on each that does not fit."""

    arrays: dict[str, np.ndarray]
    lines: list[str]


def fit(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
    *,
    there: Inputs | None,
    here: Inputs,
    spread_heads: bool = True,
) -> Fitted:
    """Fits `arrays` to `shapes`, both by path.

    `there` and `here` are the inputs of the networks that they are of; `there` is None
    where they are not known. Without `spread_heads` those of other classes are drawn anew.
    """
    taken, lines = {}, []
    for path in sorted(shapes.keys() & arrays.keys()):
        value, wanted = arrays[path], shapes[path]
        if value.shape == wanted:
            taken[path] = value
            continue
        spread = _spread_inputs(value, wanted, there, here)
        if spread is None and spread_heads:
            spread = _spread_classes(value, wanted, there, here)
        how = "drawn anew"
        if spread is not None:
            taken[path] = spread
            how = "averaged and copied"
        lines.append(f"{path} is {value.shape} there, {wanted} here; {how}")
    lines = _shortened(lines)
    if missing := sorted(shapes.keys() - arrays.keys()):
        lines.append(f"not there: {_count(missing)}; drawn anew")
    if surplus := sorted(arrays.keys() - shapes.keys()):
        lines.append(f"not needed here: {_count(surplus)}; left out")
    return Fitted(taken, lines)


def _spread_inputs(kernel, wanted, there, here) -> np.ndarray | None:
    """A kernel "h w i o" for another number of input channels; None where it is none."""
    old, new = kernel.shape, wanted
    if len(old) != 4 or len(new) != 4 or (*old[:2], old[3]) != (*new[:2], new[3]):
        return None
    parts = _input_parts(old[2], new[2], there, here)
    if parts is None:
        return None
    spread, start = [], 0
    for what, n, m in parts:
        part = kernel[:, :, start : start + n]
        start += n
        if n != m:
            part = _spread(part, m) if what == "image" else _unread(part, m)
        spread.append(part)
    return np.concatenate(spread, axis=2)


def _spread_classes(tensor, wanted, there, here) -> np.ndarray | None:
    """The kernel or bias of a head for other classes; None where it is none.

    MedSegDiff's has two outputs for each class, first those of the noise.
    """
    old, new = tensor.shape, wanted
    if there is None or len(old) != len(new) or old[:-1] != new[:-1]:
        return None
    for outputs in (1, 2):
        if (old[-1], new[-1]) == (outputs * there.classes, outputs * here.classes):
            parts = np.split(tensor, outputs, axis=-1)
            means = [part.mean(axis=-1, keepdims=True) for part in parts]
            return np.repeat(np.concatenate(means, axis=-1), here.classes, axis=-1)
    return None


def _input_parts(
    old: int, new: int, there, here
) -> Sequence[tuple[str, int, int]] | None:
    """The inputs that a first convolution reads side by side, with widths old and new.

    They are the image, the noisy mask and, with self-conditioning, the last prediction.
    """
    if there is None:
        return [("image", old, new)] if new == here.channels else None
    image = "image", there.channels, here.channels
    mask = "mask", there.classes, here.classes
    for parts in ([image], [mask], [mask, mask], [image, mask], [image, mask, mask]):
        if (sum(n for _, n, _ in parts), sum(m for _, _, m in parts)) == (old, new):
            return parts
    return None


def _spread(kernel, count: int) -> np.ndarray:
    old = kernel.shape[2]
    mean = kernel.mean(axis=2, keepdims=True) * (old / count)
    return np.repeat(mean, count, axis=2)


def _unread(kernel, count: int) -> np.ndarray:
    """The kernel of `count` inputs that make no difference until training changes it."""
    height, width, _, outputs = kernel.shape
    return np.zeros((height, width, count, outputs), kernel.dtype)


def _shortened(lines):
    rest = len(lines) - _MOST_LINES
    if rest <= 1:
        return lines
    return [*lines[:_MOST_LINES], f"{rest} more tensors of other shapes; drawn anew"]


def _count(paths) -> str:
    noun = "tensor" if len(paths) == 1 else "tensors"
    return f"{len(paths)} {noun} ({listed(paths)})"
