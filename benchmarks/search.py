"""Search settings on validation cases: each network's learning rate and augmentation, and what the paper leaves open.

    python benchmarks/search.py --root=DIR --out=runs/search --fold=0
    python benchmarks/search.py --root=DIR --out=runs/search --fold=0 --choices
    python benchmarks/search.py --out=runs/search --report

Every trial trains `configs/covid.py:ROW,cpu` for the same few steps on the training cases of one of two folds and
scores its validation case, all slices of it; no network sees a test slice. Each row gets the same trials: three
learning rates, then a stronger augmentation at the best of them. `--choices` changes one field of BIEDSNet at a time,
at its best rate and augmentation. Each finished trial is kept in OUT/fold<f>.json, so that the same command goes on
where it stopped; two folds may run side by side.

`--report` prints what was tried, and writes OUT/settings.txt, the flags of each row and fold for `--settings` of the
launch scripts. A fold's settings come from its own validation case alone: the other's is among its test cases.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from biedsnet_jax import files, parallel, tables, trainer
from biedsnet_jax.errors import BadInput, Diverged, exit_code
from configs import covid

FOLDS = 2
STEPS = 150
ROWS = ("biedsnet", "unet", "unetpp", "attention_unet", "unext", "swin_unet", "trans_unet", "medsegdiff")
# At the settings of biedsnet, from which each takes one thing away or several.
ABLATION = ("direct", "row1", "row2", "row3", "row4", "row5")
RATES = [{"train.learning_rate": rate} for rate in (2e-3, 6e-3, 6e-4)]
STRONGER = {"augment.rotate_degrees": 20.0, "augment.scale": 0.25, "augment.intensity": 0.3}
NETWORK = "networks.biedsnet."
CHOICES = [
    {"seed": 1},  # what chance alone does
    {"diffusion.mask_scale": 0.1},
    {"diffusion.mask_range": "zero_one"},
    {"diffusion.schedule": "cosine"},
    {NETWORK + "norm": "batch"},
    {NETWORK + "attention": "sequential"},
    {NETWORK + "count_include_pad": True},
    {"loss.smooth_l1_beta": 0.1},
    {"loss.supervision_weights": (0.4, 0.3, 0.3)},
    {NETWORK + "condition_joins": "before"},
    {"diffusion.self_condition": True, "sampler.steps": 3},
    {"sampler.steps": 3},  # what the last one's steps alone do
]


def main() -> int:
    arguments = _arguments()
    out = Path(arguments.out)
    if arguments.report:
        return report(out)
    bench = Search(arguments.root, out, arguments.fold, arguments.steps)
    for row in arguments.rows:
        bench.settings(row)
    if arguments.choices:
        bench.choices()
    return 0


def report(out: Path) -> int:
    """Print the tables, and write the settings."""
    folds = [_read(out / f"fold{fold}.json") for fold in range(FOLDS)]
    if not all(folds):
        raise BadInput(f"no trial of each fold, {out}, in --out; run the search of both folds first")
    header = ["row", "changed", *(f"fold {fold}: Dice, step" for fold in range(FOLDS)), "mean Dice"]
    tried = {(t["row"], _says(t["fields"])): t["fields"] for trials in folds for t in trials}
    rows = [[row, says, *_scores(folds, row, fields)] for (row, says), fields in tried.items()]
    print(tables.markdown("", [tables.Table("What was tried", "", header, rows)]).partition("\n\n")[2])
    files.write_text(out / "settings.txt", "".join(f"{line}\n" for line in settings(folds)))
    return 0


def settings(folds: list[list[dict]]) -> list[str]:
    """`row fold flags` for each row whose trials are done."""
    lines = []
    for row in (*ROWS, *ABLATION):
        for fold, trials in enumerate(folds):
            searched = "biedsnet" if row in ABLATION else row
            tried = [t for t in trials if t["row"] == searched and _is_setting(t)]
            if tried:
                flags = (f"--config.{name}={value}" for name, value in best(tried)["fields"].items())
                lines.append(" ".join([row, str(fold), *flags]))
    return lines


def best(trials: list[dict]) -> dict:
    """The trial of the highest validation Dice, the first of equals."""
    return max(trials, key=lambda t: _dice(t)[0])


class Search:
    """The trials of one fold; those measured before are not measured again."""

    def __init__(self, root: str, out: Path, fold: int, steps: int):
        self.root, self.fold, self.steps = root, fold, steps
        self.path, self.folder = out / f"fold{fold}.json", out / f"fold{fold}"

    def settings(self, row: str) -> dict:
        """The best of a row's learning rates and augmentations, as fields."""
        tried = [self.trial(row, rate) for rate in RATES]
        rate = best(tried)["fields"]
        return best([*tried, self.trial(row, rate | STRONGER)])["fields"]

    def choices(self) -> None:
        """BIEDSNet with one field changed."""
        base = self.settings("biedsnet")
        for change in CHOICES:
            self.trial("biedsnet", base | change)

    def trial(self, row: str, fields: dict) -> dict:
        """{"row", "fields", "steps", "seconds", "dice": {step: mean Dice}}; no Dice where the loss was not finite."""
        fields = json.loads(json.dumps(fields))  # as it is read back
        kept, same = _read(self.path), {"row": row, "fields": fields, "steps": self.steps}
        for done in kept:
            if same.items() <= done.items():
                return done
        cfg, begin = config_of(row, fields, self.root, self.fold, self.steps), time.monotonic()
        workdir = self.folder / row / _says(fields).replace(" ", "").replace("/", "-")
        workdir.mkdir(parents=True, exist_ok=True)
        dice = {}
        try:
            trainer.fit(cfg, str(workdir))
            lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            dice = {str(line["step"]): line["val_dice"] for line in lines if "val_dice" in line}
        except Diverged as error:
            print(error)
        jax.clear_caches()
        shutil.rmtree(workdir)
        done = same | {"seconds": round(time.monotonic() - begin, 1), "dice": dice}
        files.write_json(self.path, [*kept, done])
        print(f"fold {self.fold}, {row}, {_says(fields)}: Dice {_dice(done)[0]:.4f}, {done['seconds']} s", flush=True)
        return done


