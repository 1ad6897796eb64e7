"""The output folder of mode predict: whose masks it may hold, and which scans are to be
done.

The first process of a run holds its lock and is alone in reading and changing what is
there.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from biedsnet_jax.config import earlier_versions
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.prediction import made_from, outputs
from biedsnet_jax.prediction.job import Job
from biedsnet_jax.prediction.scans import RECORD, Item
from biedsnet_jax.runtime import files

Where = Mapping[Item, Mapping[str, Path]]


class Model(NamedTuple):
    """A trained model."""

    workdir: Path
    weights: str  # digest of its arrays
    step: int  # of the checkpoint
    # digest of the workdir's config.json, by which earlier versions told models apart
    config: str


class Plan(NamedTuple):
    """What a run has to do, in JSON's types."""

    # scan -> why it is done again; empty where it is done for the first time
    todo: dict[str, str]
    gone: int  # scans with masks in the folder whose files are no longer there
    notes: list[str]  # warnings


def plan(job: Job, model: Model) -> Plan:
    """Find out what is to be done in a folder that exists, and bring its records in
    order.

    Raises BadInput where the folder holds masks of other settings or another model, and
    where two scans would share a file.
    """
    folder = job.folder
    there = _read(folder)
    if there is not None:
        _check(folder, there, job.settings, model)
    with files.writing(folder, another="--output"):
        check_names(folder, job.items, job.where)
        summary, record = (
            outputs.Summary(folder, classes=job.classes),
            made_from.Record(folder),
        )
        # Parts that a killed run of several processes left.
        summary.merge_parts(job.classes)
        record.merge_parts()
        notes = _notes(summary)
        if there is None:
            _forget_other_settings(record, digest(job.settings))
        elif "weights" not in there:
            same_step = there.get("checkpoint_step") == model.step
            notes += _adopt(job, summary, record, model, same_step)
        of_model = {"workdir": str(model.workdir), "weights": model.weights}
        fields = {**job.settings, **of_model, "checkpoint_step": model.step}
        files.write_json(folder / RECORD, fields)
        todo = _todo(job, summary, record)
        notes += _set_edited_aside(folder, job.where, record, todo)
    return Plan(todo, _count_gone(job.items, summary, record), notes)


