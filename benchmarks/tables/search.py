"""Searches the settings of each network on two folds of COVID-19 CT at 64x64.

    python benchmarks/tables/search.py --root=DIR --out=runs/table1 --fold=0
    python benchmarks/tables/search.py --root=DIR --out=runs/table1 --fold=0 --choices
    python benchmarks/tables/search.py --out=runs/table1 --report

Every network gets the same trials, each a run of `configs/covid.py:ROW,VARIANT`: two
learning rates, then a stronger augmentation at the better one. A trial has as many
steps as STEPS gives its row, at most 1600: what one core of an Intel Xeon at 2.5 GHz
takes in about seven minutes with `quarter`, compiling and validation apart, and in a
quarter of an hour with `cpu`, both included. Its best validation says which weights and
which trial count. Only the chosen one is tested, in OUT/ROW/seed0/fold<f>, where the
launch scripts look for it. `--choices` changes one field of `:paper` at a time, at the
lower rate, and tests nothing; another seed shows what chance does. Each finished trial
is kept in OUT/fold<f>.json, so that the same command goes on where it stopped; two
folds may run side by side.

`--report` prints what was tried, and writes OUT/settings.txt, the flags of each row and
fold for `--settings` of the launch scripts. A fold's settings come from its own
validation case alone: the other's is among its test cases.
"""

import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scripts
from benchmarks.tables import kept_rows
from biedsnet_jax.errors import BadInput, Diverged, exit_code
from biedsnet_jax.reporting import table as tables
from biedsnet_jax.runtime import devices, files, markdown
from biedsnet_jax.training import train
from configs import covid

FOLDS = 2
# The files of a search that are kept with its results.
FILES = (*(f"fold{fold}.json" for fold in range(FOLDS)), "settings.txt")
MOST_STEPS = 1600
# Steps of those rows of a variant that have fewer than MOST_STEPS.
STEPS = {
    "quarter": {
        "biedsnet": 400,
        "paper": 400,
        "medsegdiff": 160,
        "unetpp": 720,
        "attention_unet": 800,
        "trans_unet": 960,
    },
    "cpu": {"biedsnet": 400, "paper": 400, "medsegdiff": 400, "unetpp": 800},
}
# With 20 sampling steps the validations would take longer than the training.
SAMPLING = {"quarter": {"medsegdiff": {"sampler.steps": 5}}}
# Validations in a trial.
VALIDATIONS = 8
ROWS = (
    "biedsnet",
    "paper",
    "unet",
    "unext",
    "swin_unet",
    "trans_unet",
    "attention_unet",
    "unetpp",
    "medsegdiff",
)
# Rows that take the settings of biedsnet, and lack a part of it or several.
ABLATION = ("direct", "no_bffm", "no_attention", "row1", "row2", "row3", "row4", "row5")
RATES = [{"train.learning_rate": rate} for rate in (1e-3, 3e-3)]
STRONGER = {
    "augment.rotate_degrees": 20.0,
    "augment.scale": 0.25,
    "augment.intensity": 0.3,
}
NETWORK = "networks.biedsnet."
# Fields of the row "paper" that are changed, a trial each.
CHOICES = [
    {"diffusion.mask_scale": 0.1},
    {NETWORK + "norm": "batch"},
    {"seed": 1},
    {"seed": 1, "diffusion.mask_scale": 0.1},
    {"diffusion.schedule": "cosine"},
    {"diffusion.self_condition": True, "sampler.steps": 3},
    {NETWORK + "condition_joins": "before"},
    {"diffusion.mask_range": "zero_one"},
    {"loss.smooth_l1_beta": 0.1},
    {NETWORK + "attention": "sequential"},
    {"loss.supervision_weights": (0.4, 0.3, 0.3)},
    {NETWORK + "count_include_pad": True},
]


