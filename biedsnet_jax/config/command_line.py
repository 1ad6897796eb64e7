"""A command line read as absl reads it, before absl does.

What --workdir and --mode say chooses the config file that absl then loads, so it is read twice.
"""

import dataclasses
import os
from typing import Any

from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import files

PATHS = ("config", "workdir", "input", "output", "compare")
_TRUE = ("true", "t", "1")  # of absl's flags, in any case


@dataclasses.dataclass(frozen=True)
class Argument:
    """A flag with its value and the words that gave them; words that are no flag have no name."""

    name: str
    value: str | None
    words: tuple[str, ...]


def read(argv: list[str], known: Any) -> list[Argument]:
    """The arguments after the program's name; `known` is absl's FlagValues.

    A flag that absl comes to know with the config, --config.train.steps, takes the next word for
    its value unless that begins with a dash.
    """
    words, found = argv[1:], []
    while words:
        name, equals, value = words[0].lstrip("-").partition("=")
        dashes = len(words[0]) - len(words[0].lstrip("-"))
        if dashes not in (1, 2) or not name:
            # Absl stops here, and takes none of the rest for flags.
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
    """What a flag says, the last one of several as in absl; None where it is not given."""
    given = [one.value for one in read(argv, known) if one.name == name]
    return given[-1] if given else None


def is_true(text: str | None) -> bool:
    """Whether the value of a flag is yes."""
    return text is not None and text.lower() in _TRUE


def with_paths(argv: list[str], known: Any) -> list[str]:
    """The same with each path as the user means it: ~ is the home folder.

    Raises BadInput for a path that can only be a mistake.
    """
    lists = value(argv, "mode", known) == "report"
    words = [argv[0]]
    for one in read(argv, known):
        if one.name in PATHS and one.value:
            folders = lists and one.name == "workdir"
            path = _list_of_paths(one.value) if folders else _path(one.name, one.value)
            words.append(f"--{one.name}={path}")
        else:
            words += one.words
    return words


def _is_negated(name, known):
    """Whether it is --noquiet and not a flag whose name begins with "no"."""
    return name not in known and name.startswith("no") and name[2:] in known and known[name[2:]].boolean


def _next_value(name, words, known):
    """(value, how many words) of a flag without an equals sign."""
    following = words[1] if len(words) > 1 else None
    if name in known and known[name].boolean:
        return "true", 1
    if following is None:
        return None, 1
    if name in known or name == "undefok" or not following.startswith("-"):
        return following, 2
    return None, 1


def _list_of_paths(text):
    """Workdirs of a report, separated by commas; a name may hold one."""
    if os.path.isdir(whole := _path("workdir", text)):
        return whole
    return ",".join(_path("workdir", name) for name in text.split(","))


def _path(name, text):
    path = files.expanded(text)
    if any(c < " " or c == "\x7f" for c in text) and not _is_there(path):
        raise BadInput(f"--{name} holds a line break or another control character, {text!r}. Give the path without it.")
    return path


def _is_there(path):
    try:
        return os.path.lexists(path)
    except ValueError:
        # A NUL is part of no path.
        return False
