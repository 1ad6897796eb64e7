"""Mode info: what a workdir holds, and how to go on with it. Imports no jax."""

import json
import pathlib
import shlex
from typing import Any

from biedsnet_jax.checkpoints import checkpoint_folder
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.reporting import record
from biedsnet_jax.runtime import files
from biedsnet_jax.scoring import results

# Scores that are shown, by their keys in results.json.
SCORES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95"}
# Networks that draw masks out of noise, as `networks` has them, which needs jax.
DENOISERS = ("biedsnet", "medsegdiff")


def run(workdir: str, *, as_json: bool) -> None:
    """Prints what a workdir holds, as lines or as JSON.

    Raises BadInput where it is no run, or one of its files is damaged.
    """
    facts = describe(pathlib.Path(files.expanded(workdir)))
    if as_json:
        print(json.dumps(facts, indent=2, allow_nan=False))
        return
    # At once, so that a pipe may end after a line of it.
    print("\n".join(f"{name:<12}{text}" for name, text in _lines(facts)))


def describe(workdir: pathlib.Path) -> dict[str, Any]:
    """What a workdir holds, as values of JSON.

    "step" is the latest checkpoint and "scores" are of the test, both None where there
    are none yet. "versions" are of the libraries at the test. "next" are commands.
    """
    config = _read_config(workdir)
    step, best = _steps(workdir)
    tested = None
    if (workdir / "results.json").exists():
        tested = results.load(workdir)
    return {
        "workdir": str(workdir),
        "network": _field(config, "network"),
        "row": _field(config, "row") or _field(config, "network"),
        "data": _field(config, "data.name") or _field(config, "data.source"),
        "size": _field(config, "data.size"),
        "classes": _field(config, "data.classes"),
        "class_names": _field(config, "data.class_names") or [],
        "seed": _field(config, "seed"),
        "step": step,
        "best_step": best,
        "steps": _field(config, "train.steps"),
        "sampler": _sampler(config, tested),
        "scores": _scores(tested) if tested else None,
        "tested": _tested(tested) if tested else None,
        "versions": _versions(tested) if tested else {},
        "next": _next(workdir, step, _field(config, "train.steps"), tested),
    }


def _read_config(workdir):
    path = workdir / "config.json"
    try:
        config = json.loads(path.read_text(errors="replace"))
    except OSError:
        raise BadInput(
            f"--workdir is {shown(workdir, most=300)}, which has no config.json, so it is "
            "no run. Give the folder of a run."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, reason(error)) from None
    if not isinstance(_field(config, "network"), str):
        raise _damaged(path, "it names no network")
    return config


def _damaged(path, what):
    return BadInput(
        f"{shown(path, most=300)} is damaged: {what}. Restore it from a copy, or give "
        "another --workdir."
    )


def _field(config, name):
    """Value at a dotted name; None where there is none."""
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return None
        config = config[part]
    return config


def _steps(workdir):
    """Steps of the latest and of the best checkpoint; None where there are none."""
    folder = workdir / "checkpoints"
    there = checkpoint_folder.steps(folder)
    if not there:
        return None, None
    try:
        return max(there), checkpoint_folder.best_step(folder, there)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(folder, reason(error)) from None


def _sampler(config, tested):
    """How masks are drawn: at the test, else by the config; None in one pass."""
    if tested:
        return tested.fields.get("sampler")
    draws = _field(config, "network") in DENOISERS
    if not draws or _field(config, "method") == "direct":
        return None
    return _field(config, "sampler")


def _scores(tested):
    """Mean over the slices and its interval by case, of each score."""
    standard = tested.fields["standard"]
    return {
        name: {"mean": standard[name]["mean"], "ci95": standard[name].get("ci95")}
        for name in SCORES
        if name in standard
    }


def _tested(tested):
    names = ("dataset", "split", "n_images", "n_cases", "checkpoint_step", "threshold")
    found = {name: tested.fields.get(name) for name in names}
    return found | {"grid": results.grid(tested.fields)}


def _versions(tested):
    """Versions of Python and libraries that the test recorded; none from earlier ones."""
    found = record.load(tested.workdir, tested.scores["dice"])
    # Else it is text, which says why there is none.
    return found.facts["versions"] if isinstance(found, record.ReportData) else {}


def _next(workdir, step, steps, tested):
    """Commands that go on with a workdir, by what they do."""
    where = f"--workdir={shlex.quote(str(workdir))}"
    if step is None:
        return {"train": f"biedsnet train {where}"}
    commands = {}
    if isinstance(steps, int) and step < steps:
        commands["train on"] = f"biedsnet train {where}"
    if tested is None:
        commands["score"] = f"biedsnet evaluate {where}"
    else:
        commands["report"] = f"biedsnet report {where}"
    commands["predict"] = f"biedsnet predict {where} --input=FILE_OR_DIR --output=DIR"
    return commands


def _lines(facts):
    """Yields (name, text) of each line."""
    yield "workdir", facts["workdir"]
    yield "network", f"{facts['network']}, row {facts['row']}, seed {facts['seed']}"
    size = f"{facts['size']} pixels a side, classes {facts['classes']}"
    if names := ", ".join(facts["class_names"]):
        size += f" ({names})"
    yield "data", f"{facts['data']}, {size}"
    if facts["step"] is None:
        yield "step", f"no checkpoint yet, of {facts['steps']} steps"
    else:
        of = f"{facts['step']} of {facts['steps']}"
        yield "step", f"{of}, the best by validation at {facts['best_step']}"
    if facts["scores"] is None:
        yield "scores", "not tested yet"
    else:
        yield from _score_lines(facts)
    yield "sampler", _joined(facts["sampler"] or {}) or "one pass"
    if facts["versions"]:
        yield "versions", _joined(facts["versions"])
    yield from facts["next"].items()


def _score_lines(facts):
    for name, score in facts["scores"].items():
        yield SCORES[name], _score(score)
    tested = facts["tested"]
    yield (
        "tested",
        (
            f"split {tested['split']}, slices {tested['n_images']}, cases "
            f"{tested['n_cases']}, step {tested['checkpoint_step']}, on {tested['grid']}"
        ),
    )


def _score(score):
    if score["mean"] is None:
        return "undefined"
    interval = score["ci95"]
    if not interval or None in interval:
        return f"{score['mean']:.3f}"
    return f"{score['mean']:.3f} (95 % by case {interval[0]:.3f} to {interval[1]:.3f})"


def _joined(fields):
    return ", ".join(f"{name} {value}" for name, value in fields.items())
