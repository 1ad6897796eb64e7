"""Decides on the validation cases what is done to masks after the network.

The validation scans are predicted once (`scan_pixels`). Then one step after another
is tried, each class by itself: threshold, holes, smallest object, largest object only. A
step is kept where it makes the cases better (`scoring.selection`); the next ones build on
it. The score is the mean over cases of the Dice of all of a case's slices together, on the
files' grid, averaged over the classes that the case has. No test case is read.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from biedsnet_jax.config import build_data
from biedsnet_jax.evaluation import scan_pixels
from biedsnet_jax.evaluation.scan_pixels import ScanPixels
from biedsnet_jax.prediction import outputs, postprocess
from biedsnet_jax.prediction.postprocess import Postprocess
from biedsnet_jax.prediction.predictor import Predictor
from biedsnet_jax.prediction.result import decided, exclusive, painted
from biedsnet_jax.runtime import console, processes
from biedsnet_jax.scoring import postprocess_text, selection
from biedsnet_jax.scoring.false_lesions import number

# Thresholds that are tried, beside the config's own.
THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(2, 19))
# Sizes that are tried, in pixels, mm2 or mm3.
SMALLEST = tuple(digit * 10.0**zeros for zeros in range(4) for digit in (1, 2, 5))


def decide(made: Predictor, workdir: Path, data: build_data.Data) -> Predictor:
    """Returns a predictor with the rules of a workdir, which are decided if need be.

    They are decided anew where there are none for this checkpoint. Every process
    predicts; the first decides and writes the file, and all get its rules.
    """
    model = made.model
    cfg = model.config
    step = postprocess.decided_step(workdir, cfg.data.classes)
    # All processes do what the first one found in its folder.
    if processes.gather(step)[0] != model.step:
        decision = processes.gather(_decide(made, data))[0]
        if processes.is_first():
            postprocess.write(workdir, decision)
            line = postprocess_text.sentence(decision["rules"])
            console.tell(f"post-processing: {line}", sys.stdout)
    processes.barrier("postprocess")
    rules = postprocess.load(workdir, cfg, model.step)
    model = dataclasses.replace(model, postprocess=rules)
    return dataclasses.replace(made, model=model)


def _decide(made, data) -> dict[str, Any] | None:
    """Predicts, and decides on the first process; the others return None."""
    cfg = made.model.config
    cases = len(data.cases("val"))
    steps = []
    if cases < selection.FEWEST_CASES:
        rules = Postprocess(cases=cases, reason=_too_few(number(cases, "case")))
    else:
        scans = scan_pixels.predict(made, data, _lowest(cfg.threshold))
        if not processes.is_first():
            return None
        if scans is None:
            rules = Postprocess(cases=cases, reason=_too_unsure(cfg.threshold))
        else:
            labels = build_data.class_labels(cfg)
            rules, steps = choose(scans, cfg.threshold, labels)
    return {
        "checkpoint_step": made.model.step,
        "threshold": cfg.threshold,
        "fusion": cfg.fusion,
        "score": "mean over validation cases of Dice, all slices of a case together",
        "rules": rules.to_json(),
        "steps": steps,
    }


def _too_few(cases: str) -> str:
    return (
        f"validation has {cases}, and {selection.FEWEST_CASES} are needed to tell a gain "
        "from chance"
    )


def _too_unsure(threshold: float) -> str:
    return (
        f"the probability exceeds {_lowest(threshold):g} in more than "
        f"{scan_pixels.MOST_PIXELS} pixels of the validation, too many to compare"
    )


def _lowest(threshold: float) -> float:
    """The lowest threshold that is tried; `threshold` is the config's own."""
    return min(threshold, *THRESHOLDS)


# ---- The choice


def choose(
    scans: Sequence[ScanPixels], threshold: float, labels: Sequence[Sequence[int]]
) -> tuple[Postprocess, list[dict[str, Any]]]:
    """Chooses the rules by scans with their truth; `threshold` is the config's own.

    Returns the rules, and what each step gave.
    """
    score = Scorer(scans, threshold, labels)
    classes = len(labels)
    unit, pixel_mm2 = _unit(scans)
    rules = Postprocess(unit=unit, pixel_mm2=pixel_mm2, cases=len(score.cases))
    if len(score.cases) < selection.FEWEST_CASES:
        few = _too_few(f"{number(len(score.cases), 'case')} with a lesion")
        return dataclasses.replace(rules, reason=few), []
    first = float(score([rules], sparse=True).mean())
    steps = []
    for name, k, candidates in _steps(threshold, classes):
        tried = [
            rules,
            *(_with(rules, name, k, one, threshold, classes) for one in candidates),
        ]
        chosen = selection.select(score(tried, sparse=name == "thresholds"))
        steps.append(_report(name, k, candidates, chosen))
        if chosen.kept:
            rules = tried[chosen.best]
    after = float(score([rules]).mean())
    reason = "" if rules.changes_masks else "no step made the validation cases better"
    rules = dataclasses.replace(rules, before=first, after=after, reason=reason)
    return rules, steps


