"""False lesions where there is none, and classes that never occur: counted, and put
into words wherever scores are.
"""

import collections
import io
import json
import sys

import evaluated_workdir
import numpy as np
import pytest
import terminals

from biedsnet_jax.evaluation import closing
from biedsnet_jax.exporting import model_card
from biedsnet_jax.reporting import report
from biedsnet_jax.scoring import false_lesions, metrics, results

EMPTY = np.zeros((4, 4), bool)
FULL = np.ones((4, 4), bool)
NONE = "no slice of the test has a lesion: Dice is undefined"


def summary(*masks):
    """Makes the results.json of slices.

    A slice is ("case", true, predicted), or ("case", {class: (true, predicted)}).
    """
    rows = []
    for number, (case, *values) in enumerate(masks):
        by_class = values[0] if len(values) == 1 else {1: values}
        rows += [
            metrics.slice_row(
                pred=FULL if predicted else EMPTY,
                truth=FULL if true else EMPTY,
                case=case,
                slice=str(number),
                label=label,
            )
            for label, (true, predicted) in by_class.items()
        ]
    return metrics.summarise(rows) | {"seconds_per_image": 0.5}


def slow_counts(masks):
    """Counts slice by slice and case by case, in plain loops."""
    slices = collections.defaultdict(list)
    cases = collections.defaultdict(list)
    for mask in masks:
        slices[mask.case, mask.slice].append(mask)
        cases[mask.case].append(mask)
    found = []
    for groups in (slices, cases):
        without = [
            group for group in groups.values() if not any(mask.true for mask in group)
        ]
        found += [
            len(without),
            sum(any(mask.predicted for mask in group) for group in without),
        ]
    return (*found, sum(any(mask.true for mask in group) for group in slices.values()))


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    masks = [
        false_lesions.Mask(
            f"c{case}",
            str(number),
            str(label),
            rng.random() < 0.1 * case,
            rng.random() < 0.3,
        )
        for case in range(6)
        for number in range(3)
        for label in range(1, 2 + seed % 3)
    ]
    assert tuple(false_lesions.count(masks)) == slow_counts(masks)


@pytest.mark.parametrize(
    ("masks", "sentences"),
    [
        ([("a", 1, 1), ("a", 1, 0)], []),
        ([("a", 1, 1), *[("a", 0, 1)] * 5], ["5 of 5 slices without lesion got one"]),
        ([("a", 1, 1), ("a", 0, 1)], ["1 of 1 slice without lesion got one"]),
        (
            [("a", 1, 1), ("b", 0, 1), ("b", 0, 0), ("c", 0, 0)],
            [
                "1 of 3 slices without lesion got one, 1 of 2 cases without lesion got one"
            ],
        ),
        (
            [("a", 0, 1), ("a", 0, 0), ("b", 0, 0)],
            [f"{NONE}; 1 of 3 slices got a false one, in 1 of 2 cases"],
        ),
        (
            [("a", 0, 0)],
            [f"{NONE}; 0 of 1 slice got a false one, in 0 of 1 case"],
        ),
        (
            [("a", {1: (1, 1), 2: (0, 1)}), ("b", {1: (0, 0), 2: (0, 0)})],
            [
                "0 of 1 slice without lesion got one, 0 of 1 case without lesion got one",
                "class 1: 0 of 1 slice without lesion got one, 0 of 1 case without lesion got one",
                "class 2: no slice of the test has one: its Dice is undefined; "
                "1 of 2 slices got a false one, in 1 of 2 cases",
            ],
        ),
        (
            [("a", {1: (0, 1), 2: (0, 0)}), ("a", {1: (0, 1), 2: (0, 1)})],
            [
                f"{NONE}; 2 of 2 slices got a false one, in 1 of 1 case",
                "class 1: 2 of 2 slices got a false one, in 1 of 1 case",
                "class 2: 1 of 2 slices got a false one, in 1 of 1 case",
            ],
        ),
    ],
    ids=[
        "every slice",
        "five",
        "one",
        "healthy cases",
        "no lesion",
        "one slice",
        "no class 2",
        "no class",
    ],
)
def test_sentences_worked_by_hand(masks, sentences, capsys, monkeypatch):
    found = summary(*masks)
    assert false_lesions.of_results(found) == sentences
    assert (
        false_lesions.of_results(json.loads(json.dumps(found, allow_nan=False)))
        == sentences
    )
    # A pipe gets plain closing lines.
    closing.tested(found, "runs/x", seconds=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in sentences] == sentences
    assert ("Dice" in lines[1]) == (found["standard"]["dice"]["mean"] is not None)
    assert not any("none" in line for line in lines[2:])
    # A terminal gets a table.
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(terminals.COLUMNS))
    closing.tested(found, "runs/x", seconds=1.0)
    shown = " ".join(terminals.screen(sys.stdout.getvalue()).split())
    assert all(sentence in shown for sentence in sentences)
    assert ("without lesion" in shown) == bool(sentences)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_results_of_an_earlier_version_say_nothing(capsys):
    found = summary(("a", 1, 1), ("a", 0, 1))
    del found["without_lesion"]
    assert false_lesions.of_results(found) == []
    closing.tested(found, "runs/x", seconds=1.0)
    assert "without lesion" not in capsys.readouterr().out


