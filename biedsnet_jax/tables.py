"""A table of text, as Markdown and as HTML."""

import dataclasses
import html


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of plain text; the first column names the row. `convention` is that of its scores, if it has any."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    convention: str = ""


def markdown(title: str, tables: list[Table]) -> str:
    """A Markdown page."""
    return "\n\n".join([f"# {title}", *map(_markdown_table, tables)]) + "\n"


def _markdown_table(table):
    def line(cells):
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = "| :-- |" + " --: |" * (len(table.header) - 1)
    lines = "\n".join([line(table.header), rule, *map(line, table.rows)])
    return f"## {table.title}\n\n{table.caption}\n\n{lines}"


def html_table(table: Table) -> str:
    """A `section` with heading, caption and table."""
    title, caption = html.escape(table.title), html.escape(table.caption)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(map(_html_row, table.rows))
    kind = f' class="{table.convention}"' if table.convention else ""
    return (
        f"<section{kind}>\n<h3>{title}</h3>\n<p>{caption}</p>\n"
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}">\n<table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n</section>"
    )


def _html_row(cells):
    first, *rest = map(html.escape, cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
