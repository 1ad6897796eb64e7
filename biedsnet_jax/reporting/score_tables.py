"""Makes the score tables of a report: both conventions, differences, details and cost.

Several rows, one of which the paper has too, stand beside its published figures.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from biedsnet_jax.reporting import published
from biedsnet_jax.reporting.table import Table, decimal
from biedsnet_jax.scoring import comparison, false_lesions, results

NOT_MEASURED = "not measured"
_NONE = "-"
# Pixels at 256x256, below which the truth of a slice is small.
_SMALL = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """All runs of one row on one data set."""

    name: str
    runs: list[results.Run]
    scores: comparison.Pooled

    def field(self, name):
        """A field of results.json that is the same in all runs."""
        return self.runs[0].fields.get(name)

    def each(self, name):
        """A field of results.json, run by run."""
        return [run.fields.get(name) for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which rows a table has, in its order, and the paper's figures of them, if any."""

    title: str
    rows: list[str]
    reference: str
    published: dict[str, tuple[float, ...]]


def of_data_set(dataset: str, rows: dict[str, Row]) -> list[Table]:
    """Makes all tables of the rows measured on one data set, by name."""
    tables = []
    for layout in _layouts(rows):
        shown = [(name, rows.get(name)) for name in layout.rows]
        facts = _facts(dataset, [row for _, row in shown if row])
        for make in _TABLES:
            # One row has nothing to differ from.
            if len(shown) > 1 or make != _difference_table:
                tables.append(make(layout, shown, facts))
    return [table for table in tables if table]


def beside_published(rows: Iterable[str]) -> bool:
    """Whether rows of these names stand beside the paper's: several, with one it has."""
    names = set(rows)
    known = published.TABLE_1.keys() | published.TABLE_2.keys()
    return len(names) > 1 and bool(names & known)


def _layouts(rows):
    """The tables that have at least one row; rows that the paper lacks join the first."""
    if not beside_published(rows):
        names = sorted(rows)
        return [Layout("Scores", names, names[0], {})]
    known = [*published.TABLE_1, "trans_unet"]
    other = sorted(rows.keys() - {*known, *published.TABLE_2})
    layouts = (
        Layout("Table 1", [*known, *other], "biedsnet", published.TABLE_1),
        Layout(
            "Table 2 (ablation)", list(published.TABLE_2), "row5", published.TABLE_2
        ),
    )
    return [layout for layout in layouts if rows.keys() & set(layout.rows)]


def _facts(dataset, rows):
    """The start of every caption: data, budget, and where rows are on unequal terms."""
    budget = {
        "classes": {len(_labels(row)) for row in rows},
        "test cases": {len(row.scores.cases()) for row in rows},
        "number of seeds": {len(set(row.each("seed"))) for row in rows},
        "train steps": {row.field("train_steps") for row in rows},
        "batch": {row.field("batch_size") for row in rows},
        "pixels a side": {row.field("size") for row in rows},
    }
    listed = [f"{name} {_one_or_range(values)}" for name, values in budget.items()]
    unequal = [name for name, values in budget.items() if len(values) > 1]
    tested = {tuple(row.scores.cases()) for row in rows}
    # As many cases can be other cases.
    if len(tested) > 1 and "test cases" not in unequal:
        unequal.append("which cases are tested")
    grids = sorted({results.grid(row.runs[0].fields) for row in rows})
    if len(grids) > 1:
        unequal.append("the grid of their scores")
    splits = "/".join(sorted({row.field("split") for row in rows}))
    text = f"Data set {dataset}, {splits} split; {', '.join(listed)}."
    text += f" Scored on {' and '.join(grids)}."
    if unequal:
        text += f" Not on equal terms: rows differ in {', '.join(unequal)}."
    return text


def _labels(row):
    return sorted({label for run in row.runs for _, _, label in run.images})


