"""The tables of a report: scores of both conventions, differences, details and cost,
beside the paper's figures.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from biedsnet_jax.reporting import published as paper_tables
from biedsnet_jax.reporting.table import Table
from biedsnet_jax.scoring import comparison, false_lesions, results

NOT_MEASURED = "not measured"
_NONE = "-"
# pixels at 256x256
_SMALL = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """All runs of one row on one data set."""

    name: str
    runs: list[results.Run]
    scores: comparison.Pooled

    def field(self, name):
        """A field that is the same in all runs."""
        return self.runs[0].fields.get(name)

    def each(self, name):
        """A field of each run."""
        return [run.fields.get(name) for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of the paper's tables: rows in its order, then those it does not have."""

    title: str
    rows: list[str]
    reference: str
    published: dict[str, tuple[float, ...]]


def of_data_set(dataset: str, rows: dict[str, Row]) -> list[Table]:
    """All tables of the rows measured on one data set, by name."""
    tables = []
    for layout in _layouts(rows):
        shown = [(name, rows.get(name)) for name in layout.rows]
        facts = _facts(dataset, [row for _, row in shown if row])
        # One row has nothing to differ from.
        makers = [
            make for make in _TABLES if len(shown) > 1 or make != _difference_table
        ]
        tables += [make(layout, shown, facts) for make in makers]
    return tables


def beside_published(rows: Iterable[str]) -> bool:
    """Whether rows of these names stand beside the paper's: several, with one of its own."""
    names = set(rows)
    known = paper_tables.TABLE_1.keys() | paper_tables.TABLE_2.keys()
    return len(names) > 1 and bool(names & known)


def _layouts(rows):
    """The tables that have at least one row; rows that neither knows join the first.

    Rows that do not stand beside the paper's have one table, with nothing of the paper.
    """
    if not beside_published(rows):
        names = sorted(rows)
        return [Layout("Scores", names, names[0], {})]
    known = [*paper_tables.TABLE_1, "trans_unet"]
    other = sorted(rows.keys() - {*known, *paper_tables.TABLE_2})
    first = Layout("Table 1", [*known, *other], "biedsnet", paper_tables.TABLE_1)
    second = Layout(
        "Table 2 (ablation)", list(paper_tables.TABLE_2), "row5", paper_tables.TABLE_2
    )
    return [layout for layout in (first, second) if rows.keys() & set(layout.rows)]


def _facts(dataset, rows):
    """What every caption says: data, budget, and where the rows are not on equal terms."""
    budget = {
        "classes": {
            len({label for run in row.runs for _, _, label in run.images})
            for row in rows
        },
        "test cases": {len(row.scores.cases()) for row in rows},
        "number of seeds": {len(set(row.each("seed"))) for row in rows},
        "train steps": {row.field("train_steps") for row in rows},
        "batch": {row.field("batch_size") for row in rows},
        "pixels a side": {row.field("size") for row in rows},
    }
    said = ", ".join(
        f"{name} {_one_or_range(values)}" for name, values in budget.items()
    )
    unequal = [name for name, values in budget.items() if len(values) > 1]
    if (
        len({tuple(row.scores.cases()) for row in rows}) > 1
        and "test cases" not in unequal
    ):
        unequal.append("which cases are tested")
    warning = (
        f" Not on equal terms: rows differ in {', '.join(unequal)}." if unequal else ""
    )
    splits = "/".join(sorted({row.field("split") for row in rows}))
    return f"Data set {dataset}, {splits} split; {said}.{warning}"


def _standard_table(layout, shown, facts):
    tolerances = _list(sorted({row.field("nsd_tolerance") for _, row in shown if row}))
    caption = (
        f"{facts} Exact measures, mean over images of an image's score averaged over seeds; 95 % interval of Dice by "
        f"bootstrap of whole cases, undefined for one and rough for fewer than {comparison.FEWEST_CASES}. Images with "
        "empty truth count in accuracy alone; a lesion missed altogether counts as Dice 0 and a distance of the image "
        "diagonal. HD and HD95 in pixels; NSD is the share of both borders no farther apart than "
        f"{tolerances} pixels."
    )
    if layout.published:
        caption += (
            " The paper's figures follow another convention and stand in its table."
        )
    notes = tuple(
        filter(None, (_without_lesion(name, row) for name, row in shown if row))
    )
    if notes:
        caption += " Under the table: how many slices without lesion got one, all runs of a row together."
    header = [
        "",
        "Dice",
        "95 % interval",
        "HD",
        "HD95",
        "NSD",
        "IoU",
        "Accuracy",
        "Recall",
        "Precision",
    ]

    def cells(row):
        means = {
            name: comparison.mean(row.scores.scores[name]) for name in results.STANDARD
        }
        dice = [
            _number(means.pop("dice"), 4),
            _interval(*comparison.interval(row.scores, "dice")),
        ]
        return dice + [
            _number(value, 2 if name.startswith("hd") else 4)
            for name, value in means.items()
        ]

    rows = _body(shown, header, cells)
    title = f"{layout.title}, standard convention"
    return Table(title, caption, header, rows, "standard", notes)


