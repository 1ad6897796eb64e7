"""Rows with a lesion: their share of each batch, their classes, and an exact resume."""

import collections
import fractions
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.foreground import Foreground, find_foreground
from biedsnet_jax.data.pipeline import train_batches
from biedsnet_jax.data.sources.source import Facts
from biedsnet_jax.data.transforms import Prepare

# The classes of each slice: one in eight has the first, two have the third.
CLASSES = {5: (0,), 13: (0,), 21: (0,), 29: (0, 2), 30: (2,)}


class Few:
    """Slice i is an image of the value i; its mask has the classes of CLASSES."""

    facts = Facts()
    cases = tuple(f"case_{i // 4}" for i in range(32))

    def __len__(self):
        return 32

    def verify(self):
        """Does nothing, since nothing is read."""

    def scans(self, case):
        """Has none, since nothing is scored."""
        return iter(())

    def __getitem__(self, i):
        mask = np.zeros((8, 8, 3), np.uint8)
        for k in CLASSES.get(i, ()):
            mask[k, k, k] = 1
        image = np.full((8, 8, 1), i, np.float32)
        return {"image": image, "mask": mask, "case": self.cases[i], "spacing": None}


INDICES = list(range(31, -1, -1))


def read(count, *, share, start=0, rows=None, seed=4, batch_size=6):
    batches = train_batches(
        Few(),
        INDICES,
        prepare=Prepare(Fit(8), "none"),
        augment={"hflip": 0.5},
        batch_size=batch_size,
        seed=seed,
        start_step=start,
        rows=rows,
        foreground=find_foreground(Few(), INDICES, share=share, seed=seed),
    )
    with closing(batches):
        return list(islice(batches, count))


def slices(batches):
    return [batch["image"][:, 0, 0, 0].astype(int).tolist() for batch in batches]


@pytest.mark.parametrize("share", ["0", "1/3", "33/100", "1/2", "1"])
def test_rows_with_a_lesion_are_the_share_as_counted_one_by_one(share):
    exact = fractions.Fraction(share)
    rows = Foreground(float(exact), 0)
    count = 0
    for row in range(300):
        assert abs(rows.before(row) - row * exact) <= 1 and rows.before(row) == count
        count += rows.has(row)
    assert count == pytest.approx(300 * exact, abs=1)


@pytest.mark.parametrize("share", [0.33, 0.5, 1.0])
def test_every_batch_holds_its_share_of_slices_with_a_lesion(share):
    rows = Foreground(share, 0)
    for step, batch in enumerate(slices(read(20, share=share))):
        chosen = [i for row, i in enumerate(batch) if rows.has(step * 6 + row)]
        assert share * 6 - 1 < len(chosen) < share * 6 + 1
        assert all(i in CLASSES for i in chosen)


def test_classes_are_drawn_evenly_and_every_slice_of_a_class_comes():
    rows = find_foreground(Few(), INDICES, share=1.0, seed=0)
    drawn = [INDICES[rows.position(number)] for number in range(600)]
    # The first and the third class take turns; the second has no slice.
    assert all(0 in CLASSES[i] for i in drawn[::2])
    assert all(2 in CLASSES[i] for i in drawn[1::2])
    first = collections.Counter(drawn[::2])
    assert first.keys() == {5, 13, 21, 29} and min(first.values()) > 50
    assert set(drawn[1::2]) == {29, 30}


def test_a_tile_shows_the_class_whose_turn_it_is():
    batches = train_batches(
        Few(),
        INDICES,
        prepare=Prepare(Fit(4, "tile"), "none"),
        augment={},
        tile=4,
        batch_size=6,
        seed=4,
        foreground=find_foreground(Few(), INDICES, share=1.0, seed=4),
    )
    with closing(batches):
        masks = np.concatenate([next(batches)["mask"] for _ in range(8)])
    assert masks.shape == (48, 4, 4, 3)
    # Class 0 lies in one corner of the slice and class 2 beside it.
    assert masks[::2, ..., 0].any((1, 2)).all()
    assert masks[1::2, ..., 2].any((1, 2)).all()


def test_the_other_rows_still_show_every_slice_once_an_epoch():
    rows = Foreground(0.5, 0)
    plain = [
        i
        for step, batch in enumerate(slices(read(22, share=0.5)))
        for row, i in enumerate(batch)
        if not rows.has(step * 6 + row)
    ]
    assert sorted(plain[:32]) == sorted(INDICES)
    # They are the stream without rows of lesions, bit for bit in that order.
    unchanged = [i for batch in slices(read(11, share=0.0)) for i in batch]
    assert plain[: len(unchanged)] == unchanged[: len(plain)]


def test_a_step_is_the_same_wherever_the_stream_starts_and_whoever_reads_its_rows():
    unbroken = read(9, share=0.33)
    for start in (1, 4):
        resumed = read(9 - start, share=0.33, start=start)
        for a, b in zip(unbroken[start:], resumed, strict=True):
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["mask"], b["mask"])
    parts = [read(9, share=0.33, rows=rows) for rows in (range(2), range(2, 6))]
    for whole, *halves in zip(unbroken, *parts, strict=True):
        together = np.concatenate([half["mask"] for half in halves])
        np.testing.assert_array_equal(whole["mask"], together)
    assert slices(read(9, share=0.33, seed=5)) != slices(unbroken)


def test_slices_without_any_lesion_are_refused_and_not_read_where_nothing_is_asked():
    healthy = [0, 1, 2]

    def find(source, share):
        return find_foreground(source, healthy, share=share, seed=0)

    refused(lambda: find(Few(), 0.33), "data.foreground", "0.33", "to 0")
    assert find(Unread(), 0.0).before(100) == 0


class Unread(Few):
    """Slices that must not be read."""

    def __getitem__(self, i):
        raise AssertionError
