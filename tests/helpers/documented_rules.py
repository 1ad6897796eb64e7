"""How each command of the pages is tried: run at toy size, or checked as far as can be
where what it needs is not here.

The first rule whose pattern matches a command whole, its words joined by spaces, is its
rule. A new kind of command wants a rule; a rule that no command uses has to go.
"""

import importlib.metadata
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from documented_workshop import Workshop, check_script_flag, script_flags
from hypothesis import settings
from packaging.requirements import Requirement
from PIL import Image
from places import ROOT

from benchmarks import quality_vs_steps

MAIN = r"python -m biedsnet_jax\.main"


class Rule(NamedTuple):
    what: str
    pattern: str
    try_it: Callable[[list[str], Workshop, str], None]  # words, where, the page's text
    not_run: str = ""  # why it is only checked


def rule_of(words: list[str]) -> Rule | None:
    return next(
        (rule for rule in RULES if re.fullmatch(rule.pattern, " ".join(words))), None
    )


# --- installing ------------------------------------------------------------------------------------------------------


def _requirements(words, workshop, page):
    lines = [
        line
        for line in (ROOT / words[3]).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines
    for requirement in map(Requirement, lines):
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement}, but {version} is installed"
        )


def _packages(words, workshop, page):
    """Known to pyproject.toml or requirements.txt, or torch, which one benchmark needs;
    extras as jax names them.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        line for group in project["optional-dependencies"].values() for line in group
    ]
    lines += [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    known = {Requirement(line).name for line in lines} | {"torch"}
    for requirement in map(Requirement, words[2:]):
        if requirement.name == project["name"]:
            assert requirement.extras <= set(project["optional-dependencies"])
            continue
        assert requirement.name in known, (
            f"{requirement.name} is no requirement of this project"
        )
        if requirement.extras:
            there = importlib.metadata.metadata(requirement.name).get_all(
                "Provides-Extra"
            )
            assert requirement.extras <= set(there), (
                f"{requirement}, but {requirement.name} has {there}"
            )


def _system_package(words, workshop, page):
    assert words[2] in (ROOT / ".ci" / "run").read_text()


def _tests(words, workshop, page):
    """This very run is of `python -m pytest`; what it is given must be there."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"][
        "ini_options"
    ]
    assert options["testpaths"] == ["tests"]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "python -m pytest"
    for word in words[3:]:
        if word.startswith("--"):
            settings.get_profile(word.removeprefix("--hypothesis-profile="))
        else:
            assert (ROOT / word).exists(), f"no {word}"


# --- the package -----------------------------------------------------------------------------------------------------


def _help_fields(words, workshop, page):
    assert "  train.steps = 20000\n" in workshop.main(words[3:])


def _help(words, workshop, page):
    text = workshop.main(words[3:])
    assert "usage: biedsnet " in text and " --help" in text


def _train(words, workshop, page):
    workshop.main(words[3:])
    assert (workshop.folder / _value(words, "workdir") / "results.json").exists()


def _evaluate(words, workshop, page):
    workshop.trained(_value(words, "workdir"))
    assert "Dice" in workshop.main(words[3:])


def _predict(words, workshop, page):
    workshop.trained(_value(words, "workdir"))
    workshop.main(words[3:])
    assert {"picture_mask.png", "volume_mask.nii.gz", "summary.csv"} <= _names(
        workshop.folder / "masks"
    )


def _report(words, workshop, page):
    for workdir in _value(words, "workdir").split(","):
        workshop.trained(workdir)
    workshop.main(words[3:])
    assert {"report.html", "report.md"} <= _names(workshop.folder)


def _info(words, workshop, page):
    workshop.trained(_value(words, "workdir"))
    assert "dice" in workshop.main(words[3:]).lower()


