"""Classes that nobody annotated in some cases, against masks cut by hand."""

import numpy as np
import pytest

from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Around, Cached, Source
from biedsnet_jax.data.sources.unannotated import Unannotated

# phantom_000 to phantom_002, two slices each, of two classes.
PHANTOM = Phantom(n_cases=3, slices_per_case=2, size=16, classes=2)


@pytest.mark.parametrize(
    ("declared", "missing"),
    [
        ((("phantom_001", (2,)),), {"phantom_001": {1}}),
        ((("phantom_001", [1]),), {"phantom_001": {0}}),
        ((("*_00[02]", (2,)),), {"phantom_000": {1}, "phantom_002": {1}}),
        (
            (("phantom_00?", (1,)), ("phantom_002", (2,))),
            {"phantom_000": {0}, "phantom_001": {0}, "phantom_002": {0, 1}},
        ),
    ],
)
def test_known_and_mask_of_each_slice(declared, missing):
    source = Cached(Unannotated(PHANTOM, declared))
    assert isinstance(source, Source) and len(source) == len(PHANTOM)
    assert source.cases == PHANTOM.cases
    for i in range(len(PHANTOM)):
        whole, example = PHANTOM[i], source[i]
        expected = whole["mask"].copy()
        known = np.ones_like(expected)
        for k in missing.get(whole["case"], ()):
            expected[..., k] = 0
            known[..., k] = 0
        np.testing.assert_array_equal(example["mask"], expected)
        np.testing.assert_array_equal(example["known"], known)
        assert example["known"].dtype == example["mask"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], whole["image"])


def test_scans_are_those_of_the_slices():
    source = Unannotated(PHANTOM, (("phantom_001", (2,)),))
    for case in ("phantom_000", "phantom_001"):
        scans = list(source.scans(case))
        assert len(scans) == 2
        for scan in scans:
            example = source[scan.indices[0]]
            np.testing.assert_array_equal(scan.truth[0], example["mask"])
            np.testing.assert_array_equal(scan.known[0], example["known"])


def test_what_the_source_does_not_know_stays_unknown():
    within = Unannotated(PHANTOM, (("phantom_001", (1,)),))
    source = Unannotated(within, (("phantom_001", (2,)), ("phantom_002", (2,))))
    for i, example in enumerate(source[i] for i in range(6)):
        known = [[1, 1], [0, 0], [1, 0]][i // 2]
        assert (example["known"] == known).all()
        assert not example["mask"][example["known"] == 0].any()


class Named(Around):
    """The made-up slices with other names of the cases."""

    cases = ("b_[1]", "b_[1]", "b_1", "b_1", "b_2", "b_2")

    def __getitem__(self, index):
        return {**self.source[index], "case": self.cases[index]}

    def scans(self, case):
        """No test asks for whole scans of these."""


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        # The name of a case that exists, though as a pattern it fits "b_1" alone.
        ("b_[1]", {"b_[1]"}),
        ("b_[12]", {"b_1", "b_2"}),
        ("b_*", {"b_[1]", "b_1", "b_2"}),
    ],
)
def test_the_name_of_a_case_is_no_pattern_for_others(name, lacking):
    source = Unannotated(Named(PHANTOM), ((name, (1,)),))
    found = {
        source[i]["case"] for i in range(6) if not source[i]["known"][..., 0].any()
    }
    assert found == lacking
