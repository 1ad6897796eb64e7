"""What was run, as tables: data, split by case, versions, device, time, config. Imports
no jax.
"""

import datetime
import itertools
import json
import pathlib
from collections.abc import Sequence

from biedsnet_jax.reporting import learning, published, record, svg
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.reporting.table import Table
from biedsnet_jax.scoring import results

_NOT_RECORDED = "not recorded"
# names of a split
_MOST_CASES = 200


def evaluated(runs: Sequence[results.Run]) -> list[Evaluated]:
    """The runs with what was recorded beside their scores; a colour a row, and names
    that tell them apart.
    """
    rows = list(dict.fromkeys(run.fields["row"] for run in runs))
    found = []
    for run, name in zip(runs, _names(runs)):
        data = record.load(run.workdir, run.scores["dice"])
        known = not isinstance(data, str)
        colour = rows.index(run.fields["row"]) % svg.COLOURS
        found.append(
            Evaluated(name, colour, run, data if known else None, "" if known else data)
        )
    return found


def facts_table(shown: Sequence[Evaluated]) -> Table:
    """One column a run."""
    columns = [_facts(one) for one in shown]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    caption = "Times are UTC. Splits are by case: no case is on two sides."
    return Table("Runs", caption, ["", *(one.name for one in shown)], rows)


def cases_table(shown: Sequence[Evaluated]) -> Table:
    """The cases of each split and their number of slices."""
    rows = []
    for one in shown:
        splits = one.data.facts["splits"] if one.data else {"test": _counts(one.run)}
        for split, cases in splits.items():
            names = [
                f"{case} ({count})"
                for case, count in itertools.islice(cases.items(), _MOST_CASES)
            ]
            more = (
                [f"and {len(cases) - _MOST_CASES} more"]
                if len(cases) > _MOST_CASES
                else []
            )
            rows.append([one.name, split, ", ".join(names + more)])
    return Table(
        "Split by case",
        "Slices of each case in brackets.",
        ["", "Split", "Cases"],
        rows,
    )


def config_table(shown: Sequence[Evaluated]) -> Table:
    """Every field of each run's config.json; a run without one has none."""
    configs = [_flat(_read_config(one.run.workdir)) for one in shown]
    names = list(dict.fromkeys(itertools.chain(*configs)))
    rows = [[name, *(config.get(name, "") for config in configs)] for name in names]
    return Table(
        "Config",
        "As trained with, config.json.",
        ["Field", *(one.name for one in shown)],
        rows,
    )


def _names(runs):
    """The row's name, with as much more as it takes until no two are alike."""
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
            names = [f"{name}, {said}" for name, said in zip(names, parts)]
    return names


def _facts(one):
    fields = one.run.fields
    versions = one.data.facts["versions"] if one.data else {}
    times = [
        line["time"]
        for line in learning.read_metrics(one.run.workdir)
        if "time" in line
    ]
    sampler = fields.get("sampler") or {}
    split = (
        {name: len(cases) for name, cases in one.data.facts["splits"].items()}
        if one.data
        else {}
    )
    return {
        "Workdir": str(one.run.workdir),
        "Network": f"{fields['network']}, {fields['parameters']:,} parameters",
        "Data set": f"{fields['dataset']}, {fields.get('size', '?')} pixels a side",
        "Evaluation": _difference(fields),
        "Cases in train, val, test": ", ".join(map(str, split.values()))
        or f"{len(_counts(one.run))} in test",
        "Test slices": f"{fields['n_images']}, masks without truth {fields['n_empty']}",
        "Trained": f"{fields.get('train_steps', '?')} steps of {fields.get('batch_size', '?')} images",
        "First to last log line": f"{_utc(times[0])} to {_utc(times[-1])}"
        if times
        else _NOT_RECORDED,
        "Evaluated": _utc((one.run.workdir / "results.json").stat().st_mtime),
        "Checkpoint": f"step {fields.get('checkpoint_step', '?')}, the best by validation Dice",
        "Sampling": ", ".join(f"{name} {value}" for name, value in sampler.items())
        or "one pass",
        "Fusion, threshold": f"{fields.get('fusion') or 'none'}, {fields.get('threshold', '?')}",
        "Seed, dtype": f"{fields['seed']}, {fields.get('dtype', '?')}",
        "Device of the evaluation": f"{fields.get('device', '?')}, {fields['seconds_per_image']:.3g} s an image",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        or _NOT_RECORDED,
    }


def _difference(fields):
    """What an evaluation was of, where it is not of the run's own test."""
    said = []
    for name, (run, here) in (fields.get("differs") or {}).items():
        said.append(f"{name} {json.dumps(here)}, of the run {json.dumps(run)}")
    if trained_on := fields.get("trained_on"):
        names = ", ".join(
            f"{case} ({side})"
            for case, side in itertools.islice(trained_on.items(), _MOST_CASES)
        )
        said.append(f"trained or validated on {len(trained_on)} of the cases: {names}")
    return "; ".join(said) or "the run's own"


def _counts(run):
    """Slices of each tested case."""
    counts = {}
    for case, _ in dict.fromkeys((case, number) for case, number, _ in run.images):
        counts[case] = counts.get(case, 0) + 1
    return counts


def _utc(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime(
        "%Y-%m-%d %H:%M:%S"
    )


def _read_config(workdir: pathlib.Path):
    try:
        value = json.loads((workdir / "config.json").read_text(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(value, prefix=""):
    """Dotted names of the fields, and their values as JSON."""
    found = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(item)
    return found
