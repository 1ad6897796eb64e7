"""For soak.py: a power cut imitated. What a killed run had not brought to the disk is lost.

As a program it is the run itself, which notes what it brings to the disk (fsync) in a journal:

    python benchmarks/soak_power.py JOURNAL FLAGS...

After the kill every file that has changed since its last fsync is cut, or its end becomes zeros, as
pages that were never written; every name that its folder got since the folder's last fsync may be
gone. The journal's own calls, and what libraries in C bring to the disk, are not counted as safe.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import soak
import soak_damage
import soak_run


class PoweredRun(soak_run.Run):
    """A training that keeps a journal of what is on the disk."""

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def command(self, workdir: Path) -> list[str]:
        line = super().command(workdir)
        flags = line[line.index("biedsnet_jax.main") + 1 :]
        return [sys.executable, __file__, str(self.journal), *flags]


class PowerCuts(soak.Soak):
    """Kills, each followed by the loss of what was not on the disk."""

    def _spoil(self) -> soak_damage.Damage:
        if not self.signals or not self.workdir.exists():
            return soak_damage.NONE
        caches = self.run.fields["compile_cache"]
        damaged = cut(self.rng, [self.workdir, caches], self.run.journal)
        return soak_damage.Damage("power cut" if damaged else "power cut, nothing lost")

    def finish(self) -> None:
        self._judge(self.run.start(self.workdir).end(None, None), self._spoil())


def cut(rng: random.Random, roots: Iterable[Path], journal: Path) -> list[str]:
    """Spoil what a power cut may spoil below `roots`; says what was done to what."""
    files, folders = read(journal)
    done = []
    for root in roots:
        # From the deepest: what is spoilt in a folder does not matter where its name is lost.
        for folder, _, names in os.walk(root, topdown=False):
            for name in sorted(names):
                path = Path(folder, name)
                if not is_safe(path, files) and (how := spoil(rng, path)):
                    done.append(f"{path.relative_to(root.parent)} {how}")
            for path in unsafe_names(Path(folder), folders):
                if rng.random() < 0.5:
                    remove(path)
                    done.append(f"{path.relative_to(root.parent)} gone")
    return done


def read(journal: Path) -> tuple[dict[int, tuple[int, int]], dict[int, list[str]]]:
    """(size and time of each file as it was last on the disk, names in each folder), by inode."""
    files, folders = {}, {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # the kill came in the middle of it
            continue
        if "names" in entry:
            folders[entry["inode"]] = entry["names"]
        else:
            files[entry["inode"]] = (entry["size"], entry["time"])
    return files, folders


def is_safe(path: Path, files: dict[int, tuple[int, int]]) -> bool:
    """Whether a file has not changed since it was brought to the disk."""
    status = path.stat()
    return files.get(status.st_ino) == (status.st_size, status.st_mtime_ns)


def unsafe_names(folder: Path, folders: dict[int, list[str]]) -> list[Path]:
    """What is in a folder and was not when the folder was last brought to the disk."""
    safe = folders.get(folder.stat().st_ino, [])
    return sorted(path for path in folder.iterdir() if path.name not in safe)


def spoil(rng: random.Random, path: Path) -> str | None:
    """Cut a file, or make its end zeros, from anywhere on; None where it was spared or is empty."""
    data = path.read_bytes()
    how = rng.choice(("cut", "zeroed", "emptied", None))
    if how is None or not data:
        return None
    kept = 0 if how == "emptied" else rng.randrange(len(data))
    path.write_bytes(data[:kept] + bytes(len(data) - kept if how == "zeroed" else 0))
    return how


def remove(path: Path) -> None:
    """Take away a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def note_fsync(journal: Path) -> None:
    """From here on this process notes in `journal` what it brings to the disk."""
    fsync, descriptor = os.fsync, os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noted(target) -> None:
        fsync(target)
        number = target if isinstance(target, int) else target.fileno()
        status, place = os.fstat(number), Path(os.readlink(f"/proc/self/fd/{number}"))
        entry = {"inode": status.st_ino, "size": status.st_size, "time": status.st_mtime_ns}
        if place.is_dir():
            entry["names"] = sorted(path.name for path in place.iterdir())
        os.write(descriptor, (json.dumps(entry) + "\n").encode())

    os.fsync = noted


def main() -> int:
    """The run."""
    journal, *flags = sys.argv[1:]
    note_fsync(Path(journal))
    from biedsnet_jax import main

    return main.run(["main.py", *flags])


if __name__ == "__main__":
    sys.exit(main())
