"""A run's folder of checkpoints, read without Orbax: steps, scores, damage."""

import json
import math
import pathlib

from biedsnet_jax.checkpoints import checksums
from biedsnet_jax.errors import reason
from biedsnet_jax.runtime import files

# Folder of the workdir that damaged checkpoints are moved to.
DAMAGED = "damaged_checkpoints"
SCORE = "val_dice"
_BAD_METRICS = "its metrics are unreadable"


def steps(folder: pathlib.Path) -> list[int]:
    """Complete steps, in order."""
    # A step that is still being written has a longer name.
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def best_step(folder: pathlib.Path, among: list[int]) -> int | None:
    """The step of the highest validation Dice, the later of equals; None without any."""
    return max(
        among,
        key=lambda step: (score(_metrics(folder / str(step))), step),
        default=None,
    )


def val_dice(folder: pathlib.Path, step: int) -> float | None:
    """Validation Dice of a step; None where it was not validated or is not there."""
    return _metrics(folder / str(step)).get(SCORE) if step in steps(folder) else None


def score(metrics: dict | None) -> float:
    """Validation Dice among a step's metrics; -1 where it was not validated."""
    return float((metrics or {}).get(SCORE, -1.0))


def best_undamaged(
    folder: pathlib.Path, known: dict[int, str] | None = None
) -> tuple[int | None, dict[int, str]]:
    """The best undamaged step or None, and what is wrong with each damaged one.

    Files are compared with their checksums from the best step down, until one is sound.
    `known` says what is wrong with steps that were looked at before.
    """
    there = steps(folder)
    damaged = {
        step: _BAD_METRICS for step in there if not _has_metrics(folder / str(step))
    }
    damaged |= known or {}
    while left := [step for step in there if step not in damaged]:
        step = best_step(folder, left)
        what = damage(folder / str(step))
        if what is None:
            return step, damaged
        damaged[step] = what
    return None, damaged


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a step's files, by their sums and the score; None if nothing."""
    if not _has_metrics(folder):
        return _BAD_METRICS
    try:
        return checksums.damage(folder)
    except OSError as error:
        return reason(error)


def set_aside(folder: pathlib.Path, step: int, what: str) -> str:
    """Moves a damaged step out of the way, and returns a warning about it."""
    place = folder.parent / DAMAGED
    with files.writing(place / str(step)):
        place.mkdir(exist_ok=True)
        earlier = [path for path in place.iterdir() if path.stem == str(step)]
        name = f"{step}.{len(earlier)}" if earlier else str(step)
        (folder / str(step)).rename(place / name)
    left = steps(folder)
    now = "There is no other, so training starts anew."
    if left:
        now = f"The latest is now step {max(left)}."
    return (
        f"warning: The checkpoint of step {step} is damaged: {what}. It was moved to "
        f"{place}. {now}"
    )


def _has_metrics(folder):
    try:
        return math.isfinite(score(_metrics(folder)))
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _metrics(folder):
    return json.loads((folder / "metrics" / "metrics").read_text())
