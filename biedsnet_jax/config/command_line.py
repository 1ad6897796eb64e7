"""A command line, read as absl reads it and before absl does.

It is read twice, since --workdir and --mode choose the config file that absl loads.
"""

import dataclasses
import os
import pathlib
import re
from typing import Any

from biedsnet_jax.config import config_file
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.runtime import files

NO_CONFIG = "--config is missing. Give a config, for example --config=phantom"
PATHS = ("config", "workdir", "input", "output", "compare")
# Short spellings of fields.
SHORT = {"data": "config.data.root", "config.init": "config.init.source"}
_OVERRIDE = re.compile(r"--?(?:no)?config\.([\w.]+)")
_HERE = pathlib.Path(__file__).absolute().parent
# What absl takes for true, in any case.
_TRUE = ("true", "t", "1")
# Modes that take several workdirs: to report on, or as one model.
_OF_SEVERAL = ("report", "evaluate", "predict", "serve", "export")


@dataclasses.dataclass(frozen=True)
class Argument:
    """A flag with its value, and the words that gave them."""

    # Empty for words that are no flag.
    name: str
    value: str | None
    words: tuple[str, ...]


def read(argv: list[str], known: Any) -> list[Argument]:
    """Splits a command line, after the program's name, into its arguments.

    `known` is absl's FlagValues. A flag that absl only learns from the config, such as
    --config.train.steps, takes the next word unless that begins with a dash.
    """
    words, found = argv[1:], []
    while words:
        name, equals, value = words[0].lstrip("-").partition("=")
        dashes = len(words[0]) - len(words[0].lstrip("-"))
        if dashes not in (1, 2) or not name:
            # absl stops here, and takes none of the rest for flags.
            return [*found, Argument("", None, tuple(words))]
        taken = 1
        if _is_negated(name, known):
            name, value = name[2:], "false"
        elif not equals:
            value, taken = _next_value(name, words, known)
        found.append(Argument(name, value, tuple(words[:taken])))
        words = words[taken:]
    return found


def value(argv: list[str], name: str, known: Any) -> str | None:
    """Value of a flag, the last of several as in absl; None where it is not given."""
    given = [one.value for one in read(argv, known) if one.name == name]
    return given[-1] if given else None


def is_true(text: str | None) -> bool:
    """Whether a flag's value means true."""
    return text is not None and text.lower() in _TRUE


def with_config(argv: list[str], known: Any) -> list[str]:
    """Adds --config where none is given but the mode or a trained workdir implies one.

    It is `student.py:WORKDIR` in mode distill, `folder:NETWORK` in mode import, and
    `saved.py:WORKDIR` in the others, of several workdirs that of the first. Short
    spellings are spelled out, and paths expanded as in `with_paths`.
    """
    argv = with_paths(spelled_out(argv, known), known)
    mode = value(argv, "mode", known)
    workdir = value(argv, "workdir", known)
    if value(argv, "config", known) or mode in ("report", "info"):
        return argv
    if mode == "import":
        network = value(argv, "network", known)
        if not network:
            raise BadInput(
                "--network is missing. Name the network of these weights, such as "
                "--network=unext."
            )
        chosen = config_file.find(f"folder:{network}")
    elif not workdir:
        return argv
    elif mode == "distill":
        chosen = f"{_HERE / 'student.py'}:{workdir}"
    elif mode in (None, "train") and not os.path.exists(f"{workdir}/config.json"):
        # A run that starts needs a config of its own.
        return argv
    else:
        named = files.folders(workdir) if mode in _OF_SEVERAL else []
        chosen = f"{_HERE / 'saved.py'}:{named[0] if named else workdir}"
    return [argv[0], f"--config={chosen}", *argv[1:]]


def load_config(argv: list[str], known: Any) -> Any:
    """Loads the config that a command line names, without overrides; None without one.

    config_flags loads it again, but hides what went wrong. Raises BadInput for a file
    that fails, and for an override of a field that does not exist.
    """
    named = value(argv, "config", known)
    overrides = [match.group(1) for word in argv if (match := _OVERRIDE.match(word))]
    if overrides and not named:
        raise BadInput(NO_CONFIG)
    config = config_file.get_config(named) if named else None
    for name in overrides:
        get_field(config, name)
    return config


