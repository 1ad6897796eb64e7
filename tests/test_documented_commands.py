"""Every command and Python example of the README and of docs/ is run at its smallest.

`SMALLER` says what makes a command small, `NOT_RUN` which commands are not run and why.
test_documented_pages looks whether what these name exists.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import absl_flags
import case_folders
import documented
import jax
import nibabel as nib
import numpy as np
import pytest
from places import GOLDEN, ROOT

from biedsnet_jax import commands, main
from biedsnet_jax.runtime import devices

# A command that holds the text on the left is not run.
NOT_RUN = {
    "pip install": "it would change what the tests run in",
    "pip download": "it fetches gigabytes",
    "apt-get install": "it needs root",
    "python -m pytest": "it runs this test",
    "tensorboard --logdir": "it serves until it is stopped",
    "--mode=serve": "it serves until it is stopped; see tests/serving",
    "--coordinator": "it waits for other machines; see tests/runtime/test_processes.py",
    "launch/": "it starts many processes, or machines; see tests/launch",
    "python benchmarks/": "each script has its smallest run in tests/benchmarks",
}
# What is replaced in a command, as regular expressions, in order.
SMALLER = {
    r"--config=(\S+:\S+)": r"--config=\1,toy",
    r"--config=([^\s:]+)(?=\s|$)": r"--config=\1:toy",
    # The steps of a toy are fewer.
    r" --config\.(train\.steps|eval\.every)=\S+": "",
    # The defaults need much longer to compile.
    r"(--config=\S+)": r"\1 --config.compile_cache= --config.networks.biedsnet.bffm=False"
    " --config.networks.biedsnet.attention=none"
    " --config.networks.biedsnet.second_skip=False",
    r"(--mode=benchmark)": r"\1 --repeats=1",
    # The widths of the weights in tests/golden.
    r"(--mode=import)": r"\1 '--config.networks.unext.channels=(8,16,32,64,128)'"
    " --config.data.size=32 --config.compile_cache=",
    r"(configs/nifti.*data\.root=)DIR": r"\1VOLUMES",
    "--output=DIR": "--output=masks",
}
MAIN = "python -m biedsnet_jax.main "
# The same, where the package is installed.
COMMAND = "biedsnet "
# Modes that read workdirs.
READING = ("evaluate", "predict", "report", "export", "distill", "info")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in documented.blocks(page)]


def to_run(block: documented.Block) -> list[str]:
    return [
        command
        for command in documented.commands(block)
        if not any(part in command for part in NOT_RUN)
    ]


# tests/test_extend.py and tests/test_python_page.py use the parts of these pages.
ELSEWHERE = ("extend.md", "python.md")
EXAMPLES = [
    page for page in PAGES if page.name not in ELSEWHERE and documented.examples(page)
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder like a checkout, with the data and files that the pages speak of."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("benchmarks", "biedsnet_jax", "configs", "launch", "tests"):
        (folder / name).symlink_to(ROOT / name)
    # A command may unpack something there.
    shutil.copytree(ROOT / "results", folder / "results")
    case_folders.write(folder / "DIR", ["a", "b", "c", "d"])
    for kind in ("images", "labels"):
        (folder / "VOLUMES" / kind).mkdir(parents=True)
        for case in "abcd":
            voxels = nib.Nifti1Image(np.eye(16, dtype=np.int16)[..., None], np.eye(4))
            nib.save(voxels, folder / "VOLUMES" / kind / f"{case}.nii.gz")
    scans = folder / "FILE_OR_DIR"
    scans.mkdir()
    shutil.copy(folder / "DIR" / "images" / "a" / "0.png", scans)
    shutil.copy(folder / "VOLUMES" / "images" / "a.nii.gz", scans)
    shutil.copy(scans / "a.nii.gz", folder / "scan.nii.gz")
    with np.load(GOLDEN / "unext_s_full_in1.npz") as file:
        weights = {name[2:]: file[name] for name in file.files if name.startswith("w:")}
    np.savez(folder / "weights.npz", **weights)
    return folder


@pytest.fixture
def at_toy_size(checkout, monkeypatch):
    """Paths are those of the checkout; one device is quicker than eight."""
    mesh = devices.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(devices, "make_mesh", lambda *_, **fields: mesh)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(checkout)
    yield
    absl_flags.forget()


def run(command: str) -> None:
    for pattern, instead in SMALLER.items():
        command = re.sub(pattern, instead, command)
    for start in (MAIN, COMMAND):
        if command.startswith(start):
            words = shlex.split(command.removeprefix(start))
            call_main(commands.as_flags(["biedsnet", *words])[1:])
            return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], env=os.environ | {"PATH": path}, check=True)


def call_main(words: list[str]) -> None:
    """Does what `python -m biedsnet_jax.main WORDS` does, in this process."""
    values = dict(word[2:].split("=", 1) for word in words if "=" in word)
    mode = values.get("mode", "train")
    goes_on = mode in READING or (mode == "train" and "config" not in values)
    if goes_on and "workdir" in values:
        for workdir in values["workdir"].split(","):
            have_workdir(Path(workdir))
    elif "workdir" in values and mode == "train":
        # It may be there for a command that reads it.
        shutil.rmtree(values["workdir"], ignore_errors=True)
    if source := values.get("config.init.source"):
        have_workdir(Path(source))
    absl_flags.forget()
    assert main.run(["biedsnet_jax", *words]) == 0
    for flag in ("workdir", "output"):
        for path in values.get(flag, ".").split(","):
            assert Path(path).exists()


def have_workdir(workdir: Path) -> None:
    """Makes a workdir that no command has made: a copy of the first command's."""
    first = Path("runs/phantom")
    if not (first / "results.json").exists():
        run(f"{MAIN} --config=configs/phantom.py --workdir={first}")
    if not workdir.exists():
        shutil.copytree(first, workdir)
        # Mode report takes no run twice.
        results = json.loads((workdir / "results.json").read_text())
        results["seed"] = len(list(Path("runs").iterdir()))
        (workdir / "results.json").write_text(json.dumps(results))


@pytest.mark.slow
@pytest.mark.parametrize("block", filter(to_run, BLOCKS), ids=lambda block: block.place)
def test_commands(block, at_toy_size):
    for command in to_run(block):
        run(command)


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_python_examples(page, at_toy_size):
    have_workdir(Path("runs/mine"))
    names = {"array": np.random.default_rng(0).normal(size=(2, 40, 30, 1))}
    for example in documented.examples(page):
        exec(compile(example.text, example.place, "exec"), names)
    # The last example segments scan.nii.gz.
    assert nib.load("mask.nii.gz").shape == nib.load("scan.nii.gz").shape
