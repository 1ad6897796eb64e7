"""Reports: pooling and tests worked by hand, the order of rows, and the page read back
as a browser would.
"""

import csv
import html
import html.parser
import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT
from refusals import refused
from scipy import stats

from biedsnet_jax.reporting import published, report
from biedsnet_jax.reporting.table import Table, html_table, markdown
from biedsnet_jax.scoring import comparison, results

NAN = math.nan


def write_run(
    folder, dice_by_case, *, row="unet", seed=0, hd95=10.0, columns=None, **fields
):
    """Writes a workdir as evaluation leaves it.

    `dice_by_case` lists the Dice of each slice, NaN for empty truth.

    `columns` maps the names of further ones to values in the order of the slices.
    """
    folder.mkdir(parents=True)
    lines = []
    for case, values in dice_by_case.items():
        for number, dice in enumerate(values):
            scores = dict.fromkeys(results.STANDARD + results.PAPER, dice)
            scores |= {
                "hd95": hd95 + dice,
                "paper_dice": 1.0 if math.isnan(dice) else dice / 2,
            }
            lines.append({"case": case, "slice": f"{number:03d}", "class": 1, **scores})
    for name, values in (columns or {}).items():
        for line, value in zip(lines, values, strict=True):
            line[name] = value
    with (folder / "slices.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    known = [line["dice"] for line in lines if not math.isnan(line["dice"])]
    content = {
        "row": row,
        "network": row,
        "seed": seed,
        "dataset": "toy",
        "split": "test",
        "parameters": 1_234_567,
        "gmacs_per_image": 13.9125,
        "seconds_per_image": 0.25,
        "n_images": len(lines),
        "n_empty": len(lines) - len(known),
        "size": 64,
        "train_steps": 400,
        "batch_size": 8,
        "checkpoint_step": 200,
        "sampler": None,
        "threshold": 0.5,
        "nsd_tolerance": 2.0,
        "device": "1 x cpu",
        "standard": {"dice": {"mean": sum(known) / len(known) if known else None}},
    } | fields
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def pooled(tmp_path, *runs):
    return comparison.pool(
        [results.load(write_run(tmp_path / f"{i}", run)) for i, run in enumerate(runs)]
    )


def tables_of(*folders):
    return {
        table.title: table
        for table in report.make_tables([results.load(folder) for folder in folders])
    }


def test_an_image_scores_the_mean_over_seeds_and_a_row_the_mean_over_images(tmp_path):
    row = pooled(
        tmp_path, {"a": [0.8, 0.6, NAN], "b": [0.5]}, {"a": [0.4, 0.4, NAN], "b": [0.1]}
    )
    np.testing.assert_allclose(row.scores["dice"], [0.6, 0.5, NAN, 0.3])
    assert comparison.mean(row.scores["dice"]) == pytest.approx(1.4 / 3)
    # It is the mean over seeds of the mean over images.
    assert comparison.mean(row.scores["dice"]) == pytest.approx((1.9 / 3 + 0.9 / 3) / 2)
    assert comparison.case_means(row, "dice") == pytest.approx({"a": 0.55, "b": 0.3})


def test_folds_that_test_other_cases_are_joined(tmp_path):
    row = pooled(tmp_path, {"a": [0.8, 0.6]}, {"b": [0.5]})
    assert row.cases() == ["a", "b"]
    assert comparison.mean(row.scores["dice"]) == pytest.approx(1.9 / 3)


def test_interval_of_two_cases_runs_from_one_to_the_other(tmp_path):
    # Draws of two: (a, a) and (b, b) with probability 1/4 each, so both ends lie beyond
    # the 2.5 % tails.
    row = pooled(tmp_path, {"a": [0.8, 0.6, NAN], "b": [0.5], "empty": [NAN]})
    assert comparison.interval(row, "dice") == pytest.approx((0.5, 0.7))
    assert all(
        map(
            math.isnan,
            comparison.interval(pooled(tmp_path / "one", {"a": [0.8, 0.6]}), "dice"),
        )
    )


def test_interval_draws_whole_cases_with_all_their_images(tmp_path):
    scores = {"a": [0.9] * 6, "b": [0.5, 0.6], "c": [0.2] * 4, "d": [0.7]}
    # All draws, equally likely.
    draws = itertools.product(scores, repeat=4)
    means = [
        np.mean([value for case in draw for value in scores[case]]) for draw in draws
    ]
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose(
        comparison.interval(pooled(tmp_path, scores), "dice"), expected, atol=0.015
    )


def test_difference_pairs_the_cases_that_both_rows_have(tmp_path):
    ours = {"a": [0.5, 0.7], "b": [0.9], "c": [NAN], "only ours": [0.1]}
    theirs = {"a": [0.5, 0.5], "b": [0.4], "c": [NAN], "only theirs": [0.2]}
    delta = comparison.difference(
        pooled(tmp_path / "x", ours), pooled(tmp_path / "y", theirs), "dice"
    )
    # The differences are 0.1 in a and 0.5 in b; c has no truth.
    assert (delta.n, delta.mean) == (2, pytest.approx(0.3))
    assert (delta.low, delta.high) == pytest.approx((0.1, 0.5))
    assert math.isnan(delta.p)


@pytest.mark.parametrize(
    ("deltas", "p"),
    [
        # The least p of five cases would be 2 / 2^5.
        ([0.01, 0.02, 0.03, 0.04, 0.05], NAN),
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], 2 / 2**6),
        # Only five cases differ.
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.0], NAN),
        # Rank sums 0 and 1 are as extreme, on either side.
        ([-0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07], 4 / 2**7),
    ],
)
def test_signed_rank_test_is_exact_and_none_where_it_could_show_nothing(
    tmp_path, deltas, p
):
    theirs = {f"case {i}": [0.5] for i in range(len(deltas))}
    ours = {f"case {i}": [0.5 + delta] for i, delta in enumerate(deltas)}
    delta = comparison.difference(
        pooled(tmp_path / "x", ours), pooled(tmp_path / "y", theirs), "dice"
    )
    assert delta.p == pytest.approx(p, nan_ok=True)


