"""Streams of batches: exact resume, rows of processes, epochs, each test slice once."""

import threading
import time
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.pipeline import eval_batches, train_batches
from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Cached, Facts
from biedsnet_jax.data.transforms import Prepare
from biedsnet_jax.errors import BadInput

AUGMENT = {
    "hflip": 0.5,
    "vflip": 0.5,
    "rotate_degrees": 10.0,
    "scale": 0.1,
    "intensity": 0.1,
}


class Numbered:
    """Slice i is an 8x6 image of the value i; its mask is the first i % 6 columns."""

    facts = Facts()

    def __init__(self, n):
        self.cases = [f"case_{i // 4}" for i in range(n)]

    def __len__(self):
        return len(self.cases)

    def scans(self, case):
        """Gives none, since nothing is evaluated."""
        return iter(())

    def verify(self):
        """Does nothing, since nothing is read."""

    def __getitem__(self, i):
        mask = np.tile(np.arange(6) < i % 6, (8, 1)).astype(np.uint8)
        return {
            "image": np.full((8, 6, 1), i, np.float32),
            "mask": mask[..., None],
            "case": self.cases[i],
            "slice": f"{i:03d}",
            "spacing": (0.5, 0.5),
            "path": f"{i}.png",
        }


PLAIN = Prepare(Fit((8, 6)), "none")
NUMBERED = Numbered(32)


def read(
    n_batches,
    source=NUMBERED,
    *,
    indices=range(24),
    prepare=PLAIN,
    augment=None,
    batch_size=4,
    seed=3,
    start_step=0,
    rows=None,
):
    batches = train_batches(
        source,
        list(indices),
        prepare=prepare,
        augment=augment or {},
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        rows=rows,
    )
    with closing(batches):
        return list(islice(batches, n_batches))


@pytest.fixture(scope="module")
def phantom():
    return Cached(Phantom(n_cases=2, size=16))


def values(batches):
    return [batch["image"][:, 0, 0, 0].astype(int).tolist() for batch in batches]


def assert_same(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x["image"], y["image"])
        np.testing.assert_array_equal(x["mask"], y["mask"])


def test_a_batch_is_float32_image_and_mask():
    (batch,) = read(1)
    assert sorted(batch) == ["image", "mask"]
    assert all(
        array.shape == (4, 8, 6, 1) and array.dtype == np.float32
        for array in batch.values()
    )
    # Each mask belongs to its image.
    for image, mask in zip(batch["image"], batch["mask"]):
        assert mask[0, :, 0].sum() == image[0, 0, 0] % 6


def test_a_step_is_the_same_batch_wherever_the_stream_starts(phantom):
    """Six batches are an epoch, so starts lie within, at the end of and after one."""
    unbroken = read(26, phantom, prepare=Prepare(Fit(16)), augment=AUGMENT)
    for start in (1, 5, 6, 23):
        resumed = read(
            26 - start,
            phantom,
            prepare=Prepare(Fit(16)),
            augment=AUGMENT,
            start_step=start,
        )
        assert_same(unbroken[start:], resumed)


def test_every_epoch_holds_each_index_once_in_a_new_order():
    indices = [3, 5, 8, 13, 20, 21, 30, 31]
    epochs = np.array(values(read(6, indices=indices))).reshape(3, 8)
    for epoch in epochs:
        assert sorted(epoch) == indices
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert values(read(2, indices=indices, seed=4)) != values(read(2, indices=indices))


def test_fewer_slices_than_a_batch():
    (batch,) = values(read(1, indices=[7, 9, 11], batch_size=8))
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [7, 9, 11]


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_processes_rows_together_are_the_batch_of_one(phantom, process_count):
    prepare = Prepare(Fit(16), "minmax")
    n = 4 // process_count
    shares = []
    for process in range(process_count):
        rows = range(process * n, (process + 1) * n)
        shares.append(read(5, phantom, prepare=prepare, augment=AUGMENT, rows=rows))
    together = [
        {k: np.concatenate([part[k] for part in parts]) for k in ("image", "mask")}
        for parts in zip(*shares)
    ]
    assert_same(read(5, phantom, prepare=prepare, augment=AUGMENT), together)


class Ramps(Numbered):
    """Slices that run from 0 at the left to 5 at the right."""

    def __getitem__(self, i):
        return super().__getitem__(i) | {
            "image": np.tile(np.arange(6, dtype=np.float32), (8, 1))[..., None]
        }


