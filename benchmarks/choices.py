"""Compares settings on validation cases, for the tables of choices in RESULTS.md.

    python benchmarks/choices.py --out=runs/choices --config=configs/covid.py:cpu \
        --config.data.root=DIR --config.train.steps=400 --setting="as it is:" \
        --setting="pad: --config.data.fit=pad" --setting="share: --config.data.target=share"

A setting is a name, then fields as on the command line. Each is trained under the same
config with seed 0 and with seed 1, and scored as mode evaluate scores a test: the masks
that would be written, on the grid of the files. But the validation cases are scored,
and each seed has other ones: the cases that the config does not test are dealt out
anew. The test cases are neither trained on nor predicted, and their files not decoded.
The checkpoint that validates best counts, so all figures lie a little above a test's.

Fields that only prediction reads, such as sampler.mirror, are tried on the models of the
first setting. With --models=2 among its words a setting is an ensemble of two models,
trained on the same cases with different seeds.

The same command goes on where it stopped, with what OUT/choices.json has. The table,
OUT/choices.md, has the settings in the order given, against the first.
"""

import argparse
import ast
import dataclasses
import json
import re
import shlex
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts
from benchmarks.tables import kept_rows
from biedsnet_jax.config import build_data, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import get_field, with_fields
from biedsnet_jax.data import splits
from biedsnet_jax.errors import BadInput, Diverged, exit_code
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.prediction import ensembles
from biedsnet_jax.reporting import table as tables
from biedsnet_jax.runtime import devices, files
from biedsnet_jax.training import train