def _import(words, workshop, page):
    # its published widths, an image of one channel
    golden = ROOT / "tests" / "golden" / "unext_s_full_in1.npz"
    with np.load(golden) as file:
        weights = {name[2:]: file[name] for name in file.files if name.startswith("w:")}
    np.savez(workshop.folder / _value(words, "input"), **weights)
    width = "--config.networks.unext.channels=(8,16,32,64,128)"
    workshop.main(
        [*words[3:], width, "--config.data.size=32", "--config.compile_cache="]
    )
    assert {"config.json", "checkpoints"} <= _names(
        workshop.folder / _value(words, "workdir")
    )


def _export(words, workshop, page):
    workshop.trained(_value(words, "workdir"))
    workshop.main(words[3:])
    assert {
        "predict.stablehlo",
        "weights.npz",
        "export.json",
        "load.py",
        "MODEL_CARD.md",
    } <= _names(workshop.folder / _value(words, "output"))


def _exported(words, workshop, page):
    if not (workshop.folder / words[1]).exists():
        _export(
            re.search(rf"{MAIN} --mode=export.*", page).group().split(), workshop, page
        )
    np.save(workshop.folder / "SLICES.npy", np.zeros((2, 32, 32, 1), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
    with np.load(workshop.folder / "MASKS.npz") as masks:
        assert masks["mask"].shape == (2, 32, 32, 1)


def _distill(words, workshop, page):
    workshop.trained(_value(words, "workdir"))
    workshop.main(words[3:])
    assert "results.json" in _names(workshop.folder / _value(words, "output"))


def _benchmark(words, workshop, page):
    if (
        "--compare" in " ".join(words)
        and not (workshop.folder / _value(words, "compare")).exists()
    ):
        workshop.main(
            [*words[3:-1], f"--output={_value(words, 'compare')}", "--repeats=1"]
        )
    assert "predict" in workshop.main([*words[3:], "--repeats=1"])


def _flags(words, workshop, page):
    """Flags of the package, or else of one of the scripts that the page names, launch
    scripts among them.
    """
    of_tables = re.findall(
        r"^ +(--\w+)=\*\)",
        (ROOT / "launch" / "rows.sh").read_text(),
        flags=re.MULTILINE,
    )
    words = [
        word for word in words if word != "..." and word.split("=")[0] not in of_tables
    ]
    scripts = set(re.findall(r"benchmarks/[\w/]+\.py", page))
    of_scripts = [
        word
        for word in words
        if any(word.split("=")[0] in script_flags(script) for script in scripts)
    ]
    of_main = [
        word
        for word in words
        if word not in of_scripts or word.startswith(("--config", "--workdir"))
    ]
    workshop.parse(of_main)
    for word in set(of_scripts) - set(of_main):
        assert any(not _refusal(script, word) for script in scripts), (
            f"{word} suits none of {scripts}"
        )


def _processes(words, workshop, page):
    workshop.parse(words[3:])


def _serve(words, workshop, page):
    workshop.trained(_value(words, "workdir"))
    workshop.parse(words[3:])


def _tensorboard(words, workshop, page):
    """The folder has what it shows; tests/runtime/test_tensorboard.py reads it as
    TensorBoard does.
    """
    workshop.trained("runs/phantom")
    assert list((workshop.folder / _value(words, "logdir")).rglob("*tfevents*"))


# --- scripts ---------------------------------------------------------------------------------------------------------


def _script_flags(words, workshop, page):
    """As far as its flags; those it does not know are the package's."""
    known = script_flags(words[1])
    own = [word for word in words[2:] if word.split("=")[0] in known]
    for word in own:
        check_script_flag(words[1], word)
    rest = [word for word in words[2:] if word not in own]
    takes_config = "parse_known_args" in (ROOT / words[1]).read_text()
    assert takes_config or not rest, (
        f"no flag {rest} in {words[1]}; it has {' '.join(known)}"
    )
    workshop.parse(rest)


def _sampling(words, workshop, page):
    """One row of its table; its training, where it trains, is that of another command."""
    _script_flags(words, workshop, page)
    workshop.trained(_value(words, "workdir"))
    with pytest.MonkeyPatch.context() as patch:
        rows = [quality_vs_steps.row("ddim", 1)]
        patch.setattr(quality_vs_steps, "sweep", lambda timesteps: rows)
        patch.setattr(quality_vs_steps, "SAMPLES", (1,))
        own = [word for word in words[2:] if not word.startswith("--config")]
        patch.setattr(sys, "argv", [words[1], *own])
        assert quality_vs_steps.main() == 0
    assert "quality_vs_steps.json" in _names(workshop.folder / _value(words, "workdir"))


def _threshold(words, workshop, page):
    assert "best band" in workshop.script(words[1], words[2:])


def _table(words, workshop, page):
    """Of the predictions that this project keeps."""
    folder = workshop.folder / _value(words, "table")
    if not folder.exists():
        folder.symlink_to(ROOT / "results" / "tpu")
    assert "v5e:16x16" in workshop.script(words[1], words[2:])


def _picture(words, workshop, page):
    evaluated = re.search(
        rf"{MAIN} --mode=evaluate .*--config\.sampler\.steps=5 .*", page
    )
    _evaluate(evaluated.group().split(), workshop, page)
    (workshop.folder / "docs").mkdir(exist_ok=True)
    workshop.script(words[1], words[2:])
    with (
        Image.open(workshop.folder / _value(words, "output")) as made,
        Image.open(ROOT / "docs/prediction.png") as kept,
    ):
        assert made.size == kept.size and len(made.getcolors()) > 50


def _rows(words, workshop, page):
    data = workshop.folder / "slices"
    given = dict.fromkeys(("DIR", "covid19_ct", "lgg_mri", "medseg"), str(data))
    calls = workshop.launch([given.get(word, word) for word in words])
    assert len([call for call in calls if call[0] == "python"]) > 5


def _launch(words, workshop, page):
    given = {
        "[N]": "2",
        "CONFIG": "configs/phantom.py",
        "WORKDIR": "runs/new",
        "[flags]": "--config.train.steps=3",
    }
    given |= {
        "--config=...": "--config=configs/phantom.py",
        "--workdir=...": "--workdir=runs/new",
    }
    calls = workshop.launch([given.get(word, word) for word in words])
    assert calls


def _batch(words, workshop, page):
    """The script as SLURM would start it; what sbatch is told must be among what the
    script sets.
    """
    script = next(word for word in words if word.startswith("launch/"))
    own = re.findall(
        r"^#SBATCH (--[\w-]+)", (ROOT / script).read_text(), flags=re.MULTILINE
    )
    first = words.index(script)
    assert {word.split("=")[0] for word in words[1:first]} <= set(own)
    _launch(["bash", *words[first:]], workshop, page)


def _kubernetes(words, workshop, page):
    assert yaml.safe_load((ROOT / words[-1]).read_text())["kind"] == "JobSet"


def _refusal(script, word):
    try:
        check_script_flag(script, word)
    except AssertionError as error:
        return str(error)
    return ""


def _names(folder):
    return {path.name for path in folder.iterdir()}


def _value(words, flag):
    values = [word.split("=", 1)[1] for word in words if word.startswith(f"--{flag}=")]
    if not values:
        pytest.fail(f"no --{flag} in {' '.join(words)}")
    return values[-1]


RULES = [
    Rule(
        "requirements",
        r"pip install -r \S+",
        _requirements,
        "the tests run in what it makes",
    ),
    Rule("packages", r"pip install .*", _packages, "hundreds of megabytes"),
    Rule(
        "a package of the system", r"apt-get install .*", _system_package, "needs root"
    ),
    Rule("tests", r"python -m pytest.*", _tests, "it is what runs this"),
    Rule(
        "processes",
        rf"{MAIN} .*--coordinator.*",
        _processes,
        "tests/runtime/test_processes.py has several",
    ),
    Rule(
        "row of a table",
        rf"{MAIN} .*--workdir=WORKDIR",
        _processes,
        "minutes a row; tests/segmenters has all",
    ),
    Rule("fields", rf"{MAIN} --helpfields", _help_fields),
    Rule("help", rf"{MAIN}( --mode=\w+)? --help", _help),
    Rule("train", rf"{MAIN} (?!.*--mode).*", _train),
    Rule("evaluate", rf"{MAIN} --mode=evaluate .*", _evaluate),
    Rule("predict", rf"{MAIN} --mode=predict .*", _predict),
    Rule("report", rf"{MAIN} --mode=report .*", _report),
    Rule(
        "serve",
        rf"{MAIN} --mode=serve .*",
        _serve,
        "it serves until it is stopped; tests/serving asks it",
    ),
    Rule("info", rf"{MAIN} --mode=info .*", _info),
    Rule("import", rf"{MAIN} --mode=import .*", _import),
    Rule("export", rf"{MAIN} --mode=export .*", _export),
    Rule("distill", rf"{MAIN} --mode=distill .*", _distill),
    Rule("benchmark", rf"{MAIN} --mode=benchmark .*", _benchmark),
    Rule("an exported program", r"python model/load\.py .*", _exported),
    Rule("flags", r"--.*", _flags, "no whole command"),
    Rule(
        "quality against steps", r"python benchmarks/quality_vs_steps\.py .*", _sampling
    ),
    Rule(
        "threshold baseline", r"python benchmarks/threshold_baseline\.py .*", _threshold
    ),
    Rule("front page's picture", r"python benchmarks/readme_picture\.py .*", _picture),
    Rule("table of predictions", r"python benchmarks/tpu/aot\.py --table=\S+", _table),
    Rule(
        "compile for a TPU",
        r"python benchmarks/tpu/aot\.py .*",
        _script_flags,
        "half an hour of compiling",
    ),
    Rule(
        "beside PyTorch",
        r"python benchmarks/beside_torch/run\.py .*",
        _script_flags,
        "needs PyTorch",
    ),
    Rule(
        "TensorBoard",
        r"tensorboard --logdir=\S+",
        _tensorboard,
        "it serves until it is stopped",
    ),
    Rule(
        "load of the server",
        r"python benchmarks/serving/load\.py .*",
        _script_flags,
        "50 uploads; tests/serving",
    ),
    Rule(
        "attack on the server",
        r"python benchmarks/serving/attack\.py .*",
        _script_flags,
        "a minute; tests/serving",
    ),
    Rule(
        "soak",
        r"python benchmarks/soak/soak\.py .*",
        _script_flags,
        "50 kills; tests/benchmarks has one",
    ),
    Rule(
        "input pipeline",
        r"python benchmarks/input_pipeline\.py.*",
        _script_flags,
        "gigabytes of volumes",
    ),
    Rule(
        "search for settings",
        r"python benchmarks/tables/search\.py .*",
        _script_flags,
        "an hour; tests/benchmarks",
    ),
    Rule(
        "results page",
        r"python benchmarks/tables/results_page\.py.*",
        _script_flags,
        "tests/benchmarks has it",
    ),
    Rule(
        "overfit",
        r"python benchmarks/overfit\.py.*",
        _script_flags,
        "trains nine networks",
    ),
    Rule(
        "tables of the paper",
        r"launch/(table[12]|rows)\.sh .*",
        _rows,
        "the runs themselves: their flags are checked",
    ),
    Rule(
        "launch",
        r"launch/(local|tpu_vm|gpu_vm)\.sh .*",
        _launch,
        "the machines: stand-ins take the calls",
    ),
    Rule("SLURM", r"sbatch .*", _batch, "a cluster: a stand-in takes the call"),
    Rule(
        "Kubernetes",
        r"kubectl apply -f \S+",
        _kubernetes,
        "a cluster; tests/launch reads the rest",
    ),
]
