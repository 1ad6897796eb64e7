"""Every field with its comment from configs/default.py, its default and its range, for
the help and docs/config.md.

`python -m biedsnet_jax.config.reference` prints docs/config.md. A network's fields have
the comments of its class.
"""

import ast
import dataclasses
import inspect
import itertools
import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

from biedsnet_jax.config import known_fields
from biedsnet_jax.config.check import FIELDS, network_rule
from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks import NETWORKS

_COLUMNS = 100
_PAGE = pathlib.Path(known_fields.DEFAULT).parents[1] / "docs" / "config.md"
# What follows it on the page is made here.
_HEADING = "## All fields\n"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field as a reader needs it; `section` is empty for one of no section."""

    section: str
    name: str
    default: Any
    range: str
    comment: str


def fields() -> Iterator[Field]:
    """Every field of configs/default.py, section by section."""
    if not known_fields.defaults():
        raise BadInput(
            f"{known_fields.DEFAULT} is missing. Use the package where configs/ stands beside it."
        )
    of_default = comments(pathlib.Path(known_fields.DEFAULT).read_text())
    for name in sorted(known_fields.defaults(), key=lambda name: name.rpartition(".")):
        section, _, last = name.rpartition(".")
        if name.startswith("networks."):
            network = NETWORKS[section.removeprefix("networks.")]
            rule = FIELDS.get(name) or network_rule(network, last)
            comment = comments(inspect.getsource(network)).get(last, "")
        else:
            rule, comment = FIELDS[name], of_default.get(name, "")
        yield Field(section, name, known_fields.defaults()[name], rule.says, comment)


def comments(source: str) -> dict[str, str]:
    """{"data.size": "pixels ..."}: the comment at the end of each assignment, else the
    lines of comment above it.
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
    """All fields for a terminal of 100 columns."""
    lines = []
    for section, group in itertools.groupby(fields(), lambda field: field.section):
        lines += ["", f"{section}:" if section else "Fields of no section:"]
        for field in group:
            lines += ["", f"  {field.name} = {field.default!r}"]
            for said in (field.comment, f"Range: {field.range}"):
                lines += textwrap.wrap(
                    said, _COLUMNS, initial_indent="      ", subsequent_indent="      "
                )
    return "\n".join(lines[1:]) + "\n"


def page() -> str:
    """docs/config.md: what is written by hand up to the tables, and the tables."""
    lines = [_PAGE.read_text().partition(_HEADING)[0] + _HEADING.rstrip()]
    lines.append(
        "These tables are made of `configs/default.py` by `biedsnet_jax/config/reference.py`.\n"
    )
    for section, group in itertools.groupby(fields(), lambda field: field.section):
        lines += [
            f"### {section or 'Of no section'}",
            "",
            "| field | default | range | |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{field.name}` | `{field.default!r}` | {field.range} | {field.comment} |"
            for field in group
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
