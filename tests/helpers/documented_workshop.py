"""Where documented commands are run: a folder like a checkout, with data where they
want some, and toy networks.

What a command names is made when it is first asked for, and shared by all: a workdir
costs seconds to train.
"""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import absl_flags
import nibabel as nib
import numpy as np
from absl import flags
from PIL import Image
from places import ROOT

from biedsnet_jax import main
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import get_field
from configs import default

# In a command these stand for what the reader fills in.
PLACEHOLDERS = (
    "DIR",
    "DIR,DIR",
    "FILE_OR_DIR",
    "CONFIG",
    "WORKDIR",
    "HOST:PORT",
    "K",
    "covid19_ct",
)
# less to compile
SMALLER = (
    "--config.compile_cache=",
    "--config.networks.biedsnet.bffm=False",
    "--config.networks.biedsnet.attention=none",
    "--config.networks.biedsnet.second_skip=False",
)
LINKED = (
    "benchmarks",
    "biedsnet_jax",
    "configs",
    "launch",
    "results",
    "tests",
    "requirements.txt",
)

# In place of python, srun, gcloud and git: a line for each call, program and words.
# Leaves results as training does.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
flags = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
if name == "srun":
    os.execvp("python", [word for word in sys.argv[1:] if not word.startswith("--kill")])
elif name == "python" and sys.argv[1] == "-c":
    print(4321)  # launch/local.sh asks for a free port
