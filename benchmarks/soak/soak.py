"""Does a run survive? Kills a training at random moments, spoils its files, and compares it with an unbroken one.

    python benchmarks/soak/soak.py [--kills=40] [--terms=10] [--seed=0] [--folder=DIR] [--output=soak.json]
    python benchmarks/soak/soak.py --power-cuts=50 [--seed=0] [--folder=DIR] [--output=power.json]
    python benchmarks/soak/soak.py --images=50 [--seed=0] [--folder=DIR] [--output=images.json]
    python benchmarks/soak/soak.py --memory [--steps=2000]

A toy BIEDSNet learns small pictures on the CPU. It is killed (SIGKILL) or asked to go (SIGTERM) at moments drawn from
the seed, from its first imports on, and started again by the same command; a run that gets to its end is followed by
another one from nothing, until there were enough kills. Before every other start, by turns, a file of the latest of
several checkpoints is cut, changed or taken away, a picture is cut or taken away, or the disk is full. Told are the
kills after which the run went on, the steps done twice, what came of each damage, and whether each finished run has the
bits of the unbroken one. A full disk is a small tmpfs, which needs root; else a limit on the size of files stands in.

With --power-cuts: so many kills (SIGKILL), each followed by what a power cut may do, see
power.py. A cut is survived where the next start that gets so far goes on from a good state.
With --images: the same at moments of one run, without starting it again each time.

With --memory: the slope of the resident memory of one process that trains, validates and checkpoints all the time, in
MB per 100 steps after the first quarter.

Exit code 1 if a kill was not survived, a run ended in a traceback or in other bits, or the slope is 1 MB or more.
"""

import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scripts
from benchmarks.soak import damage
from benchmarks.soak.run import Ended, Moment, Run, write_pictures

