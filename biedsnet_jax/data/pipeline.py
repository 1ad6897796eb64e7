"""Batches from a source, read ahead in two threads by Grain.

Training is an endless stream in which batch `step` is a function of the seed and the
step alone: example n of the stream comes from an epoch-wise shuffle, and batch s holds
the examples s b to s b + b - 1. So a run resumes by asking for its step, whatever came
before, and every process of a job reads its own rows of the same batch.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from biedsnet_jax.data import transforms
from biedsnet_jax.data.sources.source import Source
from biedsnet_jax.errors import BadInput

# grain's own default reads 500 batches ahead
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


@dataclass(frozen=True)
class _Prepared:
    """The examples `indices` of a source, each prepared and with its index and original
    size.
    """

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
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from `start_step` on: image float32 "b h w c" and mask float32 "b
    h w k".

    `augment` holds keywords of `transforms.augment`. Of the `batch_size` rows, over all
    processes, this process reads `rows`, all by default: put together they are the
    batch that one process alone would read. Close the iterator (`contextlib.closing`)
    to stop its threads. Raises BadInput if there is nothing to read.
    """
    if not len(indices):
        raise BadInput(
            "No slice is left to train on. Give split.train at least one case that has slices."
        )
    examples = (
        grain.MapDataset.source(_Prepared(source, indices, prepare))
        .seed(seed)
        .shuffle()
        .repeat()
    )
    examples = examples.random_map(
        lambda example, rng: transforms.augment(example, rng, **augment)
    )
    mine = range(batch_size) if rows is None else rows

    def batch(step: int) -> dict[str, np.ndarray]:
        return _stack([examples[step * batch_size + row] for row in mine], len(mine))

    steps = grain.MapDataset.range(sys.maxsize // batch_size)
    return _read(steps[start_step:].map(batch))


def eval_batches(
    source: Source,
    indices: Sequence[int],
    *,
    prepare: transforms.Prepare,
    batch_size: int,
) -> Iterator[tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    """Each slice of `indices` once, in order: (batch, examples).

    The batch holds image and mask as in training and valid, bool "b": the last one is
    filled up with zeros. There is an example for each valid row: case, slice, path,
    spacing (of the resized pixels), index, original_size.
    """
    prepared = _Prepared(source, indices, prepare)

    def batch(number: int):
        rows = range(number * batch_size, min((number + 1) * batch_size, len(prepared)))
        examples = [prepared[row] for row in rows]
        arrays = _stack(examples, batch_size) | {
            "valid": np.arange(batch_size) < len(examples)
        }
        return arrays, [
            {k: v for k, v in example.items() if k not in ("image", "mask")}
            for example in examples
        ]

    return _read(grain.MapDataset.range(-(-len(prepared) // batch_size)).map(batch))


def _stack(examples: list[dict[str, Any]], batch_size: int) -> dict[str, np.ndarray]:
    """image and mask of the examples as float32, with zeros up to `batch_size` rows."""
    arrays = {}
    for name in ("image", "mask"):
        arrays[name] = np.zeros((batch_size, *examples[0][name].shape), np.float32)
        for row, example in enumerate(examples):
            arrays[name][row] = example[name]
    return arrays


def _read(dataset: grain.MapDataset) -> Iterator[Any]:
    """Elements in order, read ahead; the threads end with the iterator, however it
    ends.
    """
    iterator = iter(dataset.to_iter_dataset(READ))
    try:
        yield from iterator
    finally:
        iterator.close()