def main() -> int:
    arguments = _arguments()
    out = Path(arguments.out)
    if arguments.report:
        return report(out)
    bench = Search(arguments.root, out, arguments.fold, arguments.variant)
    if arguments.choices:
        bench.choices()
    else:
        for row in arguments.rows:
            bench.row(row)
    return 0


def report(out: Path) -> int:
    """Prints the tables, and writes the settings."""
    folds = read(out)
    print(tables.markdown_tables(made(folds)))
    lines = "".join(f"{line}\n" for line in settings(folds))
    files.write_text(out / "settings.txt", lines)
    return 0


def read(out: Path) -> list[list[dict]]:
    """The trials of each fold. Raises BadInput where one has none."""
    folds = [_read(out / f"fold{fold}.json") for fold in range(FOLDS)]
    if not all(folds):
        raise BadInput(
            f"--out {out} does not have trials of both folds. Search both folds first."
        )
    return folds


def made(folds: list[list[dict]]) -> list[tables.Table]:
    """The tables of all trials, those without rows left out."""
    return [table for table in (rows_table(folds), choices_table(folds)) if table.rows]


def rows_table(folds: list[list[dict]]) -> tables.Table:
    """The trials of all rows with their scores, in the order of trying."""
    caption = (
        "Mean Dice over slices of the fold's one validation case, evenly spaced, at the "
        "best validation, and its step; 0 where the loss was not finite. In bold the "
        "trial that each fold takes for its row, and tests."
    )
    scores = [f"fold {fold}: Dice, step" for fold in range(FOLDS)]
    header = ["row", "changed", "steps", *scores, "mean Dice"]
    rows = [
        [key[0], key[1], str(key[2]), *_scores(folds, key)]
        for key in _keys(folds, choice=False)
    ]
    return tables.Table("What was tried", caption, header, rows)


def choices_table(folds: list[list[dict]]) -> tables.Table:
    """The open choices of BIEDSNet with their scores."""
    caption = (
        "BIEDSNet as the paper has it, then with one field changed, or its seed, which "
        "shows what chance does. Mean Dice over slices of the fold's one validation "
        "case, evenly spaced, averaged over the second half of the validations, since "
        "the best of eight is mostly luck."
    )
    scores = [f"fold {fold}: Dice" for fold in range(FOLDS)]
    header = ["changed", "steps", *scores, "mean Dice"]
    rows = []
    keys = list(_keys(folds, choice=True))
    if keys:
        unchanged = ("paper", _shown(RATES[0]))
        base = [key for key in _keys(folds, choice=False) if key[:2] == unchanged]
        keys = base + keys
    for key in keys:
        dice = [_late_dice(trial) if trial else None for trial in _found(folds, key)]
        cells = ["-" if value is None else f"{value:.4f}" for value in dice]
        rows.append([key[1], str(key[2]), *cells, _mean(dice)])
    return tables.Table("Open choices", caption, header, rows)


def settings(folds: list[list[dict]]) -> list[str]:
    """The lines "row fold flags" of the rows whose trials are done."""
    lines = []
    for row in (*ROWS, *ABLATION):
        for fold, trials in enumerate(folds):
            best = chosen(trials, "biedsnet" if row in ABLATION else row)
            if best:
                lines.append(" ".join([row, str(fold), *flags(best["fields"])]))
    return lines


def chosen(trials: list[dict], row: str) -> dict | None:
    """The trial of a row with the highest validation Dice, the first of equals.

    Open choices are left out.
    """
    of_row = [t for t in trials if t["row"] == row and not t["choice"]]
    return max(of_row, key=lambda t: _dice(t)[0], default=None)