def _standard_table(layout, shown, facts):
    rows = [row for _, row in shown if row]
    tolerances = _list(sorted({row.field("nsd_tolerance") for row in rows}))
    caption = (
        f"{facts} Exact measures. An image's score is averaged over seeds, then over images. The "
        "95 % interval of Dice is a bootstrap of whole cases, undefined for one case and rough "
        f"for fewer than {comparison.FEWEST_CASES}. Images with empty truth count in accuracy "
        "alone. A lesion missed altogether counts as Dice 0 and as a distance of the image "
        "diagonal. HD and HD95 are in pixels. NSD is the share of both borders no farther apart "
        f"than {tolerances} pixels."
    )
    if layout.published:
        caption += (
            " The paper's figures follow another convention and stand in its table."
        )
    notes = [_without_lesion(row) for row in rows]
    notes = [note for note in notes if note]
    if notes:
        caption += (
            " Under the table stands how many slices without lesion got one, in all runs of a "
            "row together."
        )
    header = ["", "Dice", "95 % interval", "HD", "HD95", "NSD", "IoU", "Accuracy"]
    header += ["Recall", "Precision"]

    def cells(row):
        mean, *others = (
            comparison.mean(row.scores.scores[name]) for name in results.STANDARD
        )
        interval = _interval(*comparison.interval(row.scores, "dice"))
        line = [decimal(mean, 4), interval]
        for name, value in zip(results.STANDARD[1:], others):
            # Distances are in pixels, the rest are shares.
            line.append(decimal(value, 2 if name.startswith("hd") else 4))
        return line

    body = _body(shown, header, cells)
    title = f"{layout.title}, standard convention"
    return Table(title, caption, header, body, "standard", tuple(notes))


def _without_lesion(row):
    """Says what no mean of Dice shows: false lesions, and classes that never occur."""
    tests = [run.masks() for run in row.runs]
    every = false_lesions.added(map(false_lesions.count, tests))
    labels = _labels(row)
    classes = {}
    if len(labels) > 1:
        for label in labels:
            name = row.runs[0].titled(label)
            classes[name] = false_lesions.added(_of_class(tests, label))
    found = false_lesions.sentences(every, classes)
    if not found:
        return ""
    first, *rest = found
    rest = [sentence[0].upper() + sentence[1:] for sentence in rest]
    return ". ".join([f"Row {_label(row.name)}: {first}", *rest]) + "."


def _of_class(tests, label):
    """The counts of one class, test by test."""
    return [
        false_lesions.count(mask for mask in masks if mask.label == label)
        for masks in tests
    ]


def _paper_table(layout, shown, facts):
    """The table of the paper's convention; None where no row was scored in it."""
    if not any(row and _has_paper(row) for _, row in shown):
        return None
    caption = (
        f"{facts} The convention that the paper's own numbers point to, on the network's grid, "
        "averaged over all images, empty truth included. Dice and IoU are smoothed, recall is 0 "
        "on empty truth. HD takes image rows for points: it is the root of a pixel count and no "
        "distance."
    )
    names = ["Dice", "HD", "IoU", "Accuracy", "Recall", "Precision"]
    header = ["", *names]
    if layout.published:
        caption += (
            " Columns 'paper' are its published figures. They were measured on its own selection "
            "of 1490 COVID-19 CT slices and a split it does not give, so they are no target that "
            "ours must meet, least of all on another data set. Whether its recall and precision "
            "have changed places cannot be told; ours have not."
        )
        header = [""]
        for name in names:
            header += [name, f"{name}, paper"]
    header.insert(2, "95 % interval")
    rows = []
    for name, row in shown:
        cells = [NOT_MEASURED] + [_NONE] * (len(names) - 1)
        interval = _NONE
        if row and _has_paper(row):
            scores = row.scores.scores
            cells = [decimal(comparison.mean(scores[key]), 4) for key in results.PAPER]
            interval = _interval(*comparison.interval(row.scores, "paper_dice"))
        if layout.published:
            figures = [f"{value:.4f}" for value in layout.published.get(name, ())]
            pairs = zip(cells, figures or [_NONE] * len(names))
            cells = [cell for pair in pairs for cell in pair]
        cells.insert(1, interval)
        rows.append([_label(name), *cells])
    return Table(f"{layout.title}, paper convention", caption, header, rows, "paper")


def _has_paper(row):
    return results.PAPER[0] in row.scores.scores


