"""Cases and sides from the names of files and folders."""

import itertools
import re

import pytest
from refusals import refused

from biedsnet_jax.data.case_names import AUTO, EACH, find


def found(names, rule=AUTO, **options):
    return find(names, rule, where="data/images", **options)


def flat(form, *counts):
    """Makes names with every combination of numbers from 1."""
    ranges = [range(1, count + 1) for count in counts]
    return [form.format(*numbers) for numbers in itertools.product(*ranges)]


# --- cases from names


@pytest.mark.parametrize(
    ("form", "counts", "case", "slice_"),
    [
        ("patient_{}_slice_{}", (4, 3), r"patient_\d+", r"slice_\d+"),
        ("{:03d}-{:02d}", (5, 2), r"\d{3}", r"\d\d"),
        ("p{}s{}", (3, 3), r"p\d+", r"s\d+"),
        ("covid19_ct_{:04d}_z{}", (3, 4), r"covid19_ct_\d+", r"z\d+"),
        ("T1_{}_2024_{}_{}", (3, 2, 2), r"T1_\d+", r"2024_\d_\d"),
        ("site_{}_patient_{}_slice_{}", (2, 3, 2), r"site_\d_patient_\d", r"slice_\d"),
    ],
)
def test_two_numbers_that_vary_tell_the_case(form, counts, case, slice_):
    names = flat(form, *counts)
    cases = found(names)
    for name in names:
        assert cases.of[name] == re.match(case, name).group()
        assert re.fullmatch(slice_, cases.slices[name])
    assert (
        len(cases.notes) == 1
        and names[0] in cases.notes[0]
        and cases.of[names[0]] in cases.notes[0]
    )
    assert "data.case" in cases.notes[0]
    assert len({(cases.of[name], cases.slices[name]) for name in names}) == len(names)


@pytest.mark.parametrize(
    "form", ["slice_{}", "ISIC_{:07d}", "{}", "patient_7_slice_{}", "covid19_{}_T2"]
)
def test_one_number_that_varies_warns_once_and_groups_nothing(form):
    names = flat(form, 12)
    cases = found(names)
    assert cases.of == {name: name for name in names}
    assert len(cases.notes) == 1 and "data.case" in cases.notes[0]
    words = {word.strip(",.") for word in cases.notes[0].split()}
    assert len(words & set(names)) == 2
    assert not found(names, volumes=True).notes


def test_two_patients_are_too_few_to_be_told_by_the_first_number():
    names = flat("patient_{}_slice_{}", 2, 9)
    for volumes in (False, True):
        cases = found(names, volumes=volumes)
        assert cases.of == {name: name for name in names} and len(cases.notes) == 1


@pytest.mark.parametrize(
    "names", [["anna", "bob", "carl"], ["a1b", "b2c", "c3d"], ["x"]]
)
def test_names_that_share_no_stem_are_cases_without_a_warning(names):
    cases = found(names)
    assert cases.of == {name: name for name in names} and not cases.notes


def test_a_patient_alone_under_its_word_is_found_as_the_others_are():
    names = (
        flat("TCGA_CS_{}_{}", 4, 3)
        + flat("TCGA_EZ_9_{}", 3)
        + flat("TCGA_HT_{}_{}", 2, 2)
    )
    cases = found(names)
    assert {cases.of[name] for name in names} == {
        re.match(r"TCGA_.._\d+", name).group() for name in names
    }


def test_classes_in_the_name_are_no_cases():
    names = flat("benign ({})", 5) + flat("malignant ({})", 4) + flat("normal ({})", 3)
    assert set(found(names).of.values()) == set(names)


def test_each_file_is_a_case_where_the_rule_is_empty():
    names = flat("patient_{}_slice_{}", 4, 3)
    cases = found(names, EACH)
    assert (
        cases.of == {name: name for name in names}
        and not cases.notes
        and set(cases.slices.values()) == {""}
    )


@pytest.mark.parametrize(
    "folders", [("train", "test"), ("train", "test", "p7"), ("Train", "valid")]
)
def test_the_empty_rule_takes_folders_of_a_split_for_cases_and_says_so(folders):
    cases = found([f"{folder}/{n}" for folder in folders for n in range(3)], EACH)
    assert set(cases.of.values()) == set(folders) and not cases.sides
    assert (
        len(cases.notes) == 1
        and "data.case" in cases.notes[0]
        and folders[0] in cases.notes[0]
    )


def test_a_folder_is_a_case_whatever_its_files_are_called():
    names = [f"p{p}/{name}" for p in (1, 2) for name in flat("a_{}_b_{}", 3, 3)]
    for rule in (AUTO, EACH):
        cases = found(names, rule)
        assert all(
            cases.of[name] == name[:2] and cases.slices[name] == name[3:]
            for name in names
        )


