"""For soak.py: a run that is killed, its next start, and how both ended."""

import random
import shutil
from pathlib import Path

from benchmarks.soak import damage
from benchmarks.soak.run import Ended, Moment, Run

# Starts that may end by themselves before their kill.
MOST_TRIES = 10
GOOD = ("refused", "killed early", "went on", "went on, with a warning")


def random_moment(rng: random.Random, *, steps: int, seconds: float) -> Moment:
    """A moment in the first `seconds`, or, twice as often, some steps later.

    `seconds` are those of imports and compilation.
    """
    if rng.random() < 1 / 3:
        return Moment(seconds=rng.uniform(0.05, 1) * seconds)
    return Moment(
        seconds=rng.uniform(0, 0.3), new_steps=rng.randint(1, max(1, steps // 4))
    )


class Soak:
    """The killed runs and how their starts ended."""

    def __init__(self, run: Run, rng: random.Random, disk, seconds: float):
        self.run, self.rng, self.disk, self.seconds = run, rng, disk, seconds
        self.round, self.signals, self.survived, self.lost = 0, [], 0, []
        # Kills of which it is not known yet whether they were survived.
        self.waiting = 0
        self.damages, self.same, self.failures = [], [], []
        self.turns = 0

    @property
    def workdir(self) -> Path:
        """The workdir of the current run, on the small disk."""
        return self.disk.folder / f"run{self.round}"

    def one(self, how: str) -> None:
        """Starts the run, and kills it at a random moment.

        A start that ends by itself before that is judged, and followed by another.
        """
        spoilt = self._spoil()
        for _ in range(MOST_TRIES):
            moment = random_moment(self.rng, steps=self.run.steps, seconds=self.seconds)
            ended = self.run.start(self.workdir, file_limit=spoilt.file_limit).end(
                moment, how
            )
            self.judge(ended, spoilt)
            # The damage is mended by now, so a further start meets none.
            spoilt = damage.NONE
            if ended.signal:
                self.signals.append(how)
                self.waiting += 1
                return
        raise SystemExit(
            f"{MOST_TRIES} starts in a row ended by themselves, "
            f"the last with:\n{ended.err}"
        )

    def finish(self) -> None:
        """Lets the last run end undisturbed."""
        self.judge(self.run.start(self.workdir).end(None, None), damage.NONE)

    def _spoil(self) -> damage.Damage:
        """Damages something before every other start, each kind in turn."""
        self.turns += 1
        if self.turns % 2:
            return damage.NONE
        kind = damage.KINDS[self.turns // 2 % len(damage.KINDS)]
        return kind(self.rng, self.workdir, self.run.data, self.disk)

    def judge(self, ended: Ended, spoilt: damage.Damage) -> None:
        """Records how a start ended."""
        spoilt.mend()
        word = outcome(ended)
        if went_on(ended):
            self.survived, self.waiting = self.survived + self.waiting, 0
            self.lost.append(max(0, (ended.before or 0) - ended.from_step))
        if spoilt.what:
            self.damages.append({"what": spoilt.what, "outcome": word})
        if word not in GOOD or (word == "refused" and not spoilt.temporary):
            begin = -3000
            if word == "traceback":
                begin = max(0, ended.err.find("Traceback") - 300)
            self.failures.append(
                f"{word}, {spoilt.what or 'no damage'}: {ended.err[begin:][:3000]}"
            )
            if not ended.signal and ended.code == 2 and not spoilt.temporary:
                # Every further start would be refused, too.
                self._begin_another()
        if ended.finished:
            self.same.append(self.run.final_bits(self.workdir) == self.run.expected)
            self._begin_another()

    def _begin_another(self):
        # Removed, since the disk is small.
        shutil.rmtree(self.workdir, ignore_errors=True)
        self.round += 1

    def report(self) -> dict:
        """The report that the docstring of soak.py describes."""
        return {
            "kills": len(self.signals),
            "signals": {how: self.signals.count(how) for how in ("SIGKILL", "SIGTERM")},
            "survived": self.survived,
            "steps_done_twice": {
                "sum": sum(self.lost),
                "most": max(self.lost, default=0),
            },
            "damages": tally(self.damages),
            "finished_runs": len(self.same),
            "same_bits": self.same,
            "failures": self.failures,
        }


def went_on(ended: Ended) -> bool:
    """Whether a start found data and a state to go on from."""
    return ended.from_step is not None


def outcome(ended: Ended) -> str:
    """How a start ended, in a word."""
    if "Traceback" in ended.err:
        return "traceback"
    if ended.code == 2:
        lines = [
            line
            for line in ended.err.splitlines()
            if line.startswith("biedsnet: ") and "warning: " not in line
        ]
        return "refused" if len(lines) == 1 else f"refused in {len(lines)} lines"
    if ended.signal == "SIGTERM" and ended.code not in (0, -15, 143):
        return f"exit code {ended.code} after SIGTERM"
    if not ended.signal and not ended.finished:
        return f"exit code {ended.code}"
    if not went_on(ended):
        return "killed early"
    return "went on, with a warning" if "warning: " in ended.err else "went on"


def tally(damages: list[dict]) -> dict[str, dict[str, int]]:
    """Number of damages by kind and outcome."""
    counts: dict[str, dict[str, int]] = {}
    for one in damages:
        outcomes = counts.setdefault(one["what"], {})
        outcomes[one["outcome"]] = outcomes.get(one["outcome"], 0) + 1
    return counts
