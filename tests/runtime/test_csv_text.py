"""CSV: what a spreadsheet takes for a formula is text, and comes back as it was."""

import csv
import io

import pytest

from biedsnet_jax.runtime import csv_text

NAMES = [
    "=1+1",
    "+a",
    "-a",
    "@SUM(A1)",
    "'=1",
    "''-x",
    "\t=x",
    "plain",
    "'quoted'",
    "a,b",
    'a"b',
    "a\nb",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_back(name):
    text = csv_text.write([{"name": name, "n": 1}], ("name", "n"))
    assert csv_text.read(text) == [{"name": name, "n": "1"}]


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_begins_like_a_formula(name):
    text = csv_text.write([{"name": name}], ["name"], header=False)
    for (cell,) in filter(None, csv.reader(io.StringIO(text, newline=""))):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("value", [-1, -0.5, "-0.25", "+3", "-inf", float("nan")])
def test_numbers_stay_numbers(value):
    (row,) = csv.DictReader(io.StringIO(csv_text.write([{"x": value}], ["x"])))
    assert row["x"] == str(value)