def digest(settings: Mapping[str, Any]) -> str:
    """Tells settings apart."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_names(folder: Path, items: Sequence[Item], where: Where) -> None:
    """Raise BadInput where the masks of two scans would be one file on this file
    system.
    """
    seen: dict[str, tuple[Item, str]] = {}
    for item in items:
        for path in where[item].values():
            name = path.relative_to(folder).as_posix()
            other, its = seen.setdefault(_alike(name), (item, name))
            if other is not item and _is_one_file(folder, name, its):
                raise BadInput(
                    f"{other.files[0]} and {item.files[0]} would have one file for their masks, "
                    f"{path}. Rename one of them, or give an --output on another file system."
                )


def _alike(name: str) -> str:
    """The same for names that some file system takes for one."""
    return files.composed(files.composed(name).casefold())


def _is_one_file(folder: Path, name: str, other: str) -> bool:
    with tempfile.TemporaryDirectory(prefix=".names_", dir=folder) as place:
        for one, two in zip(name.split("/"), other.split("/")):
            (Path(place) / one).touch()
            if not (Path(place) / two).exists():
                return False
    return True


def _read(folder: Path) -> dict[str, Any] | None:
    """The settings of what is in a folder; None where nothing can be read of them."""
    try:
        there = json.loads((folder / RECORD).read_text(errors="replace"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise BadInput(
            f"Cannot read {folder / RECORD}: {reason(error)}. "
            "Make it readable or give another --output."
        ) from error
    return there if isinstance(there, dict) else None


def _check(
    folder: Path, there: dict, settings: Mapping[str, Any], model: Model
) -> None:
    """Raise BadInput for masks of other settings, or of a model that is no earlier
    state of it.
    """
    earlier = "weights" not in there
    if earlier and there.get("config") != model.config:
        raise _of_other_settings(folder, "config", there.get("config"), model.config)
    gone = {
        name: value for name, value in earlier_versions.REMOVED.items() if name in there
    }
    for name, value in {**gone, **settings}.items():
        # An earlier version told these by the digest of the config alone.
        if earlier and name not in there:
            continue
        old = there.get(name, earlier_versions.ADDED.get(name))
        if old != value:
            raise _of_other_settings(folder, name, old, value)
    if earlier or there["weights"] == model.weights:
        return
    if there.get("workdir") != str(model.workdir):
        raise BadInput(
            f"{folder} holds masks of the model in {shown(there.get('workdir'), most=200)}, "
            f"and the one in {model.workdir} has other weights. Give another --output."
        )


def _of_other_settings(folder, name, old, new) -> BadInput:
    old, new = shown(repr(old)), shown(repr(new))
    return BadInput(
        f"{folder} holds masks of another run: {name} was {old} and is {new}. "
        "Give another --output."
    )


def _notes(summary: outputs.Summary) -> list[str]:
    if summary.replaced is None:
        return []
    return [
        f"{summary.path} held rows that are damaged or of another kind. "
        f"It is kept as {summary.replaced.name}, and scans without figures are done again."
    ]


def _forget_other_settings(record: made_from.Record, settings: str) -> None:
    """Where the settings of a folder are lost, a scan is done if its own line has
    these.
    """
    record.forget(
        [name for name, made in record.made.items() if made.settings != settings]
    )


def _adopt(job, summary, record, model, same_step) -> list[str]:
    """Take over masks of an earlier version that are newer than their scan and the
    model.

    It wrote down neither, so that nothing else can be found out. Gives a line that says
    how many.
    """
    trained = _newest(model.workdir / "checkpoints" / str(model.step))
    done = [
        item
        for item in job.items
        if item.name in summary.done and item.name not in record.made
    ]
    kept = 0
    for item in done:
        its = made_from.absolute(Path(summary.done[item.name]))
        if not same_step or its != made_from.absolute(item.files[0]):
            continue
        paths = list(job.where[item].values())
        if not all(path.exists() for path in paths):
            continue
        if job.where[item]["mask"].stat().st_mtime <= max(trained, _newest_input(item)):
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
        f"An earlier version wrote {job.folder} and did not record what each mask was made from. "
        f"{kept} masks newer than their scan and the model are kept, "
        f"{len(done) - kept} are made again."
    ]


def _newest(folder: Path) -> float:
    """When something in a folder last changed; endless where it cannot be told."""
    times = [_changed(path) for path in folder.rglob("*") if path.is_file()]
    return max(times, default=float("inf"))


def _newest_input(item: Item) -> float:
    # A slice that was taken away shows in the time of its folder.
    folders = {path.parent for path in item.files} if item.kind == "dicom" else set()
    times = [_changed(path) for path in item.files]
    return max([*times, *(folder.stat().st_mtime for folder in folders)])


def _changed(path: Path) -> float:
    """The time of the content or, where a file was moved or copied to its place, of
    that.
    """
    try:
        status = path.stat()
    except OSError:
        return float("inf")
    return max(status.st_mtime, status.st_ctime)


def _todo(job, summary, record) -> dict[str, str]:
    todo = {}
    for item in job.items:
        made, has_figures = record.made.get(item.name), item.name in summary.done
        if made is None:
            todo[item.name] = made_from.UNKNOWN if has_figures else ""
            continue
        why = made.again(item.files, dicom=item.kind == "dicom", weights=job.weights)
        why = why or made.damage(job.folder, job.where[item].values())
        if not why and not has_figures:
            why = made_from.NO_FIGURES
        if why:
            todo[item.name] = why
    return todo


def _set_edited_aside(folder, where, record, todo) -> list[str]:
    """Keep what somebody changed, perhaps by hand, from being overwritten."""
    aside = []
    for item, paths in where.items():
        made = record.made.get(item.name)
        if made is None or item.name not in todo:
            continue
        ours = set(paths.values())
        aside += [
            outputs.set_aside(path) for path in made.edited(folder) if path in ours
        ]
    if not aside:
        return []
    count = f"{len(aside)} output file{'s' * (len(aside) > 1)}"
    return [
        f"{count} in {folder} changed after being written. "
        f"What is there is kept under other names, such as {aside[0].name}, and made again."
    ]


def _count_gone(items, summary, record) -> int:
    """Scans of earlier runs that are not there any more; those of another --input are."""
    found = {item.name for item in items}
    there = {name: Path(file) for name, file in summary.done.items()}
    there |= {name: Path(made.inputs[0].path) for name, made in record.made.items()}
    return sum(not path.exists() for name, path in there.items() if name not in found)
