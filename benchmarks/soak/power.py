"""For soak.py: imitates power cuts, in which all that is not on the disk is lost.

As a program it is the run itself, which notes in a journal what it brings to the disk
(fsync):

    python benchmarks/soak/power.py JOURNAL FLAGS...

`PowerCuts` kills the run and starts it again. `images` does without the starts: one run
is stopped (SIGSTOP) again and again and its folder copied; each copy loses what was not
on the disk, and the package opens it as a start would.

After the kill every file that has changed since its last fsync is cut, or its end
becomes zeros, as pages that were never written; every name that its folder got since
the folder's last fsync may be gone. The journal's own calls, and what libraries in C
bring to the disk, are not counted as safe.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.soak.damage import NONE, Damage
from benchmarks.soak.kills import Soak
from benchmarks.soak.run import Run, steps


class PoweredRun(Run):
    """A training that keeps a journal of what it brings to the disk."""

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def command(self, workdir: Path) -> list[str]:
        line = super().command(workdir)
        # This file runs the package in place of `python -m`.
        flags = line[line.index("biedsnet_jax.main") + 1 :]
        return [sys.executable, __file__, str(self.journal), *flags]


class PowerCuts(Soak):
    """Kills, each followed by the loss of what was not on the disk."""

    def _spoil(self) -> Damage:
        if not self.signals or not self.workdir.exists():
            return NONE
        # The compile cache is written by the run as well.
        caches = self.run.fields["compile_cache"]
        damaged = cut(self.rng, [self.workdir, caches], self.run.journal)
        return Damage("power cut" if damaged else "power cut, nothing lost")

    def finish(self) -> None:
        self.judge(self.run.start(self.workdir).end(None, None), self._spoil())


def cut(rng: random.Random, roots: Iterable[Path], journal: Path) -> list[str]:
    """Spoils what a power cut may spoil below `roots`; returns a text for each damage."""
    done = []
    for root in roots:
        written, named = unsafe(root, journal)
        done += damage(rng, root, written, named)
    return done


def unsafe(root: Path, journal: Path) -> tuple[list[Path], list[Path]]:
    """(files that a power cut may spoil, names that it may remove), below `root`."""
    files, folders = read(journal)
    written, named = [], []
    for folder, _, names in os.walk(root):
        place = Path(folder)
        paths = [place / name for name in sorted(names)]
        written += [p.relative_to(root) for p in paths if not is_safe(p, files)]
        named += [p.relative_to(root) for p in unsafe_names(place, folders)]
    return written, named


def damage(
    rng: random.Random, root: Path, written: list[Path], named: list[Path]
) -> list[str]:
    """Spoils files and removes names; returns a text for each damage."""
    done = []
    for path in written:
        if how := spoil(rng, root / path):
            done.append(f"{path} {how}")
    for path in named:
        # Its folder may be gone by now.
        if rng.random() < 0.5 and (root / path).exists():
            remove(root / path)
            done.append(f"{path} gone")
    return done


def images(run: PoweredRun, rng: random.Random, count: int) -> dict:
    """Outcomes of `count` power cuts in one run, at random moments of its steps."""
    whole = run.folder / "kept"
    workdir = run.folder / "images"
    copies = run.folder / "copy"
    # All its checkpoints are kept, to compare each copy with the same step.
    fields = run.fields | {"checkpoint.keep_latest": 10**6}
    keep = Run(run.folder, steps=run.steps, more=fields)
    if not keep.start(whole).end(None, None).finished:
        raise SystemExit("The run that is not stopped failed.")
    judge, outcomes, lost = Judge(whole), [], 0
    while len(outcomes) < count:
        shutil.rmtree(workdir, ignore_errors=True)
        for written, named in _moments(run, rng, workdir, copies):
            if damage(rng, copies, written, named):
                lost += 1
            outcomes.append(judge(copies))
            print(f"{len(outcomes)} of {count}: {outcomes[-1]}", flush=True)
            shutil.rmtree(copies)
            if len(outcomes) == count:
                break
    good = [one for one in outcomes if one.startswith(("went on", "refused"))]
    return {
        "power_cuts": count,
        "with_a_loss": lost,
        "good": len(good),
        "outcomes": {one: outcomes.count(one) for one in sorted(set(outcomes))},
    }


def _moments(run, rng, workdir, copy):
    """Yields what is unsafe in `workdir` at random moments of a run, copied each time."""
    started = run.start(workdir)
    try:
        while started.process.poll() is None:
            time.sleep(rng.uniform(0.01, 0.2))
            # Before the first checkpoint there is nothing to lose.
            if not (workdir / "metrics.jsonl").exists() or not steps(workdir):
                continue
            _stop(started.process)
            shutil.copytree(workdir, copy)
            found = unsafe(workdir, run.journal)
            started.process.send_signal(signal.SIGCONT)
            yield found
    finally:
        started.process.kill()
        started.process.wait()


def _stop(process) -> None:
    """Stops all threads, and waits until they have: a write under way ends first."""
    process.send_signal(signal.SIGSTOP)
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            # The state follows the name, in brackets: T stopped, Z and X ended.
            if (task / "stat").read_text().rpartition(")")[2].split()[0] in "TZX":
                break
            time.sleep(0.001)


class Judge:
    """Opens a workdir as a start does, and compares its state with that of `whole`."""

    def __init__(self, whole: Path):
        import jax

        from biedsnet_jax.checkpoints import train_state
        from biedsnet_jax.config import build_model, run_config
        from biedsnet_jax.config.build_optimizer import make_optimizer
        from biedsnet_jax.runtime import devices

        cfg = run_config.load(whole)
        model, (optimizer, _) = build_model.build(cfg), make_optimizer(cfg.train)
        self.mesh, self.whole = devices.make_mesh(), whole
        self.like = jax.eval_shape(
            lambda: train_state.create(
                build_model.init_variables(model, cfg), optimizer
            )
        )
        self.cfg = cfg

    def __call__(self, workdir: Path) -> str:
        """The outcome in a few words.

        "in silence" is said where a later checkpoint is passed over without a warning.
        """
        from biedsnet_jax.checkpoints import checkpoint
        from biedsnet_jax.config import run_config
        from biedsnet_jax.errors import BadInput
        from biedsnet_jax.training import run_log

        warnings = []
        there = max(steps(workdir), default=0)
        try:
            run_config.check_same_run(self.cfg, workdir)
            with checkpoint.Checkpoints(
                workdir, keep_latest=2, warn=warnings.append
            ) as checkpoints:
                state = checkpoints.restore_latest(self.like, self.mesh)
            step = 0 if state is None else int(state.step)
            with run_log.RunLog(workdir, step=step, to_tensorboard=True) as log:
                log.write(step, {"loss": 1.0})
        except BadInput as error:
            return f"refused: {error}".replace(str(workdir), "W")
        except Exception as error:
            # Any other error is what this script looks for.
            return f"{type(error).__name__}: {error}"
        if step and not self._same(state, step):
            return "other numbers"
        if step < there and not warnings:
            return "an earlier step, in silence"
        word = "went on" if step else "went on from the start"
        return f"{word}, with a warning" if warnings else word

    def _same(self, state, step) -> bool:
        import jax
        import numpy as np

        from biedsnet_jax.checkpoints import checkpoint

        # Bytes are compared, since a NaN would equal no NaN.
        with checkpoint.Checkpoints(self.whole, keep_latest=10**6) as checkpoints:
            expected = checkpoints.restore(step, self.like, self.mesh)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
        return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def read(journal: Path) -> tuple[dict[int, tuple[int, int]], dict[int, list[str]]]:
    """(size and time of each file when last on the disk, names in each folder).

    Both are by inode.
    """
    files, folders = {}, {}
    if not journal.exists():
        return files, folders
    for line in journal.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            # A kill cuts a line short.
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
    """Names that a folder got since it was last brought to the disk."""
    safe = folders.get(folder.stat().st_ino, [])
    return sorted(path for path in folder.iterdir() if path.name not in safe)


def spoil(rng: random.Random, path: Path) -> str | None:
    """Cuts a file, or turns its end into zeros, from any byte on; returns which.

    None where the file was spared or is empty.
    """
    data = path.read_bytes()
    how = rng.choice(("cut", "zeroed", "emptied", None))
    if how is None or not data:
        return None
    kept = 0 if how == "emptied" else rng.randrange(len(data))
    zeros = len(data) - kept if how == "zeroed" else 0
    path.write_bytes(data[:kept] + bytes(zeros))
    return how


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def note_fsync(journal: Path) -> None:
    """Notes in `journal` what this process brings to the disk from here on."""
    fsync = os.fsync
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noted(target) -> None:
        fsync(target)
        number = target if isinstance(target, int) else target.fileno()
        status = os.fstat(number)
        place = Path(os.readlink(f"/proc/self/fd/{number}"))
        entry = {
            "inode": status.st_ino,
            "size": status.st_size,
            "time": status.st_mtime_ns,
        }
        if place.is_dir():
            entry["names"] = sorted(path.name for path in place.iterdir())
        # In one write, so that a kill leaves at most one line cut short.
        os.write(descriptor, (json.dumps(entry) + "\n").encode())

    os.fsync = noted


def main() -> int:
    """Runs the package, and keeps the journal."""
    journal, *flags = sys.argv[1:]
    note_fsync(Path(journal))
    from biedsnet_jax import main

    return main.run(["main.py", *flags])


if __name__ == "__main__":
    sys.exit(main())
