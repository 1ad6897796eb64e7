"""Commands are modes; their help needs no jax and shows what they take."""

import re
import subprocess
import sys

import absl_flags
import pytest
from absl import flags
from places import ROOT
from refusals import refused

import biedsnet_jax
from biedsnet_jax import commands, main

HELP = "import sys\nfrom biedsnet_jax import main\ncode = main.run(sys.argv)\n"
HELP += "print('loaded', *sys.modules, file=sys.stderr)\nsys.exit(code)"


def help_of(*words: str) -> str:
    """The help that a new process prints, which must not load what is slow to load."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *words, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert loaded.isdisjoint({"jax", "flax", "numpy", "scipy", "orbax", "rich"})
    return done.stdout


def test_the_help_has_a_line_for_each_command():
    text = help_of()
    for name, command in commands.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", text, re.M)


def test_the_help_of_a_command_shows_its_own_flags_alone():
    text = help_of("predict")
    shown = set(re.findall(r"^  --(\w+)", text, re.M))
    assert {"workdir", "input", "output", "samples"} < shown
    assert shown.isdisjoint({"host", "port", "compare", "network", "mode", "json"})
    assert "biedsnet predict --workdir=" in text


def test_the_help_of_a_mode_is_that_of_the_command():
    assert help_of("--mode=report") == help_of("report")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_flag_of_a_command_exists_and_its_help_fits_a_terminal(name):
    text = commands.usage(name, flags.FLAGS)
    assert max(map(len, text.splitlines())) <= 88
    for flag in commands.COMMANDS[name].flags:
        assert flag in flags.FLAGS and f"  --{flag} " in text
    for example in commands.COMMANDS[name].examples:
        assert example.startswith(f"biedsnet {name} ")
        given = re.findall(r"--(\w+)", example)
        assert set(given) <= set(commands.COMMANDS[name].flags)


def test_every_flag_of_main_belongs_to_a_command():
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(main)}
    taken = {name for one in commands.COMMANDS.values() for name in one.flags}
    assert own - taken - set(commands.EVERYWHERE) == {"mode", "helpfields", "version"}


@pytest.mark.parametrize(
    ("words", "flags_"),
    [
        (["predict", "--workdir=a"], ["--mode=predict", "--workdir=a"]),
        (["info", "runs/a", "--json"], ["--mode=info", "--workdir=runs/a", "--json"]),
        (["info", "--json"], ["--mode=info", "--json"]),
        (["info", "--json", "runs/a"], ["--mode=info", "--json", "--workdir=runs/a"]),
        (["info", "--workdir", "a"], ["--mode=info", "--workdir", "a"]),
        (["info"], ["--mode=info"]),
        (["help"], ["--help"]),
        (["help", "predict"], ["--mode=predict", "--help"]),
        (["--mode=train", "predict"], ["--mode=train", "predict"]),
        ([], []),
    ],
)
def test_a_command_is_a_mode(words, flags_):
    assert commands.as_flags(["biedsnet", *words]) == ["biedsnet", *flags_]


def test_an_unknown_command_is_refused_with_the_nearest():
    refused(lambda: commands.as_flags(["biedsnet", "evalute"]), "evalute", "evaluate")


def test_the_version_is_that_of_the_package(capsys):
    absl_flags.forget()
    assert main.run(["biedsnet", "--version"]) == 0
    assert capsys.readouterr().out == f"biedsnet {biedsnet_jax.__version__}\n"


def test_a_command_and_its_mode_are_refused_alike(capsys, tmp_path):
    for words in (["report"], ["--mode=report"]):
        absl_flags.forget()
        assert main.run(["biedsnet", *words, f"--workdir={tmp_path}/gone"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and "gone" in first