def test_difference_agrees_with_scipy(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.2, 0.9, (2, 12))
    rows = [
        pooled(tmp_path / name, {f"{i:02d}": [v] for i, v in enumerate(values)})
        for name, values in zip("xy", (x, y))
    ]
    delta = comparison.difference(*rows, "dice")
    assert delta.p == pytest.approx(stats.wilcoxon(x, y).pvalue)
    reference = stats.bootstrap(
        (x - y,), np.mean, n_resamples=50_000, method="percentile", random_state=1
    )
    assert (delta.low, delta.high) == pytest.approx(
        reference.confidence_interval, abs=0.003
    )


def test_rows_come_in_the_papers_order_with_its_figures_in_their_own_table(tmp_path):
    two = {"a": [0.8, 0.6], "b": [0.5]}
    tables = tables_of(
        write_run(tmp_path / "z", two, row="my_net"),
        write_run(tmp_path / "y", two, row="biedsnet"),
        write_run(tmp_path / "x", two, row="unet"),
        write_run(tmp_path / "w", two, row="direct"),
    )
    standard = tables["Table 1, standard convention"]
    paper = tables["Table 1, paper convention"]
    papers = [
        "UNet",
        "UNet++",
        "AttentionUNet",
        "UNeXt",
        "SwinUNet",
        "MedSegDiff",
        "BIEDSNet",
    ]
    order = [*papers, "TransUNet", "BIEDSNet, no diffusion", "my_net"]
    for table in tables.values():
        assert [row[0] for row in table.rows] == order
        assert {len(row) for row in table.rows} == {len(table.header)}
        measured = {row[0] for row in table.rows if "not measured" not in row}
        assert measured == {"UNet", "BIEDSNet", "BIEDSNet, no diffusion", "my_net"}
    assert not [title for title in tables if "Table 2" in title]

    dice = paper.header.index("Dice, paper")
    hd = paper.header.index("HD, paper")
    assert (paper.rows[6][dice], paper.rows[6][hd]) == ("0.7578", "2.7090")
    assert [row[dice] for row in paper.rows[7:]] == ["-", "-", "-"]
    figures = {
        f"{value:.4f}" for values in published.TABLE_1.values() for value in values
    }
    assert not figures & {cell for row in standard.rows for cell in row}
    assert standard.rows[0][1:3] == ["0.6333", "0.5000 to 0.7000"]
    # In these files paper_dice is half of dice.
    assert paper.rows[0][1:3] == ["0.3167", "0.2500 to 0.3500"]