def _grids_table(layout, shown, facts):
    """Beside the scores on the files' grid: volumes, and what the network's grid gave.

    None where no row was scored on the grid of the files.
    """
    if not any(row and row.field("grid") == results.ON_FILES for _, row in shown):
        return None
    caption = (
        f"{facts} Dice on the files' grid is that of the standard convention, and Dice on the "
        "network's grid the same before the mask goes back to its file, cut at the threshold. "
        "What they differ by is lost between the two. Of volumes, Dice and distances are those "
        "of the whole body, in three dimensions; a missed one has Dice 0 and the diagonal as "
        "its distance."
    )
    header = [
        "",
        "Dice, files' grid",
        "Dice, network's grid",
        "Volumes",
        "Dice, volume",
    ]
    header += ["HD95, mm", "ASSD, mm", "NSD"]

    def cells(row):
        line = [_mean_of(row.each("standard"), "dice", 4)]
        line.append(_mean_of(row.each("network_grid"), "dice", 4))
        of_runs = row.each("volumes")
        counts = {run["n"] for run in of_runs if run}
        line.append(_one_or_range(counts) if counts else _NONE)
        for name, digits in _OF_VOLUMES.items():
            line.append(_mean_of(of_runs, name, digits))
        return line

    title = f"{layout.title}, grids and volumes"
    return Table(title, caption, header, _body(shown, header, cells), "standard")


# Scores of volumes in results.json, with the digits that are shown.
_OF_VOLUMES = {"dice": 4, "hd95_mm": 2, "assd_mm": 2, "nsd_mm": 4}


def _mean_of(of_runs, name, digits):
    """The mean over runs of one score; a dash where no run has it."""
    means = [run[name]["mean"] for run in of_runs if run and name in run]
    known = [mean for mean in means if mean is not None]
    return decimal(sum(known) / len(known), digits) if known else _NONE


def _difference_table(layout, shown, facts):
    few = comparison.FEWEST_CASES
    reference = dict(shown)[layout.reference]
    caption = (
        f"{facts} Row minus {_label(layout.reference)}, standard convention: the case's mean "
        "score, averaged over seeds, then over the cases tested in both. The 95 % interval is a "
        "paired bootstrap of cases. p is of the two-sided Wilcoxon signed-rank test, not "
        f"corrected for the number of rows. It is not defined where fewer than {few} cases "
        "differ, since it could not fall below 0.05 there. Intervals from fewer than "
        f"{few} cases are rough."
    )
    header = ["", "Cases", "Dice", "95 % interval", "p", "HD95, pixels"]
    header += ["95 % interval", "p"]

    def cells(row):
        nothing = [_NONE] * (len(header) - 2)
        if reference is None:
            return ["no reference", *nothing]
        if row is reference:
            return ["reference", *nothing]
        dice = comparison.difference(row.scores, reference.scores, "dice")
        hd95 = comparison.difference(row.scores, reference.scores, "hd95")
        return [str(dice.n), *_difference_cells(dice, 4), *_difference_cells(hd95, 2)]

    title = f"{layout.title}, difference from {_label(layout.reference)}"
    return Table(title, caption, header, _body(shown, header, cells), "standard")


def _difference_cells(delta, digits):
    sign = "+" if delta.mean > 0 else ""
    p = f"{delta.p:.3f}"
    if math.isnan(delta.p):
        p = "not defined"
    elif delta.p < 0.001:
        p = "<0.001"
    interval = _interval(delta.low, delta.high, digits)
    return [sign + decimal(delta.mean, digits), interval, p]


