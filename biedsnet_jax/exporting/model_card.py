"""The model card of an export: what the model is, what it was trained on, how good it
is, what it is not for.

Every figure comes from the workdir; what is not there is called not measured. Sections
follow Mitchell et al. 2019, "Model cards for model reporting" (arXiv:1810.03993).
Imports no jax.
"""

import pathlib

from biedsnet_jax.runtime.markdown import escaped
from biedsnet_jax.scoring import false_lesions, results
from biedsnet_jax.scoring.false_lesions import number

_NONE = "not measured"
_METRICS = {
    "dice": "Dice", "iou": "IoU", "recall": "recall", "precision": "precision", "hd95": "HD95, pixels",
    "assd": "ASSD, pixels", "nsd": "NSD", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "nsd_mm": "NSD, mm",
}  # fmt: skip
# What results.json must share with export.json for its scores to be this program's.
_SAME = (
    "row",
    "network",
    "parameters",
    "dtype",
    "checkpoint_step",
    "threshold",
    "fusion",
    "sampler",
)
_USE = """\
For research: to study and compare methods, to measure on data with known truth, to draft outlines that an expert
corrects. **Not for diagnosis, triage or treatment.** It is no medical device, and was not tested as one."""
_CALL = """\
`pip install jax numpy flatbuffers`, then `python load.py SLICES.npy MASKS.npz`. `export.json` says what goes in and
what comes out; slices must have the size above. A jax older than the one of the export may refuse it, and so may one
that is half a year newer."""


def read_results(workdir: pathlib.Path) -> dict | None:
    """The fields of results.json, None where the workdir was never evaluated. Raises
    BadInput where it is damaged.
    """
    return results.load(workdir).fields if (workdir / "results.json").exists() else None


def card(about: dict, scores: dict | None) -> str:
    """Markdown; `about` is what export.json holds, `scores` what results.json does,
    None where there is none.
    """
    own = None if scores is None or differences(about, scores) else scores
    sections = {
        "Intended use": _USE,
        "Model": _list(_model(about)),
        "Data": _list(_data(about, scores)),
        "Scores": _scores(about, scores),
        "Limits": _list(_limits(about, own)),
        "How to run it": _CALL,
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    title = escaped(f"Model card: {about['row']}, trained on {about['data']['name']}")
    return f"# {title}\n\n{text}\n"


def differences(about: dict, scores: dict) -> list[str]:
    """In which settings the scores are not this program's."""
    pairs = {name: (scores.get(name), about[name]) for name in _SAME}
    return [
        f"{name} {_plain(there)} there, {_plain(here)} here"
        for name, (there, here) in pairs.items()
        if there != here
    ]


def _model(about) -> dict[str, str]:
    sampler, how = about["sampler"], "one pass, without samples and uncertainty"
    if sampler:
        how = f"diffusion ({sampler['method']}), steps {sampler['steps']}, samples {sampler['ensemble']}"
        how += f", fused by {about['fusion']}"
    return {
        "Network": f"{about['network']}, {about['parameters']:,} parameters, computes in {about['dtype']}",
        "Method": how,
        "Mask": f"where the probability exceeds {about['threshold']:g}",
        "Classes": f"{about['classes']}, of the label values {_plain(about['labels'])}",
        "Checkpoint": f"step {about['checkpoint_step']} of {about['train_steps']}, seed {about['seed']}",
    }


def _data(about, scores) -> dict[str, str]:
    data, channels = about["data"], f"{about['data']['channels']} channel"
    channels += (
        f"s, {data['context']} slices on each side among them"
        if data["context"]
        else ""
    )
    tested = _NONE
    if scores:
        cases, slices = (
            number(scores["n_cases"], "case"),
            number(scores["n_images"], "slice"),
        )
        tested = f"{cases}, {slices}: {', '.join(scores.get('cases', []))}"
    return {
        "Set": data["name"],
        "Slices": f"{data['size']}x{data['size']} pixels, {channels}",
        "Intensities": f"window {_plain(data['window']) or 'none'}, then {data['normalise']} in each slice",
        "Split": _split(about["split"]),
        "Tested on": tested,
        "Patients, scanners, sites": "not recorded in the workdir",
    }


def _split(split) -> str:
    if split["train"] or split["val"] or split["test"]:
        return "by case, as named in the config"
    if split["folds"]:
        return f"by case, fold {split['fold']} of {split['folds']} is tested, seed {split['seed']}"
    return f"by case, {_plain(split['fractions'])} train, validation, test, seed {split['seed']}"


def _scores(about, scores) -> str:
    if scores is None:
        return "Not measured: the workdir was never evaluated."
    caption = (
        f"Test split, at {about['data']['size']}x{about['data']['size']}; slices without truth count in no mean of "
        "these. The interval resamples the tested cases; it says nothing of other scanners or sites. NSD within "
        f"{scores['nsd_tolerance']:g} pixels, or {scores.get('nsd_tolerance_mm', 2.0):g} mm."
    )
    if other := differences(about, scores):
        caption = (
            f"**Measured with other settings, so this program's own scores are {_NONE}: "
            f"{escaped('; '.join(other))}.** {caption}"
        )
    rows = _rows(scores["standard"], "")
    for label, one in scores.get("classes", {}).items():
        rows += _rows({"dice": one["standard"]["dice"]}, f"class {label}, ")
    header = [
        "| | mean per image | 95 % by case | mean per case |",
        "|---|---|---|---|",
    ]
    device = escaped(scores.get("device", "a device not recorded"))
    speed = f"{scores['seconds_per_image']:.3g} s a slice on {device}."
    return f"{caption}\n\n" + "\n".join(header + rows) + f"\n\n{speed}"


def _rows(standard, prefix) -> list[str]:
    lines = []
    for name, title in _METRICS.items():
        if entry := standard.get(name):
            low, high = entry["ci95"]
            interval = "too few cases" if low is None else f"{low:.3f} to {high:.3f}"
            lines.append(
                f"| {prefix}{title} | {_number(entry['mean'])} | {interval} | {_number(entry['per_case_mean'])} |"
            )
    return lines


def _limits(about, scores) -> dict[str, str]:
    missed, without, lesions = _NONE, _NONE, _NONE
    if scores:
        masks = scores["n_images"] * about["classes"]
        false = len(scores["false_positive_slices"])
        missed = f"{scores['n_missed']} of {masks - scores['n_empty']} masks with truth were empty, and {false} of "
        missed += f"{scores['n_empty']} without truth were not"
        if "without_lesion" in scores:
            without = ". ".join(false_lesions.of_results(scores))
            without = without or "every slice of the test has a lesion"
        if count := scores.get("lesions"):
            lesions = f"{count['found']} of {count['true']} found, {count['false']} of {count['predicted']} made up"
    neighbours = "with its neighbours" if about["data"]["context"] else "alone"
    return {
        "Missed and made up": missed,
        "Where there is no lesion": without,
        "Lesion by lesion": lesions,
        "Other data than the tested cases": _NONE,
        "Differences between patients, scanners and sites": _NONE,
        "Whether the probability and the uncertainty are calibrated": _NONE,
        "What it sees": f"one slice {neighbours}, at the size above; details that the resizing loses are lost",
    }


def _list(fields: dict[str, str]) -> str:
    return "\n".join(f"- **{name}**: {escaped(text)}" for name, text in fields.items())


def _number(value) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _plain(value) -> str:
    """A value of JSON in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
