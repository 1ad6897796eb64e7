"""For soak.py: damages between two starts, and how they are mended."""

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak.run import steps

DISK_MIB = 96
# Bytes of a file where no small disk can be mounted: less than a checkpoint's arrays.
FILE_LIMIT = 20_000


@dataclass(frozen=True)
class Damage:
    """A damage, and its mending after the start that meets it."""

    what: str = ""
    mend: Callable[[], None] = field(default=lambda: None)
    file_limit: int | None = None  # bytes
    # Whether it is mended after that start, which may refuse.
    temporary: bool = False


NONE = Damage()


@dataclass(frozen=True)
class Disk:
    """The place of the workdirs; `small` is whether it can be filled."""

    folder: Path
    small: bool
    how: str


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Yields a tmpfs, where this user may mount one, else a plain folder."""
    folder.mkdir(parents=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = False
    how = f"no file over {FILE_LIMIT} bytes"
    if os.geteuid() == 0 and not subprocess.run(line, capture_output=True).returncode:
        mounted = True
        how = f"tmpfs of {DISK_MIB} MiB"
    try:
        yield Disk(folder, mounted, how)
    finally:
        if mounted:
            # Lazy, since a killed run may still hold files open.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def spoil(
    rng: random.Random, path: Path, ways: tuple[str, ...] = ("cut", "changed", "gone")
) -> str:
    """Cuts a file short, changes some of its bytes, or removes it; returns which."""
    how = rng.choice(ways)
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))] if data else b"")
    else:
        place = rng.randrange(max(1, len(data)))
        changed = bytes(255 - byte for byte in data[place : place + 8])
        path.write_bytes(data[:place] + changed + data[place + 8 :])
    return how


def checkpoint_file(
    rng: random.Random, workdir: Path, data: Path, disk: Disk
) -> Damage:
    """Damages a file of the latest checkpoint, for good.

    Nothing where there is only one, which no other could stand in for.
    """
    there = steps(workdir)
    if len(there) < 2:
        return NONE
    latest = workdir / "checkpoints" / str(max(there))
    path = rng.choice(sorted(path for path in latest.rglob("*") if path.is_file()))
    return Damage(f"file of the latest checkpoint {spoil(rng, path)}")


def data_file(rng: random.Random, workdir: Path, data: Path, disk: Disk) -> Damage:
    """Damages a picture or its mask, until the next start.

    Its bytes are not changed, since with another picture training would differ.
    """
    path = rng.choice(sorted(data.rglob("*.png")))
    whole = path.read_bytes()
    how = spoil(rng, path, ("cut", "gone"))
    return Damage(f"picture {how}", lambda: path.write_bytes(whole), temporary=True)


def full_disk(rng: random.Random, workdir: Path, data: Path, disk: Disk) -> Damage:
    """Takes all but some KiB of the disk, until the next start."""
    if not disk.small:
        return Damage("disk full", file_limit=FILE_LIMIT, temporary=True)
    filler = disk.folder / "filler"
    status = os.statvfs(disk.folder)
    left = status.f_bavail * status.f_frsize - rng.randrange(4, 300) * 1024
    # In blocks, until the disk refuses one: what is free is only an estimate.
    with filler.open("wb") as file, contextlib.suppress(OSError):
        for _ in range(max(0, left) // 4096):
            file.write(bytes(4096))
    return Damage("disk full", lambda: filler.unlink(missing_ok=True), temporary=True)


# In turn; checkpoints matter most, so they are damaged twice as often.
KINDS = (checkpoint_file, data_file, full_disk, checkpoint_file)
