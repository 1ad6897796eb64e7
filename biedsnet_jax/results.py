"""What evaluation leaves in a workdir, read back and checked: `results.json` and `cases.csv`. Imports no jax."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from biedsnet_jax.errors import BadInput

# Columns of cases.csv that a report shows, by convention.
STANDARD = ("dice", "hd", "hd95", "nsd", "iou", "accuracy", "recall", "precision")
PAPER = ("paper_dice", "paper_hd", "paper_iou", "paper_accuracy", "paper_recall", "paper_precision")

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
    "network", "parameters", "split", "size", "train_steps", "batch_size", "dtype", "sampler", "fusion", "threshold",
    "nsd_tolerance",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated workdir: the fields of results.json, and a score of each row of cases.csv."""

    workdir: pathlib.Path
    fields: dict
    images: list[tuple[str, str, str]]  # case, slice, class
    scores: dict[str, Float[np.ndarray, " images"]]  # by column; NaN where undefined
    truth_pixels: Float[np.ndarray, " images"]  # NaN where not recorded, as in the next
    entropy: Float[np.ndarray, " images"]  # bits, `report_data.mean_entropy` of the probability


def find(text: str) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Workdirs with results, and those begun without, under the folders that `text` lists, separated by commas.

    A folder is a workdir, or holds workdirs up to three levels down (OUT/row/seed). Evaluations that a workdir keeps
    beside its own are found where their folder, or the one that holds them, is given itself. Raises BadInput for a
    folder that is not there or has no results at all.
    """
    finished, begun = {}, {}
    for name in _folders(text):
        folder = pathlib.Path(name)
        if not folder.is_dir():
            raise BadInput(f"no such folder, {name}, in --workdir; give workdirs, separated by commas")
        inside = _parents(folder, "results.json")
        if not inside:
            raise BadInput(f"no results.json, in {name}; train it, or score it with --mode=evaluate --workdir={name}")
        finished |= dict.fromkeys(inside)
        begun |= dict.fromkeys(_parents(folder, "config.json"))
    return list(finished), [folder for folder in begun if folder not in finished]


def load(workdir: pathlib.Path) -> Run:
    """The results of one workdir. Raises BadInput where a file is missing, damaged, or of another evaluation."""
    fields = _read_fields(workdir / "results.json")
    images, scores, truth_pixels, entropy = _read_cases(workdir / "cases.csv")
    here, there = scores["dice"], fields["standard"]["dice"]["mean"]
    mean = float(np.mean(here[~np.isnan(here)])) if not np.isnan(here).all() else math.nan
    if (there is None) != math.isnan(mean) or (there is not None and abs(there - mean) > 1e-6):
        raise BadInput(
            f"files of two evaluations, Dice {mean:.6f} in cases.csv and {there} in results.json, {_fix(workdir)}"
        )
    return Run(workdir, fields, images, scores, truth_pixels, entropy)


def check_same_row(runs: Sequence[Run]) -> None:
    """Raise BadInput unless `runs`, all of one row, differ in nothing but seed and fold, and each in those."""
    first = runs[0]
    for run in runs[1:]:
        for name in _SAME:
            ours, theirs = run.fields.get(name), first.fields.get(name)
            if ours != theirs:
                raise BadInput(
                    f"runs of row {first.fields['row']} differ, {name} {theirs} in {first.workdir} and {ours} in "
                    f"{run.workdir}; give runs of one kind, or set --config.row to tell them apart"
                )
    seen = {}
    for run in runs:
        twin = seen.setdefault((run.fields["seed"], str(run.fields.get("fold"))), run)
        if twin is not run:
            raise BadInput(
                f"same row and seed twice, {run.fields['row']} seed {run.fields['seed']}, {twin.workdir} and "
                f"{run.workdir}; give one of them, or set --config.row to tell them apart"
            )


def _folders(text):
    if pathlib.Path(text).is_dir():  # a name may hold a comma
        return [text]
    return [name for name in text.split(",") if name]


def _parents(folder, name):
    if (folder / name).exists():
        return [folder]
    below = sorted(path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/{name}"))
    return [path for path in below if not _in_evaluations(path, folder)]


def _in_evaluations(path, folder):
    """Whether a folder lies among the evaluations of a workdir at or below `folder`."""
    between = [path, *path.parents][: len(path.relative_to(folder).parts)]
    return any(one.name == EVALUATIONS and (one.parent / "config.json").exists() for one in between)


def _read_fields(path):
    try:
        fields = json.loads(path.read_text())
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(fields[name], kind)]
        _ = fields["standard"]["dice"]["mean"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"damaged results, {_line(error)}, {_fix(path.parent, path)}") from None
    if wrong:
        raise BadInput(f"damaged results, {wrong[0]} is {fields[wrong[0]]!r}, {_fix(path.parent, path)}")
    return fields


def _read_cases(path):
    images, truth_pixels, entropy, columns = [], [], [], {name: [] for name in STANDARD + PAPER}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                images.append((row["case"], row["slice"], row["class"]))
                truth_pixels.append(float(row.get("tp", math.nan)) + float(row.get("fn", math.nan)))
                entropy.append(float(row.get("entropy", math.nan)))
                for name, values in columns.items():
                    values.append(float(row[name]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"damaged scores, {_line(error)}, {_fix(path.parent, path)}") from None
    if not images:
        raise BadInput(f"no scores, 0 rows, {_fix(path.parent, path)}")
    scores = {name: np.array(values) for name, values in columns.items()}
    return images, scores, np.array(truth_pixels), np.array(entropy)


def _line(error):
    if isinstance(error, KeyError):
        return f"no field {error}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split())


def _fix(workdir, path=None):
    return f"{path or workdir}; score it again with --mode=evaluate --workdir={workdir}"
