"""Packages that only some uses need, and the extras of the project that bring them."""

import importlib.util

from biedsnet_jax.errors import BadInput

# Names as they are imported, by extra. pyproject.toml has the versions.
PACKAGES = {
    "train": ("grain", "tensorboardX"),
    "tfds": ("tensorflow_datasets",),
    # Which pydicom has since version 3.
    "dicom": ("pydicom.pixels",),
    "serve": ("starlette", "uvicorn"),
    "viz": ("matplotlib",),
}


def is_installed(extra: str) -> bool:
    """Whether all packages of an extra are there."""
    return not _missing(extra)


def need(extra: str, what: str) -> None:
    """Raises BadInput where a package of an extra is missing.

    `what` begins the sentence, as "Training".
    """
    missing = _missing(extra)
    if missing:
        package = missing[0].partition(".")[0]
        raise BadInput(
            f"{what} needs {package}, which is not installed. "
            f"Run: pip install 'biedsnet_jax[{extra}]'"
        )


def _missing(extra):
    return [name for name in PACKAGES[extra] if not _is_there(name)]


def _is_there(name):
    # The package first, since a module of one that is not there cannot be looked for.
    package = name.partition(".")[0]
    return all(importlib.util.find_spec(part) is not None for part in (package, name))
