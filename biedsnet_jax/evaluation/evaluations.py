"""Finds the folder of an evaluation: the workdir for the run's own, else
`evaluations/NAME/` in it.

An evaluation is the run's own where data, cases and each setting that a score depends
on are those of the run. NAME is made of what differs. The workdir's `results.json` has
an index of the other evaluations.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint_folder
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.runtime import files
from biedsnet_jax.scoring.results import EVALUATIONS, entry

LOCK = ".evaluate.lock"
RESULTS = "results.json"
# Field of `differs` for the workdirs of an ensemble.
MEMBERS = "members"
# Settings that every score depends on; how samples are drawn and fused comes on top.
_SETTINGS = (
    "threshold",
    "postprocess",
    "eval.nsd_tolerance",
    "eval.nsd_tolerance_mm",
    "eval.lesions",
    "data.ignore",
    "data.unannotated",
)
_OF_LESIONS = "eval.lesion_overlap"
# These fields of the sampler come first in a name.
_FIRST = ("method", "steps", "ensemble")
# File systems take names of 255 bytes; a number may follow.
_LONGEST = 100


def differences(
    saved: ConfigDict, cfg: ConfigDict, *, pooled: bool = False
) -> dict[str, list]:
    """Compares the settings that a score depends on.

    `pooled` says that the samples of several models are fused. Returns field -> [value
    in `saved`, value in `cfg`] where the two differ.
    """
    there = _settings(saved, pooled)
    here = _settings(cfg, pooled)
    found = {}
    # `here` decides the order of the fields.
    for name in here | there:
        before = there.get(name)
        now = here.get(name)
        if before != now:
            found[name] = [before, now]
    return found


def _settings(cfg, pooled) -> dict[str, Any]:
    draws = build_model.draws_samples(cfg)
    found = {}
    if draws:
        sampling = dict(cfg.sampler)
        names = [*_FIRST, *(name for name in sampling if name not in _FIRST)]
        found |= {f"sampler.{name}": sampling[name] for name in names}
    found["sampler.mirror"] = cfg.sampler.mirror
    if draws or pooled:
        found["fusion"] = cfg.fusion
    names = [*_SETTINGS, _OF_LESIONS] if cfg.eval.lesions else _SETTINGS
    return found | {name: get_field(cfg, name) for name in names}


def config_of_run(cfg: ConfigDict, workdir: Path) -> ConfigDict:
    """The config to save in a workdir whose run goes on with `cfg`.

    A run that has trained and tested to its end keeps the settings that its scores were
    made with.
    """
    done = cfg.train.steps in checkpoint_folder.steps(workdir / "checkpoints")
    if (
        not done
        or not (workdir / RESULTS).exists()
        or not (workdir / "config.json").exists()
    ):
        return cfg
    saved = run_config.load(workdir)
    kept = cfg.copy_and_resolve_references()
    settings = {f"sampler.{name}": value for name, value in saved.sampler.items()}
    for name in ("fusion", *_SETTINGS, _OF_LESIONS):
        settings[name] = get_field(saved, name)
    kept.update_from_flattened_dict(settings)
    return kept


def place(
    workdir: Path, differs: Mapping[str, list], fingerprint: str | None = None
) -> Path:
    """The folder of an evaluation that `differs` from the run's own; without
    differences the workdir.

    The same evaluation gets the same folder again, also where its data have another
    name or place and the same `fingerprint`. Another one of the same name gets a number.
    """
    if not differs:
        return workdir
    name = folder_name(differs)
    numbers = itertools.count(2)
    folder = workdir / EVALUATIONS / name
    while os.path.lexists(folder) and not _is_same(folder, differs):
        folder = workdir / EVALUATIONS / f"{name}_{next(numbers)}"
    if (folder / RESULTS).exists():
        return folder
    return _of_same_files(workdir, differs, fingerprint) or folder


def _of_same_files(workdir, differs, fingerprint) -> Path | None:
    """The folder of an evaluation of the same files from another place, if there is one."""
    if fingerprint is None or "data.root" not in differs:
        return None
    for path in sorted((workdir / EVALUATIONS).glob(f"*/{RESULTS}")):
        before = _read(path) or {}
        if before.get("fingerprint") != fingerprint:
            continue
        there = before.get("differs")
        if isinstance(there, dict) and _settings_of(there) == _settings_of(differs):
            return path.parent
    return None


def _settings_of(differs):
    """What `differs` has beside the data and the cases, here."""
    settings = {
        name: pair[-1]
        for name, pair in differs.items()
        if name not in ("data.root", "split.test")
    }
    # By way of JSON, so that both have lists.
    return json.loads(json.dumps(settings))


def root_of(folder: Path) -> str | None:
    """The data that an evaluation in `folder` scored; None where there is none yet."""
    before = _read(folder / RESULTS)
    return before.get("data") if before else None


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint of the cases scored in `folder`; None where it is not known."""
    before = _read(folder / RESULTS)
    return before.get("fingerprint") if before else None


def folder_name(differs: Mapping[str, list]) -> str:
    """Names what differs in a way any file system takes: "theirs,sampler.steps=20"."""
    parts = []
    for field, (_, here) in differs.items():
        if field == "data.root":
            parts.append(os.path.basename(here))
        elif field == MEMBERS:
            parts.append(f"ensemble_{'+'.join(map(os.path.basename, here))}")
        else:
            parts.append(f"{field}={_plain(here)}")
    # macOS decomposes accents in names; the same words must give the same name.
    text = files.composed(",".join(parts))
    name = re.sub(r"[^\w.=,+-]+", "_", text).strip("._-") or "data"
    if len(name.encode()) <= _LONGEST:
        return name
    short = name.encode()[: _LONGEST - 20].decode(errors="ignore")
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{short}_{digest[:8]}"


def _plain(value):
    if isinstance(value, list | tuple):
        return "all" if list(value) == ["*"] else "+".join(map(str, value))
    return str(value)


def _is_same(folder, differs):
    """Whether a folder has the same evaluation, or none yet."""
    # A folder without results is of an evaluation that was interrupted.
    if not (folder / RESULTS).exists():
        return folder.is_dir()
    before = _read(folder / RESULTS)
    if before is None or not isinstance(before.get("differs"), dict):
        return False
    asked = {name: here for name, (_, here) in differs.items()}
    there = {name: pair[-1] for name, pair in before["differs"].items()}
    return there == json.loads(json.dumps(asked))


def folder_of(workdir: Path, results: Mapping[str, Any]) -> Path:
    """The folder into which an evaluation with these results went."""
    name = results.get("evaluation")
    return workdir / EVALUATIONS / name if name else workdir


def index(workdir: Path) -> dict[str, dict]:
    """Lists the evaluations that are not the run's own, by name; see `results.entry`."""
    found = {}
    for path in sorted((workdir / EVALUATIONS).glob(f"*/{RESULTS}")):
        try:
            found[path.parent.name] = entry(_read(path))
        except (AttributeError, KeyError, TypeError):
            continue
    return found


def update_index(workdir: Path) -> bool:
    """Brings the index in a workdir's results.json up to date and nothing else of it.

    Returns whether there is such a file. Raises OSError where it cannot be written.
    """
    path = workdir / RESULTS
    results = _read(path)
    if results is None:
        return False
    status = path.stat()
    files.write_json(path, results | {EVALUATIONS: index(workdir)})
    # The report takes the time of the file for that of the evaluation.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return True


def _read(path):
    """The fields of a results.json; None where it is missing or damaged."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
