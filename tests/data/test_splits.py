"""Splits: no case on two sides, each fold's cases tested once, sizes near their share."""

from collections import Counter

import numpy as np
import pytest

from biedsnet_jax.data.splits import by_case, by_folder, check_disjoint, k_fold, named
from biedsnet_jax.errors import BadInput


def uneven(seed: int, n_cases: int = 20) -> list[str]:
    """Cases of 5 to 60 slices, as a source lists them."""
    counts = np.random.default_rng(seed).integers(5, 60, n_cases)
    return [
        f"case_{number}" for number, count in enumerate(counts) for _ in range(count)
    ]


def case_sets(cases, splits):
    return [{cases[i] for i in splits[side]} for side in ("train", "val", "test")]


@pytest.mark.parametrize("seed", range(12))
def test_by_case_covers_everything_once_and_keeps_cases_whole(seed):
    cases = uneven(seed)
    splits = by_case(cases, seed=seed)
    assert list(splits) == ["train", "val", "test"]
    assert sorted(splits["train"] + splits["val"] + splits["test"]) == list(
        range(len(cases))
    )
    train, val, test = case_sets(cases, splits)
    assert train and val and test
    assert len(train) + len(val) + len(test) == len(train | val | test) == 20
    assert all(splits[side] == sorted(splits[side]) for side in splits)
    largest = max(Counter(cases).values())
    for side, fraction in zip(splits, (0.8, 0.1, 0.1)):
        assert abs(len(splits[side]) - fraction * len(cases)) <= largest


def test_by_case_of_equal_cases_by_hand():
    """Ten cases of four slices at 0.6, 0.2, 0.2: six, two and two cases, in any
    shuffle.
    """
    cases = [f"c{i // 4}" for i in range(40)]
    for seed in range(5):
        splits = by_case(cases, (0.6, 0.2, 0.2), seed)
        assert [len(splits[side]) for side in splits] == [24, 8, 8]


def test_by_case_depends_on_the_seed_and_not_on_the_order_of_slices():
    cases = uneven(0)
    assert by_case(cases, seed=3) == by_case(list(cases), seed=3)
    assert (
        len(
            {
                tuple(sorted(case_sets(cases, by_case(cases, seed=seed))[2]))
                for seed in range(8)
            }
        )
        > 4
    )
    backwards = cases[::-1]
    assert case_sets(cases, by_case(cases, seed=3)) == case_sets(
        backwards, by_case(backwards, seed=3)
    )


def test_three_cases_are_enough_and_two_are_not():
    assert case_sets("abbbbbbc", by_case("abbbbbbc"))[0] != set()
    with pytest.raises(BadInput, match=r"too few cases, 2, .*into 3 needs"):
        by_case(["a", "b", "b"])
    with pytest.raises(BadInput, match=r"split fractions, \(0.9, 0.1, 0.0\)"):
        by_case(["a", "b", "c"], (0.9, 0.1, 0.0))
    with pytest.raises(BadInput, match=r"split fractions, \(nan, 0.5, 0.5\)"):
        by_case(["a", "b", "c"], (float("nan"), 0.5, 0.5))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("folds", [2, 5])
def test_k_fold_tests_each_case_exactly_once(folds, seed):
    cases = uneven(seed)
    tested = Counter()
    for fold in range(folds):
        splits = k_fold(cases, folds, fold, seed)
        assert sorted(splits["train"] + splits["val"] + splits["test"]) == list(
            range(len(cases))
        )
        train, val, test = case_sets(cases, splits)
        assert train and val and len(train) + len(val) + len(test) == 20
        tested.update(test)
        assert abs(len(splits["test"]) - len(cases) / folds) <= 60
        assert len(splits["val"]) < len(splits["train"])
    assert tested == dict.fromkeys(set(cases), 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1, 0), "split.fold is 0 of split.folds=1"),
        ((5, 5), "split.fold is 5 of"),
        ((5, -1), "split.fold is -1 of"),
        ((4, 0), "too few cases, 3"),
    ],
)
def test_k_fold_refuses(arguments, said):
    with pytest.raises(BadInput, match=said):
        k_fold(["a", "b", "c"], *arguments)


