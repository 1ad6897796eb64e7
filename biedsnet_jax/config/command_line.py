"""A command line read as absl reads it, before absl does.

What --workdir and --mode say chooses the config file that absl then loads, so it is
read twice.
"""

import dataclasses
import os
import pathlib
import re
import runpy
from typing import Any

from biedsnet_jax.config.fields import get_field
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files

NO_CONFIG = (
    "--config is missing. Give a config file, for example --config=configs/phantom.py"
)
PATHS = ("config", "workdir", "input", "output", "compare")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([\w.]+)")
_HERE = pathlib.Path(__file__).absolute().parent
# of absl's flags, in any case
_TRUE = ("true", "t", "1")


@dataclasses.dataclass(frozen=True)
class Argument:
    """A flag with its value and the words that gave them; words that are no flag have
    no name.
    """

    name: str
    value: str | None
    words: tuple[str, ...]


def read(argv: list[str], known: Any) -> list[Argument]:
    """The arguments after the program's name; `known` is absl's FlagValues.

    A flag that absl comes to know with the config, --config.train.steps, takes the next
    word for its value unless that begins with a dash.
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


def with_config(argv: list[str], known: Any) -> list[str]:
    """The same with --config first where none is named and the mode or a trained
    workdir says which.

    That is `student.py:WORKDIR` in mode distill, `saved.py:WORKDIR` in the others, and
    `configs/folder.py:NETWORK` where weights are imported.
    """
    argv = with_paths(argv, known)
    mode, workdir = value(argv, "mode", known), value(argv, "workdir", known)
    if value(argv, "config", known) or mode == "report":
        return argv
    if mode == "import":
        network = value(argv, "network", known)
        if not network:
            raise BadInput(
                "--network is missing. Name the one whose weights these are, such as --network=unext."
            )
        return [
            argv[0],
            f"--config={_HERE.parents[1] / 'configs' / 'folder.py'}:{network}",
            *argv[1:],
        ]
    trains = mode in (None, "train")
    if not workdir or (
        trains and not os.path.exists(os.path.join(workdir, "config.json"))
    ):
        return argv
    file = "student.py" if mode == "distill" else "saved.py"
    return [argv[0], f"--config={_HERE / file}:{workdir}", *argv[1:]]


def load_config(argv: list[str], known: Any) -> Any:
    """What the config file gives before overrides, None where none is named.

    Config_flags loads it again, but buries what went wrong. Raises BadInput for a file
    that fails, and for an override of a field that it has not.
    """
    named = value(argv, "config", known)
    overrides = [match.group(1) for word in argv if (match := _OVERRIDE.match(word))]
    if overrides and not named:
        raise BadInput(NO_CONFIG)
    config = _load(named) if named else None
    for name in overrides:
        get_field(config, name)
    return config


def _load(named):
    file, *variants = named.split(":", 1)
    if not os.path.isfile(file):
        raise BadInput(
            f"--config names {shown(file)}, which is no file. Give one such as configs/phantom.py"
        )
    try:
        return runpy.run_path(file)["get_config"](*variants)
    # what get_config says about its variants; BadInput is one
    except ValueError as error:
        raise BadInput(" ".join(str(error).split())) from error
    except Exception as error:
        raise BadInput(
            f"{file} fails with {type(error).__name__}: {reason(error)}. --debug shows where."
        ) from error


def check_read_alike(read: dict[str, str | None], known: Any) -> None:
    """Raise BadInput where absl took a flag for the value of the one before it."""
    parsed = {name: known[name].value if known[name].present else None for name in read}
    if known["config"].value is not None:
        parsed["config"] = known["config"].config_filename
    for name, text in read.items():
        if text != parsed[name]:
            one, other = shown(repr(text)), shown(repr(parsed[name]))
            raise BadInput(
                f"--{name} can be read as {one} and as {other} on this command line. Write every flag as --name=value."
            )


def reworded(error: Exception, config: Any) -> str:
    """What absl refuses, as a sentence; `config` is that of `load_config`."""
    text = " ".join(str(error).split()).rstrip(".").removeprefix("flag ")
    if match := re.match(r"--config\.([\w.]+)=(.*?): ", text):
        name, given = match.groups()
        usual = get_field(config, name)
        if hasattr(usual, "keys"):
            one = f"--config.{name}.{next(iter(usual))}"
            return f"--config.{name} is {shown(given)}, but it is a section. Set its fields one by one, such as {one}"
        like = f"{usual!r}, of {type(usual).__name__}"
        return f"--config.{name} is {shown(given)}, of the wrong type. Give a value like {like}."
    return f"bad flag, {shown(text, most=200)}; --help lists them"


def with_paths(argv: list[str], known: Any) -> list[str]:
    """The same with each path as the user means it: ~ is the home folder.

    Raises BadInput for an address, and for a path that can only be a mistake.
    """
    lists = value(argv, "mode", known) == "report"
    words = [argv[0]]
    for one in read(argv, known):
        if one.name in PATHS and one.value:
            folders = lists and one.name == "workdir"
            path = _list_of_paths(one.value) if folders else _path(one.name, one.value)
            if one.name == "workdir" and not lists:
                _check_text(path)
            words.append(f"--{one.name}={path}")
        else:
            words += one.words
    return words


def _is_negated(name, known):
    """Whether it is --noquiet and not a flag whose name begins with "no"."""
    return (
        name not in known
        and name.startswith("no")
        and name[2:] in known
        and known[name[2:]].boolean
    )


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
    files.check_no_address(text, f"--{name}")
    path = files.expanded(text)
    if any(c < " " or c == "\x7f" for c in text) and not _is_there(path):
        raise BadInput(
            f"--{name} holds a line break or another control character, {text!r}. Give the path without it."
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