def test_ablation_rows_make_the_second_table(tmp_path):
    runs = [
        write_run(tmp_path / row, {"a": [0.5], "b": [0.7]}, row=row)
        for row in ("row5", "row2")
    ]
    tables = tables_of(*runs)
    table = tables["Table 2 (ablation), difference from 5 + multi-layer supervision"]
    assert [row[0][0] for row in table.rows] == ["1", "2", "3", "4", "5"]
    assert [row[1] for row in table.rows] == [
        "not measured",
        "2",
        "not measured",
        "not measured",
        "reference",
    ]
    assert table.rows[1][2:] == [
        "0.0000",
        "0.0000 to 0.0000",
        "not defined",
        "0.00",
        "0.00 to 0.00",
        "not defined",
    ]
    assert not [title for title in tables if "Table 1" in title]


def test_without_the_reference_nothing_is_compared(tmp_path):
    runs = [
        write_run(tmp_path / row, {"a": [0.5]}, row=row) for row in ("unet", "unext")
    ]
    table = tables_of(*runs)["Table 1, difference from BIEDSNet"]
    assert table.rows[0][1:3] == ["no reference", "-"]


def test_one_row_stands_by_itself_without_the_papers_figures(tmp_path):
    tables = tables_of(write_run(tmp_path / "x", {"a": [0.5]}))
    assert all(title.startswith("Scores, ") for title in tables)
    assert not [title for title in tables if "difference" in title]
    assert all([row[0] for row in table.rows] == ["UNet"] for table in tables.values())
    assert not [
        cell for cell in tables["Scores, paper convention"].header if "paper" in cell
    ]


def test_rows_that_the_paper_does_not_have_are_compared_with_the_first(tmp_path):
    dice = {"b": 0.75, "a": 0.5}
    runs = [write_run(tmp_path / row, {"x": [dice[row]]}, row=row) for row in dice]
    table = tables_of(*runs)["Scores, difference from a"]
    assert [row[:3] for row in table.rows] == [
        ["a", "reference", "-"],
        ["b", "1", "+0.2500"],
    ]


@pytest.mark.parametrize(
    ("rows", "title"),
    [
        (["unet", "unet"], "UNet on toy"),
        (["first", "second"], "first, second on toy"),
        (["unet", "own"], "UNet, own on toy: measured, and as published"),
    ],
)
def test_a_report_is_called_by_its_rows_and_data(tmp_path, rows, title):
    for seed, row in enumerate(rows):
        write_run(tmp_path / "runs" / f"{seed}", {"a": [0.5]}, row=row, seed=seed)
    report.run(str(tmp_path / "runs"), str(tmp_path / "r.html"))
    assert f"<title>{title}</title>" in (tmp_path / "r.html").read_text()
    text = (tmp_path / "r.md").read_text()
    assert text.startswith(f"# {title}\n")
    # Only runs of one row are judged.
    assert ("## Verdict" in text) == (len(set(rows)) == 1)


def test_costs_and_each_seed_are_shown(tmp_path):
    sampler = {"method": "ddim", "steps": 10, "ensemble": 5}
    runs = [
        write_run(
            tmp_path / f"s{seed}",
            {"a": [dice, NAN]},
            row="biedsnet",
            seed=seed,
            seconds_per_image=seed / 4,
            sampler=sampler,
        )
        for seed, dice in ((2, 0.5), (1, 0.7))
    ]
    tables = tables_of(*runs)
    table = tables["Scores, cost and budget"]
    assert dict(zip(table.header, table.rows[0])) == {
        "": "BIEDSNet",
        "Seeds": "1, 2",
        "Dice of each run": "0.7000, 0.5000",
        "Cases": "1",
        "Images": "2",
        "Empty": "1",
        "Train steps": "400",
        "Best step": "200",
        "Batch": "8",
        "Parameters": "1,234,567",
        "GMACs": "13.91",
        "Seconds": "0.375",
        "Sampling": "ddim, 10 steps x 5",
        "Device": "1 x cpu",
    }
    assert (
        "number of seeds 2, train steps 400, batch 8, pixels a side 64."
        in table.caption
    )


