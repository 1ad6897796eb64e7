"""Warnings of classes that no mask of a split has."""

import dataclasses

import numpy as np
import pytest

from biedsnet_jax.config import build_data
from biedsnet_jax.data.sources.source import Facts
from biedsnet_jax.training import class_presence


@dataclasses.dataclass
class Masks:
    """A source of masks with the given labels, which counts how many are read."""

    labels: list[tuple[int, ...]]
    classes: int
    read: int = 0

    @property
    def cases(self):
        return [str(i) for i in range(len(self.labels))]

    @property
    def facts(self):
        return Facts()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read += 1
        mask = np.zeros((3, 4, self.classes), bool)
        for label in self.labels[index]:
            mask[1, 2, label - 1] = True
        return {"mask": mask}

    def scans(self, case):
        return iter(())

    def verify(self):
        pass


def warnings(labels: dict[str, list[tuple[int, ...]]], classes: int) -> list[str]:
    every = [*labels["train"], *labels["val"], *labels["test"]]
    n_train, n_val = len(labels["train"]), len(labels["val"])
    indices = list(range(len(every)))
    data = build_data.Data(
        Masks(every, classes),
        train=indices[:n_train],
        val=indices[n_train : n_train + n_val],
        test=indices[n_train + n_val :],
    )
    return list(class_presence.warnings(data, classes))


ALL = [(1,), (), (2, 1), (3,)]


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ({"train": ALL, "val": ALL, "test": ALL}, 3, []),
        (
            {"train": ALL, "val": [(1,), (3,)], "test": ALL},
            3,
            ["None of the 2 val slices has class 2: its validation Dice is undefined."],
        ),
        (
            {"train": [(2,), ()], "val": ALL, "test": [(1,), (2,)]},
            3,
            [
                "None of the 2 train slices has class 1 or class 3: it cannot be learnt.",
                "None of the 2 test slices has class 3: its test Dice is undefined.",
            ],
        ),
        (
            {"train": [(1,)], "val": [(), ()], "test": []},
            1,
            [
                "None of the 2 val slices has a lesion: its validation Dice is undefined."
            ],
        ),
    ],
)
def test_what_a_split_lacks(labels, classes, expected):
    assert warnings(labels, classes) == expected


def test_no_more_is_read_than_must_be():
    source = Masks([(1, 2)] * 500, 2)
    assert class_presence.missing(source, list(range(500)), 2) == ([], 1)
    assert source.read == 1


@pytest.mark.parametrize("where", [0, 250, 499])
def test_a_single_slice_is_found_wherever_it_lies(where):
    labels = [(1,)] * 500
    labels[where] = (1, 2)
    assert class_presence.missing(Masks(labels, 2), list(range(500)), 2)[0] == []


def test_of_very_many_some_are_looked_at():
    source = Masks([()] * 50, 1)
    assert class_presence.missing(source, list(range(50)), 1, most=20) == ([0], 20)
    assert source.read == 20
