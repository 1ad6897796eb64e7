"""The help of all fields, and the page that is made from the same source."""

from places import ROOT

from biedsnet_jax.config import reference
from biedsnet_jax.config.fields import flat
from configs import default

SOURCE = """
c.plain = 1
c.size = 256  # pixels, both sides
c.text = "# not a comment"
# What it is,
# in two lines.
c.data.case = "auto"
c.many = dict(
    a=1,  # of a
)  # of all
class A:
    width: int = 3  # channels
    depth: int
"""


def test_comments_stand_beside_or_above():
    assert reference.comments(SOURCE) == {
        "plain": "",
        "size": "pixels, both sides",
        "text": "",
        "data.case": "What it is, in two lines.",
        "many": "of all",
        "width": "channels",
        "depth": "",
    }


def test_every_field_is_there_once_with_its_default():
    fields = list(reference.fields())
    assert {field.name: field.default for field in fields} == flat(default.get_config())
    assert len({field.name for field in fields}) == len(fields)
    for field in fields:
        # Those of networks have the comments of their classes.
        assert field.comment or field.section.startswith("networks."), field.name
    (size,) = [field for field in fields if field.name == "data.size"]
    assert (size.section, size.default) == ("data", 256)
    assert size.range == "a whole number from 1" and "pixels" in size.comment


def test_the_help_fits_a_terminal_and_names_each_section_once():
    lines = reference.text().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines.count("data:") == lines.count("networks.biedsnet:") == 1
    at = lines.index("  data.size = 256")
    assert "pixels" in lines[at + 1]
    assert lines[at + 2] == "      Range: a whole number from 1"


def test_the_pages_are_what_is_made_of_the_fields():
    made = reference.pages()
    for name, text in made.items():
        page = (ROOT / "docs" / name).read_text()
        assert page == text, "python -m biedsnet_jax.config.reference"
    lines = "".join(made.values()).splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == len(flat(default.get_config()))
    assert {row.count("|") for row in rows} == {5}