def _without_lesion(name, row):
    """What no mean of Dice shows: false lesions where there is none, classes that never
    occur.
    """
    tests = [run.masks() for run in row.runs]
    every = false_lesions.added(map(false_lesions.count, tests))
    classes = {}
    labels = sorted({label for run in row.runs for _, _, label in run.images})
    if len(labels) > 1:
        classes = {
            label: false_lesions.added(_of_class(tests, label)) for label in labels
        }
    found = false_lesions.sentences(every, classes)
    if not found:
        return ""
    first, *rest = found
    rest = [sentence[0].upper() + sentence[1:] for sentence in rest]
    return ". ".join([f"Row {_label(name)}: {first}", *rest]) + "."


def _of_class(tests, label):
    """The counts of one class in each test."""
    return [
        false_lesions.count(mask for mask in masks if mask.label == label)
        for masks in tests
    ]


def _paper_table(layout, shown, facts):
    caption = (
        f"{facts} The convention that the paper's own numbers point to, mean over all images, empty truth included: "
        "smoothed Dice and IoU; recall 0 on empty truth; HD between image rows taken as points, the root of a pixel "
        "count and no distance."
    )
    names = ["Dice", "HD", "IoU", "Accuracy", "Recall", "Precision"]
    header = ["", *names]
    if layout.published:
        caption += (
            " Columns 'paper' are its published figures: measured on its own selection of 1490 COVID-19 CT slices and "
            "a split it does not give, so they are no target that ours must meet, least of all on another data set. "
            "Whether its recall and precision have changed places cannot be told; ours have not."
        )
        header = [
            "",
            *(column for name in names for column in (name, f"{name}, paper")),
        ]
    header.insert(2, "95 % interval")
    rows = []
    for name, row in shown:
        cells = [NOT_MEASURED] + [_NONE] * (len(names) - 1)
        interval = _NONE
        if row:
            means = [
                comparison.mean(row.scores.scores[column]) for column in results.PAPER
            ]
            cells = [_number(mean, 4) for mean in means]
            interval = _interval(*comparison.interval(row.scores, "paper_dice"))
        if layout.published:
            published = [f"{value:.4f}" for value in layout.published.get(name, ())]
            pairs = zip(cells, published or [_NONE] * len(names))
            cells = [cell for pair in pairs for cell in pair]
        cells.insert(1, interval)
        rows.append([_label(name), *cells])
    return Table(f"{layout.title}, paper convention", caption, header, rows, "paper")


def _difference_table(layout, shown, facts):
    few = comparison.FEWEST_CASES
    reference = dict(shown)[layout.reference]
    caption = (
        f"{facts} Row minus {_label(layout.reference)}, standard convention: mean over the cases tested in both of the "
        "case's mean score, averaged over seeds. 95 % interval by paired bootstrap of cases; p of the two-sided "
        f"Wilcoxon signed-rank test, not corrected for the number of rows, and not defined where fewer than {few} "
        f"cases differ, since it could not fall below 0.05 there. Intervals from fewer than {few} cases are rough."
    )
    header = [
        "",
        "Cases",
        "Dice",
        "95 % interval",
        "p",
        "HD95, pixels",
        "95 % interval",
        "p",
    ]

    def cells(row):
        if row is reference or reference is None:
            return [
                "reference" if row is reference else "no reference",
                *[_NONE] * (len(header) - 2),
            ]
        dice = comparison.difference(row.scores, reference.scores, "dice")
        hd95 = comparison.difference(row.scores, reference.scores, "hd95")
        return [str(dice.n), *_difference_cells(dice, 4), *_difference_cells(hd95, 2)]

    title = f"{layout.title}, difference from {_label(layout.reference)}"
    return Table(title, caption, header, _body(shown, header, cells), "standard")


def _difference_cells(delta, digits):
    sign = "+" if delta.mean > 0 else ""
    p = (
        "not defined"
        if math.isnan(delta.p)
        else "<0.001"
        if delta.p < 0.001
        else f"{delta.p:.3f}"
    )
    return [
        sign + _number(delta.mean, digits),
        _interval(delta.low, delta.high, digits),
        p,
    ]


