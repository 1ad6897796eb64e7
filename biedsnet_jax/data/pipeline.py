"""Batches of a source's examples, read ahead in two threads; those to train with, by Grain.

Training reads an endless stream in which a batch depends on the seed and the step alone:
the stream shuffles each epoch, and batch s of b rows holds its examples s b to
s b + b - 1. So a run resumes by asking for its step, whatever came before, and every
process of a job reads its own rows of the same batch. Rows that `foreground` takes for
slices with a lesion stand between those of the stream, which is only put off by them.
"""

import collections
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from biedsnet_jax.data import transforms
from biedsnet_jax.data.foreground import Foreground
from biedsnet_jax.data.sources.source import Source
from biedsnet_jax.errors import BadInput

_THREADS = 2
# Batches. Grain's own default would read 500.
_AHEAD = 4
# Examples of an evaluation.
_EXAMPLES_AHEAD = 32
# What is stacked of examples; the last only where a source says what is known.
_ARRAYS = ("image", "mask", "known")


@dataclass(frozen=True)
class _Prepared:
    """Prepared examples of a source, each with its index and original size."""

    source: Source
    indices: Sequence[int]
    prepare: transforms.Prepare

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self.indices[position])
        example = self.source[index]
        return {
            **self.prepare(example),
            "index": index,
            "original_size": example["mask"].shape[:2],
        }


def train_batches(
    source: Source,
    indices: Sequence[int],
    *,
    prepare: transforms.Prepare,
    augment: dict[str, float],
    tile: int = 0,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    foreground: Foreground | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Reads endless batches from `start_step` on, to train with.

    A batch has image "b h w c" and mask "b h w k", both float32, and known "b h w k"
    where the source says what is known. `augment` holds keywords of `transforms.augment`,
    and `tile` is the side of the tiles to cut out, if any. Of the `batch_size` rows over
    all processes this process reads `rows`, all by default; together they are the batch
    of one process alone. `foreground` draws a share of the rows from slices with a
    lesion. Close the iterator (`contextlib.closing`) to stop its threads. Raises BadInput
    if there is nothing to read.
    """
    # Imported here, since only training needs Grain.
    import grain

    if not len(indices):
        raise BadInput(
            "No slice is left to train on. Give split.train at least one case that has slices."
        )
    prepared = _Prepared(source, indices, prepare)
    foreground = foreground or Foreground(0.0, seed)

    def variant(example, rng):
        return transforms.augment(example, rng, tile=tile, **augment)

    def with_lesion(number: int):
        shown = foreground.shown(number)
        return prepared[foreground.position(number)] | {"shown": shown}

    shuffled = grain.MapDataset.source(prepared).seed(seed).shuffle().repeat()
    examples = shuffled.random_map(variant)
    numbers = grain.MapDataset.range(sys.maxsize).seed(seed)
    lesions = numbers.map(with_lesion).random_map(variant)
    if rows is None:
        rows = range(batch_size)

    def example(row: int):
        before = foreground.before(row)
        return lesions[before] if foreground.has(row) else examples[row - before]

    def batch(step: int) -> dict[str, np.ndarray]:
        return _stack([example(step * batch_size + row) for row in rows], len(rows))

    steps = grain.MapDataset.range(sys.maxsize // batch_size)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    return _closed(iter(steps[start_step:].map(batch).to_iter_dataset(options)))


def eval_batches(
    source: Source,
    indices: Sequence[int],
    *,
    prepare: transforms.Prepare,
    batch_size: int | Callable[[tuple[int, int]], int],
) -> Iterator[tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    """Reads each slice of `indices` once, in order, as pairs (batch, examples).

    The batch has image and mask as in training, and valid, bool "b": a batch that is not
    full, the last or one before another canvas, is filled up with zeros. `batch_size`
    may depend on the canvas (H, W). For each valid row there is an example with case,
    slice, path, spacing (of the resized pixels), index and original_size.
    """
    prepared = _Prepared(source, indices, prepare)

    def size_of(example):
        canvas = example["mask"].shape[:2]
        return batch_size(canvas) if callable(batch_size) else batch_size

    examples = []
    for example in _read_ahead(prepared.__getitem__, len(prepared)):
        first = examples[0] if examples else example
        full = len(examples) == size_of(first)
        if full or example["mask"].shape != first["mask"].shape:
            yield _filled(examples, size_of(first))
            examples = []
        examples.append(example)
    if examples:
        yield _filled(examples, size_of(examples[0]))


def _filled(examples, batch_size):
    """A batch of some examples, and the examples without image and mask."""
    arrays = _stack(examples, batch_size)
    arrays["valid"] = np.arange(batch_size) < len(examples)
    for example in examples:
        for name in _ARRAYS:
            example.pop(name, None)
    return arrays, examples


def _stack(examples: list[dict[str, Any]], batch_size: int) -> dict[str, np.ndarray]:
    """Stacks image, mask and known as float32, with zeros up to `batch_size` rows.

    Without known, as where a source knows all, there is none.
    """
    arrays = {}
    for name in _ARRAYS:
        if name not in examples[0]:
            continue
        arrays[name] = np.zeros((batch_size, *examples[0][name].shape), np.float32)
        for row, example in enumerate(examples):
            arrays[name][row] = example[name]
    return arrays


def _closed(iterator) -> Iterator[Any]:
    """Yields what Grain reads; its threads end with the iterator."""
    try:
        yield from iterator
    finally:
        iterator.close()


def _read_ahead(read: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Yields `read` of the numbers below `count`, in order; the threads end with it."""
    threads = ThreadPoolExecutor(_THREADS)
    coming = collections.deque()
    try:
        for number in range(count):
            coming.append(threads.submit(read, number))
            if len(coming) > _EXAMPLES_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
