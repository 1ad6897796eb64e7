"""Mode report: results of many workdirs beside the paper's Tables 1 and 2, and
pictures. Imports no jax.

The tables go into a page, with all that `page.page` adds, and into a Markdown file
beside it.

For each data set and each of the two tables: scores in the `standard` convention;
scores in the `paper` convention, with the paper's figures; a paired comparison with the
BIEDSNet row; small lesions and uncertainty apart; and what each row cost. Rows without
results are "not measured".
"""

import pathlib
from collections import defaultdict

from biedsnet_jax.errors import BadInput, listed, reason
from biedsnet_jax.errors import shown as shown_name
from biedsnet_jax.reporting import published, run_tables, score_tables, verdict
from biedsnet_jax.reporting.page import page
from biedsnet_jax.reporting.table import Table, markdown
from biedsnet_jax.runtime import files
from biedsnet_jax.scoring import comparison, results
from biedsnet_jax.scoring.false_lesions import number


def run(workdirs: str, output: str | None) -> None:
    """Write the HTML page `output` and, beside it, the same as Markdown; `workdirs` as
    in `results.find`.
    """
    finished, begun = results.find(workdirs)
    path = _output_path(output, finished)
    _write(path, [results.load(workdir) for workdir in finished], begun)
    runs = number(len(finished), "run")
    print(
        f"{path} and {path.with_suffix('.md').name}: {runs}, {len(begun)} not finished"
    )


def write(workdir: pathlib.Path) -> None:
    """The report of one evaluated workdir, into it."""
    _write(workdir / "report.html", [results.load(workdir)], [])


def _write(path, runs, begun):
    tables = make_tables(runs)
    shown = run_tables.evaluated(runs)
    if begun:
        names = [
            [str(workdir), "no results yet; the command that began it goes on"]
            for workdir in begun
        ]
        tables.append(
            Table(
                "Runs not finished",
                "Left out of every table above.",
                ["Workdir", "State"],
                names,
            )
        )
    title = make_title(runs)
    found = None
    # Several rows are compared, not judged.
    if len({(run.fields["row"], run.fields["dataset"]) for run in runs}) == 1:
        found = verdict.judge(shown)
    first = verdict.markdown_verdict(found) if found else ""
    try:
        files.check_writable(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(
            path.with_suffix(".md"), _characters(markdown(title, tables, first))
        )
        files.write_text(path, _characters(page(title, tables, shown, found)))
    # ValueError: a name that no file can have.
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{shown_name(path, most=300)} cannot be written: {reason(error)}. Make room, or give another --output."
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
    """The text without halves of characters, which names of no encoding have."""
    return text.encode("utf-8", "replace").decode()


def make_tables(runs: list[results.Run]) -> list[Table]:
    """The tables of every data set that `runs` were tested on. Raises BadInput where
    runs of a row do not match.
    """
    grouped = defaultdict(lambda: defaultdict(list))
    for one in sorted(
        runs, key=lambda one: (one.fields["seed"], str(one.fields.get("fold")))
    ):
        grouped[one.fields["dataset"]][one.fields["row"]].append(one)
    tables = []
    for dataset, by_name in sorted(grouped.items()):
        rows = {}
        for name, of_row in by_name.items():
            results.check_same_row(of_row)
            rows[name] = score_tables.Row(name, of_row, comparison.pool(of_row))
        tables += score_tables.of_data_set(dataset, rows)
    return tables


def _output_path(output, finished):
    if output is None:
        if len(finished) > 1:
            raise BadInput(
                "no output, nothing, in --output; give a file such as --output=report.html"
            )
        return finished[0] / "report.html"
    path = pathlib.Path(files.expanded(output))
    if path.suffix not in (".html", ".htm"):
        raise BadInput(
            f"not an HTML file, {output}, in --output; give a name that ends in .html"
        )
    return path
