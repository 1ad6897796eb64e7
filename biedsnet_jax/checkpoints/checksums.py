"""Whether a checkpoint's files are as they were written: sizes and CRC-32 in
`checksums.json` beside them.

Orbax finds a damaged index by itself, but not a bit that changed in the arrays.
"""

import json
import pathlib
import zlib

from biedsnet_jax.runtime import files

NAME = "checksums.json"
# bytes
_BLOCK = 2**22


def write(folder: pathlib.Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """Bring every file below `folder` to the disk, then write the sums of all but
    `leave_out`.

    So sums that can be read after a power cut are of files that were whole before it.
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
    """What is wrong with the files below `folder`; None where nothing is, or where no
    sums were written.
    """
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
    # A write that was killed may have left its own file.
    own = (NAME, f".partial_{NAME}")
    return sorted(path.as_posix() for path in paths if not path.name.startswith(own))


def _sum(path) -> tuple[int, int]:
    """(bytes, CRC-32)"""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
