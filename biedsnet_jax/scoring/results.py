"""Reads back and checks what an evaluation leaves in a workdir. Imports no jax.

`results.json` has the scores of the test, `slices.csv` a row a class of a slice,
`cases.csv` a row a class of a case. Earlier versions wrote the rows of slices into
`cases.csv` and no `slices.csv`: a table is of slices where it has the column "slice",
and this module alone tells one from the other.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import csv_text, files
from biedsnet_jax.scoring import class_names, volumes
from biedsnet_jax.scoring.false_lesions import Mask

SLICES = "slices.csv"
CASES = "cases.csv"
VOLUMES = "volumes.csv"
# Value of "grid" in results.json: the grid of each file. Earlier versions, which lack
# the field, scored on the network's grid.
ON_FILES = "file"

# Columns of slices.csv that a report shows, by convention.
STANDARD = ("dice", "hd", "hd95", "nsd", "iou", "accuracy", "recall", "precision")
PAPER = (
    "paper_dice",
    "paper_hd",
    "paper_iou",
    "paper_accuracy",
    "paper_recall",
    "paper_precision",
)

# Folder in a workdir of the evaluations that are not the run's own.
EVALUATIONS = "evaluations"

_FIELDS = {
    "row": str,
    "network": str,
    "seed": int,
    "dataset": str,
    "split": str,
    "parameters": int,
    "seconds_per_image": (int, float),
    "n_images": int,
    "n_empty": int,
    "nsd_tolerance": (int, float),
    "standard": dict,
}
# Runs of one row are averaged, so these must be the same in all of them.
_SAME = (
    "network", "parameters", "split", "size", "train_steps", "batch_size", "dtype",
    "sampler", "fusion", "threshold", "nsd_tolerance", "grid",
    "mirror",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated workdir: the fields of results.json and the rows of its tables."""

    workdir: pathlib.Path
    fields: dict
    images: list[tuple[str, str, str]]  # case, slice, class of each row of slices.csv
    scores: dict[str, Float[np.ndarray, " images"]]  # by column; NaN where undefined
    # Of the whole slice; NaN where not recorded, as in the next three.
    image_pixels: Float[np.ndarray, " images"]
    truth_pixels: Float[np.ndarray, " images"]
    predicted_pixels: Float[np.ndarray, " images"]
    # In bits, `calibration.mean_entropy` of the probability.
    entropy: Float[np.ndarray, " images"]
    # Rows of cases.csv, made of the slices where there are none; empty where the
    # slices have no pixel counts.
    cases: list[dict[str, str | float]]

    def titled(self, label: int | str) -> str:
        """Writes a class with its name, where it has one."""
        return class_names.titled(label, self.fields.get("class_names"))

    def masks(self) -> list[Mask]:
        """Lists which known masks have a pixel; none where that was not recorded."""
        counts = zip(
            self.truth_pixels.tolist(),
            self.predicted_pixels.tolist(),
            self.image_pixels.tolist(),
        )
        return [
            Mask(case, number, label, true > 0, predicted > 0)
            for (case, number, label), (true, predicted, every) in zip(
                self.images, counts
            )
            # Of no pixel is a class that was not annotated there.
            if every > 0
        ]


def find(text: str) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Finds (workdirs with results, unfinished ones) under a list of folders.

    `text` separates the folders by commas. A folder is a workdir, or holds workdirs up
    to three levels down (OUT/row/seed). Evaluations that a workdir keeps beside its own
    are found where their folder, or the one that holds them, is given itself.

    Raises BadInput for a folder that is not there or has no results at all.
    """
    finished = {}
    unfinished = {}
    for name in files.folders(text):
        folder = pathlib.Path(name)
        if not os.path.isdir(name):
            raise BadInput(
                f"--workdir={_name(name)} is no folder. Give workdirs that are there, separated by "
                "commas."
            )
        inside = _parents(folder, "results.json")
        if not inside:
            raise BadInput(
                f"{_name(name)} holds no results.json. Train it, or score it with --mode=evaluate "
                f"--workdir={_name(name)}."
            )
        finished |= dict.fromkeys(inside)
        unfinished |= dict.fromkeys(_parents(folder, "config.json"))
    if not finished:
        raise BadInput(
            f"--workdir={_name(text)} names no folder. Give workdirs, separated by commas."
        )
    return list(finished), [folder for folder in unfinished if folder not in finished]


def load(workdir: pathlib.Path) -> Run:
    """Reads the results of one workdir.

    Raises BadInput where a file is missing, damaged, or of another evaluation.
    """
    fields = _read_fields(workdir / "results.json")
    path, rows = _read_slices(workdir)
    try:
        run = _run(workdir, fields, rows, _read_cases(workdir))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(workdir, path, _line(error)) from None
    dice = run.scores["dice"]
    expected = fields["standard"]["dice"]["mean"]
    known = dice[~np.isnan(dice)]
    mean = float(np.mean(known)) if known.size else None
    if not _agree(mean, expected):
        raise _damaged(
            workdir,
            workdir / "results.json",
            f"it has Dice {expected}, {path.name} has {mean}, so they are of two evaluations",
        )
    return run


def grid(fields: Mapping[str, Any]) -> str:
    """Names the grid of the scores in a results.json."""
    on_files = fields.get("grid") == ON_FILES
    return "the grid of the files" if on_files else "the network's grid"


def entry(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Makes what an index of evaluations says of one, from its results.json.

    Its "data" (a folder), the number of its "cases" and of those "trained_on" (None: not
    known), "grid", mean "dice" with its "ci95", and mean "hd95". Raises KeyError or
    TypeError for fields that are not those of a results.json.
    """
    standard = fields["standard"]
    trained_on = fields.get("trained_on")
    return {
        "data": fields["data"],
        "cases": len(fields["cases"]),
        "trained_on": None if trained_on is None else len(trained_on),
        "grid": fields.get("grid"),
        "dice": standard["dice"]["mean"],
        "ci95": standard["dice"].get("ci95"),
        "hd95": standard.get("hd95", {}).get("mean"),
    }