def test_small_lesions_and_uncertainty_are_told_apart(tmp_path):
    # At 128x128 a lesion is small below 25 pixels; the third slice has no truth, and
    # the others' errors 1 - Dice rank 1, 4, 2, 3 where their entropies rank 2, 4, 1, 3:
    # Spearman's 1 - 6 (1 + 0 + 1 + 0) / (4 (16 - 1)) = 0.8.
    columns = {
        "tp": [20, 4, 0, 10, 99],
        "fn": [5, 20, 0, 3, 1],
        "entropy": [0.2, 0.4, 0.9, 0.1, 0.3],
    }
    dice = {"a": [0.9, 0.2, NAN], "b": [0.8, 0.5]}
    one = write_run(
        tmp_path / "0", dice, columns=columns, size=128, calibration_error=0.01
    )
    two = write_run(
        tmp_path / "1", dice, columns=columns, size=128, calibration_error=0.03, seed=1
    )
    table = tables_of(one, two)["Scores, small lesions and uncertainty"]
    row = dict(zip(range(12), next(row for row in table.rows if row[0] == "UNet")))
    # Small are 0.2 and 0.8; HD95 is 10 more than Dice here.
    assert [row[i] for i in (1, 2, 3)] == ["2", "0.5000", "10.50"]
    # Large are 0.9 and 0.5.
    assert [row[i] for i in (5, 6, 7)] == ["2", "0.7000", "10.70"]
    # The surest half has entropy 0.1 and 0.2.
    assert [row[i] for i in (9, 10, 11)] == ["0.0200", "0.80", "0.8500"]

    # An earlier version did not record them.
    old = write_run(tmp_path / "old", dice, row="unext")
    table = tables_of(old)["Scores, small lesions and uncertainty"]
    row = next(row for row in table.rows if row[0] == "UNeXt")
    assert row[1:6] == ["0", "undefined", "undefined", "undefined", "0"]
    assert set(row[9:]) == {"undefined"}


def test_captions_say_when_rows_are_not_on_equal_terms(tmp_path):
    equal = write_run(tmp_path / "x", {"a": [0.5]})
    other = write_run(tmp_path / "y", {"b": [0.5]}, row="biedsnet", train_steps=300)
    tables = tables_of(equal, other)
    assert (
        "rows differ in train steps, which cases are tested."
        in tables["Table 1, standard convention"].caption
    )
    assert "train steps 300 to 400" in tables["Table 1, standard convention"].caption
    same = tables_of(equal, write_run(tmp_path / "z", {"a": [0.6]}, row="biedsnet"))
    assert "equal terms" not in same["Table 1, standard convention"].caption


def test_data_sets_never_share_a_table(tmp_path):
    runs = [
        write_run(tmp_path / name, {"a": [0.5]}, dataset=name) for name in ("ct", "mri")
    ]
    tables = report.make_tables([results.load(folder) for folder in runs])
    assert [table.caption.split(",")[0] for table in tables] == ["Data set ct"] * 4 + [
        "Data set mri"
    ] * 4


