"""Train each network with the settings that its validation case prefers, on two folds
of COVID-19 CT at 64x64.

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
lower rate, and tests nothing; another seed says what chance does. Each finished trial
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
# what is kept of it
FILES = (*(f"fold{fold}.json" for fold in range(FOLDS)), "settings.txt")
MOST_STEPS = 1600
# of a variant's rows that have fewer
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
# with 20 its validations take longer than its training
SAMPLING = {"quarter": {"medsegdiff": {"sampler.steps": 5}}}
# a trial
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
# At the settings of biedsnet, from which each takes one thing away or several.
ABLATION = ("direct", "no_bffm", "no_attention", "row1", "row2", "row3", "row4", "row5")
RATES = [{"train.learning_rate": rate} for rate in (1e-3, 3e-3)]
STRONGER = {
    "augment.rotate_degrees": 20.0,
    "augment.scale": 0.25,
    "augment.intensity": 0.3,
}
NETWORK = "networks.biedsnet."
# of the row "paper"
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
    """Print the table, and write the settings."""
    folds = read(out)
    print(tables.markdown_tables(made(folds)))
    files.write_text(
        out / "settings.txt", "".join(f"{line}\n" for line in settings(folds))
    )
    return 0


def read(out: Path) -> list[list[dict]]:
    """The trials of each fold. Raises BadInput where one has none."""
    folds = [_read(out / f"fold{fold}.json") for fold in range(FOLDS)]
    if not all(folds):
        raise BadInput(
            f"no trial of each fold, {out}, in --out; run the search of both folds first"
        )
    return folds


def made(folds: list[list[dict]]) -> list[tables.Table]:
    """The tables of all trials."""
    return [table for table in (rows_table(folds), choices_table(folds)) if table.rows]


def rows_table(folds: list[list[dict]]) -> tables.Table:
    """What was tried and what it gave, in the order of trying."""
    caption = (
        "Mean Dice over slices of the fold's one validation case, evenly spaced, at the best validation, and its "
        "step; 0 where the loss was not finite. In bold the trial that each fold takes for its row, and tests."
    )
    header = [
        "row",
        "changed",
        "steps",
        *(f"fold {fold}: Dice, step" for fold in range(FOLDS)),
        "mean Dice",
    ]
    rows = [
        [key[0], key[1], str(key[2]), *_scores(folds, key)]
        for key in _keys(folds, choice=False)
    ]
    return tables.Table("What was tried", caption, header, rows)


def choices_table(folds: list[list[dict]]) -> tables.Table:
    """What each open choice of BIEDSNet gave."""
    caption = (
        "BIEDSNet as the paper has it, then with one field changed, or its seed, which says what chance does. Mean "
        "Dice over slices of the fold's one validation case, evenly spaced, averaged over the second half of the "
        "validations: the best of eight says more of luck."
    )
    header = [
        "changed",
        "steps",
        *(f"fold {fold}: Dice" for fold in range(FOLDS)),
        "mean Dice",
    ]
    rows, keys = [], list(_keys(folds, choice=True))
    base = [
        key
        for key in _keys(folds, choice=False)
        if key[:2] == ("paper", _told(RATES[0]))
    ]
    for key in (base if keys else []) + keys:
        dice = [_late_dice(trial) if trial else None for trial in _found(folds, key)]
        cells = ["-" if value is None else f"{value:.4f}" for value in dice]
        rows.append([key[1], str(key[2]), *cells, _mean(dice)])
    return tables.Table("Open choices", caption, header, rows)


def settings(folds: list[list[dict]]) -> list[str]:
    """`row fold flags` for each row whose trials are done."""
    lines = []
    for row in (*ROWS, *ABLATION):
        for fold, trials in enumerate(folds):
            best = chosen(trials, "biedsnet" if row in ABLATION else row)
            if best:
                lines.append(" ".join([row, str(fold), *flags(best["fields"])]))
    return lines


def chosen(trials: list[dict], row: str) -> dict | None:
    """The row's trial of the highest validation Dice, the first of equals; its open
    choices are left out.
    """
    return max(
        (t for t in trials if t["row"] == row and not t["choice"]),
        key=lambda t: _dice(t)[0],
        default=None,
    )


def flags(fields: dict) -> list[str]:
    """The command line's for these fields."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