def _steps(threshold, classes) -> Iterator[tuple[str, int, tuple]]:
    """Yields (field of the rules, class, candidates), the smallest change first."""
    by_distance = sorted(THRESHOLDS, key=lambda value: abs(value - threshold))
    others = tuple(value for value in by_distance if value != threshold)
    for name, candidates in (
        ("thresholds", others),
        ("holes", (True,)),
        ("smallest", SMALLEST),
        ("largest", (True,)),
    ):
        for k in range(classes):
            yield name, k, candidates


def _with(rules, name, k, value, threshold, classes) -> Postprocess:
    """The rules with another value of one class in one field."""
    nothing = {
        "thresholds": threshold,
        "holes": False,
        "smallest": 0.0,
        "largest": False,
    }
    values = list(getattr(rules, name) or (nothing[name],) * classes)
    values[k] = value
    return dataclasses.replace(rules, **{name: tuple(values)})


def _report(name, k, candidates, chosen: selection.Selection) -> dict[str, Any]:
    """What a step gave, for the file."""
    return {
        "step": name,
        "class": k + 1,
        "best": None if chosen.best == 0 else candidates[chosen.best - 1],
        "before": chosen.before,
        "after": chosen.after,
        "held_out_gain": chosen.gain,
        "gain_needed": chosen.needed,
        "kept": chosen.kept,
    }


def _unit(scans) -> tuple[str, float | None]:
    """The unit of sizes that all scans have, and the median mm2 of a picture's pixel."""
    axes = [len(scan.spacing or ()) for scan in scans]
    if all(count == 3 for count in axes):
        return "mm3", None
    if all(axes):
        return "mm2", float(np.median([math.prod(s.spacing[-2:]) for s in scans]))
    return "pixels", None


class Scorer:
    """Scores rules by the Dice of each case that has a lesion."""

    def __init__(
        self,
        scans: Sequence[ScanPixels],
        threshold: float,
        labels: Sequence[Sequence[int]],
    ):
        self.scans = scans
        self.threshold = threshold
        self.labels = labels
        with_lesion = {scan.case: None for scan in scans if scan.truth.any()}
        self.cases = list(with_lesion)

    def __call__(
        self, rules: Sequence[Postprocess], *, sparse: bool = False
    ) -> Float[np.ndarray, "rules cases"]:
        """Returns the Dice of each case, the mean over its classes.

        `sparse` is faster and for rules that differ in their thresholds alone, before
        any that change objects.
        """
        count = self._count_pixels if sparse else self._count_boxes
        # tp, predicted and true pixels.
        counts = np.zeros((len(rules), len(self.cases), len(self.labels), 3), np.int64)
        for scan in self.scans:
            if scan.case in self.cases:
                place = self.cases.index(scan.case)
                for n, of_rules in enumerate(count(scan, rules)):
                    counts[n, place] += of_rules
        shared, predicted, true = np.moveaxis(counts, -1, 0)
        dice = 2 * shared / np.maximum(predicted + true, 1)
        present = true > 0
        return np.where(present, dice, 0).sum(axis=-1) / present.sum(axis=-1)

    def _count_pixels(self, scan, rules):
        known = scan.known_box()
        if known is not None:
            known = known.reshape(-1, len(self.labels))[scan.places]
        for one in rules:
            masks = self._decided(scan, one)
            yield self._count(masks, scan.truth, known)

    def _count_boxes(self, scan, rules):
        truth = scan.spread(scan.truth)
        known = scan.known_box()
        for one in rules:
            masks = one.apply(
                scan.spread(self._decided(scan, one)),
                scan.spacing,
                exclusive=exclusive(self.labels),
            )
            some = masks.any(axis=-1) | truth.any(axis=-1)
            known_there = None if known is None else known[some]
            yield self._count(masks[some], truth[some], known_there)

    def _decided(self, scan, rules):
        thresholds = rules.thresholds or (self.threshold,) * len(self.labels)
        return decided(scan.probability, thresholds=thresholds, labels=self.labels)

    def _count(self, masks, truth, known):
        """Counts the pixels of each class in the label map that would be written."""
        label_map = painted(masks, self.labels)
        written = outputs.masks_of(label_map[None, None], self.labels)[0, 0]
        if known is not None:
            written = written & known
        shared = (written & truth).sum(axis=0)
        return np.stack([shared, written.sum(axis=0), truth.sum(axis=0)], axis=-1)
