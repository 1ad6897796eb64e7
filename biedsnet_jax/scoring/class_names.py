"""Puts the name of a class beside its number, where the data or the config name it."""

from collections.abc import Iterable, Sequence

COLUMN = "class_name"


def titled(label: int | str, names: Sequence[str] | None) -> str:
    """Writes a class, from 1, with its name: "2, anterior"; "2" where it has none."""
    name = name_of(label, names)
    return f"{label}, {name}" if name else str(label)


def name_of(label: int | str, names: Sequence[str] | None) -> str:
    """Name of a class, from 1; empty where it has none."""
    number = int(label)
    return names[number - 1] if names and number <= len(names) else ""


def with_names(rows: Iterable[dict], names: Sequence[str]) -> list[dict]:
    """Adds a column with the name of the class to the rows of a table, beside "class".

    Without names the rows stay as they are.
    """
    return [_with_name(row, names) for row in rows] if names else list(rows)


def _with_name(row, names):
    found = {}
    for column, value in row.items():
        found[column] = value
        if column == "class":
            found[COLUMN] = name_of(value, names)
    return found
