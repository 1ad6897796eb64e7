"""The verdict with which the report of one's own runs starts. Imports no jax.

It holds the score with its interval, what was missed and made up, calibration, the end
of the training and the size of the test, then what to try next and the score of each
case. Every finding has a figure; one whose figure is not known is left out.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from biedsnet_jax.reporting import evidence as gathering
from biedsnet_jax.reporting.advice import Advice, advise, percent
from biedsnet_jax.reporting.evidence import SMALL, Evidence, Score
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.reporting.table import Table, decimal, html_table, markdown_tables
from biedsnet_jax.runtime.markdown import escaped, shown
from biedsnet_jax.scoring.calibration import FAIR, GOOD
from biedsnet_jax.scoring.comparison import FEWEST_CASES
from biedsnet_jax.scoring.false_lesions import number

# Rows of the table by case.
MOST_CASES = 10


class Finding(NamedTuple):
    """One thing the figures say."""

    name: str
    figure: str
    text: str


class Verdict(NamedTuple):
    """What a reader wants to know first."""

    findings: list[Finding]
    advice: list[Advice]
    cases: Table | None  # None where the runs have no pixel counts


def judge(runs: Sequence[Evaluated]) -> Verdict:
    """The verdict on runs of one row on one data set."""
    evidence = gathering.gather(runs)
    every = [find(evidence) for find in _FINDINGS]
    findings = [finding for finding in every if finding]
    return Verdict(findings, advise(evidence), _cases_table(runs))


def _trained_on(evidence: Evidence):
    if not evidence.trained_on:
        return None
    return Finding(
        "Not unseen",
        f"{evidence.trained_on} of {evidence.test_cases}",
        "cases were trained or validated on: the scores are not those of unseen cases.",
    )


def _volume_dice(evidence: Evidence):
    score = evidence.volume_dice
    if not score:
        return None
    text = (
        f"{_interval(score)}. The mean over cases, the slices of each taken together."
    )
    if len(evidence.class_dice) > 1:
        each = [
            f"class {label} {dice:.3f}" for label, dice in evidence.class_dice.items()
        ]
        text += f" By class: {', '.join(each)}."
    return Finding("Volume Dice", f"{score.mean:.3f}", text)


def _slice_dice(evidence: Evidence):
    score = evidence.slice_dice
    if not score:
        return None
    text = f"{_interval(score)}. The mean over {number(score.count, 'mask')} with a lesion."
    return Finding("Slice Dice", f"{score.mean:.3f}", text)


def _missed(evidence: Evidence):
    missed = evidence.missed
    if not missed or not missed.small + missed.large:
        return None
    sizes = (
        f"{missed.small_missed} of {missed.small} under {SMALL} pixels, "
        f"{missed.large_missed} of {missed.large} larger ones."
    )
    figure = (
        f"{missed.small_missed + missed.large_missed} of {missed.small + missed.large}"
    )
    if missed.kind == "lesion":
        where = "in volumes" if missed.in_volumes else "slice by slice"
        return Finding("Lesions missed", figure, f"lesions, {where}: {sizes}")
    text = f"slices with a lesion were missed altogether: {sizes}"
    return Finding("Lesions missed", figure, text)


def _false_lesions(evidence: Evidence):
    healthy = evidence.healthy
    predicted = evidence.predicted
    if not healthy:
        if not predicted:
            return None
        figure = f"{evidence.false} of {predicted}"
        return Finding("False lesions", figure, "predicted lesions touch no true one.")
    text = "slices"
    if healthy.cases:
        text += f", and {healthy.false_cases} of {number(healthy.cases, 'case')},"
    text += " without a lesion got one."
    if predicted:
        text += f" {evidence.false} of {predicted} predicted lesions touch no true one."
    return Finding("False lesions", f"{healthy.false_slices} of {healthy.slices}", text)


def _calibration(evidence: Evidence):
    confidence = evidence.confidence
    if not confidence:
        return None
    ratio = confidence.error / confidence.foreground
    share = f"{percent(ratio)} of" if ratio < 1 else f"{ratio:.3g} times"
    direction = confidence.direction.capitalize()
    if direction == "Neither":
        direction = "Neither over- nor underconfident"
    return Finding(
        "Calibration",
        confidence.grade,
        f"A pixel's probability is off by {confidence.error:.2g} on average (ECE). That is "
        f"{share} the lesions' share of pixels, {confidence.foreground:.2g}; up to "
        f"{percent(GOOD)} is good, up to {percent(FAIR)} fair. {direction}: "
        f"{percent(confidence.sureness, 1)} sure, {percent(confidence.right, 1)} right.",
    )


def _training_loss(evidence: Evidence):
    trends = evidence.trends
    if not trends:
        return None
    falling = [trend for trend in trends if trend.falling]
    figure = "still falling" if falling else "not falling"
    beginning = ""
    if len(trends) > 1:
        figure = f"{len(falling)} of {len(trends)} falling"
        beginning = "In the run where it fell most: "
    trend = min(falling or trends, key=lambda trend: trend.share)
    sign = "+" if trend.share > 0 else ""
    return Finding(
        "Training loss",
        figure,
        f"{beginning}{trend.start:.3g} to {trend.end:.3g} ({sign}{percent(trend.share)}) along a "
        f"line through the last {trend.lines} log lines, steps {trend.first_step} to "
        f"{trend.last_step}.",
    )


def _test_cases(evidence: Evidence):
    text = f"{number(evidence.slices, 'slice')}."
    if not evidence.slices:
        text = "No pixel of their truth is known, so no score is defined."
    if evidence.all_cases:
        text += f" The data set has {number(evidence.all_cases, 'case')}."
    if evidence.test_cases < FEWEST_CASES:
        text += (
            f" Fewer than {FEWEST_CASES} test cases are few: intervals are rough, and one more "
            "case can move every score."
        )
    return Finding("Test cases", str(evidence.test_cases), text)


# The scores and how far to trust them come first, then what explains them.
_FINDINGS = (
    _trained_on,
    _volume_dice,
    _slice_dice,
    _test_cases,
    _missed,
    _false_lesions,
    _calibration,
    _training_loss,
)


def _interval(score: Score):
    if math.isnan(score.low):
        return "One case gives no interval"
    return f"95 % interval by case {score.low:.3f} to {score.high:.3f}"


def _cases_table(runs):
    rows = [(one, row) for one in runs for row in one.run.cases]
    if not rows:
        return None
    rows.sort(key=_worst_first)
    several_classes = len({row["class"] for _, row in rows}) > 1
    # Folds test every case once, seeds all cases each.
    volumes = {(row["case"], row["class"]) for _, row in rows}
    several_seeds = len(volumes) < len(rows)
    lesions = all("lesions" in row for _, row in rows)
    header = ["Case", "Slices", "Volume Dice", "Recall", "Precision"]
    header += ["True pixels", "Predicted pixels"]
    header += ["Lesions", "missed", "false"] if lesions else []
    cells = []
    for one, row in rows[:MOST_CASES]:
        name = row["case"]
        name += f", class {one.run.titled(row['class'])}" if several_classes else ""
        name += f", {one.name}" if several_seeds else ""
        line = [name, f"{row['slices']:.0f}"]
        line += [decimal(row[column], 3) for column in ("dice", "recall", "precision")]
        line += [f"{row['truth_pixels']:,.0f}", f"{row['predicted_pixels']:,.0f}"]
        if lesions:
            names = ("lesions", "lesions_missed", "lesions_false")
            line += [f"{row[column]:.0f}" for column in names]
        cells.append(line)
    caption = "From the worst Dice to the best. All slices of a case count together."
    if len(rows) > MOST_CASES:
        caption += f" The first {MOST_CASES} of {len(rows)}; cases.csv has all."
    return Table("Case by case", caption, header, cells)


def _worst_first(pair):
    dice = pair[1]["dice"]
    # A case without truth comes last.
    return math.inf if math.isnan(dice) else dice


def html_verdict(verdict: Verdict) -> str:
    """The verdict as the first section of a page."""
    findings = "\n".join(
        f'<div><dt>{_text(one.name)}</dt><dd class="figure">{_text(one.figure)}</dd>'
        f"<dd>{_text(one.text)}</dd></div>"
        for one in verdict.findings
    )
    rest = []
    if verdict.advice:
        items = "\n".join(map(_html_advice, verdict.advice))
        rest.append(
            "<section>\n<h3>What to try next</h3>\n"
            f'<ol class="advice">\n{items}\n</ol>\n</section>'
        )
    if verdict.cases:
        rest.append(html_table(verdict.cases))
    side_by_side = ' class="pair"' if len(rest) > 1 else ""
    below = "\n".join(rest)
    return f'<dl class="findings">\n{findings}\n</dl>\n<div{side_by_side}>\n{below}\n</div>'


def _html_advice(advice):
    flags = " ".join(f"<code>{_text(flag)}</code>" for flag in advice.flags.split())
    return (
        f"<li><strong>{_text(advice.what)}.</strong> {_text(advice.why)} {flags}</li>"
    )


def markdown_verdict(verdict: Verdict) -> str:
    """The verdict as the first sections of a Markdown page, which has a title."""
    lines = ["## Verdict", ""]
    for one in verdict.findings:
        lines.append(
            f"- **{escaped(one.name)}: {escaped(one.figure)}** {escaped(one.text)}"
        )
    if verdict.advice:
        lines += ["", "## What to try next", ""]
    for place, advice in enumerate(verdict.advice, start=1):
        flags = f" `{advice.flags}`" if advice.flags else ""
        lines.append(
            f"{place}. **{escaped(advice.what)}.** {escaped(advice.why)}{flags}"
        )
    text = "\n".join(lines) + "\n"
    return f"{text}\n{markdown_tables([verdict.cases])}" if verdict.cases else text


def _text(text):
    return html.escape(shown(text))
