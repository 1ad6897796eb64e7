"""Names that hold markup: report.md, report.html and the model card show them as they
are, by outside parsers.
"""

import html.parser
import json

import evaluated_workdir
import numpy as np
import pytest
from markdown_it import MarkdownIt

from biedsnet_jax.exporting import model_card
from biedsnet_jax.reporting import report
from biedsnet_jax.reporting import table as tables
from biedsnet_jax.runtime import csv_text, markdown
from biedsnet_jax.scoring import metrics, results

NAMES = [
    "a|b",
    "<img src=x onerror=alert(1)>",
    "</script><script>x</script>",
    "&lt;b&gt; &amp; &#60;",
    "`code` ``x``",
    "[text](http://example.org)",
    "![picture](x.png)",
    "[ref]: http://example.org",
    "*a* **b** _c_ __d__ ~~e~~",
    "snake_case_name and _x_",
    "# heading ##",
    "\\*not\\* \\",
    "$x^2$",
    "- item",
    "1. item",
    "=SUM(A1)",
    "+49 30",
    "@user",
    "Ünïcode 肺 пациент",
    "<!-- comment -->",
    "'quoted'",
    "x" * 200,
]


class Text(html.parser.HTMLParser):
    """Collects the text of each cell, heading, paragraph and list item, and all tags."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags = set()
        self.parts = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th", "h1", "h2", "h3", "p", "li"):
            self.parts.append("")

    def handle_data(self, data):
        if self.parts:
            self.parts[-1] += data


def rendered(text):
    """Renders CommonMark with tables and strikethrough; raw HTML passes."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Text(parser.render(text))


OWN_TAGS = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}
OWN_TAGS |= {"ul", "ol", "li", "strong", "code"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_wherever_it_stands(name):
    table = tables.Table(
        name, f"In {name}.", ["", name], [[name, "1"]], notes=(f"Row {name}: 1.",)
    )
    for found, own in (
        (rendered(tables.markdown(name, [table])), OWN_TAGS),
        (Text(tables.html_table(table)), {"section", "h3", "p", "div", *OWN_TAGS}),
    ):
        assert found.tags <= own
        parts = [part.strip() for part in found.parts]
        assert parts.count(name.strip()) >= 3
        assert f"In {name}." in parts
        assert f"Row {name}: 1." in parts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", "two lines"),
        ("a\r\n\r\n# b", "a # b"),
        ("tab\tbed", "tab bed"),
        ("\x1b[31mred\x00", "\ufffd[31mred\ufffd"),
        ("not utf-8 \udcff", "not utf-8 \ufffd"),
    ],
)
def test_what_is_no_character_never_breaks_a_page(name, shown):
    table = tables.Table("t", "c", ["", name], [[name, "1"]])
    found = rendered(tables.markdown("t", [table]))
    assert [part.strip() for part in found.parts].count(shown) == 2
    found = Text(tables.html_table(table))
    assert [" ".join(part.split()) for part in found.parts].count(shown) == 2
    tables.html_table(table).encode()


def test_markup_of_the_projects_own_stays():
    cells = [markdown.Marked("**0.5**"), markdown.Marked("`a | b`"), "**0.5**"]
    text = tables.markdown("t", [tables.Table("t", "c", ["", "x", "y"], [cells])])
    assert r"| **0.5** | `a \| b` | \*\*0.5\*\* |" in text


def renamed(folder, name, **fields):
    """Makes a workdir whose cases, row and data set have the name."""
    evaluated_workdir.write(folder, count=7, steps=0, dataset=name, row=name, **fields)
    path = folder / "slices.csv"
    rows = csv_text.read(path.read_text())
    for row in rows:
        row["case"] = f"{name} {row['case'][-1]}"
    path.write_text(csv_text.write(rows, list(rows[0])))
    # This file has case names of its own.
    (folder / "report_data.npz").unlink()
    return folder


@pytest.mark.parametrize(
    "name", ["=1+1|<b>x</b>", "-[a](b)`", "@_x_&lt;", "+* # ' \"<script>y</script>"]
)
def test_a_whole_report_of_such_names(tmp_path, name):
    folder = renamed(tmp_path / "run", name)
    assert {case for case, _, _ in results.load(folder).images} == {
        f"{name} {i}" for i in range(3)
    }
    report.run(str(folder), str(tmp_path / "r.html"))
    markdown = rendered((tmp_path / "r.md").read_text())
    assert markdown.tags <= OWN_TAGS
    assert any(
        part.startswith(f"Data set {name}, test split") for part in markdown.parts
    )
    assert any(part.strip() == name for part in markdown.parts)
    page = (tmp_path / "r.html").read_text()
    found = Text(page)
    # The page has the pictures and its own script.
    assert "b" not in found.tags
    assert page.count("<script") == 2
    assert any(f"{name} 0 (3)" in part for part in found.parts)


@pytest.mark.parametrize("name", ["a|b", "<img src=x>", "[a](b)", "*x*"])
def test_a_model_card_of_such_names(tmp_path, name):
    full = np.ones((4, 4), bool)
    scores = metrics.summarise(
        [metrics.slice_row(pred=full, truth=full, case=name, slice="1")]
    )
    about = {
        "row": name,
        "network": "unet",
        "parameters": 1,
        "dtype": "float32",
        "checkpoint_step": 1,
    }
    about |= {
        "threshold": 0.5,
        "postprocess": None,
        "not_applied": "",
        "fusion": None,
        "sampler": None,
        "classes": 1,
        "labels": [[1]],
        "train_steps": 2,
    }
    same = {
        "row": f"other {name}",
        "network": "unet",
        "seconds_per_image": 1.0,
        "nsd_tolerance": 2.0,
    }
    data = {
        "name": name,
        "size": 4,
        "channels": 1,
        "context": 0,
        "normalise": "minmax",
        "window": [],
        "prepare": ["Resize each slice."],
    }
    split = {
        "fractions": [1, 0, 0],
        "seed": 0,
        "folds": 0,
        "fold": 0,
        "train": [],
        "val": [],
        "test": [],
    }
    about |= {"seed": 0, "data": data, "split": split}
    text = model_card.card(
        about, json.loads(json.dumps(scores | same | {"cases": [name]}))
    )
    found = rendered(text)
    assert "img" not in found.tags
    assert "a" not in found.tags
    assert "em" not in found.tags
    parts = [part.strip() for part in found.parts]
    assert f"Model card: {name}, trained on {name}" in parts
    assert f"Tested on: 1 case, 1 slice: {name}" in parts
    assert any(f"row other {name} there, {name} here" in part for part in parts)
