"""Sizes and CRC-32 of a checkpoint's files, in `checksums.json` beside them.

They tell whether the files are as they were written: Orbax itself finds a damaged
index, but not a bit that changed in the arrays.
"""

import json
import pathlib
import zlib

from biedsnet_jax.runtime import files

NAME = "checksums.json"
# Bytes that are read at once.
_BLOCK = 2**22


def write(folder: pathlib.Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """Brings every file below `folder` to the disk, then writes their sums.

    So sums that can be read after a power cut are of files that were whole before it.
    Files named in `leave_out` get no sum.
    """
    names = _names(folder)
    for name in names:
        files.sync(folder / name)
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        files.sync_folder(path)
    sums = {name: _sum(folder / name) for name in names if name not in leave_out}
    files.write_text(folder / NAME, json.dumps(sums) + "\n")


def are_there(folder: pathlib.Path) -> bool:
    """Whether sums were written for the files below `folder`."""
    return (folder / NAME).is_file()


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files below `folder`; None if nothing, or without sums."""
    try:
        sums = json.loads((folder / NAME).read_text())
        expected = {name: (size, crc) for name, (size, crc) in sums.items()}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        return f"{NAME} is unreadable"
    missing = sorted(expected.keys() - set(_names(folder)))
    if missing:
        return f"{missing[0]} is missing"
    for name, value in expected.items():
        if (folder / name).stat().st_size != value[0]:
            return f"{name} has another size"
        if _sum(folder / name) != value:
            return f"{name} changed"
    return None


def _names(folder):
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    # A killed write may have left the partial file.
    own = (NAME, f".partial_{NAME}")
    return sorted(path.as_posix() for path in paths if not path.name.startswith(own))


def _sum(path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
