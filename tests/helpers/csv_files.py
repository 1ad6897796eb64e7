"""CSV files as a test reads them."""

import csv
from pathlib import Path


def read(path: Path) -> list[dict[str, str]]:
    """The rows by column, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
