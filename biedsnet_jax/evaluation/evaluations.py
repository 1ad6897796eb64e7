"""Where an evaluation goes: the run's own into its workdir, any other into
`evaluations/NAME/`.

It is the run's own where data, cases and each setting that a score depends on are those
of the run. NAME is made of what differs. `results.json` of the workdir has an index of
the others.
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
from biedsnet_jax.scoring.results import EVALUATIONS

LOCK = ".evaluate.lock"
RESULTS = "results.json"
# What a score depends on beside weights, data and, of diffusion, how samples are drawn
# and fused.
_SETTINGS = ("threshold", "eval.nsd_tolerance", "eval.nsd_tolerance_mm", "eval.lesions")
_OF_LESIONS = "eval.lesion_overlap"
# of the sampler's fields, in a name
_FIRST = ("method", "steps", "ensemble")
# bytes of a name
_LONGEST = 100


def differences(saved: ConfigDict, cfg: ConfigDict) -> dict[str, list]:
    """Field -> [value in `saved`, value in `cfg`] of the settings by which their scores
    differ.
    """
    there, here = _settings(saved), _settings(cfg)
    names = [*here, *(name for name in there if name not in here)]
    pairs = {name: [there.get(name), here.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _settings(cfg) -> dict[str, Any]:
    found = {}
    if build_model.draws_samples(cfg):
        sampling = dict(cfg.sampler)
        names = [*_FIRST, *(name for name in sampling if name not in _FIRST)]
        found |= {f"sampler.{name}": sampling[name] for name in names}
        found["fusion"] = cfg.fusion
    names = [*_SETTINGS, _OF_LESIONS] if cfg.eval.lesions else _SETTINGS
    return found | {name: get_field(cfg, name) for name in names}


def config_of_run(cfg: ConfigDict, workdir: Path) -> ConfigDict:
    """The config to keep in a workdir whose run goes on with `cfg`.

    One that has trained and tested to its end keeps the settings that its scores were
    made with.
    """
    done = cfg.train.steps in checkpoint_folder.steps(workdir / "checkpoints")
    if (
        not done
        or not (workdir / RESULTS).exists()
        or not (workdir / "config.json").exists()
    ):
        return cfg
    saved, kept = run_config.load(workdir), cfg.copy_and_resolve_references()
    settings = {f"sampler.{name}": value for name, value in saved.sampler.items()}
    for name in ("fusion", *_SETTINGS, _OF_LESIONS):
        settings[name] = get_field(saved, name)
    kept.update_from_flattened_dict(settings)
    return kept


def place(workdir: Path, differs: Mapping[str, list]) -> Path:
    """The folder of an evaluation that differs in this from the run's own, else the
    workdir.

    The same evaluation again has the same folder, another one of the same name gets a
    number.
    """
    if not differs:
        return workdir
    name = folder_name(differs)
    for number in itertools.count(1):
        folder = workdir / EVALUATIONS / (name if number == 1 else f"{name}_{number}")
        if not os.path.lexists(folder) or _is_same(folder, differs):
            return folder
    raise AssertionError("unreachable")


def folder_name(differs: Mapping[str, list]) -> str:
    """What differs, in a name that any file system takes: "theirs,sampler.steps=20"."""
    parts = []
    for field, (_, here) in differs.items():
        if field == "data.root":
            parts.append(os.path.basename(here))
        else:
            parts.append(f"{field}={_plain(here)}")
    text = files.composed(",".join(parts))
    name = re.sub(r"[^\w.=,+-]+", "_", text).strip("._-") or "data"
    if len(name.encode()) <= _LONGEST:
        return name
    short = name.encode()[: _LONGEST - 20].decode(errors="ignore")
    return f"{short}_{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _plain(value):
    if isinstance(value, list | tuple):
        return "all" if list(value) == ["*"] else "+".join(map(str, value))
    return str(value)


def _is_same(folder, differs):
    """Whether a folder has, or was begun for, the same evaluation."""
    if not (folder / RESULTS).exists():
        return folder.is_dir()
    before = _read(folder / RESULTS)
    if before is None or not isinstance(before.get("differs"), dict):
        return False
    asked = {name: here for name, (_, here) in differs.items()}
    there = {name: pair[-1] for name, pair in before["differs"].items()}
    return there == json.loads(json.dumps(asked))


def folder_of(workdir: Path, results: Mapping[str, Any]) -> Path:
    """Where the evaluation went that has these results."""
    name = results.get("evaluation")
    return workdir / EVALUATIONS / name if name else workdir


def index(workdir: Path) -> dict[str, dict]:
    """Name -> data, number of cases and mean Dice of the evaluations that are not the
    run's own.
    """
    found = {}
    for path in sorted((workdir / EVALUATIONS).glob(f"*/{RESULTS}")):
        results = _read(path)
        try:
            dice = results["standard"]["dice"]["mean"]
            entry = {
                "data": results["data"],
                "cases": len(results["cases"]),
                "dice": dice,
            }
        except (KeyError, TypeError):
            continue
        found[path.parent.name] = entry
    return found


def update_index(workdir: Path) -> None:
    """Bring the index in a workdir's results.json up to date, which changes nothing
    else of it.

    Raises OSError where it cannot be written.
    """
    path = workdir / RESULTS
    results = _read(path)
    if results is None:
        return
    status = path.stat()
    files.write_json(path, results | {EVALUATIONS: index(workdir)})
    # The report takes it for the time of the evaluation.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _read(path):
    """The fields of a results.json; None where it is not there or damaged."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
