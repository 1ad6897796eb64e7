"""Rows that a script has measured so far, kept in a JSON file."""

import json
from pathlib import Path

from biedsnet_jax.errors import BadInput


def read(path: Path, what: str, again: str) -> list[dict]:
    """The rows of a file, none where there is no file.

    Raises BadInput where it is damaged: `what` it should hold, and how they are made
    `again`, such as "rows" and "measured".
    """
    if not path.exists():
        return []
    try:
        return [dict(row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError):
        raise BadInput(
            f"{path} is damaged: it has no {what}. "
            f"Remove it; the {what} are then {again} again."
        ) from None
