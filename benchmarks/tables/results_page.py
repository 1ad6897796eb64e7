"""Keep the scores of finished runs under results/, and write their tables into
RESULTS.md.

    python benchmarks/tables/results_page.py --keep=runs/table1 --name=covid19_ct_64
    python benchmarks/tables/results_page.py

`--keep` copies what runs under that folder leave of numbers (results.json, slices.csv,
cases.csv, command.txt, and the trials of `benchmarks/tables/search.py`) to results/NAME, in the
same order of folders; neither images nor weights. Runs that are not finished are left.
Without it, what stands in RESULTS.md between `<!-- results/NAME -->` and `<!-- end -->`
is written anew from results/NAME: the report's tables, the command of each row and what
the search tried. Rows without a run say "not measured". What a reader has to know of
all of these runs, such as their size, stands in results/NAME/about.txt and begins the
caption of each table of scores.
"""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scripts
from benchmarks.scripts import ROOT
from benchmarks.tables import search
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.reporting import report
from biedsnet_jax.reporting import table as tables
from biedsnet_jax.runtime import files, markdown
from biedsnet_jax.scoring import results

# Runs of earlier versions have their slices in cases.csv.
KEPT = ("results.json", "slices.csv", "cases.csv", "command.txt")
BLOCK = re.compile(r"(<!-- results/(?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    arguments = _arguments()
    if arguments.keep:
        kept = keep(arguments.keep, ROOT / "results" / arguments.name)
        print(f"results/{arguments.name}: {kept} runs kept")
        return 0
    page = ROOT / "RESULTS.md"
    files.write_text(page, filled(page.read_text(), ROOT / "results"))
    return 0


def keep(folder: str, target: Path) -> int:
    """Copy the numbers of every finished run under `folder`; how many there are."""
    finished, _ = results.find(folder)
    for workdir in finished:
        # whole, and of one evaluation
        results.load(workdir)
        there = target / workdir.relative_to(folder)
        there.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (workdir / name).exists():
                shutil.copyfile(workdir / name, there / name)
    for name in search.FILES:
        if (Path(folder) / name).exists():
            shutil.copyfile(Path(folder) / name, target / name)
    return len(finished)


def filled(page: str, folder: Path) -> str:
    """The page with the tables of each block's folder."""
    if not BLOCK.search(page):
        raise BadInput(
            "no place for tables, no <!-- results/NAME --> and <!-- end -->, in the page; add both lines"
        )
    return BLOCK.sub(
        lambda found: f"{found[1]}\n{_tables(folder / found['name'])}\n{found[3]}", page
    )


def _tables(folder):
    finished, _ = results.find(str(folder))
    runs = [results.load(workdir) for workdir in finished]
    made = [*_told(report.make_tables(runs), folder / "about.txt"), _commands(runs)]
    if (folder / search.FILES[0]).exists():
        made += search.made(search.read(folder))
    # Below the page's own headings.
    return tables.markdown_tables(made).replace("## ", "### ")


def _told(made, about):
    if not about.exists():
        return made
    words = " ".join(about.read_text().split())
    return [
        dataclasses.replace(
            table, caption=markdown.Marked(f"{words} {markdown.escaped(table.caption)}")
        )
        for table in made
    ]


def _commands(runs):
    caption = "Each run, by what tells it from the others of its row; the folds of a row may have settings of their own."
    rows = []
    for run in runs:
        path, fold = run.workdir / "command.txt", run.fields.get("fold")
        if path.exists():
            name = f"{run.fields['row']}, seed {run.fields['seed']}" + (
                f", fold {fold[0]}" if fold else ""
            )
            rows.append([name, markdown.Marked(f"`{path.read_text().strip()}`")])
    return tables.Table("How to have a run again", caption, ["run", "command"], rows)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--keep", help="a folder of workdirs, such as OUT of launch/table1.sh"
    )
    parser.add_argument("--name", help="of the folder under results/ that gets them")
    arguments = parser.parse_args()
    if bool(arguments.keep) != bool(arguments.name):
        parser.error("--keep and --name go together")
    return arguments


if __name__ == "__main__":
    sys.exit(exit_code(main))