class Reader(html.parser.HTMLParser):
    """Collects the cells of every table, and whatever a page loads or runs."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []
        self.tables = []
        self.loads = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self.loads += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.loads += [
            value
            for name, value in attributes
            if name in ("src", "href") or name.startswith("on")
        ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data


AWKWARD = Table(
    "A & B",
    "1 < 2",
    ["", "a|b", '"q"'],
    [["<script>", "x & y", "-"], ["r2", "1|2", ""]],
)


def test_html_holds_the_same_cells_and_loads_nothing():
    reader = Reader()
    reader.feed(html_table(AWKWARD))
    assert reader.open == []
    assert reader.loads == []
    assert reader.tables == [[AWKWARD.header, *AWKWARD.rows]]


def test_markdown_holds_the_same_cells():
    lines = [
        line for line in markdown("A", [AWKWARD]).splitlines() if line.startswith("|")
    ]
    cells = [
        [
            html.unescape(cell.strip().replace(r"\|", "|"))
            for cell in re.split(r"(?<!\\)\|", line)[1:-1]
        ]
        for line in lines
    ]
    assert cells[0] == AWKWARD.header
    assert cells[2:] == AWKWARD.rows
    assert cells[1] == [":--", "--:", "--:"]


def test_a_folder_of_rows_and_seeds_is_searched_and_both_files_written(
    tmp_path, capsys
):
    out = tmp_path / "out, with comma"
    for seed in (0, 1):
        write_run(out / "unet" / f"seed{seed}", {"a": [0.5], "b": [0.7]}, seed=seed)
    (out / "biedsnet" / "seed0").mkdir(parents=True)
    (out / "biedsnet" / "seed0" / "config.json").write_text("{}")
    report.run(str(out), str(out / "report.html"))
    text = (out / "report.md").read_text()
    assert "| UNet | 0.6000 |" in text
    assert "not measured" not in text
    assert f"| {out / 'biedsnet' / 'seed0'} | no results yet" in text
    assert "2 runs, 1 not finished" in capsys.readouterr().out
    reader = Reader()
    reader.feed((out / "report.html").read_text())
    # Four of scores, the unfinished runs, what was run, its cases, its config.
    assert len(reader.tables) == 4 + 1 + 3


def test_the_report_of_named_workdirs_goes_where_it_is_told_or_into_the_only_one(
    tmp_path,
):
    runs = [
        write_run(tmp_path / f"seed{seed}", {"a": [0.5]}, seed=seed) for seed in (0, 1)
    ]
    # A workdir that is named twice is one run.
    report.run(f"{runs[0]},{runs[1]},{runs[0]}", str(tmp_path / "new" / "r.html"))
    assert "| UNet | 0, 1 |" in (tmp_path / "new" / "r.md").read_text()
    report.run(str(runs[0]), None)
    assert (runs[0] / "report.html").exists()
    assert (runs[0] / "report.md").exists()


def damage(name, old, new):
    def apply(folder):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))

    return apply


@pytest.mark.parametrize(
    ("spoil", "name", "value"),
    [
        (lambda folder: (folder / "slices.csv").unlink(), "slices.csv", "no such file"),
        (lambda folder: (folder / "slices.csv").write_text(""), "slices.csv", "0 rows"),
        (
            lambda folder: (folder / "results.json").write_text("{"),
            "results.json",
            "line 1",
        ),
        (lambda folder: (folder / "results.json").write_text("[]"), "results.json", ""),
        (damage("results.json", '"seed"', '"sd"'), "results.json", "'seed'"),
        (
            damage("results.json", '"seed": 0', '"seed": "x"'),
            "results.json",
            "seed is 'x'",
        ),
        (damage("results.json", '"mean": 0.5', '"mean": 0.6'), "results.json", "0.6"),
        (damage("results.json", '"mean": 0.5', '"mean": null'), "results.json", "None"),
        (damage("slices.csv", "paper_iou", "other"), "slices.csv", "'paper_iou'"),
        (damage("slices.csv", ",0.5,", ",high,"), "slices.csv", "'high'"),
        # Cut short.
        (damage("slices.csv", "0.25,0.5,0.5,0.5,0.5,0.5", "0.25"), "slices.csv", ""),
        (
            lambda folder: (folder / "cases.csv").write_text("case,dice\na,high\n"),
            "cases.csv",
            "'high'",
        ),
    ],
)
def test_damaged_files_are_named_with_the_fix(tmp_path, spoil, name, value):
    folder = write_run(tmp_path / "run", {"a": [0.5]})
    spoil(folder)
    fix = f"--mode=evaluate --workdir={folder}"
    refused(lambda: results.load(folder), folder / name, value, fix)


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"seed": 0}, ["row unet", "seed 0"]),
        ({"seed": 1, "parameters": 7}, ["parameters", "1234567", " 7 "]),
        ({"seed": 1, "train_steps": 100}, ["train_steps", "400", "100"]),
        ({"seed": 1, "sampler": {"steps": 5}}, ["sampler", "None", "'steps': 5"]),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(tmp_path, fields, values):
    folders = [
        write_run(tmp_path / "x", {"a": [0.5]}),
        write_run(tmp_path / "y", {"a": [0.5]}, **fields),
    ]
    refused(lambda: tables_of(*folders), *values, *folders, "--config.row")


def test_folds_of_one_seed_are_no_twins(tmp_path):
    runs = [
        write_run(tmp_path / f"{k}", {f"case {k}": [0.5]}, fold=[k, 2])
        for k in range(2)
    ]
    table = tables_of(*runs)["Scores, cost and budget"]
    assert dict(zip(table.header, table.rows[0]))["Cases"] == "2"


@pytest.mark.parametrize(
    ("workdirs", "output", "parts"),
    [
        ("nowhere", "r.html", ["--workdir=nowhere"]),
        ("empty", "r.html", ["empty", "results.json", "--mode=evaluate"]),
        ("run,run2", None, ["--output", "2 runs", "--output=report.html"]),
        ("run", "r.txt", ["--output=r.txt", ".html"]),
        ("run", "/dev/null/r.html", ["/dev/null", "another --output"]),
        ("run", "pipe.html", ["pipe.html", "another --output"]),
        ("run", "run/slices.csv/r.html", ["slices.csv", "another --output"]),
    ],
)
def test_wrong_arguments_are_named_with_the_fix(
    tmp_path, monkeypatch, workdirs, output, parts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    write_run(tmp_path / "run", {"a": [0.5]})
    write_run(tmp_path / "run2", {"a": [0.5]}, seed=1)
    refused(lambda: report.run(workdirs, output), *parts)


def test_the_mode_runs_without_jax_and_without_a_config(tmp_path):
    folder = write_run(tmp_path / "run", {"a": [0.5]})
    (folder / "config.json").write_text("{}")
    code = (
        "import sys; from biedsnet_jax import main; "
        "sys.exit(main.run(sys.argv) or 10 * ('jax' in sys.modules))"
    )

    def mode_report(*flags):
        command = [sys.executable, "-c", code, "--mode=report", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = mode_report(f"--workdir={folder}", f"--output={tmp_path / 'r.html'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.md").exists()
    done = mode_report(f"--workdir={tmp_path / 'gone'}")
    assert done.returncode == 2 and done.stderr.startswith("biedsnet: --workdir="), (
        done.stderr
    )


# ---- Many and odd workdirs


def written(tmp_path, names, monkeypatch):
    """Writes the report of a list of workdirs, each another seed; returns its two files."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(names):
        write_run(tmp_path / name, {"a": [0.5], "b": [0.25]}, seed=seed)
    report.run(",".join(names), "r.html")
    return [(tmp_path / f"r.{end}").read_text() for end in ("html", "md")]


