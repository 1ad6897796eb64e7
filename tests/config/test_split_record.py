"""The record of a split: saved and loaded, compared by content, refused if damaged."""

import json

import pytest
from refusals import refused

from biedsnet_jax.config import split_record
from biedsnet_jax.config.split_record import SplitRecord

RECORD = SplitRecord(
    "/data", {"train": ["a", "b"], "val": ["c"], "test": ["=d"]}, {"a": "0f"}, ("e",)
)


def test_a_saved_record_is_loaded_as_it_was(tmp_path):
    assert split_record.load(tmp_path) is None
    split_record.save(tmp_path, RECORD)
    assert split_record.load(tmp_path) == RECORD


def text_of(**fields):
    """The text of a record of no cases, with these fields."""
    sides = {side: [] for side in split_record.SIDES}
    return json.dumps({"root": "", "sides": sides, "fingerprints": {}} | fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "1",
        "{",
        "\0" * 100,
        "\ufeff" + text_of(),
        text_of(root=1),
        text_of(sides={"train": []}),
        text_of(sides={"train": ["a"], "val": ["a"], "test": []}),
        text_of(fingerprints=[]),
        text_of(left_out=[1]),
        text_of(more=1),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / split_record.NAME).write_text(text)
    refused(lambda: split_record.load(tmp_path), tmp_path / split_record.NAME)


def test_fingerprints_follow_the_content_alone(tmp_path):
    for name, content in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "2"), ("e", "3")):
        (tmp_path / name).write_text(content)
    of_cases = {case: [tmp_path / name for name in case] for case in ("ab", "dc", "ae")}
    found = split_record.fingerprints(of_cases)
    assert found["ab"] == found["dc"] != found["ae"]
    gone = tmp_path / "gone"
    refused(lambda: split_record.fingerprints({"x": [gone]}), gone)


def test_seen_cases_are_found_by_name_and_by_content_with_training_first():
    sides = {"train": ["a"], "val": ["b", "c"], "test": ["d"]}
    record = SplitRecord("/data", sides, {"a": "1", "b": "2", "c": "1", "d": "4"})
    assert record.seen_by_name(["d", "c", "a", "x"]) == {"a": "train", "c": "val"}
    # "c" of the validation holds the same as "a" of the training.
    prints = {"x": "1", "y": "2", "z": "3", "d": "4"}
    assert record.seen_by_content([*"zyxd", "without files"], prints) == {
        "x": "train",
        "y": "val",
    }


def test_cases_that_hold_other_bytes_are_found(tmp_path):
    of_cases = {}
    for case in "abc":
        of_cases[case] = [tmp_path / f"{case}{n}" for n in range(2)]
        for path in of_cases[case]:
            path.write_text(path.name)
    record = SplitRecord("/data", {}, split_record.fingerprints(of_cases))
    assert record.changed(of_cases) == []
    (tmp_path / "b1").write_text("b2")
    (tmp_path / "c0").unlink()
    there = of_cases | {"c": of_cases["c"][1:], "new": of_cases["a"]}
    assert record.changed(there) == ["b", "c"]
