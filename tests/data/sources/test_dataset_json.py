"""dataset.json of Medical Decathlon and nnU-Net: encodings, channels, labels."""

import codecs
import json
import os

import pytest
from refusals import refused

from biedsnet_jax.data.sources import dataset_json

CONTENT = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "Läsion": 1},
    "training": [{"image": "./imagesTr/ä.nii.gz", "label": "./labelsTr/ä.nii.gz"}],
}


def write(root, content):
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_none_is_there(tmp_path):
    assert dataset_json.read(tmp_path) is None


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
    ],
    ids=[
        "UTF-8",
        "with a byte order mark",
        "UTF-16",
        "UTF-16, big end first",
        "UTF-32",
    ],
)
def test_encodings(tmp_path, encode):
    (tmp_path / "dataset.json").write_bytes(
        encode(json.dumps(CONTENT, ensure_ascii=False))
    )
    about = dataset_json.read(tmp_path)
    assert about.training == [("./imagesTr/ä.nii.gz", "./labelsTr/ä.nii.gz")]
    assert about.channels == ("CT", "PET")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "list"),
        (b"\0" * 300, "Restore"),
        (b"[" * 200_000, "Restore"),
        ('{"a": "Läsion"}'.encode("latin-1"), "UTF-8"),
        (b'{"training": [{"image": "a"}]}', "'label'"),
        (b'{"training": 5}', "Restore"),
        (b'{"training": ["a.nii.gz"]}', "Restore"),
    ],
)
def test_a_damaged_file(tmp_path, content, says):
    (tmp_path / "dataset.json").write_bytes(content)
    refused(lambda: dataset_json.read(tmp_path), says, tmp_path / "dataset.json")


def test_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "dataset.json")
    refused(
        lambda: dataset_json.read(tmp_path), tmp_path / "dataset.json", "named pipe"
    )


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"channel_names": {"0": "T1", "1": "FLAIR"}}, ("T1", "FLAIR")),
        # Medical Decathlon and nnU-Net 1 write it so.
        ({"modality": {"0": "CT"}}, ("CT",)),
        ({"modality": ["T2", "ADC"]}, ("T2", "ADC")),
        ({"modality": "MRI"}, ("MRI",)),
        ({"channel_names": {}, "modality": 3}, ()),
        ({}, ()),
    ],
)
def test_channels(tmp_path, fields, names):
    about = dataset_json.read(write(tmp_path, fields))
    assert about.channels == names
    for count in (1, 2, 3):
        if names and count != len(names):
            refused(
                lambda count=count: about.check_channels(count),
                tmp_path / "dataset.json",
                f" {len(names)} ",
                ", ".join(names),
                f" {count}.",
            )
        else:
            about.check_channels(count)


@pytest.mark.parametrize(
    ("numbers", "listed"), [(("0", "2"), "0, 2"), (("1",), "1"), (("1", "2"), "1, 2")]
)
def test_channels_with_a_gap(tmp_path, numbers, listed):
    write(tmp_path, {"channel_names": dict.fromkeys(numbers, "CT")})
    path = tmp_path / "dataset.json"
    refused(lambda: dataset_json.read(tmp_path), path, f" {listed}.", "from 0")


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ({"background": 0, "lesion": 1, "ignore": 2}, 2),
        ({"background": 0, "lesion": 1, "Ignore": 7}, 7),
        # Regions may hold several labels.
        ({"background": 0, "whole": [1, 2], "core": [2], "IGNORE": 3}, 3),
        # Medical Decathlon and nnU-Net 1 map numbers to names.
        ({"0": "background", "1": "lesion", "2": "ignore"}, 2),
        (["background", "lesion", "ignored"], 2),
        ({"background": 0, "lesion": 1, " ignore_label": 255}, 255),
    ],
)
def test_a_label_to_be_ignored(tmp_path, labels, number):
    about = dataset_json.read(write(tmp_path, {"labels": labels}))
    assert about.ignore == number
    assert number not in {value for _, own in about.labels for value in own}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"background": 0, "lesion": 1, "ignore": [2, 3]}, "2, 3"),
        ({"0": "background", "1": ["lesion", "ignore"]}, "lesion+ignore"),
        ({"0": "ignore", "1": "lesion"}, "0 "),
        ({"ignore": "x"}, "ignore"),
    ],
)
def test_a_label_to_be_ignored_that_is_not_one_value(tmp_path, labels, says):
    path = write(tmp_path, {"labels": labels}) / "dataset.json"
    refused(lambda: dataset_json.read(tmp_path), path, says, "number")


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "ignorant cells": 1},
        {"0": "background", "1": "do not ignore"},
        [],
        None,
        3,
        "ignore",
    ],
)
def test_other_labels_are_not(tmp_path, labels):
    assert dataset_json.read(write(tmp_path, {"labels": labels})).ignore is None


NNUNET = {"background": 0, "edema": 1, "core": 2, "enhancing": 3}
REGIONS = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "ring": 3}


@pytest.mark.parametrize(
    ("labels", "classes", "groups", "names"),
    [
        (NNUNET, 3, (), ("edema", "core", "enhancing")),
        ({str(v): k for k, v in NNUNET.items()}, 3, (), ("edema", "core", "enhancing")),
        (["", "left", "right"], 2, (), ("left", "right")),
        # All labels but 0 are the one class.
        ({"background": 0, "lesion": 1}, 1, (), ("lesion",)),
        (NNUNET, 1, (), ("edema+core+enhancing",)),
        (NNUNET, 2, ((1, 2, 3), (3,)), ("edema+core+enhancing", "enhancing")),
        (REGIONS, 2, ((2, 3), (1, 2, 3)), ("core", "whole tumour")),
        # A label without a name of its own leaves all classes without.
        (REGIONS, 2, ((1,), (3,)), ()),
        (None, 2, (), ()),
    ],
)
def test_names_of_classes(tmp_path, labels, classes, groups, names):
    about = dataset_json.read(write(tmp_path, {"labels": labels}))
    about.check_labels(classes, groups)
    assert about.class_names(classes, groups) == names


@pytest.mark.parametrize(
    ("labels", "classes", "groups", "says"),
    [
        (NNUNET, 2, (), ("data.classes is 2", "data.classes=3", "3 enhancing")),
        (NNUNET, 4, (), ("data.classes is 4", "data.classes=3")),
        (
            {"background": 0, "edema": 1, "ring": 4},
            2,
            (),
            ("data.classes is 2", "data.labels=((1,),(4,))"),
        ),
        (REGIONS, 3, (), ("data.labels=((1,2,3),(2,3),(3,))", "1+2+3 whole tumour")),
        (NNUNET, 2, ((1, 2), (5,)), ("data.labels has 5", "correct the file")),
    ],
)
def test_labels_that_contradict_the_config(tmp_path, labels, classes, groups, says):
    about = dataset_json.read(write(tmp_path, {"labels": labels}))
    path = tmp_path / "dataset.json"
    refused(lambda: about.check_labels(classes, groups), path, *says)