def test_augmentation_differs_between_epochs():
    """The left edge tells whether a slice was flipped; both happen in 12 epochs."""
    batches = read(12, Ramps(1), indices=[0], batch_size=1, augment={"hflip": 0.5})
    assert {value for (value,) in values(batches)} == {0, 5}


def test_resize_and_normalisation_come_before_the_batch():
    (batch,) = read(1, Phantom(n_cases=2, size=32), prepare=Prepare(Fit(16)))
    assert batch["image"].shape == batch["mask"].shape == (4, 16, 16, 1)
    assert batch["image"].min() == 0 and batch["image"].max() == 1
    assert set(np.unique(batch["mask"])) == {0, 1}


def test_nothing_to_read_is_refused():
    refused(lambda: read(1, indices=[]), "split.train")


def test_an_error_in_the_source_comes_through_as_it_is():
    class Broken(Numbered):
        def __getitem__(self, i):
            raise BadInput("a/1.png is damaged. Replace it.")

    for stream in (
        lambda: read(1, Broken(8), indices=range(8)),
        lambda: list(evaluate(Broken(8), range(8))),
    ):
        with pytest.raises(BadInput) as caught:
            stream()
        assert str(caught.value) == "a/1.png is damaged. Replace it."


def test_closing_ends_the_threads():
    before = threading.active_count()
    read(3)
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_an_evaluation_that_is_left_early_ends_its_threads_and_reads_no_more():
    read = []

    class Noting(Numbered):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    before = threading.active_count()
    with closing(evaluate(Noting(4000), range(4000))) as batches:
        next(batches)
    assert threading.active_count() <= before
    count = len(read)
    # What is read ahead: a few batches of four.
    assert 4 <= count <= 40
    time.sleep(0.1)
    assert len(read) == count


def evaluate(source, indices, prepare=PLAIN):
    return eval_batches(source, list(indices), prepare=prepare, batch_size=4)


@pytest.mark.parametrize("n", [1, 4, 8, 11])
def test_evaluation_takes_every_slice_once_and_pads_the_last_batch(n):
    indices = list(range(20, 20 - n, -1))
    seen = []
    for batch, examples in evaluate(NUMBERED, indices):
        assert batch["image"].shape == batch["mask"].shape == (4, 8, 6, 1)
        assert batch["valid"].dtype == bool and batch["valid"].sum() == len(examples)
        for row, example in enumerate(examples):
            index = example["index"]
            assert batch["valid"][row] and batch["image"][row, 0, 0, 0] == index
            assert example["case"] == f"case_{index // 4}"
            assert example["slice"] == f"{index:03d}"
        np.testing.assert_array_equal(batch["image"][len(examples) :], 0)
        np.testing.assert_array_equal(batch["mask"][len(examples) :], 0)
        seen += [example["index"] for example in examples]
    assert seen == indices


class Sizes(Numbered):
    """Slices of two sizes, in runs of 3, 3 and 2."""

    def __getitem__(self, i):
        example = super().__getitem__(i)
        if 3 <= i < 6:
            for name in ("image", "mask"):
                example[name] = example[name].repeat(3, axis=0)
        return example


def test_slices_of_different_canvases_are_of_different_batches():
    prepare = Prepare(Fit((8, 6), "tile"), "none")
    asked = []

    def batch_size(canvas):
        asked.append(canvas)
        return 2 if canvas == (8, 6) else 4

    batches = list(
        eval_batches(Sizes(8), range(8), prepare=prepare, batch_size=batch_size)
    )
    assert [[one["index"] for one in examples] for _, examples in batches] == [
        [0, 1],
        [2],
        [3, 4, 5],
        [6, 7],
    ]
    shapes = [batch["image"].shape for batch, _ in batches]
    assert shapes == [(2, 8, 6, 1), (2, 8, 6, 1), (4, 24, 6, 1), (2, 8, 6, 1)]
    assert [int(batch["valid"].sum()) for batch, _ in batches] == [2, 1, 3, 2]
    assert set(asked) == {(8, 6), (24, 6)}


def test_evaluation_of_nothing_yields_nothing():
    assert list(evaluate(Numbered(4), [])) == []


def test_evaluation_examples_carry_spacing_and_original_size_but_no_arrays():
    ((_, (example,)),) = evaluate(NUMBERED, [9], prepare=Prepare(Fit((16, 3)), "none"))
    assert example == {
        "case": "case_2",
        "slice": "009",
        "path": "9.png",
        "spacing": (0.25, 1.0),
        "index": 9,
        "original_size": (8, 6),
    }
