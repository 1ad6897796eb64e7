"""Writes tables of text as Markdown and as HTML."""

import dataclasses
import html
import math

from biedsnet_jax.runtime.markdown import Marked, escaped, shown


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of plain text, whose first column names the row.

    `convention` is that of the scores, "" without any. `notes` are sentences right
    under the table.
    """

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    convention: str = ""
    notes: tuple[str, ...] = ()


def decimal(value: float, digits: int) -> str:
    """A score as a cell holds it: "undefined" for NaN."""
    return "undefined" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(title: str, tables: list[Table], first: str = "") -> str:
    """A Markdown page; `first` is Markdown that stands before the tables."""
    before = f"{first}\n" if first else ""
    return f"# {escaped(title)}\n\n{before}{markdown_tables(tables)}"


def markdown_tables(tables: list[Table]) -> str:
    """The Markdown of tables, each under a heading of the second level."""
    return "\n\n".join(map(_markdown_table, tables)) + "\n"


def _markdown_table(table):
    def line(cells):
        return "| " + " | ".join(map(_cell, cells)) + " |"

    rule = "| :-- |" + " --: |" * (len(table.header) - 1)
    lines = "\n".join([line(table.header), rule, *map(line, table.rows)])
    parts = [f"## {escaped(table.title)}", escaped(table.caption), lines]
    if table.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in table.notes))
    return "\n\n".join(parts)


def _cell(text):
    # Even inside of code a bar would end the cell.
    return text.replace("|", r"\|") if isinstance(text, Marked) else escaped(text)


def html_table(table: Table) -> str:
    """Writes a `section` with heading, caption, table and notes.

    The table is a region that the keyboard reaches, because it may scroll.
    """
    title = _html(table.title)
    caption = _html(table.caption)
    head = "".join(f'<th scope="col">{_html(cell)}</th>' for cell in table.header)
    rows = "\n".join(map(_html_row, table.rows))
    items = "".join(f"<li>{_html(note)}</li>" for note in table.notes)
    notes = f"\n<ul>{items}</ul>" if items else ""
    kind = f' class="{table.convention}"' if table.convention else ""
    return (
        f"<section{kind}>\n<h3>{title}</h3>\n<p>{caption}</p>\n"
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
        f"{notes}\n</section>"
    )


def _html_row(cells):
    first, *rest = map(_html, cells)
    cells = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr><th scope="row">{first}</th>{cells}</tr>'


def _html(text):
    return html.escape(shown(text))