def check_read_alike(read: dict[str, str | None], known: Any) -> None:
    """Raises BadInput where absl took a flag for the value of the one before it."""
    parsed = {name: known[name].value if known[name].present else None for name in read}
    if known["config"].value is not None:
        parsed["config"] = known["config"].config_filename
    for name, text in read.items():
        if text != parsed[name]:
            one = shown(repr(text))
            other = shown(repr(parsed[name]))
            raise BadInput(
                f"--{name} can be read as {one} and as {other} on this command line. Write "
                "every flag as --name=value."
            )


def reworded(error: Exception, config: Any) -> str:
    """Words an error of absl's as a sentence; `config` is that of `load_config`."""
    text = " ".join(str(error).split()).rstrip(".").removeprefix("flag ")
    if match := re.match(r"--config\.([\w.]+)=(.*?): ", text):
        name, given = match.groups()
        usual = get_field(config, name)
        if hasattr(usual, "keys"):
            return (
                f"--config.{name} is {shown(given)}, but it is a section. Set its fields one "
                f"by one, such as --config.{name}.{next(iter(usual))}"
            )
        return (
            f"--config.{name} is {shown(given)}, of the wrong type. Give a value like "
            f"{usual!r}, of {type(usual).__name__}."
        )
    return f"Bad flag: {shown(text, most=200)}. --help lists all flags."


def spelled_out(argv: list[str], known: Any) -> list[str]:
    """Puts the flag of a field in the place of its short spelling, see SHORT.

    Raises BadInput for --data in a mode that scores no data set.
    """
    mode = value(argv, "mode", known) or "train"
    words = [argv[0]]
    for one in read(argv, known):
        if one.name not in SHORT or one.value is None:
            words += one.words
            continue
        if one.name == "data" and mode != "evaluate":
            raise BadInput(
                f"--data is {shown(one.value)}, but mode {mode} does not take it. Give "
                f"--config.data.root, or score that data set with --mode=evaluate."
            )
        words.append(f"--{SHORT[one.name]}={one.value}")
    return words


def with_paths(argv: list[str], known: Any) -> list[str]:
    """Expands ~ to the home folder in each path, and finds the config file.

    Raises BadInput for an address, for a path that can only be a mistake, and for no such
    config.
    """
    words = [argv[0]]
    for one in read(argv, known):
        if one.name == "config" and one.value == "":
            raise BadInput(
                "--config is empty. Give a config, for example --config=phantom, or leave "
                "the flag out where the workdir has one."
            )
        if one.name not in PATHS or not one.value:
            words += one.words
        elif one.name == "workdir" and value(argv, "mode", known) in _OF_SEVERAL:
            paths = _list_of_paths(one.value)
            if value(argv, "mode", known) != "report":
                _check_text(paths)
            words.append(f"--workdir={paths}")
        elif one.name == "config":
            words.append(f"--config={config_file.find(_path('config', one.value))}")
        else:
            path = _path(one.name, one.value)
            if one.name == "workdir":
                _check_text(path)
            words.append(f"--{one.name}={path}")
    return words


def _is_negated(name, known):
    """Whether it is a flag such as --noquiet, not one whose name begins with "no"."""
    return (
        name not in known
        and name.startswith("no")
        and name[2:] in known
        and known[name[2:]].boolean
    )


def _next_value(name, words, known):
    """Value of a flag without an equals sign, and how many words it takes."""
    if name in known and known[name].boolean:
        return "true", 1
    if len(words) == 1:
        return None, 1
    if name in known or name == "undefok" or not words[1].startswith("-"):
        return words[1], 2
    return None, 1


def _list_of_paths(text):
    """Expands the workdirs of a command that takes several, separated by commas."""
    # The name of one folder may hold a comma.
    whole = _path("workdir", text)
    if os.path.isdir(whole):
        return whole
    return ",".join(_path("workdir", name) for name in text.split(","))


def _path(name, text):
    files.check_no_address(text, f"--{name}")
    path = files.expanded(text)
    if any(c < " " or c == "\x7f" for c in text) and not _is_there(path):
        raise BadInput(
            f"--{name} is {text!r}, with a line break or another control character. Give "
            "the path without it."
        )
    return path


def _check_text(workdir):
    """Refuses bytes that are no text in the user's locale, which Orbax cannot write."""
    try:
        workdir.encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"--workdir is {workdir!r}, which is no text in this locale. "
            "Give an ASCII name, or set LC_ALL=C.UTF-8."
        ) from None


def _is_there(path):
    try:
        return os.path.lexists(path)
    except ValueError:
        # A NUL is part of no path.
        return False