def texts(folder):
    report.run(str(folder), str(folder / "report.html"))
    return [(folder / f"report.{end}").read_text() for end in ("html", "md")]


def test_both_reports_say_it_right_under_the_score_table(tmp_path):
    evaluated_workdir.write(tmp_path / "run", count=8)
    (sentence,) = false_lesions.of_results(results.load(tmp_path / "run").fields)
    rows = results.load(tmp_path / "run").masks()
    empty = [mask for mask in rows if not mask.true]
    assert sentence.startswith(
        f"{sum(mask.predicted for mask in empty)} of {len(empty)} slice"
    )
    page, text = texts(tmp_path / "run")
    (score_table,) = [
        part
        for part in text.split("## ")
        if part.startswith("Scores, standard convention")
    ]
    assert score_table.rstrip().endswith(f"- Row BIEDSNet: {sentence}.")
    section = page.split('<section class="standard">')[1].split("</section>")[0]
    assert f"<li>Row BIEDSNet: {sentence}.</li>" in section.split("</table>")[1]


def test_runs_of_one_row_are_counted_together_also_of_an_earlier_version(tmp_path):
    """The counts come from slices.csv, which earlier versions wrote too."""
    for seed in range(3):
        evaluated_workdir.write(tmp_path / f"{seed}", seed=seed, count=4 + seed)
        path = tmp_path / f"{seed}" / "results.json"
        fields = json.loads(path.read_text())
        del fields["without_lesion"]
        path.write_text(json.dumps(fields))
    masks = [
        mask
        for seed in range(3)
        for mask in results.load(tmp_path / f"{seed}").masks()
        if not mask.true
    ]
    for text in texts(tmp_path):
        assert (
            f"{sum(mask.predicted for mask in masks)} of {len(masks)} slices without lesion got one"
            in text
        )


@pytest.mark.parametrize(
    ("classes", "absent", "sentences"),
    [
        (
            1,
            (1,),
            ("Row BIEDSNet: no slice of the test has a lesion: Dice is undefined",),
        ),
        (2, (2,), ("Class 2: no slice of the test has one: its Dice is undefined",)),
        (
            3,
            (1, 3),
            (
                "Class 1: no slice of the test has one",
                "Class 3: no slice of the test has one",
            ),
        ),
        (
            2,
            (1, 2),
            ("Row BIEDSNet: no slice of the test has a lesion: Dice is undefined",),
        ),
    ],
)
def test_a_report_of_classes_that_never_occur(tmp_path, classes, absent, sentences):
    evaluated_workdir.write(tmp_path / "run", classes=classes, absent=absent, count=5)
    for text in texts(tmp_path / "run"):
        assert all(sentence in text for sentence in sentences)
    page, _ = texts(tmp_path / "run")
    assert ("No slice has truth." in page) == (len(absent) == classes)


def test_a_model_card_says_it(tmp_path):
    evaluated_workdir.write(tmp_path / "run", classes=2, absent=(1, 2))
    fields = model_card.read_results(tmp_path / "run")
    same = (
        "row",
        "network",
        "parameters",
        "checkpoint_step",
        "threshold",
        "postprocess",
        "fusion",
        "sampler",
    )
    about = {name: fields.get(name) for name in same}
    about |= {
        "not_applied": "",
        "dtype": None,
        "classes": 2,
        "labels": [[1], [2]],
        "train_steps": 9,
        "seed": 0,
    }
    data = {
        "name": "d",
        "size": 32,
        "channels": 1,
        "context": 0,
        "normalise": "minmax",
        "window": [],
        "prepare": ["Resize each slice."],
    }
    split = {
        "fractions": [0.8, 0.1, 0.1],
        "seed": 6,
        "folds": 0,
        "fold": 0,
        "train": [],
        "val": [],
        "test": [],
    }
    text = model_card.card(about | {"data": data, "split": split}, fields)
    assert (
        "**Where there is no lesion**: no slice of the test has a lesion: Dice is undefined"
        in text
    )
    assert "| Dice | undefined | too few cases | undefined |" in text
