"""gpu_day.json: what was measured so far, written anew after each step."""

import json
from pathlib import Path

from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.runtime import files

NAME = "gpu_day.json"
# A step that ended otherwise is tried again on a later day.
FINAL = ("done", "out of memory")


def read(out: Path) -> dict:
    """The record of a folder, an empty one where there is none.

    "steps" has an entry a step by name, "days" and "training" one a day. Raises BadInput
    where the file is damaged.
    """
    path = out / NAME
    empty = {"config": None, "device": None, "days": [], "steps": {}, "training": []}
    if not path.exists():
        return empty
    try:
        kept = json.loads(path.read_text())
        kinds = {name: type(value) for name, value in kept.items()}
        if (kinds["days"], kinds["steps"], kinds["training"]) != (list, dict, list):
            raise ValueError("other kinds of value")
        return empty | kept
    except (ValueError, AttributeError, KeyError, TypeError):
        raise BadInput(
            f"{path} is damaged, or not of a GPU day. Give another --out, or remove it; "
            "everything is then measured again."
        ) from None


def write(out: Path, record: dict) -> None:
    """Writes the record, whole or not at all."""
    with files.writing(out, another="--out"):
        files.write_json(out / NAME, record)


def check_same(record: dict, what: str, here: dict, out: Path) -> None:
    """Notes the "config" or "device" of the first day.

    Raises BadInput where a later day has another one.
    """
    kept = record[what]
    record[what] = here
    if kept is None:
        return
    # The round trip turns tuples into lists, as in the file.
    here = json.loads(json.dumps(here))
    for name in sorted(kept.keys() | here.keys()):
        if kept.get(name) != here.get(name):
            raise BadInput(
                f"--out={out} has results of another {what}, whose {name} is "
                f"{shown(kept.get(name))}; now it is {shown(here.get(name))}. "
                "Give another --out."
            )


def is_final(record: dict, name: str) -> bool:
    """Whether a step needs no further try."""
    return record["steps"].get(name, {}).get("status") in FINAL


def seconds_needed(record: dict, step, first_guess: float) -> float:
    """How long a step may take, by its own last try or by others of its kind."""
    own = record["steps"].get(step.name, {})
    # It had so long, and that was not enough.
    if own.get("status") == "out of time":
        return 1.25 * own["seconds"]
    seen = [
        entry["seconds"]
        for entry in record["steps"].values()
        if entry["kind"] == step.kind and entry["status"] == "done"
    ]
    return 1.25 * max(seen) if seen else first_guess
