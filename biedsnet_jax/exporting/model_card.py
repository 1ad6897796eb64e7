"""The model card of an export: what the model is, its data, its scores, its limits.

Every figure comes from the workdir; what is not there is called not measured. Sections
follow Mitchell et al. 2019, "Model cards for model reporting" (arXiv:1810.03993).
Imports no jax.
"""

import pathlib
from collections.abc import Sequence

from biedsnet_jax.runtime.markdown import escaped
from biedsnet_jax.scoring import false_lesions, postprocess_text, results
from biedsnet_jax.scoring.class_names import titled
from biedsnet_jax.scoring.false_lesions import number

_NONE = "not measured"
_METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "recall": "recall",
    "precision": "precision",
    "hd95": "HD95, pixels",
    "assd": "ASSD, pixels",
    "nsd": "NSD",
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
    "nsd_mm": "NSD, mm",
}
# Fields that results.json must share with export.json for its scores to be this program's.
SHARED = (
    "row",
    "network",
    "parameters",
    "dtype",
    "checkpoint_step",
    "threshold",
    "postprocess",
    "fusion",
    "sampler",
    "mirror",
)
_USE = """\
For research: to study and compare methods, to measure on data with known truth, to draft
outlines that an expert corrects. **Not for diagnosis, triage or treatment.** It is no medical
device, and was not tested as one."""
_CALL = """\
`pip install jax numpy flatbuffers`, then `python load.py SLICES.npy MASKS.npz`. `export.json`
describes inputs and outputs; slices must have the size above. A jax older than the one of the
export may refuse it, and so may one that is half a year newer."""


def read_results(workdir: pathlib.Path) -> dict | None:
    """Fields of results.json; None where the workdir was never evaluated.

    Raises BadInput where it is damaged.
    """
    if not (workdir / "results.json").exists():
        return None
    return results.load(workdir).fields


def read_results_of(workdir: pathlib.Path, weights: Sequence[str]) -> dict | None:
    """Fields of the results of an ensemble, which its first `workdir` keeps.

    `weights` are the digests of its models. Of several evaluations it is the one that
    differs least from the workdir's own; None where there is none. Raises BadInput where
    one is damaged.
    """
    paths = sorted((workdir / results.EVALUATIONS).glob("*/results.json"))
    found = [results.load(path.parent).fields for path in paths]
    of_these = [
        fields
        for fields in found
        if [member["weights"] for member in fields.get("members", ())] == list(weights)
    ]
    return min(of_these, key=lambda fields: len(fields["differs"]), default=None)


def card(about: dict, scores: dict | None) -> str:
    """Model card as Markdown, from the fields of export.json and results.json.

    `scores` is None where there is no results.json.
    """
    # Scores of other settings are shown, but say nothing of this program's limits.
    own = scores
    if scores and differences(about, scores):
        own = None
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
    """Settings of the scores that are not this program's, in words."""
    found = []
    for name in SHARED:
        there, here = scores.get(name), about.get(name)
        if there == here:
            continue
        words = postprocess_text.sentence if name == "postprocess" else _plain
        found.append(f"{name} {words(there)} there, {words(here)} here")
    return found


def _model(about):
    sampler = about["sampler"]
    method = "one pass, without samples and uncertainty"
    if sampler:
        method = (
            f"diffusion ({sampler['method']}), steps {sampler['steps']}, samples "
            f"{sampler['ensemble']}, fused by {about['fusion']}"
        )
    if "mirror" in about:
        method += f"; mirrored passes ({about['mirror']}) are averaged"
    members = about.get("members", [])
    steps = ", ".join(str(member["step"]) for member in members)
    models = f" of {len(members)} models together" if members else ""
    classes = f"{about['classes']}, of the label values {_plain(about['labels'])}"
    if names := about.get("class_names"):
        classes += f": {_plain(names)}"
    return {
        "Network": (
            f"{about['network']}, {about['parameters']:,} parameters{models}, computes in "
            f"{about['dtype']}"
        ),
        "Method": method,
        "Mask": f"where the probability exceeds {about['threshold']:g}",
        "Post-processing": _postprocess(about),
        "Classes": classes,
        "Checkpoint": (
            f"step {steps or about['checkpoint_step']} of {about['train_steps']}, seed "
            f"{about['seed']}"
        ),
    }


def _postprocess(about):
    text = postprocess_text.sentence(about["postprocess"])
    if about["not_applied"]:
        text += (
            ". The scores below are with it; the program gives probabilities, and load.py "
            f"applies thresholds alone, not: {about['not_applied']}"
        )
    return text


