"""Reference of all fields: comment, default and range, for the help and docs/config*.md.

The comments are those of configs/default.py and, for a network's fields, of its class.
`python -m biedsnet_jax.config.reference` writes the tables of the pages.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

from biedsnet_jax.config import config_file, known_fields
from biedsnet_jax.config.check import FIELDS, network_rule
from biedsnet_jax.networks import NETWORKS

_COLUMNS = 100
# In a checkout, the only place where the pages are made.
_DOCS = config_file.folder().parent / "docs"
# Heading of a page, after which everything is made here.
_HEADING = "## All fields\n"
# The pages beside config.md, and the sections that stand there.
_PAGES = {
    "config-data.md": ("augment", "data", "split"),
    "config-model.md": ("diffusion", "loss", "networks", "sampler"),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field with what a reader needs to set it."""

    # Empty for a field of no section.
    section: str
    name: str
    default: Any
    range: str
    comment: str


def fields() -> Iterator[Field]:
    """Every field of configs/default.py, section by section."""
    of_default = comments(config_file.default().read_text())
    defaults = known_fields.defaults()
    for name in sorted(defaults, key=lambda name: name.rpartition(".")):
        section, _, last = name.rpartition(".")
        if name.startswith("networks."):
            network = NETWORKS[section.removeprefix("networks.")]
            rule = FIELDS.get(name) or network_rule(network, last)
            comment = _network_comments(network).get(last, "")
        else:
            rule = FIELDS[name]
            comment = of_default.get(name, "")
        yield Field(section, name, defaults[name], rule.says, comment)


@functools.cache
def _network_comments(network):
    # Cached, since finding the source of a class takes long.
    return comments(inspect.getsource(network))


def comments(source: str) -> dict[str, str]:
    """Comment of each assignment, such as {"data.size": "Height and width ..."}.

    It stands at the end of the assignment, or on the lines above.
    """
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            last = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            found[ast.unparse(target).removeprefix("c.")] = _text([last]) or _text(
                _above(lines, node.lineno - 1)
            )
    return found


def _above(lines, number):
    above = itertools.takewhile(
        lambda line: line.lstrip().startswith("#"), reversed(lines[:number])
    )
    return list(above)[::-1]


def _text(lines):
    return " ".join(line.strip().removeprefix("#").strip() for line in lines)


def text() -> str:
    """Reference of all fields for a terminal of 100 columns."""
    lines = []
    for section, group in itertools.groupby(fields(), lambda field: field.section):
        lines += ["", f"{section}:" if section else "Fields of no section:"]
        for field in group:
            lines += ["", f"  {field.name} = {field.default!r}"]
            for paragraph in (field.comment, f"Range: {field.range}"):
                wrapped = textwrap.wrap(paragraph, _COLUMNS - 6)
                lines += [f"      {line}" for line in wrapped]
    return "\n".join(lines[1:]) + "\n"


def pages() -> dict[str, str]:
    """Text of each page by its name in docs/: what is written by hand, then the tables."""
    made = {}
    for name in ("config.md", *_PAGES):
        by_hand = (_DOCS / name).read_text().partition(_HEADING)[0]
        made[name] = [by_hand + _HEADING.rstrip(), "Made from `configs/default.py`.\n"]
    for section, group in itertools.groupby(fields(), lambda field: field.section):
        made[_page_of(section)] += _table(section, group)
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def _page_of(section):
    first = section.partition(".")[0]
    for name, sections in _PAGES.items():
        if first in sections:
            return name
    return "config.md"


def _table(section, group):
    heading = [f"### {section or 'No section'}", ""]
    heading += ["| field | default | range | |", "|---|---|---|---|"]
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {field.range} | {field.comment} |"
        for field in group
    ]
    return [*heading, *rows, ""]


if __name__ == "__main__":
    for name, text_of_page in pages().items():
        (_DOCS / name).write_text(text_of_page)
