"""CSV as text: one way to write and to read it, safe to open in a spreadsheet.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula. Such a name gets
an apostrophe before it, which `read` takes away again.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, header: bool = True
) -> str:
    """The rows, with their header line or without."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(
        {name: _safe(value) for name, value in row.items()} for row in rows
    )
    return text.getvalue()


def read(text: str) -> list[dict[str, str]]:
    """The rows by column, as they were given to `write`, in text. Raises csv.Error."""
    return [
        {name: _plain(value) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(text, newline=""))
    ]


def _safe(value):
    if (
        isinstance(value, str)
        and value.lstrip("'").startswith(_FORMULA)
        and not _is_number(value)
    ):
        return f"'{value}"
    return value


def _plain(value):
    if (
        isinstance(value, str)
        and value[:1] == "'"
        and value.lstrip("'").startswith(_FORMULA)
    ):
        return value[1:]
    return value


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
