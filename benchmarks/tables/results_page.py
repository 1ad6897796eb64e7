"""Keeps the scores of finished runs under results/ and writes their tables.

    python benchmarks/tables/results_page.py --name=covid19_ct_64 --keep=runs/table1
    python benchmarks/tables/results_page.py --name=covid19_ct_64

`--keep` copies what the runs under that folder leave of numbers to results/NAME, in the
same order of folders: `results.json`, the command, and the trials of
`benchmarks/tables/search.py`. The scores of slices and cases, which are many, go into
one archive, `scores.tar.xz`. Neither images nor weights are kept, and no run that is
not finished.

Then, with or without `--keep`, three pages are written in results/NAME: `report.md` with
the tables of Table 1, `ablation.md` with those of Table 2, and `trials.md` with what the
search tried and the command of each run. A row without a run says "not measured". What a
reader has to know of all of these runs, such as their size, stands in
results/NAME/about.txt and begins each page.
"""

import dataclasses
import itertools
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scripts
from benchmarks.scripts import ROOT
from benchmarks.tables import search
from biedsnet_jax.errors import exit_code
from biedsnet_jax.reporting import report
from biedsnet_jax.reporting import table as tables
from biedsnet_jax.runtime import files, markdown
from biedsnet_jax.scoring import results

COPIED = ("results.json", "command.txt")
# Megabytes; runs of earlier versions have their slices in cases.csv.
PACKED = ("slices.csv", "cases.csv")
ARCHIVE = "scores.tar.xz"


def main() -> int:
    arguments = _arguments()
    target = ROOT / "results" / arguments.name
    if arguments.keep:
        kept = keep(arguments.keep, target)
        print(f"results/{arguments.name}: {kept} runs kept")
    write(target)
    return 0


def keep(folder: str, target: Path) -> int:
    """Copies the numbers of every finished run under `folder`; returns how many runs."""
    finished, _ = results.find(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target / ARCHIVE, "w:xz") as archive:
        for workdir in finished:
            # Refuses a run whose files are damaged or of two evaluations.
            results.load(workdir)
            inside = workdir.relative_to(folder)
            _copy(workdir, target / inside, COPIED)
            for name in PACKED:
                if (workdir / name).exists():
                    archive.add(workdir / name, inside / name, filter=_anonymous)
    _copy(Path(folder), target, search.FILES)
    return len(finished)


def _copy(source, target, names):
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _anonymous(member):
    """The same runs give the same archive on any machine."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def write(folder: Path) -> None:
    """Writes the pages of one folder of kept results, whose archive is unpacked there.

    Raises BadInput where the folder has no results.
    """
    finished, _ = results.find(str(folder))
    if (folder / ARCHIVE).exists():
        with tarfile.open(folder / ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
    runs = [results.load(workdir) for workdir in finished]
    scores = report.make_tables(runs)
    # A page of both tables would be too long to read.
    ablation = [table for table in scores if "ablation" in table.title]
    trials = [_commands(runs)]
    if (folder / search.FILES[0]).exists():
        trials = [*search.made(search.read(folder)), *trials]
    _write_page(folder, "report", [t for t in scores if t not in ablation])
    _write_page(folder, "ablation", ablation)
    _write_page(folder, "trials", trials)


def _write_page(folder, name, made):
    about = folder / "about.txt"
    command = f"python benchmarks/tables/results_page.py --name={folder.name}"
    lines = [f"# {folder.name}: {name}", f"Made by `{command}`."]
    if about.exists():
        lines.append(about.read_text().strip())
    shared = _shared_caption(made)
    if shared:
        lines.append(markdown.escaped(shared))
        made = [_without(table, shared) for table in made]
    if made:
        text = "\n\n".join([*lines, tables.markdown_tables(made)])
        files.write_text(folder / f"{name}.md", text)


def _shared_caption(made):
    """The sentences that every caption of a page begins with, said once above them."""
    if len(made) < 2:
        return ""
    first, last = (
        min(table.caption for table in made),
        max(table.caption for table in made),
    )
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last))
    prefix = "".join(character for character, _ in same)
    # It ends with a sentence.
    return prefix[: prefix.rfind(". ") + 1]


def _without(table, shared):
    return dataclasses.replace(table, caption=table.caption[len(shared) :].strip())


def _commands(runs):
    """The command of each run: what all have in common, and the fields of each."""
    commands = {}
    for run in runs:
        path = run.workdir / "command.txt"
        if path.exists():
            commands[_place(run)] = shlex.split(path.read_text())
    common = [
        word
        for word in next(iter(commands.values()), [])
        if all(word in words for words in commands.values())
    ]
    caption = markdown.Marked(
        f"Each run is `{shlex.join(common)}` with `--config` as here and each field "
        "as `--config.FIELD=VALUE`. Beside the scores of a run its whole command "
        "stands in `command.txt`."
    )
    rows = []
    for place, words in commands.items():
        own = [word.removeprefix("--config.") for word in words if word not in common]
        rows.append([place, markdown.Marked(f"`{shlex.join(own)}`")])
    return tables.Table("Train a run again", caption, ["run", "fields"], rows)


def _place(run):
    place = f"{run.fields['row']}, seed {run.fields['seed']}"
    fold = run.fields.get("fold")
    return f"{place}, fold {fold[0]}" if fold else place


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--name", required=True, help="of the folder under results/")
    parser.add_argument(
        "--keep", help="a folder of workdirs, such as OUT of launch/table1.sh"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_code(main))