def _details_table(layout, shown, facts):
    caption = (
        f"{facts} Standard convention. Small are slices whose true mask has fewer than {_SMALL} "
        "pixels at 256x256, or as small a share of a smaller image; large are all others with "
        "truth. ECE is the mean distance between the probability and the share that is true, "
        "over pixels. Entropy is the mean over a slice's likely pixels, in bits. Its rank "
        "correlation with 1 - Dice (Spearman; 1 is best, 0 is chance) says whether a slice's "
        "uncertainty tells its error, as does the mean Dice of the half of the slices with the "
        "least entropy."
    )
    header = ["", "Slices, small", "Dice", "HD95", "NSD", "Slices, large", "Dice"]
    header += ["HD95", "NSD", "ECE", "Entropy against error", "Dice of the surest half"]

    def cells(row):
        columns = row.scores.scores
        known = ~np.isnan(columns["dice"])
        pixels = columns["image_pixels"]
        # Without counts of an earlier version, the size of the network's grid.
        pixels = np.where(np.isnan(pixels), row.field("size") ** 2, pixels)
        small = columns["truth_pixels"] < _SMALL / 256**2 * pixels
        # Without pixel counts, of an earlier version, no slice is small or large.
        recorded = not np.isnan(columns["truth_pixels"]).all()
        found = _score_cells(columns, known & small)
        found += _score_cells(columns, known & ~small & recorded)
        ece = [value for value in row.each("calibration_error") if value is not None]
        found.append(decimal(sum(ece) / len(ece) if ece else math.nan, 4))
        dice = columns["dice"][known]
        entropy = columns["entropy"][known]
        found.append(decimal(comparison.rank_correlation(entropy, 1.0 - dice), 2))
        surest = np.argsort(entropy, kind="stable")[: math.ceil(len(dice) / 2)]
        mean = comparison.mean(dice[surest])
        if np.isnan(entropy).any():
            mean = math.nan
        found.append(decimal(mean, 4))
        return found

    title = f"{layout.title}, small lesions and uncertainty"
    return Table(title, caption, header, _body(shown, header, cells), "standard")


def _score_cells(columns, some):
    """The number of some slices and their mean Dice, HD95 and NSD."""
    dice, hd95, nsd = (
        comparison.mean(columns[name][some]) for name in ("dice", "hd95", "nsd")
    )
    return [
        str(some.sum()),
        decimal(dice, 4),
        decimal(hd95, 2),
        decimal(nsd, 4),
    ]


def _cost_table(layout, shown, facts):
    caption = (
        f"{facts} GMACs are the multiply-adds of convolutions and matrix products for one image, "
        "over all sampling steps and samples of a diffusion model. Seconds are for one image, in "
        "batches, on the device named, without compilation, averaged over runs. Best step is the "
        "checkpoint that was tested, of highest validation Dice."
    )
    header = ["", "Seeds", "Dice of each run", "Cases", "Images", "Empty"]
    header += ["Train steps", "Best step", "Batch", "Parameters", "GMACs", "Seconds"]
    header += ["Sampling", "Device"]

    def cells(row):
        seconds = row.each("seconds_per_image")
        dice = [entry["dice"]["mean"] for entry in row.each("standard")]
        return [
            _list(row.each("seed")),
            _list(decimal(math.nan if value is None else value, 4) for value in dice),
            str(len(row.scores.cases())),
            _list(row.each("n_images")),
            _list(row.each("n_empty")),
            _list(row.each("train_steps")),
            _list(row.each("checkpoint_step")),
            _list(row.each("batch_size")),
            f"{row.field('parameters'):,}",
            _list(_maybe(value, ".4g") for value in row.each("gmacs_per_image")),
            f"{sum(seconds) / len(seconds):.3g}",
            _sampling(row.field("sampler"), row.field("mirror")),
            _list(row.each("device")),
        ]

    title = f"{layout.title}, cost and budget"
    return Table(title, caption, header, _body(shown, header, cells), "cost")


_TABLES = (
    _standard_table,
    _grids_table,
    _paper_table,
    _difference_table,
    _details_table,
    _cost_table,
)


def _body(shown, header, cells):
    """The lines of a table, with `cells(row)` of each row that was measured."""
    missing = [NOT_MEASURED, *[_NONE] * (len(header) - 2)]
    lines = []
    for name, row in shown:
        line = cells(row) if row else missing
        lines.append([_label(name), *line])
    return lines


def _sampling(sampler, mirror):
    mirrored = f", mirrored {mirror}" if mirror else ""
    if not sampler:
        return f"one pass{mirrored}"
    steps = sampler["steps"]
    samples = sampler["ensemble"]
    return f"{sampler['method']}, {steps} steps x {samples}{mirrored}"


def _label(name):
    return published.LABELS.get(name, name)


def _interval(low, high, digits=4):
    return "undefined" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"


def _list(values):
    """One word where all are equal, a list otherwise."""
    texts = [_maybe(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _maybe(value, spec=""):
    return "not recorded" if value is None else format(value, spec)


def _one_or_range(values):
    known = [value for value in values if value is not None]
    if not known:
        return "not recorded"
    low, high = min(known), max(known)
    return str(low) if low == high else f"{low} to {high}"