@pytest.mark.parametrize(
    "names",
    [
        [f"runs/unet/seed{i}" for i in range(60)],
        [f"{i:03d}" + "x" * 197 for i in range(60)],
        [f"{'d' * 200}/{i:03d}{'é' * 120}" for i in range(3)],
        ["with, comma", "with, comma, and more", "plain", "a,b,c,d"],
        ["肺", "пациент 7", "Ünïcode", "nu\u0308"],
        ["two\nlines", "tab\tbed", " spaces ", "=1+1", "-x", "@y", "'z"],
    ],
    ids=["60", "60 long", "deep and long", "commas", "other alphabets", "line breaks"],
)
def test_any_number_of_workdirs_of_any_names_makes_a_report(
    tmp_path, monkeypatch, capsys, names
):
    page, text = written(tmp_path, names, monkeypatch)
    assert f": {len(names)} runs, 0 not finished\n" in capsys.readouterr().out
    assert f"| UNet | {', '.join(map(str, range(len(names))))} |" in text
    assert all(html.escape(name) in page for name in names)
    assert len(page.encode()) < 5e6


def test_a_folder_of_many_workdirs_is_one_name(tmp_path, monkeypatch):
    for i in range(60):
        write_run(tmp_path / "out" / f"{i:03d}{'x' * 197}", {"a": [0.5]}, seed=i)
    monkeypatch.chdir(tmp_path)
    report.run("out", "r.html")
    assert "| UNet | 0, 1, 2," in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x" * 5000, "is no folder"),
        (",".join(f"{i}" + "x" * 300 for i in range(60)), "is no folder"),
        ("run,nul\0byte", "--workdir=nul byte is no folder"),
        ("run,two\nlines", "--workdir=two lines is no folder"),
        ("run,,gone,", "--workdir=gone is no folder"),
        (",", "--workdir=, names no folder"),
    ],
)
def test_workdirs_that_are_none_are_named_on_one_line(
    tmp_path, monkeypatch, text, part
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", {"a": [0.5]})
    refused(lambda: report.run(text, "r.html"), part)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    "output", ["x" * 300 + ".html", "nul\0.html", "two\nlines/" + "y" * 300 + "/r.html"]
)
def test_an_output_that_no_file_can_be_called_is_one_line(
    tmp_path, monkeypatch, output
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", {"a": [0.5]})
    refused(lambda: report.run("run", output), "cannot be written", "another --output")


def test_the_home_folder_is_meant_by_a_tilde_in_any_place_of_the_list(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b,c")):
        write_run(tmp_path / name, {"a": [0.5]}, seed=seed)
    report.run("a,~/b,c", "~/r.html")
    assert "| UNet | 0, 1 |" in (tmp_path / "r.md").read_text()


def test_a_table_says_on_which_grid_it_was_scored(tmp_path):
    scores = {"a": [0.5], "b": [0.7]}
    network = {"dice": {"mean": 0.65}}
    volumes = {"n": 2, "dice": {"mean": 0.61}, "hd95_mm": {"mean": 3.25}}
    volumes |= {"assd_mm": {"mean": None}, "nsd_mm": {"mean": 0.5}}
    now = {"grid": "file", "network_grid": network, "volumes": volumes}
    earlier = write_run(tmp_path / "earlier", scores, row="x")
    new = write_run(tmp_path / "new", scores, row="y", **now)
    tables = tables_of(earlier)
    assert "the network's grid" in tables["Scores, standard convention"].caption
    assert "Scores, grids and volumes" not in tables
    tables = tables_of(new)
    assert "the grid of the files" in tables["Scores, standard convention"].caption
    (row,) = tables["Scores, grids and volumes"].rows
    assert row == ["y", "0.6000", "0.6500", "2", "0.6100", "3.25", "-", "0.5000"]
    caption = tables_of(earlier, new)["Scores, standard convention"].caption
    assert "Not on equal terms" in caption


def test_runs_that_were_scored_on_two_grids_are_not_averaged(tmp_path):
    earlier = write_run(tmp_path / "a", {"a": [0.5]}, seed=0)
    new = write_run(tmp_path / "b", {"a": [0.5]}, seed=1, grid="file")
    refused(lambda: tables_of(earlier, new), "grid", "file")


def test_without_the_papers_convention_there_is_no_table_of_it(tmp_path):
    folder = write_run(tmp_path / "run", {"a": [0.5], "b": [0.7]}, row="biedsnet")
    path = folder / "slices.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if not name.startswith("paper_")]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    other = write_run(tmp_path / "other", {"a": [0.5], "b": [0.6]}, row="unet")
    assert not [title for title in tables_of(folder) if "paper" in title]
    # Beside a run that has it, a row without it was not measured.
    table = tables_of(folder, other)["Table 1, paper convention"]
    measured = {row[0] for row in table.rows if "not measured" not in row}
    assert measured == {"UNet"}
