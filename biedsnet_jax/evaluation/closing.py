"""The closing word of a mode, on stdout: a table on a terminal, lines elsewhere and
with --quiet.
"""

import pathlib

from biedsnet_jax.errors import listed
from biedsnet_jax.runtime.console import clock, on_terminal
from biedsnet_jax.scoring import false_lesions
from biedsnet_jax.scoring.false_lesions import number

# Of `standard` in results.json, with what they are called.
SCORES = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "hd95": "HD95, px",
    "assd": "ASSD, px",
    "recall": "recall",
    "precision": "precision",
}


def tested(results: dict, workdir: str | pathlib.Path, *, seconds: float) -> None:
    """The scores of a test split, as results.json has them, after `seconds` of the
    whole command.
    """
    if not on_terminal():
        _print_tested(results, workdir)
        return
    from biedsnet_jax.runtime import terminal

    rows = [
        _row(name, results["standard"][key])
        for key, name in SCORES.items()
        if key in results["standard"]
    ]
    for label, of_class in results.get("classes", {}).items():
        rows.append(_row(f"Dice, class {label}", of_class["standard"]["dice"]))
    terminal.print_table(
        _what(results), ["", "mean", "95 % by case", "mean of cases"], rows
    )
    without = false_lesions.of_results(results)
    facts = {"without lesion": "\n".join(without)} if without else {}
    facts |= {"lesions": _lesions(results)} if "lesions" in results else {}
    facts |= _beside(results)
    facts |= {
        "time": f"{clock(seconds)}, {results['seconds_per_image']:.3f} s an image to predict"
    }
    facts |= {"scores": f"{workdir}/results.json, slice by slice in cases.csv"}
    facts |= {"report": f"{workdir}/report.html"}
    if (pathlib.Path(workdir) / "tensorboard").is_dir():
        facts |= {"curves": f"tensorboard --logdir={workdir}"}
    terminal.print_facts(facts)


def _print_tested(results, workdir):
    standard, speed = (
        results["standard"],
        f"{results['seconds_per_image']:.3f} s an image",
    )
    print(_what(results))
    if standard["dice"]["mean"] is None:
        print(speed)
    else:
        print(
            f"Dice {_number(standard['dice']['mean'])} "
            f"(95 % by case {_interval(standard['dice'])})  "
            f"IoU {_number(standard['iou']['mean'])}  "
            f"HD95 {_number(standard['hd95']['mean'])} px  {speed}"
        )
    for sentence in false_lesions.of_results(results):
        print(sentence)
    if "lesions" in results:
        print(f"lesions: {_lesions(results)}")
    for name, text in _beside(results).items():
        print(f"{name}: {text}")
    print(f"{workdir}/results.json has the rest")


def _beside(results) -> dict[str, str]:
    """What a reader must know of the cases that were scored, by a word for it."""
    facts = {}
    if trained_on := results.get("trained_on"):
        names = listed([f"{case} ({side})" for case, side in trained_on.items()])
        facts["not unseen"] = (
            f"the model was trained or validated on {len(trained_on)} of these "
            f"{results['n_cases']} cases: {names}"
        )
    if passed := results.get("passed_over"):
        facts["data"] = f"{passed}; passed_over.csv lists them"
    return facts


def _what(results):
    # one a slice and class
    masks = results["n_images"] * max(1, len(results.get("classes", ())))
    slices, cases = (
        number(results["n_images"], "slice"),
        number(results["n_cases"], "case"),
    )
    return f"test: {slices} of {cases}, {results['n_empty']} of {number(masks, 'mask')} empty"


def _lesions(results):
    count = results["lesions"]
    return f"{count['found']} of {count['true']} found, {count['false']} of {count['predicted']} false"


def _row(name, entry):
    return (
        name,
        _number(entry["mean"]),
        _interval(entry),
        _number(entry["per_case_mean"]),
    )


def _interval(entry):
    low, high = entry["ci95"]
    return "none" if low is None else f"{low:.4f} to {high:.4f}"


def _number(value):
    return "none" if value is None else f"{value:.4f}"
