"""Makes the tables of what was run: data, split by case, versions, device, time, config.

Imports no jax.
"""

import datetime
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Sequence

from biedsnet_jax.reporting import learning, published, record, svg
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.reporting.table import Table
from biedsnet_jax.scoring import postprocess_text, results

_NOT_RECORDED = "not recorded"
# Names of a split that are shown.
_MOST_CASES = 200


def evaluated(runs: Sequence[results.Run]) -> list[Evaluated]:
    """Joins the runs with what was recorded beside their scores.

    Each row has a colour, and each run a name of its own.
    """
    # Seeds and folds of a row share its colour.
    rows = list(dict.fromkeys(run.fields["row"] for run in runs))
    found = []
    for run, name in zip(runs, _names(runs)):
        data = record.load(run.workdir, run.scores["dice"])
        missing = ""
        if isinstance(data, str):
            missing = data
            data = None
        colour = rows.index(run.fields["row"]) % svg.COLOURS
        found.append(Evaluated(name, colour, run, data, missing))
    return found


def facts_table(shown: Sequence[Evaluated]) -> Table:
    """Lists what was run, one column a run."""
    columns = [_facts(one) for one in shown]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    caption = "Times are UTC. Splits are by case: no case is on two sides."
    return Table("Runs", caption, ["", *(one.name for one in shown)], rows)


def cases_table(shown: Sequence[Evaluated]) -> Table:
    """Lists the cases of each split and their number of slices."""
    rows = []
    for one in shown:
        splits = one.data.facts["splits"] if one.data else {"test": _counts(one.run)}
        for split, cases in splits.items():
            names = [f"{case} ({count})" for case, count in cases.items()]
            if len(names) > _MOST_CASES:
                names[_MOST_CASES:] = [f"and {len(names) - _MOST_CASES} more"]
            rows.append([one.name, split, ", ".join(names)])
    caption = "Slices of each case in brackets."
    return Table("Split by case", caption, ["", "Split", "Cases"], rows)


def evaluations_table(shown: Sequence[Evaluated]) -> Table | None:
    """Sets the other evaluations of each workdir beside its own; None where none has."""
    rows = []
    for one in shown:
        others = one.run.fields.get(results.EVALUATIONS) or {}
        if not isinstance(others, dict):
            continue
        if others:
            own = "the run's own" if len(shown) == 1 else f"{one.name}, its own"
            rows.append(_evaluation_row(own, _own_entry(one.run.fields)))
        for name, entry in others.items():
            rows.append(_evaluation_row(name, entry))
    if not rows:
        return None
    caption = (
        "Exact measures, per slice, with the 95 % interval by case. What differs from the "
        "run's own test names an evaluation: its data or its settings. The last column "
        "counts cases that the model was trained or validated on."
    )
    header = ["Evaluation", "Data", "Cases", "Dice", "95 % interval", "HD95, pixels"]
    header += ["Scored on", "Seen in training"]
    return Table("All evaluations", caption, header, rows, "standard")


def _own_entry(fields):
    """What the index of the evaluations would say of the run's own.

    Earlier versions kept the number of cases alone, and no folder.
    """
    data = fields.get("data") or fields["dataset"]
    cases = fields.get("cases") or ()
    entry = results.entry({**fields, "data": data, "cases": cases})
    if not cases:
        entry["cases"] = fields.get("n_cases")
    return entry


def _evaluation_row(name, entry):
    low, high = entry.get("ci95") or (None, None)
    return [
        name,
        str(entry.get("data") or _NOT_RECORDED),
        _or_unknown(entry.get("cases")),
        _or_undefined(entry.get("dice"), 4),
        "undefined" if low is None else f"{low:.4f} to {high:.4f}",
        _or_undefined(entry.get("hd95"), 2),
        results.grid(entry) if "grid" in entry else _NOT_RECORDED,
        _or_unknown(entry.get("trained_on")),
    ]


def _or_undefined(value, digits):
    return "undefined" if value is None else f"{value:.{digits}f}"


def _or_unknown(value):
    return _NOT_RECORDED if value is None else str(value)


def config_table(shown: Sequence[Evaluated]) -> Table:
    """Lists every field of each run's config.json; a run without one has none."""
    configs = [_flat(_read_config(one.run.workdir)) for one in shown]
    names = list(dict.fromkeys(itertools.chain(*configs)))
    rows = [[name, *(config.get(name, "") for config in configs)] for name in names]
    header = ["Field", *(one.name for one in shown)]
    return Table("Config", "As trained with, config.json.", header, rows)