def check_same_row(runs: Sequence[Run]) -> None:
    """Raises BadInput unless the runs of one row can be averaged.

    They may differ in nothing but seed and fold, and no two may have both alike.
    """
    first = runs[0]
    for run in runs[1:]:
        for name in _SAME:
            ours = run.fields.get(name)
            theirs = first.fields.get(name)
            if ours != theirs:
                raise BadInput(
                    f"Runs of row {_name(first.fields['row'])} differ: {name} is {theirs} in "
                    f"{_name(first.workdir)} and {ours} in {_name(run.workdir)}. Give runs of "
                    "one kind, or set --config.row to tell them apart."
                )
    seen = {}
    for run in runs:
        key = run.fields["seed"], str(run.fields.get("fold"))
        twin = seen.setdefault(key, run)
        if twin is not run:
            raise BadInput(
                f"{_name(twin.workdir)} and {_name(run.workdir)} are both row "
                f"{_name(run.fields['row'])} with seed {run.fields['seed']}. Give one of them, "
                "or set --config.row to tell them apart."
            )


def _parents(folder, name):
    if os.path.exists(folder / name):
        return [folder]
    below = sorted(
        path.parent
        for depth in ("*", "*/*", "*/*/*")
        for path in folder.glob(f"{depth}/{name}")
    )
    return [path for path in below if not _in_evaluations(path, folder)]


def _in_evaluations(path, folder):
    """Whether a folder lies among the evaluations of a workdir at or below `folder`."""
    between = [path, *path.parents][: len(path.relative_to(folder).parts)]
    return any(
        one.name == EVALUATIONS and (one.parent / "config.json").exists()
        for one in between
    )


def _read_fields(path):
    try:
        fields = json.loads(path.read_text())
        wrong = [
            name for name, kind in _FIELDS.items() if not isinstance(fields[name], kind)
        ]
        _ = fields["standard"]["dice"]["mean"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path.parent, path, _line(error)) from None
    if wrong:
        what = f"{wrong[0]} is {fields[wrong[0]]!r}"
        raise _damaged(path.parent, path, what)
    return fields


def _read_slices(workdir):
    """The table of slices of any version: (its path, its rows)."""
    if not (workdir / SLICES).exists() and (workdir / CASES).exists():
        rows = _read_table(workdir, CASES)
        if "slice" in rows[0]:
            return workdir / CASES, rows
    return workdir / SLICES, _read_table(workdir, SLICES)


def _read_cases(workdir):
    """The rows of cases.csv; none where there is no such file or it is of slices."""
    if not (workdir / CASES).exists():
        return []
    rows = _read_table(workdir, CASES)
    if "slice" in rows[0]:
        return []
    try:
        return [_numeric(row) for row in rows]
    except (ValueError, TypeError) as error:
        raise _damaged(workdir, workdir / CASES, _line(error)) from None


def _read_table(workdir, name):
    path = workdir / name
    try:
        rows = csv_text.read(path.read_bytes().decode(errors="surrogateescape"))
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(workdir, path, _line(error)) from None
    if not rows:
        raise _damaged(workdir, path, "it has 0 rows")
    return rows


def _run(workdir, fields, rows, cases):
    pixels = {name: _column(rows, name) for name in (*volumes.COUNTS, "entropy")}
    if not cases and not np.isnan(pixels["tn"]).any():
        cases = volumes.case_rows([_counted(row) for row in rows])
    return Run(
        workdir=workdir,
        fields=fields,
        images=[(row["case"], row["slice"], row["class"]) for row in rows],
        scores={
            name: np.array([float(row[name]) for row in rows])
            # The paper's convention is there only where eval.paper asked for it.
            for name in STANDARD + (PAPER if PAPER[0] in rows[0] else ())
        },
        image_pixels=np.sum([pixels[name] for name in volumes.COUNTS], axis=0),
        truth_pixels=pixels["tp"] + pixels["fn"],
        predicted_pixels=pixels["tp"] + pixels["fp"],
        entropy=pixels["entropy"],
        cases=cases,
    )


def _column(rows, name):
    """A column that earlier versions did not write: NaN there."""
    return np.array([float(row.get(name, math.nan)) for row in rows])


def _counted(row):
    return row | {name: int(row[name]) for name in volumes.COUNTS}


def _numeric(row):
    """A row of cases.csv with numbers for all but its names."""
    names = ("case", "class", class_names.COLUMN)
    return {
        name: value if name in names else float(value) for name, value in row.items()
    }


def _agree(mean, expected):
    if mean is None or expected is None:
        return mean is expected
    # Their sums are made in another order.
    return abs(mean - expected) <= 1e-6


def _line(error):
    if isinstance(error, KeyError):
        return f"it has no field {error}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return reason(error)


def _damaged(workdir, path, what):
    return BadInput(
        f"{_name(path)} cannot be read: {what}. Score the workdir again with "
        f"--mode=evaluate --workdir={_name(workdir)}."
    )


def _name(path):
    """A name or path fit for one line."""
    return shown(path, most=300)