def config_of(row: str, fields: dict, root: str, fold: int, steps: int):
    """The config of a trial."""
    cfg = covid.get_config(f"{row},cpu")
    cfg.data.root = root
    cfg.split.update(folds=FOLDS, fold=fold)
    cfg.train.update(steps=steps, warmup_steps=steps // 8)
    cfg.eval.update(every=steps // 2, val_images=0)
    cfg.checkpoint.every = steps
    cfg.log.update(every=steps // 2, tensorboard=False)
    cfg.update_from_flattened_dict({name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
    parallel.enable_compile_cache(cfg.compile_cache)
    return cfg


def _is_setting(trial):
    return all(name.split(".")[0] in ("train", "augment") for name in trial["fields"])


def _dice(trial):
    """(mean Dice, step) of the best validation, the first of equals; 0 where the loss was not finite."""
    return max(
        ((value, int(step)) for step, value in trial["dice"].items()), key=lambda pair: pair[0], default=(0.0, 0)
    )


def _scores(folds, row, fields):
    found = [[t for t in trials if t["row"] == row and t["fields"] == fields] for trials in folds]
    cells = ["{:.4f}, {}".format(*_dice(trials[0])) if trials else "-" for trials in found]
    mean = sum(_dice(trials[0])[0] for trials in found if trials) / len(folds)
    return [*cells, f"{mean:.4f}" if all(found) else "-"]


def _says(fields):
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in fields.items())


def _read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        return [dict(trial) for trial in json.loads(path.read_text())]
    except (ValueError, TypeError):
        raise BadInput(f"damaged file, no trials, {path}; remove it, the trials are then run again") from None


def _arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, help="gets fold<f>.json and settings.txt")
    parser.add_argument("--root", help="data folder of configs/covid.py")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="whose training and validation cases are used")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each trial")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=ROWS, help="some of them, comma-separated")
    parser.add_argument("--choices", action="store_true", help="then BIEDSNet's open choices too")
    parser.add_argument("--report", action="store_true", help="tables and settings of what was tried; trains nothing")
    arguments = parser.parse_args()
    if not set(arguments.rows) <= set(ROWS):
        parser.error(f"--rows are some of {', '.join(ROWS)}")
    if not arguments.report and (not arguments.root or arguments.fold is None):
        parser.error("give --root and --fold, or --report")
    return arguments


if __name__ == "__main__":
    sys.exit(exit_code(main))
