"""The output folder of mode predict: whose masks it may hold, and which scans to segment.

The first process of a run holds the folder's lock. It alone reads and changes what the
folder holds.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from biedsnet_jax.config import earlier_versions
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.prediction import made_from, outputs
from biedsnet_jax.prediction.job import Job
from biedsnet_jax.prediction.scans import RECORD, Item
from biedsnet_jax.prediction.trained import Member
from biedsnet_jax.runtime import files

Where = Mapping[Item, Mapping[str, Path]]


class Model(NamedTuple):
    """Identity of a trained model."""

    # Of an ensemble, that of its first member.
    workdir: Path
    # Digest of its arrays.
    weights: str
    # Training step of the checkpoint.
    step: int
    # Digest of the workdir's config.json, by which earlier versions identified a model.
    config: str
    # Models of an ensemble; none where it is one model.
    members: tuple[Member, ...] = ()

    @property
    def place(self) -> str:
        """The workdir, or those of an ensemble with commas."""
        workdirs = [member.workdir for member in self.members]
        return ",".join(workdirs) or str(self.workdir)


class Plan(NamedTuple):
    """What a run has to do, in JSON's types."""

    # Scan -> reason to segment it again, empty where it is new.
    todo: dict[str, str]
    # Scans that have masks in the folder but whose files no longer exist.
    gone: int
    # Warnings.
    notes: list[str]


def plan(job: Job, model: Model) -> Plan:
    """Decides what to do in an output folder that exists, and repairs its records.

    Raises BadInput where the folder holds masks of other settings or another model, and
    where two scans would share a file.
    """
    folder = job.folder
    recorded = _read(folder)
    if recorded is not None:
        _check(folder, recorded, job.settings, model)
    with job.writing():
        check_names(folder, job.items, job.where)
        summary = outputs.Summary(
            folder, classes=job.classes, named=bool(job.class_names)
        )
        record = made_from.Record(folder)
        # A killed run of several processes leaves parts.
        summary.merge_parts(job.classes)
        record.merge_parts()
        notes = _notes(summary)
        if recorded is None:
            # Without predict.json, the line of each scan must name the settings.
            settings = digest(job.settings)
            made = record.made.items()
            record.forget([name for name, one in made if one.settings != settings])
        elif "weights" not in recorded:
            same_step = recorded.get("checkpoint_step") == model.step
            notes += _adopt(job, summary, record, model, same_step)
        of_model = {
            "workdir": model.place,
            "weights": model.weights,
            "checkpoint_step": model.step,
        }
        if model.members:
            of_model["members"] = [asdict(member) for member in model.members]
        files.write_json(folder / RECORD, {**job.settings, **of_model})
        notes += _of_earlier_model(job, record)
        todo = _todo(job, summary, record)
        notes += _set_edited_aside(folder, job.where, record, todo)
    return Plan(todo, _count_gone(job.items, summary, record), notes)