elif name == "python" and "--mode" not in flags:
    workdir = pathlib.Path(flags["--workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text("{{}}")
"""


class Workshop:
    """`printed()` is what was printed since it was last called, (stdout, stderr)."""

    def __init__(self, folder: Path):
        self.folder, self.done, self.copies = folder, {}, 0
        self.printed = lambda: ("", "")
        # what stand-ins leave is no workdir for the others
        self.launched = folder / "launched"
        self.launched.mkdir()
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
            (self.launched / name).symlink_to(ROOT / name)
        _slices(folder / "slices")
        _volumes(folder / "volumes")
        _files(folder / "scans")
        shutil.copyfile(
            next((folder / "volumes" / "images").iterdir()), folder / "scan.nii.gz"
        )

    # --- the package's command line, in this process ---

    def main(self, words: list[str]) -> str:
        """Do what `python -m biedsnet_jax.main WORDS` says, at toy size, the same words
        once; what it printed.
        """
        words = [self._toy(word, words) for word in words]
        if (key := tuple(words)) not in self.done:
            if any(word.startswith("--config=") for word in words):
                words = [*words, *SMALLER]
            absl_flags.forget()
            code = main.run(["biedsnet_jax", *words])
            out, err = self.printed()
            assert code == 0, err
            self.done[key] = out
        return self.done[key]

    def parse(self, words: list[str]) -> None:
        """See that the words are flags of `biedsnet_jax.main`, their values of the
        right kind, their config possible.

        A flag without a value, or with a placeholder, is only named.
        """
        named = [word for word in words if _is_named(word)]
        for name in map(_name, named):
            if name.startswith("config."):
                get_field(default.get_config(), name.removeprefix("config."))
            else:
                assert name in flags.FLAGS, f"no flag --{name} in biedsnet_jax.main"
        known = [word for word in words if word not in named]
        if not any(word.startswith("--config=") for word in known):
            known = ["--config=configs/nifti.py", *known]
        absl_flags.forget()
        main.parse_flags(["biedsnet_jax", *known])
        check_config(flags.FLAGS.config)

    def trained(self, name: str) -> Path:
        """A workdir, trained now if no command has made it yet: the user's own, or one
        like that of the phantom.
        """
        workdir, first = self.folder / name, self.folder / "runs" / "phantom"
        if name == "runs/mine":
            self.main(
                [
                    "--config=configs/folder.py",
                    "--config.data.root=DIR",
                    "--workdir=runs/mine",
                ]
            )
        elif not (workdir / "results.json").exists():
            self.main(["--config=configs/phantom.py", "--workdir=runs/phantom"])
            if workdir != first:
                shutil.copytree(first, workdir, dirs_exist_ok=True)
                results = json.loads((workdir / "results.json").read_text())
                self.copies += 1
                # no run twice
                (workdir / "results.json").write_text(
                    json.dumps(results | {"seed": self.copies})
                )
        return workdir

    def _toy(self, word, words):
        """The word with a toy variant, a few steps, or what it leaves to the reader
        filled in.
        """
        name, _, value = word.partition("=")
        if name in ("--config.train.steps", "--config.eval.every"):
            return f"{name}={min(int(value), 4)}"
        if name == "--config":
            return f"{word}{',' if ':' in value else ':'}toy"
        if name == "--config.data.root":
            volumes = any(
                word.startswith("--config=configs/nifti.py") for word in words
            )
            return f"{name}={self.folder / ('volumes' if volumes else 'slices')}"
        if word == "--input=FILE_OR_DIR":
            return f"--input={self.folder / 'scans'}"
        return "--output=masks" if word == "--output=DIR" else word

    # --- scripts ---

    def script(self, file: str, words: list[str]) -> str:
        """Run a script of this project as a process, at toy size; what it printed."""
        words = [self._toy(word, words) for word in words]
        command = [sys.executable, ROOT / file, *words]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def launch(self, words: list[str]) -> list[list[str]]:
        """Run a launch script with stand-ins for what it starts, and see that its runs
        could start; the calls.
        """
        calls, programs = self.folder / "calls", self.folder / "bin"
        programs.mkdir(exist_ok=True)
        calls.write_text("")
        for name in ("python", "gcloud", "git", "srun"):
            (programs / name).write_text(STAND_IN)
            (programs / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
        }
        done = subprocess.run(
            words,
            cwd=self.launched,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        made = [json.loads(line) for line in calls.read_text().splitlines()]
        for call in made:
            words = (
                shlex.split(call[-1].removeprefix("--command="))
                if call[0] == "gcloud"
                else call
            )
            if "biedsnet_jax.main" in words:
                self.parse(words[words.index("biedsnet_jax.main") + 1 :])
        return made


def script_flags(file: str) -> dict[str, dict]:
    """Flags of a script by argparse, with their type, choices and action where those
    are written out: not imported, since some need what is not here.
    """
    found = {}
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_argument"
        ):
            options = {
                keyword.arg: _literal(keyword.value) for keyword in node.keywords
            }
            found[node.args[0].value] = options
    return found


def check_script_flag(file: str, word: str) -> None:
    """See that a script has the flag, and that it can take the value."""
    name, equals, value = word.partition("=")
    known = script_flags(file)
    assert name in known, f"no flag {name} in {file}; it has {' '.join(known)}"
    if not equals or _is_named(word):
        return
    assert known[name].get("action") != "store_true", f"{name} of {file} takes no value"
    if known[name].get("type") in ("int", "float"):
        float(value)
    if choices := known[name].get("choices"):
        assert value in choices, f"{word}, but {file} takes {choices}"


def _literal(node):
    if isinstance(node, ast.Name):
        return node.id if node.id in ("int", "float", "str") else None
    try:
        return ast.literal_eval(node)
    # a constant of the script's
    except ValueError:
        return None


def _name(word):
    return word.partition("=")[0].lstrip("-")


def _is_named(word):
    """Whether the reader gives the value: none stands there, or a placeholder."""
    name, equals, value = _name(word), *word.partition("=")[1:]
    if not equals:
        return name not in flags.FLAGS or not flags.FLAGS[name].boolean
    return value in PLACEHOLDERS or "..." in value


# --- what commands work on -------------------------------------------------------------------------------------------


def _slices(root):
    """Four cases of two slices as PNG: a bright disc in noise."""
    for case in range(4):
        for number in range(2):
            image, mask = _disc(case + number)
            for kind, pixels in (("images", image), ("masks", mask * 255)):
                path = root / kind / f"case{case}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)


def _volumes(root):
    """Four volumes of three slices as NIfTI, the label 1."""
    for case in range(4):
        pairs = [_disc(case + number) for number in range(3)]
        for kind, arrays in (("images", 0), ("labels", 1)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            voxels = np.stack([pair[arrays] for pair in pairs], axis=-1).astype(
                np.int16
            )
            nib.save(
                nib.Nifti1Image(voxels, np.eye(4)), root / kind / f"case{case}.nii.gz"
            )


def _files(root):
    """A picture and a volume to segment."""
    root.mkdir()
    Image.fromarray(_disc(0)[0].astype(np.uint8)).save(root / "picture.png")
    nib.save(
        nib.Nifti1Image(
            np.stack([_disc(1)[0]] * 2, axis=-1).astype(np.int16), np.eye(4)
        ),
        root / "volume.nii.gz",
    )


def _disc(seed, size=32):
    y, x = np.mgrid[:size, :size]
    mask = (y - 12 - seed) ** 2 + (x - 16) ** 2 < 36
    return 90 + 80 * mask + np.random.default_rng(seed).normal(
        0, 8, mask.shape
    ), mask.astype(np.int64)
