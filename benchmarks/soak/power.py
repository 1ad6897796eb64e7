"""For soak.py: a power cut imitated. What a killed run had not brought to the disk is
lost.

As a program it is the run itself, which notes what it brings to the disk (fsync) in a
journal:

    python benchmarks/soak/power.py JOURNAL FLAGS...

`PowerCuts` kills the run and starts it again. `images` is the same without the starts:
one run is stopped (SIGSTOP) again and again, its folder is copied as it then stands,
and each copy loses what was not on the disk and is opened by the package as a start
would open it.

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
    """A training that keeps a journal of what is on the disk."""

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def command(self, workdir: Path) -> list[str]:
        line = super().command(workdir)
        flags = line[line.index("biedsnet_jax.main") + 1 :]
        return [sys.executable, __file__, str(self.journal), *flags]


class PowerCuts(Soak):
    """Kills, each followed by the loss of what was not on the disk."""

    def _spoil(self) -> Damage:
        if not self.signals or not self.workdir.exists():
            return NONE
        caches = self.run.fields["compile_cache"]
        damaged = cut(self.rng, [self.workdir, caches], self.run.journal)
        return Damage("power cut" if damaged else "power cut, nothing lost")

    def finish(self) -> None:
        self._judge(self.run.start(self.workdir).end(None, None), self._spoil())


def cut(rng: random.Random, roots: Iterable[Path], journal: Path) -> list[str]:
    """Spoil what a power cut may spoil below `roots`; says what was done to what."""
    return [how for root in roots for how in damage(rng, root, *unsafe(root, journal))]


def unsafe(root: Path, journal: Path) -> tuple[list[Path], list[Path]]:
    """(files that a power cut may spoil, names that it may take away), as seen from
    `root`.
    """
    files, folders = read(journal)
    written, named = [], []
    for folder, _, names in os.walk(root):
        place = Path(folder)
        changed = [
            place / name for name in sorted(names) if not is_safe(place / name, files)
        ]
        written += [path.relative_to(root) for path in changed]
        named += [path.relative_to(root) for path in unsafe_names(place, folders)]
    return written, named


def damage(
    rng: random.Random, root: Path, written: list[Path], named: list[Path]
) -> list[str]:
    """Spoil files and take away names; says what was done to what."""
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
    """What becomes of `count` power cuts in one run, each at a random moment of its
    steps.
    """
    whole, workdir, copies = (
        run.folder / "kept",
        run.folder / "images",
        run.folder / "copy",
    )
    fields = run.fields | {"checkpoint.keep_latest": 10**6}
    keep = Run(run.folder, steps=run.steps, more=fields)
    if not keep.start(whole).end(None, None).finished:
        raise SystemExit("the run that is not stopped failed")
    judge, outcomes, lost = Judge(whole), [], 0
    while len(outcomes) < count:
        shutil.rmtree(workdir, ignore_errors=True)
        for written, named in _moments(run, rng, workdir, copies):
            lost += bool(damage(rng, copies, written, named))
            outcomes.append(judge(copies))
            print(f"{len(outcomes)} of {count}: {outcomes[-1]}", flush=True)
            shutil.rmtree(copies)
            if len(outcomes) == count:
                break
    good = [
        outcome for outcome in outcomes if outcome.startswith(("went on", "refused"))
    ]
    return {
        "power_cuts": count,
        "with_a_loss": lost,
        "good": len(good),
        "outcomes": {one: outcomes.count(one) for one in sorted(set(outcomes))},
    }


def _moments(run, rng, workdir, copy):
    """What is unsafe in `workdir` at random moments of a run, of each of which a copy
    is made.
    """
    started = run.start(workdir)
    try:
        while started.process.poll() is None:
            time.sleep(rng.uniform(0.01, 0.2))
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
    """Stop all threads, and wait until they stand: a write under way is done first."""
    process.send_signal(signal.SIGSTOP)
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        late = time.monotonic() + 10
        while time.monotonic() < late:
            # After the name, which is in brackets: T stopped, Z and X ended.
            if (task / "stat").read_text().rpartition(")")[2].split()[0] in "TZX":
                break
            time.sleep(0.001)


class Judge:
    """Opens a workdir as a start does, and compares its state with the same step of
    `whole`.
    """

    def __init__(self, whole: Path):
        import jax

        from biedsnet_jax.checkpoints import train_state
        from biedsnet_jax.config import build_model, run_config
        from biedsnet_jax.runtime import devices
        from biedsnet_jax.training.optimizer import make_optimizer

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
        """In a word; "in silence" is said of checkpoints that were there and are used
        no more.
        """
        from biedsnet_jax.checkpoints import checkpoint
        from biedsnet_jax.config import run_config
        from biedsnet_jax.errors import BadInput
        from biedsnet_jax.training import run_log

        said, there = [], max(steps(workdir), default=0)
        try:
            run_config.check_same_run(self.cfg, workdir)
            with checkpoint.Checkpoints(
                workdir, keep_latest=2, warn=said.append
            ) as checkpoints:
                state = checkpoints.restore_latest(self.like, self.mesh)
            step = 0 if state is None else int(state.step)
            with run_log.RunLog(workdir, step=step, to_tensorboard=True) as log:
                log.write(step, {"loss": 1.0})
        except BadInput as error:
            return f"refused: {error}".replace(str(workdir), "W")
        # whatever it is, it is what is looked for
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if step and not self._same(state, step):
            return "other numbers"
        if step < there and not said:
            return "an earlier step, in silence"
        word = "went on" if step else "went on from the start"
        return word + (", with a warning" if said else "")

    def _same(self, state, step) -> bool:
        import jax
        import numpy as np

        from biedsnet_jax.checkpoints import checkpoint

        with checkpoint.Checkpoints(self.whole, keep_latest=10**6) as checkpoints:
            expected = checkpoints.restore(step, self.like, self.mesh)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
        return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def read(journal: Path) -> tuple[dict[int, tuple[int, int]], dict[int, list[str]]]:
    """(size and time of each file as it was last on the disk, names in each folder), by
    inode.
    """
    files, folders = {}, {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            entry = json.loads(line)
        # the kill came in the middle of it
        except ValueError:
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
    """Cut a file, or make its end zeros, from anywhere on; None where it was spared or
    is empty.
    """
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
    fsync, descriptor = (
        os.fsync,
        os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    )

    def noted(target) -> None:
        fsync(target)
        number = target if isinstance(target, int) else target.fileno()
        status, place = os.fstat(number), Path(os.readlink(f"/proc/self/fd/{number}"))
        entry = {
            "inode": status.st_ino,
            "size": status.st_size,
            "time": status.st_mtime_ns,
        }
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