def _details_table(layout, shown, facts):
    caption = (
        f"{facts} Standard convention. Small: slices whose true mask has fewer than {_SMALL} pixels at 256x256, or as "
        "large a share of a smaller image; large: all others with truth. ECE: mean distance between the probability "
        "and the share that is true, over pixels. Entropy: mean over a slice's likely pixels, in bits; its rank "
        "correlation with 1 - Dice says whether a slice's uncertainty tells its error (Spearman; 1 is best, 0 is "
        "chance), as does the mean Dice of the half of the slices with the least."
    )
    header = [
        "",
        "Slices, small",
        "Dice",
        "HD95",
        "NSD",
        "Slices, large",
        "Dice",
        "HD95",
        "NSD",
        "ECE",
    ]
    header += ["Entropy against error", "Dice of the surest half"]

    def cells(row):
        columns = row.scores.scores
        found = []
        known = ~np.isnan(columns["dice"])
        small = columns["truth_pixels"] < _SMALL * (row.field("size") / 256) ** 2
        recorded = not np.isnan(columns["truth_pixels"]).all()
        for some in (known & small, known & ~small & recorded):
            means = [
                comparison.mean(columns[name][some]) for name in ("dice", "hd95", "nsd")
            ]
            found += [
                str(some.sum()),
                *(_number(mean, digits) for mean, digits in zip(means, (4, 2, 4))),
            ]
        ece = [value for value in row.each("calibration_error") if value is not None]
        dice = columns["dice"][known]
        entropy = columns["entropy"][known]
        surest = dice[np.argsort(entropy, kind="stable")[: (len(dice) + 1) // 2]]
        rest = [
            sum(ece) / len(ece) if ece else math.nan,
            comparison.rank_correlation(entropy, 1.0 - dice),
        ]
        rest.append(math.nan if np.isnan(entropy).any() else comparison.mean(surest))
        return found + [
            _number(value, digits) for value, digits in zip(rest, (4, 2, 4))
        ]

    title = f"{layout.title}, small lesions and uncertainty"
    return Table(title, caption, header, _body(shown, header, cells), "standard")


def _cost_table(layout, shown, facts):
    caption = (
        f"{facts} GMACs: multiply-adds of convolutions and matrix products for one image, all sampling steps and "
        "samples of a diffusion model together. Seconds an image: mean over runs, in batches, on the device named, "
        "compilation left out. Best step: the checkpoint that was tested, of highest validation Dice."
    )
    header = [
        "",
        "Seeds",
        "Dice of each run",
        "Cases",
        "Images",
        "Empty",
        "Train steps",
        "Best step",
        "Batch",
    ]
    header += ["Parameters", "GMACs", "Seconds", "Sampling", "Device"]

    def cells(row):
        seconds = row.each("seconds_per_image")
        dice = [entry["dice"]["mean"] for entry in row.each("standard")]
        return [
            _list(row.each("seed")),
            _list(_number(math.nan if value is None else value, 4) for value in dice),
            str(len(row.scores.cases())),
            _list(row.each("n_images")),
            _list(row.each("n_empty")),
            _list(row.each("train_steps")),
            _list(row.each("checkpoint_step")),
            _list(row.each("batch_size")),
            f"{row.field('parameters'):,}",
            _list(_maybe(value, ".4g") for value in row.each("gmacs_per_image")),
            f"{sum(seconds) / len(seconds):.3g}",
            _sampling(row.field("sampler")),
            _list(row.each("device")),
        ]

    return Table(
        f"{layout.title}, cost and budget",
        caption,
        header,
        _body(shown, header, cells),
        "cost",
    )


_TABLES = (
    _standard_table,
    _paper_table,
    _difference_table,
    _details_table,
    _cost_table,
)


def _body(shown, header, cells):
    """The lines of a table: `cells(row)` of each row that was measured."""
    missing = [NOT_MEASURED, *[_NONE] * (len(header) - 2)]
    return [[_label(name), *(cells(row) if row else missing)] for name, row in shown]


def _sampling(sampler):
    return (
        f"{sampler['method']}, {sampler['steps']} steps x {sampler['ensemble']}"
        if sampler
        else "one pass"
    )


def _label(name):
    return paper_tables.LABELS.get(name, name)


def _number(value, digits):
    return "undefined" if math.isnan(value) else f"{value:.{digits}f}"


def _interval(low, high, digits=4):
    return "undefined" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"


def _list(values):
    """One word where all are equal, a list otherwise."""
    texts = [_maybe(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _maybe(value, spec=""):
    return "not recorded" if value is None else format(value, spec)


def _one_or_range(values):
    known = sorted(value for value in values if value is not None)
    return (
        " to ".join(str(value) for value in dict.fromkeys((known[0], known[-1])))
        if known
        else "not recorded"
    )
