"""Config files: where the project's own are, and how one is found by name or path.

The project's files stand in the folder `configs/`: beside the package in a checkout,
inside it once installed. They are found by name from anywhere, as "covid:unet,cpu".
"""

import contextlib
import difflib
import importlib.machinery
import importlib.util
import os
import pathlib
import runpy
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files

# The name under which config files import one another.
_MODULE = "configs"
_PACKAGE = pathlib.Path(__file__).absolute().parents[1]
# These belong to the config files, and are none.
_PARTS = ("default", "variants")


def folder() -> pathlib.Path:
    """Folder of the project's config files."""
    inside = _PACKAGE / _MODULE
    # A checkout has no such folder; only the wheel is built with one.
    return inside if inside.is_dir() else _PACKAGE.parent / _MODULE


def default() -> pathlib.Path:
    """The file that sets every field."""
    return folder() / "default.py"


def names() -> list[str]:
    """Short names of the project's configs, sorted."""
    return sorted(
        path.stem for path in folder().glob("*.py") if path.stem not in _PARTS
    )


def get_config(name: str) -> ConfigDict:
    """The config that a name or a path stands for, such as "covid:unet,cpu".

    What follows the colon are variants. Raises BadInput where there is no such config or
    its file fails.
    """
    file, *variants = find(name).split(":", 1)
    try:
        with importable():
            config = runpy.run_path(file)["get_config"](*variants)
    # BadInput, and what get_config says about its variants.
    except ValueError as error:
        raise BadInput(" ".join(str(error).split())) from error
    # A program that is no config file may end the process.
    except (Exception, SystemExit) as error:
        raise BadInput(
            f"{file} fails with {type(error).__name__}: {reason(error)}. --debug shows "
            "where."
        ) from error
    if not isinstance(config, ConfigDict):
        raise BadInput(
            f"get_config of {file} returns {shown(repr(config))}, which is no config. "
            "Return a ConfigDict, such as what configs.folder.get_config() returns."
        )
    return config


def find(name: str) -> str:
    """Puts the path of a config file in the place of its name, and keeps the variants.

    A file that exists wins. Else "NAME" and "configs/NAME.py" are the project's. Raises
    BadInput where there is neither.
    """
    file, colon, variants = files.expanded(name).partition(":")
    if os.path.isfile(file):
        return f"{file}{colon}{variants}"
    own = _own_name(file)
    if own not in names():
        raise BadInput(
            f"--config names {shown(file)}, which is no file. Give a file, or one of this "
            f"project's configs: {', '.join(_nearest_first(own or file))}."
        )
    return f"{folder() / own}.py{colon}{variants}"


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Lets config files import the project's, as `from configs import covid`.

    Inside the block `configs` is the project's folder, whatever else has that name.
    """
    before = _loaded()
    if str(folder()) in getattr(before.get(_MODULE), "__path__", ()):
        yield
        return
    for name in before:
        del sys.modules[name]
    spec = importlib.machinery.ModuleSpec(_MODULE, None, is_package=True)
    spec.submodule_search_locations = [str(folder())]
    sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(before)


def _loaded():
    """The modules called `configs`, or in a package of that name, that are imported."""
    return {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == _MODULE
    }


def _own_name(file: str) -> str:
    """The short name that a word may stand for; "" for a path of another kind."""
    path = pathlib.PurePath(file)
    if path.parts == (file,) and not path.suffix:
        return file
    if path.suffix == ".py" and path.parts[:-1] == (_MODULE,):
        return path.stem
    return ""


def _nearest_first(file: str) -> list[str]:
    stem = pathlib.PurePath(file).stem
    return difflib.get_close_matches(stem, names(), n=len(names()), cutoff=0.0)
