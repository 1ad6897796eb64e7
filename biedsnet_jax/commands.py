"""The commands of the command line: what each does, which flags it takes, examples.

A command is a mode: `biedsnet predict --workdir=DIR` is
`python -m biedsnet_jax.main --mode=predict --workdir=DIR`. Imports no jax.
"""

import dataclasses
import difflib
import textwrap
from typing import Any

from biedsnet_jax.errors import BadInput, shown

_COLUMNS = 80
# Of a flag's text, from the left.
_INDENT = 18
# What asks for help, wherever it stands.
_HELP = ("-h", "-help", "--help")
# Flags of info that take no value.
_SWITCHES = {"--json", "--quiet", "--debug"}

_OF_RUNS = "folder of the trained run; several, with commas, predict as one model"
_CONFIG_OF_A_RUN = "a config in the place of the run's own"
_SAMPLES = "keep every sample of a diffusion method"
_COORDINATOR = "HOST:PORT of the first process; not needed on SLURM and TPU pods"
_NUM_PROCESSES = "number of processes"
_PROCESS_ID = "number of this process, from 0"
# Flags of every command.
EVERYWHERE = {
    "quiet": "show only errors, warnings and the final summary",
    "debug": "show the traceback of an error",
    "help": "show this",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """What the help of a command says."""

    summary: str
    # Texts of its flags by their names.
    flags: dict[str, str]
    examples: tuple[str, ...]
    # What follows "Stopped by Ctrl-C." Training says it itself once it has begun.
    after_stop: str = "The same command begins again."
    # Whether --config.FIELD=VALUE means anything to it.
    has_fields: bool = True


COMMANDS = {
    "train": Command(
        "Trains a config in a workdir, then scores its test split.",
        {
            "config": "NAME or FILE.py, with variants as NAME:VARIANT,VARIANT; may be "
            "left out where the run goes on",
            "workdir": "folder where the run is kept: config, checkpoints, results",
            "coordinator": _COORDINATOR,
            "num_processes": _NUM_PROCESSES,
            "process_id": _PROCESS_ID,
        },
        (
            "biedsnet train --config=phantom --workdir=runs/phantom",
            "biedsnet train --config=folder:cpu --config.data.root=DIR --workdir=runs/mine",
        ),
        after_stop="Nothing was trained yet. The same command begins where this one did.",
    ),
    "distill": Command(
        "Trains a student of a trained run, which needs fewer sampling steps.",
        {
            "workdir": "folder of the teacher's run",
            "output": "folder of the student's run",
            "config": "a config in the place of the student's",
            "coordinator": _COORDINATOR,
            "num_processes": _NUM_PROCESSES,
            "process_id": _PROCESS_ID,
        },
        ("biedsnet distill --workdir=runs/mine --output=runs/student",),
        after_stop="Nothing was trained yet. The same command begins where this one did.",
    ),
    "evaluate": Command(
        "Scores a trained run on its test split, or on another labelled data set.",
        {
            "workdir": _OF_RUNS,
            "data": "folder of another data set, all of whose cases are scored; short "
            "for --config.data.root",
            "config": _CONFIG_OF_A_RUN,
            "coordinator": _COORDINATOR,
            "num_processes": _NUM_PROCESSES,
            "process_id": _PROCESS_ID,
        },
        (
            "biedsnet evaluate --workdir=runs/mine",
            "biedsnet evaluate --workdir=runs/mine --config.sampler.steps=10",
            "biedsnet evaluate --workdir=runs/mine --data=DIR",
        ),
        after_stop="The same command scores all cases again.",
    ),
    "predict": Command(
        "Segments files with a trained run.",
        {
            "workdir": _OF_RUNS,
            "input": "an image, a volume, or a folder of them",
            "output": "folder of the masks",
            "samples": _SAMPLES,
            "config": _CONFIG_OF_A_RUN,
            "coordinator": _COORDINATOR,
            "num_processes": _NUM_PROCESSES,
            "process_id": _PROCESS_ID,
        },
        (
            "biedsnet predict --workdir=runs/mine --input=scan.nii.gz --output=masks",
            "biedsnet predict --workdir=runs/mine --input=DIR --output=masks --samples",
            "biedsnet predict --workdir=runs/f0,runs/f1 --input=DIR --output=masks",
        ),
        after_stop="The same command goes on with the scans that are not done.",
    ),
    "serve": Command(
        "Opens a page in the browser that segments what is dropped on it.",
        {
            "workdir": _OF_RUNS,
            "host": "address to listen at; any but this machine's own needs a token",
            "port": "port; 0 takes a free one",
            "upload_mb": "the largest upload, in MiB",
            "waiting": "most uploads that wait, and most results that are kept",
            "scan_seconds": "longest time for one scan, in seconds",
            "config": _CONFIG_OF_A_RUN,
        },
        ("biedsnet serve --workdir=runs/mine --port=8080",),
        after_stop="",
    ),
    "report": Command(
        "Makes a page of tables and figures of evaluated runs.",
        {
            "workdir": "one folder or several, with commas",
            "output": "HTML file, beside which the same is written as Markdown",
        },
        (
            "biedsnet report --workdir=runs/mine",
            "biedsnet report --workdir=runs/a,runs/b --output=report.html",
        ),
        has_fields=False,
    ),
    "import": Command(
        "Makes a workdir from PyTorch weights of a network.",
        {
            "workdir": "new folder for the run",
            "input": ".npz, .safetensors or .pth file of the weights",
            "network": "network of the weights, where --config is not given",
            "config": "NAME or FILE.py of the network's config",
        },
        (
            "biedsnet import --network=unext --input=unext.safetensors --workdir=runs/unext",
        ),
    ),
    "export": Command(
        "Makes a program of a trained run that needs only jax to run.",
        {
            "workdir": _OF_RUNS,
            "output": "folder of the program",
            "samples": _SAMPLES,
            "config": _CONFIG_OF_A_RUN,
        },
        ("biedsnet export --workdir=runs/mine --output=program",),
    ),
    "benchmark": Command(
        "Times a config on this machine, without data.",
        {
            "config": "NAME or FILE.py, with variants as NAME:VARIANT,VARIANT",
            "output": "JSON file",
            "compare": "an earlier --output, to see what got slower since",
            "repeats": "number of times each program is timed after warm-up",
        },
        ("biedsnet benchmark --config=phantom --output=now.json",),
        after_stop="",
    ),
    "info": Command(
        "Says what a workdir holds, and how to go on with it.",
        {
            "workdir": "folder of the run; may be given without its flag",
            "json": "print JSON",
        },
        ("biedsnet info runs/mine", "biedsnet info runs/mine --json"),
        has_fields=False,
    ),
}


def as_flags(argv: list[str]) -> list[str]:
    """Puts --mode=NAME in the place of a command's name, and --workdir for info's folder.

    `help NAME` is `NAME --help`. Raises BadInput for a first word that is no command.
    """
    words = argv[1:]
    if not words or words[0].startswith("-"):
        return argv
    name, *words = words
    if name == "help":
        return [argv[0], *(f"--mode={word}" for word in words[:1]), "--help"]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        raise BadInput(
            f"{shown(name)} is no command. Use {near[0]}, the nearest, or see biedsnet "
            "--help."
        )
    if name == "info":
        words = _with_workdir(words)
    return [argv[0], f"--mode={name}", *words]


def _with_workdir(words):
    """Makes a flag of a folder that stands first, or last after switches."""
    for place in (0, -1):
        before = words[:place]
        if words and not words[place].startswith("-") and set(before) <= _SWITCHES:
            return [*before, f"--workdir={words[place]}", *words[len(before) + 1 :]]
    return words


def wants_help(argv: list[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in _HELP for word in argv[1:])


def flag_help(name: str) -> str:
    """Text of a flag for all commands, such as "export: ...; predict: ..."."""
    modes = {}
    for mode, command in COMMANDS.items():
        if name in command.flags:
            modes.setdefault(command.flags[name], []).append(mode)
    return "; ".join(f"{', '.join(of)}: {text}" for text, of in modes.items())


def help_text(name: str | None, known: Any) -> str:
    """The help of a command, or of the program; `known` is absl's FlagValues."""
    return usage(name, known) if name in COMMANDS else overview()


def overview() -> str:
    """The help of the program: one line a command."""
    lines = ["usage: biedsnet COMMAND [--FLAG=VALUE ...]", "", "commands:"]
    lines += [f"  {name:<11}{one.summary}" for name, one in COMMANDS.items()]
    lines += [
        "",
        "biedsnet COMMAND --help     the flags of a command, with examples",
        "biedsnet train --helpfields the fields of a config, --config.FIELD=VALUE",
        "biedsnet --version          the version",
        "",
        "`python -m biedsnet_jax.main --mode=COMMAND` is the same as `biedsnet COMMAND`.",
    ]
    return "\n".join(lines) + "\n"


def usage(name: str, known: Any) -> str:
    """The help of one command; `known` is absl's FlagValues."""
    command = COMMANDS[name]
    lines = [f"usage: biedsnet {name} [--FLAG=VALUE ...]", "", command.summary]
    lines += ["", "flags:"]
    for flag, text in command.flags.items():
        default = known[flag].default
        # A switch that is off, and a value that must be given, go without saying.
        if default not in (None, False):
            text = f"{text} (default: {default})"
        lines += _entry(f"--{flag}", text)
    if command.has_fields:
        text = "set a field of the config, such as --config.seed=1; --helpfields shows them"
        lines += _entry("--config.FIELD", text)
    for flag, text in EVERYWHERE.items():
        lines += _entry(f"--{flag}", text)
    lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    return "\n".join(lines) + "\n"


def _entry(flag: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, _COLUMNS - _INDENT)
    first = f"  {flag:<{_INDENT - 2}}{wrapped[0]}"
    return [first, *(f"{'':<{_INDENT}}{line}" for line in wrapped[1:])]
