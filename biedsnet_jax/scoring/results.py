"""What evaluation leaves in a workdir, read back and checked: `results.json` and
`cases.csv`. Imports no jax.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import csv_text, files
from biedsnet_jax.scoring.false_lesions import Mask

# Columns of cases.csv that a report shows, by convention.
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
# bytes, of most systems
_LONGEST_PATH = 4096
# Runs of one row are averaged, so these must be the same in all of them.
_SAME = (
    "network", "parameters", "split", "size", "train_steps", "batch_size", "dtype", "sampler", "fusion", "threshold",
    "nsd_tolerance",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated workdir: the fields of results.json, and a score of each row of
    cases.csv.
    """

    workdir: pathlib.Path
    fields: dict
    images: list[tuple[str, str, str]]  # case, slice, class
    scores: dict[str, Float[np.ndarray, " images"]]  # by column; NaN where undefined
    # NaN where not recorded, as in the next two
    truth_pixels: Float[np.ndarray, " images"]
    predicted_pixels: Float[np.ndarray, " images"]
    # bits, `calibration.mean_entropy` of the probability
    entropy: Float[np.ndarray, " images"]

    def masks(self) -> list[Mask]:
        """Which masks have a pixel; none where that was not recorded."""
        counts = zip(
            self.truth_pixels.tolist(), self.predicted_pixels.tolist(), strict=True
        )
        return [
            Mask(case, number, label, true > 0, predicted > 0)
            for (case, number, label), (true, predicted) in zip(
                self.images, counts, strict=True
            )
            if not math.isnan(true + predicted)
        ]


def find(text: str) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Workdirs with results, and those begun without, under the folders that `text`
    lists, separated by commas.

    A folder is a workdir, or holds workdirs up to three levels down (OUT/row/seed).
    Evaluations that a workdir keeps beside its own are found where their folder, or the
    one that holds them, is given itself. Raises BadInput for a folder that is not there
    or has no results at all.
    """
    finished, begun = {}, {}
    for name in _folders(text):
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
        begun |= dict.fromkeys(_parents(folder, "config.json"))
    if not finished:
        raise BadInput(
            f"--workdir={_name(text)} names no folder. Give workdirs, separated by commas."
        )
    return list(finished), [folder for folder in begun if folder not in finished]


def load(workdir: pathlib.Path) -> Run:
    """The results of one workdir. Raises BadInput where a file is missing, damaged, or
    of another evaluation.
    """
    fields = _read_fields(workdir / "results.json")
    run = _read_cases(workdir, fields)
    here, there = run.scores["dice"], fields["standard"]["dice"]["mean"]
    mean = (
        float(np.mean(here[~np.isnan(here)])) if not np.isnan(here).all() else math.nan
    )
    if (there is None) != math.isnan(mean) or (
        there is not None and abs(there - mean) > 1e-6
    ):
        raise BadInput(
            f"files of two evaluations, Dice {mean:.6f} in cases.csv and {there} in results.json, {_fix(workdir)}"
        )
    return run


def check_same_row(runs: Sequence[Run]) -> None:
    """Raise BadInput unless `runs`, all of one row, differ in nothing but seed and
    fold, and each in those.
    """
    first = runs[0]
    for run in runs[1:]:
        for name in _SAME:
            ours, theirs = run.fields.get(name), first.fields.get(name)
            if ours != theirs:
                raise BadInput(
                    f"runs of row {_name(first.fields['row'])} differ, "
                    f"{name} {theirs} in {_name(first.workdir)} "
                    f"and {ours} in {_name(run.workdir)}; give runs of one kind, or set "
                    "--config.row to tell them apart"
                )
    seen = {}
    for run in runs:
        twin = seen.setdefault((run.fields["seed"], str(run.fields.get("fold"))), run)
        if twin is not run:
            raise BadInput(
                f"same row and seed twice, {_name(run.fields['row'])} seed {run.fields['seed']}, "
                f"{_name(twin.workdir)} and {_name(run.workdir)}; give one of them, or set "
                "--config.row to tell them apart"
            )


def _folders(text):
    """The folders that a list names; a name may hold commas, so the longest that is one
    counts.
    """
    if os.path.isdir(files.expanded(text)):
        return [files.expanded(text)]
    parts = text.split(",")
    found = []
    while parts:
        count = _longest(parts)
        name = ",".join(parts[:count])
        if name:
            found.append(files.expanded(name))
        parts = parts[count:]
    return found


def _longest(parts):
    """How many parts, joined, name a folder; 1 where none do."""
    name, longest = "", 1
    for count, part in enumerate(parts, start=1):
        name += part if count == 1 else f",{part}"
        if len(name) > _LONGEST_PATH:
            break
        # Not pathlib's, which raises for a name that is too long.
        if os.path.isdir(files.expanded(name)):
            longest = count
    return longest


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
        raise BadInput(
            f"damaged results, {_line(error)}, {_fix(path.parent, path)}"
        ) from None
    if wrong:
        raise BadInput(
            f"damaged results, {wrong[0]} is {fields[wrong[0]]!r}, {_fix(path.parent, path)}"
        )
    return fields


def _read_cases(workdir, fields):
    path = workdir / "cases.csv"
    try:
        rows = csv_text.read(path.read_bytes().decode(errors="surrogateescape"))
        run = _run(workdir, fields, rows)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise BadInput(
            f"damaged scores, {_line(error)}, {_fix(path.parent, path)}"
        ) from None
    if not rows:
        raise BadInput(f"no scores, 0 rows, {_fix(path.parent, path)}")
    return run


def _run(workdir, fields, rows):
    pixels = {name: _column(rows, name) for name in ("tp", "fp", "fn", "entropy")}
    return Run(
        workdir=workdir,
        fields=fields,
        images=[(row["case"], row["slice"], row["class"]) for row in rows],
        scores={
            name: np.array([float(row[name]) for row in rows])
            for name in STANDARD + PAPER
        },
        truth_pixels=pixels["tp"] + pixels["fn"],
        predicted_pixels=pixels["tp"] + pixels["fp"],
        entropy=pixels["entropy"],
    )


def _column(rows, name):
    """A column that earlier versions did not write: NaN there."""
    return np.array([float(row.get(name, math.nan)) for row in rows])


def _line(error):
    if isinstance(error, KeyError):
        return f"no field {error}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return reason(error)


def _fix(workdir, path=None):
    command = f"--mode=evaluate --workdir={_name(workdir)}"
    return f"{_name(path or workdir)}; score it again with {command}"


def _name(path):
    """A name or path fit for one line."""
    return shown(path, most=300)
