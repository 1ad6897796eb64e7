"""The record of a split: there and back, by content and not by name, and what is said of a damaged one."""

import pytest
from refusals import refused

from biedsnet_jax import split_record
from biedsnet_jax.split_record import SplitRecord

RECORD = SplitRecord("/data", {"train": ["a", "b"], "val": ["c"], "test": ["=d"]}, {"a": "0f"})


def test_there_and_back(tmp_path):
    assert split_record.load(tmp_path) is None
    split_record.save(tmp_path, RECORD)
    assert split_record.load(tmp_path) == RECORD


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"root": "", "sides": {"train": []}, "fingerprints": {}}',
     '{"root": "", "sides": {"train": ["a"], "val": ["a"], "test": []}, "fingerprints": {}}',
     '{"root": 1, "sides": {"train": [], "val": [], "test": []}, "fingerprints": {}}', "\0" * 100],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / split_record.NAME).write_text(text)
    refused(lambda: split_record.load(tmp_path), tmp_path / split_record.NAME, "damaged")


def test_fingerprints_follow_the_content_alone(tmp_path):
    for name, content in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "2"), ("e", "3")):
        (tmp_path / name).write_text(content)
    one, renamed, other = ([tmp_path / name for name in names] for names in ("ab", "dc", "ae"))
    found = split_record.fingerprints({"one": one, "renamed": renamed, "other": other})
    assert found["one"] == found["renamed"] != found["other"]
    refused(lambda: split_record.fingerprints({"x": [tmp_path / "gone"]}), tmp_path / "gone")
