"""Rows that a script has measured so far, in a JSON file beside its other results."""

import json
from pathlib import Path

from biedsnet_jax.errors import BadInput


def read(path: Path, what: str, again: str) -> list[dict]:
    """Those in the file, none where there is no file. Raises BadInput where it is
    damaged, in the words given.
    """
    if not path.exists():
        return []
    try:
        return [dict(row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError):
        raise BadInput(
            f"damaged file, no {what}, {path}; remove it, the {what} are then {again} again"
        ) from None