def digest(settings: Mapping[str, Any]) -> str:
    """Returns a hash that differs between settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_names(folder: Path, items: Sequence[Item], where: Where) -> None:
    """Checks that no two scans share an output file on this file system.

    Raises BadInput for the first two that do.
    """
    seen: dict[str, tuple[Item, str]] = {}
    for item in items:
        for path in where[item].values():
            name = path.relative_to(folder).as_posix()
            other, others_name = seen.setdefault(_folded(name), (item, name))
            if other is not item and _is_one_file(folder, name, others_name):
                raise BadInput(
                    f"{other.files[0]} and {item.files[0]} would share one file for "
                    f"their masks, {path}. Rename one of them, or give an --output on "
                    "another file system."
                )


def _folded(name: str) -> str:
    """Returns the same text for names that some file system takes for one."""
    return files.composed(files.composed(name).casefold())


def _is_one_file(folder: Path, name: str, other: str) -> bool:
    # Only the file system itself knows, so it is tried out.
    with tempfile.TemporaryDirectory(prefix=".names_", dir=folder) as scratch:
        for part, others_part in zip(name.split("/"), other.split("/")):
            (Path(scratch) / part).touch()
            if not (Path(scratch) / others_part).exists():
                return False
    return True


def _read(folder: Path) -> dict[str, Any] | None:
    """Reads the settings of an output folder; None where they are missing or damaged."""
    try:
        recorded = json.loads((folder / RECORD).read_text(errors="replace"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise BadInput(
            f"Cannot read {folder / RECORD}: {reason(error)}. "
            "Make it readable or give another --output."
        ) from error
    return recorded if isinstance(recorded, dict) else None


def _check(folder: Path, recorded: dict, settings: Mapping[str, Any], model: Model):
    """Checks that the masks in a folder have these settings and are of this model.

    They may be of an earlier state of the model. Raises BadInput for others.
    """
    # An earlier version identified the model by the digest of its config alone.
    earlier = "weights" not in recorded
    if earlier and recorded.get("config") != model.config:
        raise _other_settings(folder, "config", recorded.get("config"), model.config)
    gone = {
        name: value
        for name, value in earlier_versions.REMOVED.items()
        if name in recorded
    }
    for name, value in {**gone, **settings}.items():
        if earlier and name not in recorded:
            continue
        old = recorded.get(name, earlier_versions.ADDED.get(name))
        if old != value:
            raise _other_settings(folder, name, old, value)
    if earlier or recorded["weights"] == model.weights:
        return
    # Other weights of the same workdir are those of a longer training.
    if recorded.get("workdir") != model.place:
        workdir = shown(recorded.get("workdir"), most=200)
        raise BadInput(
            f"{folder} holds masks of the model in {workdir}, and the one in "
            f"{model.place} has other weights. Give another --output."
        )


def _other_settings(folder, name, old, new) -> BadInput:
    old, new = shown(repr(old)), shown(repr(new))
    return BadInput(
        f"{folder} holds masks of another run: {name} was {old} and is {new}. "
        "Give another --output."
    )


def _notes(summary: outputs.Summary) -> list[str]:
    if summary.replaced is None:
        return []
    return [
        f"{summary.path} held rows that are damaged or of another kind. It is kept as "
        f"{summary.replaced.name}, and scans without figures are done again."
    ]


def _adopt(job, summary, record, model, same_step) -> list[str]:
    """Takes over masks of an earlier version that are newer than their scan and model.

    That version recorded neither, so times are all there is to judge by. Returns a note
    with the numbers of masks kept and made again, if there were any.
    """
    trained = _newest(model.workdir / "checkpoints" / str(model.step))
    done = [
        item
        for item in job.items
        if item.name in summary.done and item.name not in record.made
    ]
    kept = 0
    for item in done:
        source = made_from.absolute(Path(summary.done[item.name]))
        if not same_step or source != made_from.absolute(item.files[0]):
            continue
        paths = list(job.where[item].values())
        if not all(path.exists() for path in paths):
            continue
        written = job.where[item]["mask"].stat().st_mtime
        if written <= max(trained, _newest_input(item)):
            continue
        made = made_from.Made(
            name=item.name,
            why="",
            weights=model.weights,
            settings=digest(job.settings),
            reading=made_from.READING,
            inputs=tuple(made_from.describe(item.files, content=False)),
            outputs=tuple(made_from.describe(paths, folder=job.folder, content=False)),
        )
        record.add(made)
        kept += 1
    if not done:
        return []
    return [
        f"An earlier version wrote {job.folder} and did not record what each mask was "
        f"made from. {kept} masks newer than their scan and the model are kept, "
        f"{len(done) - kept} are made again."
    ]


def _newest(folder: Path) -> float:
    """Returns the time of the last change in a folder; infinity for an unknown one."""
    times = [_changed(path) for path in folder.rglob("*") if path.is_file()]
    return max(times, default=float("inf"))


def _newest_input(item: Item) -> float:
    times = [_changed(path) for path in item.files]
    if item.kind == "dicom":
        # Removing a slice changes only the time of its folder.
        folders = {path.parent for path in item.files}
        times += [folder.stat().st_mtime for folder in folders]
    return max(times)


def _changed(path: Path) -> float:
    """Returns the time at which a file was written, moved or copied to its place."""
    try:
        status = path.stat()
    except OSError:
        return float("inf")
    return max(status.st_mtime, status.st_ctime)


def _todo(job, summary, record) -> dict[str, str]:
    todo = {}
    for item in job.items:
        made = record.made.get(item.name)
        has_figures = item.name in summary.done
        if made is None:
            todo[item.name] = (
                "nothing said what it was made from" if has_figures else ""
            )
            continue
        why = made.again(item.files, dicom=item.kind == "dicom", weights=job.weights)
        if not why:
            why = made.damage(job.folder, job.where[item].values())
        if not why and not has_figures:
            why = "summary.csv had no figures for it"
        if why:
            todo[item.name] = why
    return todo


def _of_earlier_model(job, record) -> list[str]:
    """Notes masks of an earlier state of the model whose scans are not in this run.

    Those whose scans are gone, which cannot be made again, are counted by themselves.
    """
    found = {item.name for item in job.items}
    earlier = [
        name
        for name, made in record.made.items()
        if name not in found and made.weights != job.weights
        if Path(made.inputs[0].path).exists()
    ]
    if not earlier:
        return []
    return [
        f"{job.folder} keeps masks that were made before the model or its post-processing "
        f"changed, of scans outside --input, such as {earlier[0]}: {len(earlier)} in all. "
        "Give their scans too, which makes them again."
    ]


def _set_edited_aside(folder, where, record, todo) -> list[str]:
    """Renames files that somebody changed, perhaps by hand, before they are replaced."""
    aside = []
    for item, paths in where.items():
        made = record.made.get(item.name)
        if made is None or item.name not in todo:
            continue
        replaced = set(paths.values())
        aside += [
            outputs.set_aside(path) for path in made.edited(folder) if path in replaced
        ]
    if not aside:
        return []
    return [
        f"{folder} has output files that changed after they were written. The changed "
        f"files are kept under other names, such as {aside[0].name}, and made again: "
        f"{len(aside)} in all."
    ]


def _count_gone(items, summary, record) -> int:
    """Counts the scans of earlier runs whose files no longer exist.

    Scans of another --input still exist and do not count.
    """
    found = {item.name for item in items}
    known = {name: Path(file) for name, file in summary.done.items()}
    known |= {name: Path(made.inputs[0].path) for name, made in record.made.items()}
    others = [path for name, path in known.items() if name not in found]
    return sum(not path.exists() for path in others)
