"""Mode report: writes the report of one or many evaluated workdirs. Imports no jax.

It is a page, and a Markdown file beside it. Runs of one row begin with a verdict on
them. The tables have, for each data set, the scores in both conventions, the cost, and
how large and small lesions and uncertainty compare. Several rows have a paired
comparison too, and the paper's figures where they are among its Tables 1 and 2.
"""

import pathlib
from collections import defaultdict

from biedsnet_jax import errors
from biedsnet_jax.errors import BadInput, listed
from biedsnet_jax.reporting import published, run_tables, score_tables, verdict
from biedsnet_jax.reporting.page import page
from biedsnet_jax.reporting.table import Table, markdown
from biedsnet_jax.runtime import files
from biedsnet_jax.scoring import comparison, results
from biedsnet_jax.scoring.false_lesions import number


def run(workdirs: str, output: str | None) -> None:
    """Writes the page `output` and the same as Markdown beside it.

    `workdirs` is a list as `results.find` takes it. Without `output` the report of a
    single workdir goes into it. Raises BadInput where a workdir has no results and
    where the output cannot be written.
    """
    finished, unfinished = results.find(workdirs)
    path = _output_path(output, finished)
    _write(path, [results.load(workdir) for workdir in finished], unfinished)
    runs = number(len(finished), "run")
    text_name = path.with_suffix(".md").name
    print(f"{path} and {text_name}: {runs}, {len(unfinished)} not finished")


def write(workdir: pathlib.Path) -> None:
    """Writes the report of one evaluated workdir into it."""
    _write(workdir / "report.html", [results.load(workdir)], [])


def _write(path, runs, unfinished):
    tables = make_tables(runs)
    shown = run_tables.evaluated(runs)
    if beside := run_tables.evaluations_table(shown):
        tables.append(beside)
    if unfinished:
        state = "no results yet; the command that began it goes on"
        rows = [[str(workdir), state] for workdir in unfinished]
        caption = "Left out of every table above."
        header = ["Workdir", "State"]
        tables.append(Table("Runs not finished", caption, header, rows))
    title = make_title(runs)
    judged = None
    # Several rows are compared, not judged.
    if len({(run.fields["row"], run.fields["dataset"]) for run in runs}) == 1:
        judged = verdict.judge(shown)
    beginning = verdict.markdown_verdict(judged) if judged else ""
    text = markdown(title, tables, beginning)
    try:
        files.check_writable(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path.with_suffix(".md"), _characters(text))
        files.write_text(path, _characters(page(title, tables, shown, judged)))
    # ValueError: a name that no file can have.
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{errors.shown(path, most=300)} cannot be written: {errors.reason(error)}. Make "
            "room, or give another --output."
        ) from None


def make_title(runs: list[results.Run]) -> str:
    """Names the networks and the data sets of a report: "UNet on LGG"."""
    rows = dict.fromkeys(run.fields["row"] for run in runs)
    data = dict.fromkeys(run.fields["dataset"] for run in runs)
    labels = [published.LABELS.get(row, row) for row in rows]
    title = f"{listed(labels)} on {listed(list(data))}"
    if score_tables.beside_published(rows):
        title += ": measured, and as published"
    return title


def _characters(text):
    """Drops halves of characters, which names of no encoding have."""
    return text.encode("utf-8", "replace").decode()


def make_tables(runs: list[results.Run]) -> list[Table]:
    """Makes the score tables of every data set that `runs` were tested on.

    Raises BadInput where runs of a row cannot be averaged.
    """
    grouped = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=_order):
        grouped[run.fields["dataset"]][run.fields["row"]].append(run)
    tables = []
    for dataset, by_name in sorted(grouped.items()):
        rows = {}
        for name, of_row in by_name.items():
            results.check_same_row(of_row)
            rows[name] = score_tables.Row(name, of_row, comparison.pool(of_row))
        tables += score_tables.of_data_set(dataset, rows)
    return tables


def _order(run):
    return run.fields["seed"], str(run.fields.get("fold"))


def _output_path(output, finished):
    if output is None:
        if len(finished) > 1:
            raise BadInput(
                f"--output is missing for the report of {len(finished)} runs. Give a file, such as "
                "--output=report.html."
            )
        return finished[0] / "report.html"
    path = pathlib.Path(files.expanded(output))
    if path.suffix not in (".html", ".htm"):
        raise BadInput(
            f"--output={errors.shown(output, most=300)} is no HTML file. Give a name that ends in "
            ".html."
        )
    return path