@pytest.mark.parametrize(
    ("rule", "case"),
    [
        (r"patient_(\d+)", "7"),
        (r"patient_\d+", "patient_7"),
        (r"^(s\d+)_", "s2"),
        (r"(?:slice)_(\d)", "3"),
    ],
)
def test_a_rule_of_ones_own(rule, case):
    cases = found(["s2_patient_7_slice_3"], rule)
    assert cases.of == {"s2_patient_7_slice_3": case}


@pytest.mark.parametrize(
    ("rule", "file"),
    [(r"patient_(\d+)", "patent_2"), (r"^x", "patient_1"), (r"()patient", "patient_1")],
)
def test_a_rule_that_does_not_fit_names_the_file_and_itself(rule, file):
    refused(lambda: found(["patient_1", "patent_2"], rule), file, repr(rule))


@pytest.mark.parametrize("rule", ["(", "[a", "*", "(?P<a>x)(?P<a>y)"])
def test_a_rule_that_is_no_expression(rule):
    refused(lambda: found(["a"], rule), "data.case", repr(rule), "'auto'")


@pytest.mark.parametrize(
    ("form", "case"),
    [
        ("patient{:03d}_frame{:02d}", r"patient\d+"),
        ("patient{}/frame{}", r"patient\d+"),
        ("s{}_{}", r"s\d+"),
    ],
)
def test_volumes_of_one_patient(form, case):
    names = flat(form, 3, 2)
    cases = found(names, volumes=True)
    assert {cases.of[name] for name in names} == {
        re.match(case, name).group() for name in names
    }
    assert len({(cases.of[name], cases.slices[name]) for name in names}) == len(names)


def test_volumes_in_folders_are_cases_by_themselves():
    names = ["siteA/scan", "siteA/other", "siteB/scan"]
    assert found(names, volumes=True).of == {name: name for name in names}


# --- sides


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "valid", "test"),
        ("train", "test"),
    ],
)
def test_folders_of_a_split(folders):
    names = ("train", "val", "test") if len(folders) == 3 else ("train", "test")
    sides = dict(zip(folders, names))
    for inner in ("{}_p{}/0", "{}_p{}"):
        names = [
            f"{folder}/{inner.format(folder, n)}"
            for folder in folders
            for n in range(3)
        ]
        cases = found(names)
        assert {cases.of[name] for name in names} == {
            f"{folder}_p{n}" for folder in folders for n in range(3)
        }
        assert all(
            cases.sides[cases.of[name]] == sides[name.split("/")[0]] for name in names
        )


@pytest.mark.parametrize(
    "folders", [("training_1", "test_1"), ("a", "b"), ("trainer", "tester")]
)
def test_folders_of_other_names_are_cases(folders):
    names = [f"{folder}/{n}" for folder in folders for n in range(3)]
    cases = found(names)
    assert set(cases.of.values()) == set(folders) and not cases.sides


@pytest.mark.parametrize("beside", ["extra/1", "stray", "p7/0"])
def test_what_lies_beside_the_folders_of_a_split_is_refused(beside):
    refused(
        lambda: found(["train/1", "test/2", beside]),
        "data/images",
        "test, train",
        beside.split("/")[0],
    )


@pytest.mark.parametrize(
    "names",
    [
        ["train/p1/0", "val/p2/0", "test/p1/1"],
        ["train/p_1", "test/p_1", "val/p_2"],
        [
            *(f"train/{name}" for name in flat("patient_{}_slice_{}", 4, 3)),
            "test/patient_2_slice_9",
        ],
    ],
)
def test_a_case_on_two_sides_is_refused(names):
    refused(lambda: found(names), "train", "test", "data/images", "data.case")


def test_files_called_by_a_number_alone_are_not_one_case():
    names = [f"{side}/{n}" for side in ("train", "val", "test") for n in range(3)]
    cases = found(names)
    assert len(set(cases.of.values())) == 9 and cases.sides["test/0"] == "test"
    assert len(cases.notes) == 1 and "same number" in cases.notes[0]


def test_a_split_by_folders_warns_of_single_numbers_only_where_cases_are_dealt():
    names = [
        f"{side}/{side}_{n}" for side in ("train", "val", "test") for n in range(4)
    ]
    assert not found(names).notes
    assert found([name for name in names if not name.startswith("val")]).notes


def test_volumes_in_folders_of_a_split():
    names = [f"train/{name}" for name in flat("p{}_f{}", 3, 2)] + [
        "test/p9_f1",
        "test/p9_f2",
    ]
    cases = found(names, volumes=True)
    assert cases.sides == {"p1": "train", "p2": "train", "p3": "train", "p9": "test"}
