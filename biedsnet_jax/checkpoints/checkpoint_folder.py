"""The folder of a run's checkpoints as its files tell, without Orbax: steps, scores,
what is damaged, which is best.
"""

import json
import math
import pathlib

from biedsnet_jax.checkpoints import checksums
from biedsnet_jax.errors import reason
from biedsnet_jax.runtime import files

# in the workdir
DAMAGED = "damaged_checkpoints"
SCORE = "val_dice"


def steps(folder: pathlib.Path) -> list[int]:
    """The complete steps, in order; what is being written has a longer name."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def best_step(folder: pathlib.Path, among: list[int]) -> int | None:
    """The step of the highest validation Dice, the later one of equals; None of none."""
    return max(
        among,
        key=lambda step: (score(_metrics(folder / str(step))), step),
        default=None,
    )


def val_dice(folder: pathlib.Path, step: int) -> float | None:
    """Of a step; None where it was not validated, or is not there."""
    return _metrics(folder / str(step)).get(SCORE) if step in steps(folder) else None


def score(metrics: dict | None) -> float:
    """Validation Dice; below any where there was no validation."""
    return float((metrics or {}).get(SCORE, -1.0))


def best_undamaged(
    folder: pathlib.Path, known: dict[int, str] | None = None
) -> tuple[int | None, dict[int, str]]:
    """(step, what is wrong with better ones); no more of them are looked through than
    must be.

    What is `known` to be wrong with some is not looked for again.
    """
    there = steps(folder)
    damaged = {
        step: "metrics unreadable"
        for step in there
        if not _has_metrics(folder / str(step))
    }
    damaged |= known or {}
    while left := [step for step in there if step not in damaged]:
        step = best_step(folder, left)
        if what := damage(folder / str(step)):
            damaged[step] = what
        else:
            return step, damaged
    return None, damaged


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a step's files, as far as their sums and the score tell; None
    where nothing is.
    """
    if not _has_metrics(folder):
        return "metrics unreadable"
    try:
        return checksums.damage(folder)
    except OSError as error:
        return reason(error)


def set_aside(folder: pathlib.Path, step: int, what: str) -> str:
    """Move a damaged step out of the way. Gives a warning that names it and the one
    that stands now.
    """
    place = folder.parent / DAMAGED / str(step)
    left = [other for other in steps(folder) if other != step]
    now = (
        f"the latest is now step {max(left)}"
        if left
        else "there is no other, training starts anew"
    )
    with files.writing(place):
        place.parent.mkdir(exist_ok=True)
        number = sum(
            path.name.split(".")[0] == str(step) for path in place.parent.iterdir()
        )
        (folder / str(step)).rename(
            place.with_name(f"{step}.{number}" if number else str(step))
        )
    return f"warning: damaged checkpoint of step {step}, {what}, moved to {place.parent}; {now}"


def _has_metrics(folder):
    try:
        return math.isfinite(score(_metrics(folder)))
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _metrics(folder):
    return json.loads((folder / "metrics" / "metrics").read_text())