SEEDS = (0, 1)
# Deals that are tried until no case is validated on twice.
_MOST_DEALS = 1000
_FIELD = re.compile(r"--config\.([\w.]+)=(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the table: its name, and its fields by dotted name, as text."""

    name: str
    fields: dict[str, str]
    # Of different seeds, which predict together.
    models: int = 1

    @property
    def only_predicts(self) -> bool:
        """Whether training does the same as without it."""
        return all(name.startswith(run_config.FREE) for name in self.fields)


def main() -> int:
    arguments, words = _arguments()
    print(compare(arguments.setting, words, Path(arguments.out)))
    return 0


def compare(settings: list[Setting], words: list[str], out: Path) -> str:
    """Trains and scores what `out` lacks; returns the table, which it writes there too.

    `words` are the flags of the config that the settings share.
    """
    shared = scripts.read_config(words).copy_and_resolve_references()
    # Reading every file would read those of the test cases.
    shared.data.verify = False
    dealt = deal(shared)
    # All are checked before the first is trained.
    configs = [config_of(shared, one) for one in settings]
    devices.enable_compile_cache(shared.compile_cache)
    rows = []
    for setting, config in zip(settings, configs):
        trained = settings[0] if setting.only_predicts else setting
        for seed, sides in zip(SEEDS, dealt):
            one = config.copy_and_resolve_references()
            one.seed = seed
            one.split.update(sides)
            rows.append(trial(setting, one, words, out / slug(trained.name)))
    text = tables.markdown_tables([table(rows, shared)])
    files.write_text(out / "choices.md", text)
    return text


def config_of(shared, setting: Setting):
    """The shared config with the fields of a setting.

    Raises BadInput for fields that do not exist or cannot have their values.
    """
    values = {}
    for name, text in setting.fields.items():
        usual = get_field(shared, name)
        is_text = usual is None or isinstance(usual, str)
        values[name] = text if is_text else _value(text)
    config = with_fields(shared, values)
    # What the table does not need.
    config.log.tensorboard = False
    config.eval.pictures = 0
    check_config(config)
    return config


def deal(shared) -> list[dict[str, tuple[str, ...]]]:
    """Names the cases of each side, for each seed.

    The test is that of the config. The validation has the config's share of the other
    cases, and no case twice. Raises BadInput where there are too few.
    """
    data = build_data.open_data(shared)
    tested = data.cases("test")
    cases = data.source.cases
    sides = {case: "train" for side in ("train", "val") for case in data.cases(side)}
    sides |= dict.fromkeys(tested, "test")
    known = [case for case in cases if case in sides]
    share = len(data.val) / (len(data.train) + len(data.val))
    dealt, validated = [], set()
    for number in range(_MOST_DEALS):
        found = splits.by_folder(known, sides, (1 - share, share, 1.0), seed=number)
        named = {side: sorted({known[i] for i in found[side]}) for side in splits.SIDES}
        if validated.isdisjoint(named["val"]):
            validated |= set(named["val"])
            dealt.append({side: tuple(names) for side, names in named.items()})
        if len(dealt) == len(SEEDS):
            return dealt
    raise BadInput(
        f"The data have {len(known) - len(tested)} cases that are not tested, too few to "
        f"validate on others with each of {len(SEEDS)} seeds. Add cases, or lower the "
        "second of split.fractions."
    )


def trial(setting: Setting, config, words: list[str], folder: Path) -> dict:
    """Trains a setting with a seed and scores its validation cases, unless that is done.

    `folder` gets the workdirs, and the one around it choices.json. Returns name, fields,
    seed, validation cases, mean Dice of slices on the files' grid (0 where the loss was
    not finite), HD95 (mm where known) and minutes of training.
    """
    path = folder.parent / "choices.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = kept_rows.read(path, "trials", "run")
    same = {
        "name": setting.name,
        "fields": setting.fields,
        "seed": config.seed,
        "words": words,
        "val": list(config.split.val),
    }
    if setting.models > 1:
        same["models"] = setting.models
    for done in kept:
        if same.items() <= done.items():
            return done
    scores, start = {"dice": 0.0, "hd95": None, "in_mm": False}, time.monotonic()
    try:
        model, data = fit(setting, config, folder)
        minutes = (time.monotonic() - start) / 60
        results = folder / f"seed{config.seed}" / "validation" / slug(setting.name)
        scores = score(model, data, results)
    except Diverged as error:
        # A setting that does not train is a result.
        print(error)
        minutes = (time.monotonic() - start) / 60
    # The programs of one trial are of no use to the next, and take memory.
    jax.clear_caches()
    done = same | scores | {"minutes": round(minutes, 2)}
    files.write_json(path, [*kept, done])
    print(f"{setting.name}, seed {config.seed}: Dice {done['dice']:.4f}", flush=True)
    return json.loads(json.dumps(done))


def fit(setting: Setting, config, folder: Path):
    """Trains what is not trained yet; returns the model, of one seed or more, and the data.

    The seeds of an ensemble lie len(SEEDS) apart, so that no two trials share one.
    """
    seeds = [config.seed + n * len(SEEDS) for n in range(setting.models)]
    workdirs = [folder / f"seed{seed}" for seed in seeds]
    for seed, workdir in zip(seeds, workdirs):
        one = config.copy_and_resolve_references()
        one.seed = seed
        model, data = train.fit(one, str(workdir))
    if len(workdirs) > 1:
        model = ensembles.load(workdirs, config)
    return model, data


def slug(name: str) -> str:
    """The name of a setting as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", name)


def score(model, data: build_data.Data, folder: Path) -> dict:
    """Scores the validation cases as a test is scored; the files go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    validation = dataclasses.replace(data, test=data.val)
    standard = evaluate.evaluate(model, folder, validation)["standard"]
    in_mm = "hd95_mm" in standard
    distance = standard["hd95_mm" if in_mm else "hd95"]["mean"]
    return {"dice": standard["dice"]["mean"], "hd95": distance, "in_mm": in_mm}


def table(rows: list[dict], shared) -> tables.Table:
    """The table of all trials, a row for each setting, in the order of the rows."""
    by_name: dict[str, dict[int, dict]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["seed"]] = row
    first = next(iter(by_name.values()))
    cases = ["; ".join(", ".join(first[seed]["val"]) for seed in SEEDS)]
    caption = (
        f"Data set {shared.data.name}, {shared.train.steps} steps of "
        f"{shared.train.batch_size} slices unless a setting says otherwise. Mean Dice over "
        "the slices of the validation cases, of the written masks on the grid of the "
        f"files; the cases of seed {' and of seed '.join(map(str, SEEDS))} are {cases[0]}. "
        "The difference is to the first row, the mean over seeds."
    )
    unit = "mm" if rows[0]["in_mm"] else "pixels"
    header = ["Setting", "Changed", *(f"Dice, seed {seed}" for seed in SEEDS)]
    header += ["Difference", f"HD95, {unit}", "Minutes"]
    body = [_line(name, of_seed, first) for name, of_seed in by_name.items()]
    return tables.Table("Choices", caption, header, body)


def _line(name, of_seed, first):
    trials = [of_seed[seed] for seed in SEEDS]
    words = [f"{field}={value}" for field, value in trials[0]["fields"].items()]
    if "models" in trials[0]:
        words.append(f"{trials[0]['models']} models")
    changed = " ".join(words)
    dice = [_number(one["dice"], 4) for one in trials]
    gains = [
        None if None in (one["dice"], other["dice"]) else one["dice"] - other["dice"]
        for one, other in zip(trials, (first[seed] for seed in SEEDS))
    ]
    gain = _mean(gains)
    shown = "-" if of_seed is first or gain is None else f"{gain:+.4f}"
    distance = _number(_mean([one["hd95"] for one in trials]), 2)
    minutes = _number(_mean([one["minutes"] for one in trials]), 1)
    return [name, changed or "nothing", *dice, shown, distance, minutes]


def _mean(values):
    return None if None in values else sum(values) / len(values)


def _number(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _value(text):
    """A number, a tuple or a truth value, as a flag reads it; else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _setting(text):
    """Reads "NAME: --config.FIELD=VALUE ..."."""
    name, colon, words = text.partition(":")
    if not name.strip() or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} has no name before a colon")
    fields, models = {}, 1
    for word in shlex.split(words):
        count = re.fullmatch(r"--models=([1-9]\d?)", word)
        match = _FIELD.fullmatch(word)
        if count:
            models = int(count[1])
        elif match:
            fields[match[1]] = match[2]
        else:
            raise argparse.ArgumentTypeError(
                f"{word} is neither --config.FIELD=VALUE nor --models=COUNT"
            )
    return Setting(name.strip(), fields, models)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--out", required=True, help="gets choices.json, choices.md and the runs"
    )
    parser.add_argument(
        "--setting",
        type=_setting,
        action="append",
        required=True,
        help='"NAME: --config.FIELD=VALUE ..."; several times, the first is compared with',
    )
    arguments, words = parser.parse_known_args()
    names = [setting.name for setting in arguments.setting]
    if len(set(names)) < len(names):
        parser.error("every --setting needs a name of its own")
    return arguments, words


if __name__ == "__main__":
    sys.exit(exit_code(main))
