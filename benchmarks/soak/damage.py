"""For soak.py: what is broken between two starts, and how it is mended."""

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak.run import steps

DISK_MIB = 96
# bytes, where no small disk can be had: less than the arrays of a checkpoint
FILE_LIMIT = 20_000


@dataclass(frozen=True)
class Damage:
    """What was done, and its undoing after the start that met it."""

    what: str = ""
    mend: Callable[[], None] = field(default=lambda: None)
    file_limit: int | None = None
    temporary: bool = False  # mended after that start, which may refuse


NONE = Damage()


@dataclass(frozen=True)
class Disk:
    """Where workdirs lie; `small` is whether it can be filled."""

    folder: Path
    small: bool
    how: str


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A tmpfs, where this user may mount one, else a plain folder."""
    folder.mkdir(parents=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = (
        os.geteuid() == 0 and subprocess.run(line, capture_output=True).returncode == 0
    )
    try:
        yield Disk(
            folder,
            mounted,
            f"tmpfs of {DISK_MIB} MiB"
            if mounted
            else f"no file over {FILE_LIMIT} bytes",
        )
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def spoil(
    rng: random.Random, path: Path, ways: tuple[str, ...] = ("cut", "changed", "gone")
) -> str:
    """Cut a file short, change some of its bytes, or take it away; says which."""
    how, data = rng.choice(ways), path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))] if data else b"")
    else:
        place = rng.randrange(max(1, len(data)))
        path.write_bytes(
            data[:place]
            + bytes(255 - byte for byte in data[place : place + 8])
            + data[place + 8 :]
        )
    return how


def checkpoint_file(
    rng: random.Random, workdir: Path, data: Path, disk: Disk
) -> Damage:
    """A file of the latest checkpoint, for good; nothing where there is only one, which
    nothing could stand in for.
    """
    there = steps(workdir)
    if len(there) < 2:
        return NONE
    latest = workdir / "checkpoints" / str(max(there))
    path = rng.choice(sorted(path for path in latest.rglob("*") if path.is_file()))
    return Damage(f"file of the latest checkpoint {spoil(rng, path)}")


def data_file(rng: random.Random, workdir: Path, data: Path, disk: Disk) -> Damage:
    """A picture or its mask, until the next start; not changed, since another picture
    is another training.
    """
    path = rng.choice(sorted(data.rglob("*.png")))
    whole = path.read_bytes()
    how = spoil(rng, path, ("cut", "gone"))
    return Damage(f"picture {how}", lambda: path.write_bytes(whole), temporary=True)


def full_disk(rng: random.Random, workdir: Path, data: Path, disk: Disk) -> Damage:
    """All but some KiB of the disk taken, until the next start."""
    if not disk.small:
        return Damage("disk full", file_limit=FILE_LIMIT, temporary=True)
    filler = disk.folder / "filler"
    left = (
        os.statvfs(disk.folder).f_bavail * os.statvfs(disk.folder).f_frsize
        - rng.randrange(4, 300) * 1024
    )
    with filler.open("wb") as file, contextlib.suppress(OSError):
        for _ in range(max(0, left) // 4096):
            file.write(bytes(4096))
    return Damage("disk full", lambda: filler.unlink(missing_ok=True), temporary=True)


KINDS = (checkpoint_file, data_file, full_disk, checkpoint_file)
