"""Reads CSV files as text."""

import csv
from pathlib import Path


def read(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a file, each as a dict by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