def _names(runs):
    """The names of the rows, with as much more as it takes until no two are alike."""
    more = (
        lambda run: run.fields["dataset"],
        lambda run: f"seed {run.fields['seed']}",
        lambda run: f"fold {run.fields.get('fold')}",
        lambda run: str(run.workdir),
    )
    names = [published.LABELS.get(run.fields["row"], run.fields["row"]) for run in runs]
    for part in more:
        if len(set(names)) == len(names):
            break
        parts = [part(run) for run in runs]
        if len(set(parts)) > 1:
            names = [f"{name}, {part}" for name, part in zip(names, parts)]
    return names


def _facts(one):
    fields = one.run.fields
    lines = learning.read_metrics(one.run.workdir)
    times = [line["time"] for line in lines if "time" in line]
    logged = f"{_utc(times[0])} to {_utc(times[-1])}" if times else _NOT_RECORDED
    sides = f"{len(_counts(one.run))} in test"
    versions = _NOT_RECORDED
    if one.data:
        splits = one.data.facts["splits"].values()
        sides = ", ".join(str(len(cases)) for cases in splits)
        versions = _joined(one.data.facts["versions"]) or _NOT_RECORDED

    def field(name):
        return fields.get(name, "?")

    seconds = f"{fields['seconds_per_image']:.3g} s an image"
    return {
        "Workdir": str(one.run.workdir),
        "Network": f"{fields['network']}, {fields['parameters']:,} parameters",
        "Data set": f"{fields['dataset']}, {field('size')} pixels a side",
        "Classes": _listed(fields.get("class_names")),
        "Evaluation": _difference(fields),
        "Scored on": results.grid(fields),
        "Cases in train, val, test": sides,
        "Test slices": f"{fields['n_images']}, masks without truth {fields['n_empty']}",
        "Trained": f"{field('train_steps')} steps of {field('batch_size')} images",
        "First to last log line": logged,
        "Evaluated": _utc((one.run.workdir / "results.json").stat().st_mtime),
        "Checkpoint": f"{_steps(fields)}, the best by validation Dice",
        "Sampling": _sampling(fields),
        "Fusion, threshold": f"{fields.get('fusion') or 'none'}, {field('threshold')}",
        "Post-processing": postprocess_text.sentence(fields.get("postprocess")),
        "Seed, dtype": f"{fields['seed']}, {field('dtype')}",
        "Device of the evaluation": f"{field('device')}, {seconds}",
        "Versions": versions,
    }


def _steps(fields):
    members = fields.get("members")
    if not members:
        return f"step {fields.get('checkpoint_step', '?')}"
    return ", ".join(f"step {one['step']} of {one['workdir']}" for one in members)


def _sampling(fields):
    sampling = _joined(fields.get("sampler") or {}) or "one pass"
    mirror = fields.get("mirror")
    return f"{sampling}, mirrored {mirror}" if mirror else sampling


def _listed(names):
    numbered = enumerate(names or (), start=1)
    return ", ".join(f"{k} {name}" for k, name in numbered) or "not named"


def _joined(values):
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _difference(fields):
    """Says what an evaluation was of, where it is not of the run's own test."""
    parts = []
    for name, (run, here) in (fields.get("differs") or {}).items():
        parts.append(f"{name} {json.dumps(here)}, of the run {json.dumps(run)}")
    if trained_on := fields.get("trained_on"):
        cases = itertools.islice(trained_on.items(), _MOST_CASES)
        names = ", ".join(f"{case} ({side})" for case, side in cases)
        count = len(trained_on)
        parts.append(f"trained or validated on {count} of the cases: {names}")
    return "; ".join(parts) or "the run's own"


def _counts(run):
    """Counts the slices of each tested case."""
    slices = dict.fromkeys((case, number) for case, number, _ in run.images)
    return Counter(case for case, _ in slices)


def _utc(seconds):
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _read_config(workdir: pathlib.Path):
    try:
        value = json.loads((workdir / "config.json").read_text(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(value, prefix=""):
    """Maps the dotted names of the fields to their values as JSON."""
    found = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(item)
    return found