class Search:
    """The trials of one fold; those measured before are not measured again.

    Raises BadInput where `out` has trials of another variant.
    """

    def __init__(self, root: str, out: Path, fold: int, variant: str):
        self.root, self.out, self.fold, self.variant = root, out, fold, variant
        self.path, self.folder = out / f"fold{fold}.json", out / f"fold{fold}"
        if others := {trial["variant"] for trial in _read(self.path)} - {variant}:
            raise BadInput(
                f"trials of another variant, {others.pop()}, in {self.path}; give {variant} its own --out"
            )

    def row(self, row: str) -> dict:
        """The fields of the best of a row's trials, which is tested."""
        tried = [self.trial(row, budget(row, self.variant) | rate) for rate in RATES]
        tried.append(self.trial(row, chosen(tried, row)["fields"] | STRONGER))
        best, workdir = (
            chosen(tried, row),
            self.out / row / "seed0" / f"fold{self.fold}",
        )
        if not (workdir / "results.json").exists():
            if not workdir.exists() and self._place(best).exists():
                workdir.parent.mkdir(parents=True, exist_ok=True)
                self._place(best).rename(workdir)
            # trained already, where its weights were kept
            train.train(self._config(best), str(workdir))
            jax.clear_caches()
            told = [
                f"--config=configs/covid.py:{row},{self.variant}",
                "--config.seed=0",
            ]
            told += [
                f"--config.split.folds={FOLDS}",
                f"--config.split.fold={self.fold}",
                *flags(best["fields"]),
            ]
            told += ["--config.data.root=DIR", "--workdir=WORKDIR"]
            command = shlex.join(["python", "-m", "biedsnet_jax.main", *told])
            files.write_text(workdir / "command.txt", f"{command}\n")
        shutil.rmtree(self.folder / row, ignore_errors=True)
        return best["fields"]

    def choices(self) -> None:
        """BIEDSNet with one field changed, and as the paper has it."""
        base = budget("paper", self.variant) | RATES[0]
        self.trial("paper", base)
        for change in CHOICES:
            done = self.trial("paper", base | change, choice=True)
            shutil.rmtree(self._place(done), ignore_errors=True)

    def trial(self, row: str, fields: dict, *, choice: bool = False) -> dict:
        """{"row", "variant", "fields", "choice", "seconds", "dice": {step: mean}},
        without Dice where the loss was not finite.
        """
        same = {"row": row, "variant": self.variant, "fields": fields, "choice": choice}
        # as it is read back
        same = json.loads(json.dumps(same))
        kept = _read(self.path)
        for done in kept:
            if same.items() <= done.items():
                return done
        begin, workdir, dice = time.monotonic(), self._place(same), {}
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            train.fit(self._config(same), str(workdir))
            lines = [
                json.loads(line)
                for line in (workdir / "metrics.jsonl").read_text().splitlines()
            ]
            dice = {
                str(line["step"]): line["val_dice"]
                for line in lines
                if "val_dice" in line
            }
        except Diverged as error:
            print(error)
        jax.clear_caches()
        done = same | {"seconds": round(time.monotonic() - begin, 1), "dice": dice}
        files.write_json(self.path, [*kept, done])
        print(
            f"fold {self.fold}, {row}, {_says(done)}: Dice {_dice(done)[0]:.4f}, {done['seconds']} s",
            flush=True,
        )
        return done

    def _config(self, trial):
        return config_of(
            f"{trial['row']},{trial['variant']}", trial["fields"], self.root, self.fold
        )

    def _place(self, trial):
        told = f"{_says(trial)} {trial['fields']['train.steps']} {trial['choice']}"
        return self.folder / trial["row"] / re.sub(r"[^\w.=]+", "_", told)


def budget(row: str, variant: str) -> dict:
    """Fields of a row's every trial."""
    return steps(STEPS[variant].get(row, MOST_STEPS)) | SAMPLING.get(variant, {}).get(
        row, {}
    )


def steps(number: int) -> dict:
    """Fields of a trial of so many steps."""
    every = number // VALIDATIONS
    return {
        "train.steps": number,
        "eval.every": every,
        "checkpoint.every": every,
        "eval.lesions": True,
    }


def config_of(variants: str, fields: dict, root: str, fold: int):
    """The config of a trial, `variants` as after the colon of --config."""
    cfg = covid.get_config(variants)
    cfg.data.root = root
    cfg.split.update(folds=FOLDS, fold=fold)
    cfg.update_from_flattened_dict(
        {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    )
    devices.enable_compile_cache(cfg.compile_cache)
    return cfg


def _key(trial):
    """What a line of a table is of."""
    return trial["row"], _says(trial), trial["fields"]["train.steps"], trial["choice"]


def _keys(folds, *, choice):
    """Those of all trials of one kind, in the order of trying."""
    return dict.fromkeys(
        _key(trial) for trials in folds for trial in trials if trial["choice"] == choice
    )


def _found(folds, key):
    """Each fold's trial of this key, None where it has none."""
    return [next((t for t in trials if _key(t) == key), None) for trials in folds]


def _dice(trial):
    """(mean Dice, step) of the best validation, the first of equals; 0 where the loss
    was not finite.
    """
    return max(
        ((value, int(step)) for step, value in trial["dice"].items()),
        key=lambda pair: pair[0],
        default=(0.0, 0),
    )


def _late_dice(trial):
    """Mean Dice of the second half of the validations; 0 where the loss was not finite."""
    late = list(trial["dice"].values())[VALIDATIONS // 2 :]
    return sum(late) / len(late) if late else 0.0


def _scores(folds, key):
    found = _found(folds, key)
    taken = [chosen(trials, key[0]) for trials in folds]
    cells = ["{:.4f}, {}".format(*_dice(trial)) if trial else "-" for trial in found]
    bold = [bool(trial) and trial is best for trial, best in zip(found, taken)]
    cells = [
        markdown.Marked(f"**{cell}**") if taken else cell
        for cell, taken in zip(cells, bold)
    ]
    return [*cells, _mean([_dice(trial)[0] if trial else None for trial in found])]


def _mean(dice):
    """A cell: the mean over folds where each has a value."""
    return "-" if None in dice else f"{sum(dice) / len(dice):.4f}"


def _says(trial):
    """What tells a trial from the others of its row."""
    return _told(
        {
            name: value
            for name, value in trial["fields"].items()
            if name not in steps(MOST_STEPS)
        }
    )


def _told(fields):
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