MOST_SLOPE = 1.0  # MB per 100 steps
MOST_TRIES = 10
GOOD = ("refused", "killed early", "went on", "went on, with a warning")


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running or mounted
    with contextlib.ExitStack() as stack:
        folder = Path(arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        if arguments.memory:
            report = memory(folder, arguments.steps or 2000)
            good = report["mb_per_100_steps"] < MOST_SLOPE
        elif arguments.images:
            # Here, since it needs this module.
            from benchmarks.soak import power

            run = power.PoweredRun(folder, steps=arguments.steps or 600)
            write_pictures(run.data)
            report = power.images(run, random.Random(arguments.seed), arguments.images)
            good = report["good"] == arguments.images
        else:
            report = power_cuts(folder, arguments) if arguments.power_cuts else soak(folder, arguments)
            good = report["survived"] == report["kills"] and all(report["same_bits"]) and not report["failures"]
    scripts.show(report, arguments.output)
    return 0 if good else 1


def soak(folder: Path, arguments) -> dict:
    """Kill until all kills are done, let the last run end, compare."""
    rng, started = random.Random(arguments.seed), time.monotonic()
    run = Run(folder, steps=arguments.steps or 600)
    seconds = run.unbroken()
    with damage.small_disk(folder / "disk") as disk:
        killed = Soak(run, rng, disk, seconds)
        for how in shuffled(rng, kills=arguments.kills, terms=arguments.terms):
            killed.one(how)
        killed.finish()
    return killed.report() | {
        "seed": arguments.seed,
        "steps_of_a_run": run.steps,
        "full_disk": disk.how,
        "seconds": round(time.monotonic() - started),
    }


def power_cuts(folder: Path, arguments) -> dict:
    """The same with kills alone, each followed by the loss of what was not on the disk."""
    # Here, since it needs this module.
    from benchmarks.soak import power

    rng, started = random.Random(arguments.seed), time.monotonic()
    run = power.PoweredRun(folder, steps=arguments.steps or 600)
    seconds = run.unbroken()
    (folder / "disk").mkdir()
    disk = damage.Disk(folder / "disk", False, "a plain folder")
    cuts = power.PowerCuts(run, rng, disk, seconds)
    for number in range(arguments.power_cuts):
        cuts.one("SIGKILL")
        state = f"{cuts.survived} survived, {len(cuts.failures)} failures"
        print(f"cut {number + 1} of {arguments.power_cuts}: {state}", flush=True)
    cuts.finish()
    return cuts.report() | {
        "seed": arguments.seed,
        "steps_of_a_run": run.steps,
        "seconds": round(time.monotonic() - started),
    }


def shuffled(rng: random.Random, *, kills: int, terms: int) -> list[str]:
    """The signals in random order."""
    signals = ["SIGKILL"] * kills + ["SIGTERM"] * terms
    rng.shuffle(signals)
    return signals


def random_moment(rng: random.Random, *, steps: int, seconds: float) -> Moment:
    """In the imports and the compilation, which take about `seconds`, or, twice as often, some steps later."""
    if rng.random() < 1 / 3:
        return Moment(seconds=rng.uniform(0.05, 1) * seconds)
    return Moment(seconds=rng.uniform(0, 0.3), new_steps=rng.randint(1, max(1, steps // 4)))


class Soak:
    """The killed runs and what became of them."""

    def __init__(self, run: Run, rng: random.Random, disk, seconds: float):
        self.run, self.rng, self.disk, self.seconds = run, rng, disk, seconds
        self.round, self.signals, self.survived, self.lost = 0, [], 0, []
        self.waiting = 0  # kills of which it is not known yet whether they were survived
        self.damages, self.same, self.failures = [], [], []
        self.turns = 0

    @property
    def workdir(self) -> Path:
        """On the small disk, where a full one can be had."""
        return self.disk.folder / f"run{self.round}"

    def one(self, how: str) -> None:
        """Start, and kill at a random moment; what ends by itself before that is booked, and started again."""
        spoilt = self._spoil()
        for _ in range(MOST_TRIES):
            moment = random_moment(self.rng, steps=self.run.steps, seconds=self.seconds)
            ended = self.run.start(self.workdir, file_limit=spoilt.file_limit).end(moment, how)
            self._judge(ended, spoilt)
            spoilt = damage.NONE
            if ended.signal:
                self.signals.append(how)
                self.waiting += 1
                return
        raise SystemExit(f"{MOST_TRIES} starts in a row ended by themselves, the last with:\n{ended.err}")

    def finish(self) -> None:
        """The last run undisturbed."""
        self._judge(self.run.start(self.workdir).end(None, None), damage.NONE)

    def _spoil(self) -> damage.Damage:
        """Every other start something is broken, by turns."""
        self.turns += 1
        if self.turns % 2:
            return damage.NONE
        kind = damage.KINDS[self.turns // 2 % len(damage.KINDS)]
        return kind(self.rng, self.workdir, self.run.data, self.disk)

    def _judge(self, ended: Ended, spoilt: damage.Damage) -> None:
        """Book how a start went."""
        spoilt.mend()
        word = outcome(ended)
        if went_on(ended):
            self.survived, self.waiting = self.survived + self.waiting, 0
            self.lost.append(max(0, (ended.before or 0) - ended.from_step))
        if spoilt.what:
            self.damages.append({"what": spoilt.what, "outcome": word})
        if word not in GOOD or (word == "refused" and not spoilt.temporary):
            begin = max(0, ended.err.find("Traceback") - 300) if word == "traceback" else -3000
            self.failures.append(f"{word}, {spoilt.what or 'nothing spoilt'}: {ended.err[begin:][:3000]}")
            if not ended.signal and ended.code == 2 and not spoilt.temporary:
                self._begin_another()  # it would be refused for ever
        if ended.finished:
            self.same.append(self.run.final_bits(self.workdir) == self.run.expected)
            self._begin_another()

    def _begin_another(self):
        shutil.rmtree(self.workdir, ignore_errors=True)  # the disk is small
        self.round += 1

    def report(self) -> dict:
        """What the module says."""
        return {
            "kills": len(self.signals),
            "signals": {how: self.signals.count(how) for how in ("SIGKILL", "SIGTERM")},
            "survived": self.survived,
            "steps_done_twice": {"sum": sum(self.lost), "most": max(self.lost, default=0)},
            "damages": tally(self.damages),
            "finished_runs": len(self.same),
            "same_bits": self.same,
            "failures": self.failures,
        }


def went_on(ended: Ended) -> bool:
    """Whether this start found data and a state that it could go on from."""
    return ended.from_step is not None


def outcome(ended: Ended) -> str:
    """How a start ended, in a word."""
    if "Traceback" in ended.err:
        return "traceback"
    if ended.code == 2:
        said = [line for line in ended.err.splitlines() if line.startswith("biedsnet: ") and "warning: " not in line]
        return "refused" if len(said) == 1 else f"refused in {len(said)} lines"
    if ended.signal == "SIGTERM" and ended.code not in (0, -15, 143):
        return f"exit code {ended.code} after SIGTERM"
    if not ended.signal and not ended.finished:
        return f"exit code {ended.code}"
    if not went_on(ended):
        return "killed early"
    return "went on, with a warning" if "warning: " in ended.err else "went on"


def tally(damages: list[dict]) -> dict[str, dict[str, int]]:
    """what -> outcome -> how often"""
    counts: dict[str, dict[str, int]] = {}
    for one in damages:
        outcomes = counts.setdefault(one["what"], {})
        outcomes[one["outcome"]] = outcomes.get(one["outcome"], 0) + 1
    return counts


def memory(folder: Path, steps: int) -> dict:
    """Resident memory against steps, of one undisturbed run."""
    # Five times as often as by default.
    run = Run(folder, steps=steps, more={"eval.every": 200, "checkpoint.every": 200, "log.every": 5})
    write_pictures(run.data)
    points = run.watch_memory(folder / "memory")
    late = [point for point in points if point[0] > steps / 4]
    return {
        "steps": steps,
        "mb_per_100_steps": round(100 * slope(late), 4),
        "samples": len(late),
        "mb_at_step": {step: round(mb) for step, mb in points[:: max(1, len(points) // 20)]},
    }


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line: sum (x - mean x)(y - mean y) / sum (x - mean x)^2."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=40, help="by SIGKILL")
    parser.add_argument("--power-cuts", type=int, default=0, help="instead of the kills")
    parser.add_argument("--images", type=int, default=0, help="power cuts in one run, as copies")
    parser.add_argument("--terms", type=int, default=10, help="by SIGTERM")
    parser.add_argument("--steps", type=int, help="of a run; 600, or 2000 with --memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true", help="the other measurement")
    parser.add_argument("--folder", help="keep all files here; a temporary folder by default")
    parser.add_argument("--output", help="the report, JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