def flags(fields: dict) -> list[str]:
    """The flags of the command line that set these fields."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


class Search:
    """The trials of one fold, each of which is run once.

    Raises BadInput where `out` has trials of another variant.
    """

    def __init__(self, root: str, out: Path, fold: int, variant: str):
        self.root, self.out, self.fold, self.variant = root, out, fold, variant
        self.path, self.folder = out / f"fold{fold}.json", out / f"fold{fold}"
        if others := {trial["variant"] for trial in _read(self.path)} - {variant}:
            raise BadInput(
                f"{self.path} has trials of another variant, {others.pop()}. "
                f"Give {variant} an --out of its own."
            )

    def row(self, row: str) -> dict:
        """Tests the best of a row's trials, and returns its fields."""
        tried = [self.trial(row, budget(row, self.variant) | rate) for rate in RATES]
        tried.append(self.trial(row, chosen(tried, row)["fields"] | STRONGER))
        best = chosen(tried, row)
        workdir = self.out / row / "seed0" / f"fold{self.fold}"
        if not (workdir / "results.json").exists():
            # The trial's own workdir becomes that of the row, with its weights.
            if not workdir.exists() and self._place(best).exists():
                workdir.parent.mkdir(parents=True, exist_ok=True)
                self._place(best).rename(workdir)
            # Where the trial's weights were kept, this only tests.
            train.train(self._config(best), str(workdir))
            # The programs of one trial are of no use to the next, and take memory.
            jax.clear_caches()
            words = [
                "python",
                "-m",
                "biedsnet_jax.main",
                f"--config=configs/covid.py:{row},{self.variant}",
                "--config.seed=0",
                f"--config.split.folds={FOLDS}",
                f"--config.split.fold={self.fold}",
                *flags(best["fields"]),
                "--config.data.root=DIR",
                "--workdir=WORKDIR",
            ]
            command = shlex.join(words)
            files.write_text(workdir / "command.txt", f"{command}\n")
        shutil.rmtree(self.folder / row, ignore_errors=True)
        return best["fields"]

    def choices(self) -> None:
        """Tries BIEDSNet as the paper has it, and with one field changed."""
        base = budget("paper", self.variant) | RATES[0]
        self.trial("paper", base)
        for change in CHOICES:
            done = self.trial("paper", base | change, choice=True)
            # Of a choice only the scores are kept.
            shutil.rmtree(self._place(done), ignore_errors=True)

    def trial(self, row: str, fields: dict, *, choice: bool = False) -> dict:
        """{"row", "variant", "fields", "choice", "seconds", "dice": {step: mean}}.

        Without a Dice where the loss was not finite.
        """
        same = {"row": row, "variant": self.variant, "fields": fields, "choice": choice}
        # The round trip makes it equal to what is read back.
        same = json.loads(json.dumps(same))
        kept = _read(self.path)
        for done in kept:
            if same.items() <= done.items():
                return done
        begin = time.monotonic()
        workdir = self._place(same)
        dice = {}
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            train.fit(self._config(same), str(workdir))
            for text in (workdir / "metrics.jsonl").read_text().splitlines():
                line = json.loads(text)
                if "val_dice" in line:
                    dice[str(line["step"])] = line["val_dice"]
        except Diverged as error:
            # A rate that is too high is a result: the trial scores 0.
            print(error)
        jax.clear_caches()
        done = same | {"seconds": round(time.monotonic() - begin, 1), "dice": dice}
        files.write_json(self.path, [*kept, done])
        print(
            f"fold {self.fold}, {row}, {_changes(done)}: "
            f"Dice {_dice(done)[0]:.4f}, {done['seconds']} s",
            flush=True,
        )
        return done

    def _config(self, trial):
        return config_of(
            f"{trial['row']},{trial['variant']}", trial["fields"], self.root, self.fold
        )

    def _place(self, trial):
        name = f"{_changes(trial)} {trial['fields']['train.steps']} {trial['choice']}"
        return self.folder / trial["row"] / re.sub(r"[^\w.=]+", "_", name)


def budget(row: str, variant: str) -> dict:
    """The fields that all trials of a row share."""
    number = STEPS[variant].get(row, MOST_STEPS)
    return steps(number) | SAMPLING.get(variant, {}).get(row, {})


