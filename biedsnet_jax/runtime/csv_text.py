"""CSV as text that is safe to open in a spreadsheet.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula. `write` puts an
apostrophe before such a text, which `read` removes.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, header: bool = True
) -> str:
    """CSV of rows, with a header line unless `header` is false."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(
        {name: _safe(value) for name, value in row.items()} for row in rows
    )
    return text.getvalue()


def read(text: str) -> list[dict[str, str]]:
    """The rows that `write` was given, as text by column. Raises csv.Error."""
    return [
        {name: _plain(value) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(text, newline=""))
    ]


def _safe(value):
    if _is_formula(value) and not _is_number(value):
        return f"'{value}"
    return value


def _plain(value):
    if _is_formula(value) and value.startswith("'"):
        return value[1:]
    return value


def _is_formula(value):
    """Whether a spreadsheet takes a text for a formula, apostrophes before it aside."""
    return isinstance(value, str) and value.lstrip("'").startswith(_FORMULA)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
