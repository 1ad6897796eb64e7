"""The record of a split: there and back, by content and not by name, and what is said
of a damaged one.
"""

import pytest
from refusals import refused

from biedsnet_jax.config import split_record
from biedsnet_jax.config.split_record import SplitRecord

RECORD = SplitRecord(
    "/data", {"train": ["a", "b"], "val": ["c"], "test": ["=d"]}, {"a": "0f"}, ("e",)
)


def test_there_and_back(tmp_path):
    assert split_record.load(tmp_path) is None
    split_record.save(tmp_path, RECORD)
    assert split_record.load(tmp_path) == RECORD


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "1", '{"root": "", "sides": {"train": []}, "fingerprints": {}}',
     '{"root": "", "sides": {"train": ["a"], "val": ["a"], "test": []}, "fingerprints": {}}',
     '{"root": 1, "sides": {"train": [], "val": [], "test": []}, "fingerprints": {}}', "\0" * 100, "{", "\ufeff{}",
     '{"root": "", "sides": {"train": [], "val": [], "test": []}, "fingerprints": {}, "left_out": [1]}',
     '{"root": "", "sides": {"train": [], "val": [], "test": []}, "fingerprints": {}, "more": 1}'],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / split_record.NAME).write_text(text)
    refused(
        lambda: split_record.load(tmp_path), tmp_path / split_record.NAME, "damaged"
    )


def test_fingerprints_follow_the_content_alone(tmp_path):
    for name, content in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "2"), ("e", "3")):
        (tmp_path / name).write_text(content)
    one, renamed, other = (
        [tmp_path / name for name in names] for names in ("ab", "dc", "ae")
    )
    found = split_record.fingerprints({"one": one, "renamed": renamed, "other": other})
    assert found["one"] == found["renamed"] != found["other"]
    refused(
        lambda: split_record.fingerprints({"x": [tmp_path / "gone"]}), tmp_path / "gone"
    )


def test_cases_that_were_seen_are_found_by_name_and_by_content_the_training_first():
    sides = {"train": ["a"], "val": ["b", "c"], "test": ["d"]}
    record = SplitRecord("/data", sides, {"a": "1", "b": "2", "c": "1", "d": "4"})
    assert record.seen_by_name(["d", "c", "a", "x"]) == {"a": "train", "c": "val"}
    # "c" of the validation holds the same as "a" of the training.
    prints = {"x": "1", "y": "2", "z": "3", "d": "4"}
    assert record.seen_by_content([*"zyxd", "without files"], prints) == {
        "x": "train",
        "y": "val",
    }


def test_cases_that_hold_other_bytes(tmp_path):
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
