"""Whether a checkpoint's files are as they were written: sizes and CRC-32 in `checksums.json` beside them.

Orbax finds a damaged index by itself, but not a bit that changed in the arrays.
"""

import json
import pathlib
import zlib

from biedsnet_jax import files

NAME = "checksums.json"
_BLOCK = 2**22  # bytes


def write(folder: pathlib.Path) -> None:
    """Of every file below `folder`."""
    files.write_text(folder / NAME, json.dumps({name: _sum(folder / name) for name in _names(folder)}) + "\n")


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files below `folder`; None where nothing is, or where no sums were written."""
    try:
        sums = json.loads((folder / NAME).read_text())
        expected = {name: (size, crc) for name, (size, crc) in sums.items()}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        return f"{NAME} unreadable"
    missing = sorted(expected.keys() - set(_names(folder)))
    if missing:
        return f"{missing[0]} missing"
    for name, value in expected.items():
        if (folder / name).stat().st_size != value[0]:
            return f"{name} of another size"
        if _sum(folder / name) != value:
            return f"{name} changed"
    return None


def _names(folder):
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not path.name.startswith(NAME))


def _sum(path) -> tuple[int, int]:
    """(bytes, CRC-32)"""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
