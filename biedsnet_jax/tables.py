"""A table of text, and a page of them, as Markdown and as a self-contained HTML page without scripts."""

import dataclasses
import html

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --quiet: #57606a; --band: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --quiet: #9aa4af; --band: #161b22 }
}
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem }
p { max-width: 50rem; margin: .25rem 0 .75rem; color: var(--quiet) }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
thead th { border-bottom: 2px solid var(--line) }
tbody tr:hover > * { background: var(--band) }
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of plain text; the first column names the row."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]


def markdown(title: str, tables: list[Table]) -> str:
    """A Markdown page."""
    return "\n\n".join([f"# {title}", *map(_markdown_table, tables)]) + "\n"


def page(title: str, tables: list[Table]) -> str:
    """An HTML page, light or dark as the reader's system is."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">\n'
    head += f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>"
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *map(_html_table, tables)])
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _markdown_table(table):
    def line(cells):
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = "| :-- |" + " --: |" * (len(table.header) - 1)
    lines = "\n".join([line(table.header), rule, *map(line, table.rows)])
    return f"## {table.title}\n\n{table.caption}\n\n{lines}"


def _html_table(table):
    title, caption = html.escape(table.title), html.escape(table.caption)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(map(_html_row, table.rows))
    return (
        f"<section>\n<h2>{title}</h2>\n<p>{caption}</p>\n"
        f'<div tabindex="0" role="region" aria-label="{title}">\n<table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n</section>"
    )


def _html_row(cells):
    first, *rest = map(html.escape, cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