def _data(about, scores):
    data = about["data"]
    channels = f"{data['channels']} channel"
    if data["context"]:
        channels += f"s, {data['context']} slices on each side among them"
    if names := data.get("channel_names"):
        channels += f" ({_plain(names)})"
    tested = _NONE
    if scores:
        cases = number(scores["n_cases"], "case")
        slices = number(scores["n_images"], "slice")
        tested = f"{cases}, {slices}: {', '.join(scores.get('cases', []))}"
    return {
        "Set": data["name"],
        "Slices": f"{data['size']}x{data['size']} pixels, {channels}",
        "Preparation": " ".join(data["prepare"]),
        "Intensities": (
            f"window {_plain(data['window']) or 'none'}, then {data['normalise']} in each "
            "slice"
        ),
        "Split": _split(about["split"]),
        "Tested on": tested,
        "Patients, scanners, sites": "not recorded in the workdir",
    }


def _split(split):
    if split["train"] or split["val"] or split["test"]:
        return "by case, as named in the config"
    if split["folds"]:
        return (
            f"by case, fold {split['fold']} of {split['folds']} is tested, seed "
            f"{split['seed']}"
        )
    return (
        f"by case, {_plain(split['fractions'])} train, validation, test, seed "
        f"{split['seed']}"
    )


def _scores(about, scores):
    if scores is None:
        return "Not measured: the workdir was never evaluated."
    size = about["data"]["size"]
    where = f"on the network's grid of {size}x{size}"
    if scores.get("grid") == results.ON_FILES:
        where = "on the grid of each file, of the mask that is written there"
    caption = (
        f"Test split, {where}; slices without truth count in no mean of these. The "
        "interval resamples the tested cases; it says nothing of other scanners or sites. "
        f"NSD within {scores['nsd_tolerance']:g} pixels, or "
        f"{scores.get('nsd_tolerance_mm', 2.0):g} mm."
    )
    if other := differences(about, scores):
        caption = (
            f"**Measured with other settings, so this program's own scores are {_NONE}: "
            f"{escaped('; '.join(other))}.** {caption}"
        )
    rows = _rows(scores["standard"], "")
    for label, one in scores.get("classes", {}).items():
        name = escaped(titled(label, scores.get("class_names")))
        rows += _rows({"dice": one["standard"]["dice"]}, f"class {name}, ")
    header = [
        "| | mean per image | 95 % by case | mean per case |",
        "|---|---|---|---|",
    ]
    device = escaped(scores.get("device", "a device not recorded"))
    speed = f"{scores['seconds_per_image']:.3g} s a slice on {device}."
    return f"{caption}\n\n" + "\n".join(header + rows) + f"\n\n{speed}"


def _rows(standard, prefix):
    lines = []
    for name, title in _METRICS.items():
        if entry := standard.get(name):
            low, high = entry["ci95"]
            interval = "too few cases" if low is None else f"{low:.3f} to {high:.3f}"
            per_image, per_case = map(_number, (entry["mean"], entry["per_case_mean"]))
            lines.append(f"| {prefix}{title} | {per_image} | {interval} | {per_case} |")
    return lines


def _limits(about, scores):
    missed, without, lesions = _NONE, _NONE, _NONE
    if scores:
        empty = scores["n_empty"]
        every = scores["n_images"] * about["classes"]
        with_truth = scores.get("n_masks", every) - empty
        missed = (
            f"{scores['n_missed']} of {with_truth} masks with truth were empty, and "
            f"{len(scores['false_positive_slices'])} of {empty} without truth were not"
        )
        if "without_lesion" in scores:
            without = ". ".join(false_lesions.of_results(scores))
            without = without or "every slice of the test has a lesion"
        if count := scores.get("lesions"):
            lesions = (
                f"{count['found']} of {count['true']} found, {count['false']} of "
                f"{count['predicted']} made up"
            )
    neighbours = "with its neighbours" if about["data"]["context"] else "alone"
    return {
        "Missed and made up": missed,
        "Where there is no lesion": without,
        "Lesion by lesion": lesions,
        "Other data than the tested cases": _NONE,
        "Differences between patients, scanners and sites": _NONE,
        "Whether the probability and the uncertainty are calibrated": _NONE,
        "What it sees": (
            f"one slice {neighbours}, at the size above; details that the resizing loses "
            "are lost"
        ),
    }


def _list(fields):
    return "\n".join(f"- **{name}**: {escaped(text)}" for name, text in fields.items())


def _number(value):
    # Results hold None where no slice has a defined score.
    return "undefined" if value is None else f"{value:.3f}"


def _plain(value):
    """Words for a value of JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