def test_a_pattern_names_every_case_that_fits_it_but_a_case_of_that_name_is_itself():
    cases = ["a_1", "a_2", "a_15", "b_1", "b_[1]", "A_1"]
    split = named(cases, train=["a_?"], val=["b_[1]"], test=["*5", "[bA]_1"])
    assert split == {"train": [0, 1], "val": [4], "test": [2, 3, 5]}
    with pytest.raises(BadInput, match="one case on two sides, a_15"):
        named(cases, train=["a_*"], val=["b_1"], test=["*5"])
    with pytest.raises(BadInput, match=r"unknown case, c\*, split train"):
        named(cases, train=["c*"], val=["b_1"], test=["*5"])


def test_named_takes_the_cases_it_is_given():
    cases = ["a", "a", "b", "c", "d", "d"]
    assert named(cases, train=["d", "b"], val=["c"], test=["a"]) == {
        "train": [2, 4, 5],
        "val": [3],
        "test": [0, 1],
    }
    # b is left out
    assert named(cases, train=["d"], val=["c"], test=["a"])["train"] == [4, 5]


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        (
            {"train": ["case_1"], "val": ["case_2"], "test": ["cas_3"]},
            "unknown case, cas_3, split test; .*case_3",
        ),
        (
            {"train": ["case_1"], "val": [], "test": ["case_2"]},
            "split.val names no case",
        ),
        (
            {"train": ["case_1", "case_2"], "val": ["case_3"], "test": ["case_2"]},
            "one case on two sides, case_2, splits train and test",
        ),
    ],
)
def test_named_refuses(sides, said):
    with pytest.raises(BadInput, match=said):
        named(["case_1", "case_2", "case_3"], **sides)


def test_check_disjoint_names_the_case_and_its_sides():
    cases = ["a", "a", "b", "c"]
    check_disjoint(cases, {"train": [0, 1], "val": [2], "test": [3]})
    with pytest.raises(
        BadInput, match="one case on two sides, a, splits train and val"
    ):
        check_disjoint(cases, {"train": [0, 3], "val": [1], "test": [2]})


def test_by_folder_takes_the_sides_as_they_are():
    cases = ["a", "a", "b", "c", "d", "d"]
    sides = {"a": "test", "b": "train", "c": "val", "d": "train"}
    for seed in range(3):
        assert by_folder(cases, sides, seed=seed) == {
            "train": [2, 4, 5],
            "val": [3],
            "test": [0, 1],
        }


@pytest.mark.parametrize(
    ("fractions", "share"),
    [((0.8, 0.1, 0.1), 1 / 9), ((0.6, 0.2, 0.2), 1 / 4), ((0.3, 0.3, 0.4), 1 / 2)],
)
def test_by_folder_deals_validation_out_of_training_by_case(fractions, share):
    cases = [f"c{i // 4}" for i in range(40 * 4)]
    sides = {case: "test" if int(case[1:]) < 4 else "train" for case in cases}
    splits = by_folder(cases, sides, fractions)
    train, val, test = case_sets(cases, splits)
    assert (
        test == {"c0", "c1", "c2", "c3"} and not train & val and len(train | val) == 36
    )
    assert len(val) == pytest.approx(36 * share, abs=1)
    assert by_folder(cases, sides, fractions, seed=1) != splits


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ("train", "for train and none for test"),
        ("test", "for test and none for train"),
        ("train val", "none for test"),
    ],
)
def test_by_folder_refuses_a_split_without_training_or_test(sides, said):
    with pytest.raises(BadInput, match=said):
        by_folder(
            list("abcd"),
            {
                case: sides.split()[i % len(sides.split())]
                for i, case in enumerate("abcd")
            },
        )