def steps(number: int) -> dict:
    """The fields of a trial of so many steps."""
    # Every validation has its checkpoint, so that the best one can be tested.
    every = number // VALIDATIONS
    return {
        "train.steps": number,
        "eval.every": every,
        "checkpoint.every": every,
        "eval.lesions": True,
    }


def config_of(variants: str, fields: dict, root: str, fold: int):
    """The config of a trial; `variants` is what follows the colon of --config."""
    cfg = covid.get_config(variants)
    cfg.data.root = root
    cfg.split.update(folds=FOLDS, fold=fold)
    cfg.update_from_flattened_dict(
        {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    )
    devices.enable_compile_cache(cfg.compile_cache)
    return cfg


def _key(trial):
    """What the line of a trial in a table is found by."""
    return (
        trial["row"],
        _changes(trial),
        trial["fields"]["train.steps"],
        trial["choice"],
    )


def _keys(folds, *, choice):
    """The keys of all trials of one kind, in the order of trying."""
    return dict.fromkeys(
        _key(trial) for trials in folds for trial in trials if trial["choice"] == choice
    )


def _found(folds, key):
    """The trial of each fold with this key, None where a fold has none."""
    return [next((t for t in trials if _key(t) == key), None) for trials in folds]


def _dice(trial):
    """(mean Dice, step) of the best validation, the first of equals.

    The Dice is 0 where the loss was not finite.
    """
    pairs = [(value, int(step)) for step, value in trial["dice"].items()]
    return max(pairs, key=lambda pair: pair[0], default=(0.0, 0))


def _late_dice(trial):
    """Mean Dice of the second half of the validations; 0 where the loss was not finite."""
    late = list(trial["dice"].values())[VALIDATIONS // 2 :]
    return sum(late) / max(1, len(late))


def _scores(folds, key):
    """The cells of a line: best Dice and its step by fold, and the mean Dice."""
    cells, dice = [], []
    for trial, trials in zip(_found(folds, key), folds):
        cell, value = "-", None
        if trial:
            value, step = _dice(trial)
            cell = f"{value:.4f}, {step}"
            if trial is chosen(trials, key[0]):
                cell = markdown.Marked(f"**{cell}**")
        cells.append(cell)
        dice.append(value)
    return [*cells, _mean(dice)]


def _mean(dice):
    """The mean over folds where each has a value, as a cell."""
    if None in dice:
        return "-"
    return f"{sum(dice) / len(dice):.4f}"


def _changes(trial):
    """The fields that tell a trial from the others of its row."""
    fields = trial["fields"]
    shared = steps(MOST_STEPS)
    return _shown({name: fields[name] for name in fields if name not in shared})


def _shown(fields):
    """Fields by their last names, such as "learning_rate=0.1 norm=batch"."""
    return " ".join(
        f"{name.rpartition('.')[2]}={value}" for name, value in fields.items()
    )


def _read(path):
    return kept_rows.read(path, "trials", "run")


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--out", required=True, help="gets fold<f>.json, settings.txt and the runs"
    )
    parser.add_argument("--root", help="data folder of configs/covid.py")
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(FOLDS),
        help="whose training and validation cases are used",
    )
    parser.add_argument(
        "--variant",
        choices=STEPS,
        default="quarter",
        help="of configs/covid.py, for all rows",
    )
    parser.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        default=ROWS,
        help="some of them, comma-separated",
    )
    parser.add_argument(
        "--choices", action="store_true", help="BIEDSNet's open choices instead of rows"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="tables and settings of what was tried; trains nothing",
    )
    arguments = parser.parse_args()
    if not set(arguments.rows) <= set(ROWS):
        parser.error(f"--rows are some of {', '.join(ROWS)}")
    if not arguments.report and (not arguments.root or arguments.fold is None):
        parser.error("give --root and --fold, or --report")
    return arguments


if __name__ == "__main__":
    sys.exit(exit_code(main))
