"""Splits: no case on two sides, each case tested in one fold, balanced sizes."""

from collections import Counter

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.data.splits import (
    by_case,
    by_folder,
    check_disjoint,
    fitting,
    k_fold,
    named,
)


def uneven(seed: int, n_cases: int = 20) -> list[str]:
    """Makes cases of 5 to 60 slices, as a source lists them."""
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
    """Of ten cases, 0.6, 0.2 and 0.2 are six, two and two, in any shuffle."""
    cases = [f"c{i // 4}" for i in range(40)]
    for seed in range(5):
        splits = by_case(cases, (0.6, 0.2, 0.2), seed)
        assert [len(splits[side]) for side in splits] == [24, 8, 8]


def test_by_case_depends_on_the_seed_and_not_on_the_order_of_slices():
    cases = uneven(0)
    assert by_case(cases, seed=3) == by_case(list(cases), seed=3)
    tests = {frozenset(case_sets(cases, by_case(cases, seed=n))[2]) for n in range(8)}
    assert len(tests) > 4
    backwards = cases[::-1]
    assert case_sets(cases, by_case(cases, seed=3)) == case_sets(
        backwards, by_case(backwards, seed=3)
    )


def test_three_cases_are_enough_and_two_are_not():
    assert case_sets("abbbbbbc", by_case("abbbbbbc"))[0] != set()
    refused(lambda: by_case(["a", "b", "b"]), "2 cases", "into 3", "Add cases")


@pytest.mark.parametrize(
    "fractions", [(0.9, 0.1, 0.0), (float("nan"), 0.5, 0.5), (0.9, 0.2, 0.1)]
)
def test_fractions_that_are_no_shares(fractions):
    refused(lambda: by_case("abc", fractions), "split.fractions", fractions, "three")


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
    ("arguments", "says"),
    [
        ((1, 0), ["split.fold is 0", "split.folds=1"]),
        ((5, 5), ["split.fold is 5"]),
        ((5, -1), ["split.fold is -1"]),
        ((4, 0), ["3 cases", "split.folds"]),
    ],
)
def test_k_fold_refuses(arguments, says):
    refused(lambda: k_fold("abc", *arguments), *says)


def test_a_pattern_names_every_case_that_fits_it_but_a_case_of_that_name_is_itself():
    cases = ["a_1", "a_2", "a_15", "b_1", "b_[1]", "A_1"]
    split = named(cases, train=["a_?"], val=["b_[1]"], test=["*5", "[bA]_1"])
    assert split == {"train": [0, 1], "val": [4], "test": [2, 3, 5]}
    refused(
        lambda: named(cases, train=["a_*"], val=["b_1"], test=["*5"]),
        "a_15",
        "split.train",
        "split.test",
    )
    refused(
        lambda: named(cases, train=["c*"], val=["b_1"], test=["*5"]),
        "split.train",
        "c*",
    )


@pytest.mark.parametrize("name", ["phantom_1", "PHANTOM*"])
def test_a_name_that_fits_no_case_is_refused_with_its_field_and_the_nearest(name):
    known = {"phantom_001", "phantom_002"}
    assert fitting("*2", known, "data.unannotated") == {"phantom_002"}
    refused(
        lambda: fitting(name, known, "data.unannotated"),
        "data.unannotated",
        name,
        "phantom_00",
    )


def test_named_takes_the_cases_it_is_given():
    cases = ["a", "a", "b", "c", "d", "d"]
    assert named(cases, train=["d", "b"], val=["c"], test=["a"]) == {
        "train": [2, 4, 5],
        "val": [3],
        "test": [0, 1],
    }
    # The case b, which no side names, is left out.
    assert named(cases, train=["d"], val=["c"], test=["a"])["train"] == [4, 5]


@pytest.mark.parametrize(
    ("train", "val", "test", "says"),
    [
        (["case_1"], ["case_2"], ["cas_3"], ["split.test", "cas_3,", "case_3"]),
        (["case_1"], [], ["case_2"], ["split.val", "at least one case"]),
        (
            ["case_1", "case_2"],
            ["case_3"],
            ["case_2"],
            ["case_2", "split.train", "split.test"],
        ),
    ],
)
def test_named_refuses(train, val, test, says):
    cases = ["case_1", "case_2", "case_3"]
    refused(lambda: named(cases, train=train, val=val, test=test), *says)


def test_check_disjoint_names_the_case_and_its_sides():
    cases = ["a", "a", "b", "c"]
    check_disjoint(cases, {"train": [0, 1], "val": [2], "test": [3]})
    refused(
        lambda: check_disjoint(cases, {"train": [0, 3], "val": [1], "test": [2]}),
        "case a ",
        "split.train",
        "split.val",
    )


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
    ("sides", "missing"),
    [
        (["train", "train"], "test"),
        (["test", "test"], "train"),
        (["train", "val"], "test"),
    ],
)
def test_by_folder_refuses_a_split_without_training_or_test(sides, missing):
    refused(
        lambda: by_folder("ab", dict(zip("ab", sides))),
        f"for {sides[0]}",
        f"folder {missing}",
    )
