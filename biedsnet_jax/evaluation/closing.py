"""Prints the closing lines of an evaluation on stdout.

A terminal gets a table; a pipe, a file and --quiet get plain lines.
"""

import pathlib

from biedsnet_jax.errors import listed
from biedsnet_jax.runtime.console import clock, on_terminal
from biedsnet_jax.scoring import false_lesions, postprocess_text
from biedsnet_jax.scoring.class_names import titled
from biedsnet_jax.scoring.false_lesions import number
from biedsnet_jax.scoring.results import CASES, SLICES

# Keys of "volumes" in results.json, with the names that a reader sees.
OF_VOLUMES = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "hd95": "HD95, voxels",
    "assd_mm": "ASSD, mm",
    "nsd_mm": "NSD",
}
# Keys of "standard" in results.json, with the names that a reader sees.
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
    """Prints the scores of a test split, given the content of results.json.

    `seconds` is the time that the whole command took.
    """
    if not on_terminal():
        _print_lines(results, workdir)
        return
    # Rich takes a while to import, and a pipe does without it.
    from biedsnet_jax.runtime import terminal

    standard = results["standard"]
    rows = [
        _row(name, standard[key]) for key, name in SCORES.items() if key in standard
    ]
    for label, of_class in results.get("classes", {}).items():
        name = titled(label, results.get("class_names"))
        rows.append(_row(f"Dice, class {name}", of_class["standard"]["dice"]))
    header = ["", "mean", "95 % by case", "mean of cases"]
    terminal.print_table(_what(results), header, rows)
    terminal.print_facts(_facts(results, pathlib.Path(workdir), seconds))


def _facts(results, workdir, seconds):
    """What stands under the table, by the word in front of it."""
    facts = _grids(results)
    if without := false_lesions.of_results(results):
        facts["without lesion"] = "\n".join(without)
    if "lesions" in results:
        facts["lesions"] = _lesions(results)
    facts |= _warnings(results)
    speed = f"{results['seconds_per_image']:.3f} s an image to predict"
    facts["time"] = f"{clock(seconds)}, {speed}"
    facts["scores"] = (
        f"{workdir}/results.json, by case in {CASES}, by slice in {SLICES}"
    )
    facts["report"] = f"{workdir}/report.html"
    if (workdir / "tensorboard").is_dir():
        facts["curves"] = f"tensorboard --logdir={workdir}"
    return facts


def _print_lines(results, workdir):
    standard = results["standard"]
    speed = f"{results['seconds_per_image']:.3f} s an image"
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
    for name, text in _grids(results).items():
        print(f"{name}: {text}")
    for sentence in false_lesions.of_results(results):
        print(sentence)
    if "lesions" in results:
        print(f"lesions: {_lesions(results)}")
    for name, text in _warnings(results).items():
        print(f"{name}: {text}")
    print(f"{workdir}/results.json has the rest")


def _grids(results) -> dict[str, str]:
    """Scores of whole volumes and of the mask before it went back to its file, and what
    was done to it.
    """
    facts = {}
    if of_volumes := results.get("volumes"):
        scores = [
            f"{name} {_number(of_volumes[key]['mean'])}"
            for key, name in OF_VOLUMES.items()
            if key in of_volumes
        ]
        volumes = number(of_volumes["n"], "volume")
        facts["volumes"] = f"{'  '.join(scores)}, of {volumes}"
    if network := results.get("network_grid"):
        size = results["size"]
        where = "in tiles of" if results.get("fit") == "tile" else "at"
        dice = _number(network["dice"]["mean"])
        facts["network's grid"] = f"Dice {dice} {where} {size}x{size}"
    rules = results.get("postprocess")
    if postprocess_text.has_rules(rules):
        facts["post-processing"] = postprocess_text.sentence(rules)
    return facts


def _warnings(results) -> dict[str, str]:
    """What a reader must know of the scored cases, by the word in front of it."""
    facts = {}
    if not results["n_images"]:
        facts["truth"] = "no pixel of it is known, so no score is defined"
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
    slices = number(results["n_images"], "slice")
    cases = number(results["n_cases"], "case")
    # A slice has a mask a class.
    every = results["n_images"] * max(1, len(results.get("classes", ())))
    masks = number(results.get("n_masks", every), "mask")
    return f"test: {slices} of {cases}, {results['n_empty']} of {masks} empty"


def _lesions(results):
    count = results["lesions"]
    found = f"{count['found']} of {count['true']} found"
    return f"{found}, {count['false']} of {count['predicted']} false"


def _row(name, entry):
    mean = _number(entry["mean"])
    of_cases = _number(entry["per_case_mean"])
    return name, mean, _interval(entry), of_cases


def _interval(entry):
    low, high = entry["ci95"]
    return "none" if low is None else f"{low:.4f} to {high:.4f}"


def _number(value):
    return "none" if value is None else f"{value:.4f}"
