"""Kills a training at random moments, damages its files, and compares its bits.

    python benchmarks/soak/soak.py [--kills=40] [--terms=10] [--output=soak.json]
    python benchmarks/soak/soak.py --power-cuts=50 [--output=power.json]
    python benchmarks/soak/soak.py --images=50 [--output=images.json]
    python benchmarks/soak/soak.py --memory [--steps=2000]

All but --memory take --seed=0 and --folder=DIR, too.

A toy BIEDSNet learns small pictures on the CPU. It gets a SIGKILL or a SIGTERM at
moments drawn from the seed, from its first imports on, and is started again by the same
command. A run that ends is followed by a new one, until there were enough kills. Before
every other start, in turn, a file of the latest of several checkpoints is cut, changed
or removed, a picture is cut or removed, or the disk is full. The report has the kills
after which the run went on, the steps done twice, the outcome of each damage, and
whether each finished run has the bits of the unbroken one. A full disk is a small
tmpfs, which needs root; without root the size of files is limited.

With --power-cuts each kill is followed by the losses of a power cut, see power.py. A
cut is survived where the next start that gets so far goes on from a good state. With
--images the same is done at moments of one run, which is not started again each time.

With --memory: the slope of the resident memory of one process that trains, validates
and checkpoints all the time, in MB per 100 steps after the first quarter.

Exit code 1 if a kill was not survived, a run ended in a traceback or in other bits, or
the slope is 1 MB or more.
"""

import contextlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scripts
from benchmarks.soak import damage, power
from benchmarks.soak.kills import Soak
from benchmarks.soak.run import Run, write_pictures

# MB per 100 steps.
MOST_SLOPE = 1.0


def main() -> int:
    arguments = _arguments()
    # SystemExit closes all contexts, so that nothing is left running or mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        folder = Path(
            arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        ).absolute()
        if arguments.memory:
            report = memory(folder, arguments.steps or 2000)
            good = report["mb_per_100_steps"] < MOST_SLOPE
        elif arguments.images:
            run = power.PoweredRun(folder, steps=arguments.steps or 600)
            write_pictures(run.data)
            report = power.images(run, random.Random(arguments.seed), arguments.images)
            good = report["good"] == arguments.images
        else:
            start = time.monotonic()
            kill = power_cuts if arguments.power_cuts else soak
            report = kill(folder, arguments) | {"seed": arguments.seed}
            report["seconds"] = round(time.monotonic() - start)
            survived = report["survived"] == report["kills"]
            good = survived and all(report["same_bits"]) and not report["failures"]
    scripts.show(report, arguments.output)
    return 0 if good else 1


def soak(folder: Path, arguments) -> dict:
    """Kills runs until all kills are done; compares the bits of those that ended."""
    rng = random.Random(arguments.seed)
    run = Run(folder, steps=arguments.steps or 600)
    seconds = run.unbroken()
    with damage.small_disk(folder / "disk") as disk:
        killed = Soak(run, rng, disk, seconds)
        for how in shuffled(rng, kills=arguments.kills, terms=arguments.terms):
            killed.one(how)
        killed.finish()
    return killed.report() | {"steps_of_a_run": run.steps, "full_disk": disk.how}


def power_cuts(folder: Path, arguments) -> dict:
    """Kills runs, each time with the loss of what was not on the disk."""
    rng = random.Random(arguments.seed)
    run = power.PoweredRun(folder, steps=arguments.steps or 600)
    seconds = run.unbroken()
    # A power cut takes files anyway, so the disk need not be small.
    (folder / "disk").mkdir()
    disk = damage.Disk(folder / "disk", False, "a plain folder")
    cuts = power.PowerCuts(run, rng, disk, seconds)
    for number in range(arguments.power_cuts):
        cuts.one("SIGKILL")
        state = f"{cuts.survived} survived, {len(cuts.failures)} failures"
        print(f"cut {number + 1} of {arguments.power_cuts}: {state}", flush=True)
    cuts.finish()
    return cuts.report() | {"steps_of_a_run": run.steps}


def shuffled(rng: random.Random, *, kills: int, terms: int) -> list[str]:
    """The signals in random order."""
    signals = ["SIGKILL"] * kills + ["SIGTERM"] * terms
    rng.shuffle(signals)
    return signals


def memory(folder: Path, steps: int) -> dict:
    """Resident memory against steps, of one undisturbed run."""
    # More often than in other runs, so that a leak of any part shows.
    every = {"eval.every": 200, "checkpoint.every": 200, "log.every": 5}
    run = Run(folder, steps=steps, more=every)
    write_pictures(run.data)
    points = run.watch_memory(folder / "memory")
    # The first quarter fills caches and queues.
    late = [point for point in points if point[0] > steps / 4]
    some = points[:: max(1, len(points) // 20)]
    return {
        "steps": steps,
        "mb_per_100_steps": round(100 * slope(late), 4),
        "samples": len(late),
        "mb_at_step": {step: round(mb) for step, mb in some},
    }


def slope(points: list[tuple[float, float]]) -> float:
    """Slope of the least-squares line.

    That is sum (x - mean x)(y - mean y) / sum (x - mean x)^2.
    """
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return covariance / sum((x - mean_x) ** 2 for x, _ in points)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=40, help="by SIGKILL")
    parser.add_argument(
        "--power-cuts", type=int, default=0, help="instead of the kills"
    )
    parser.add_argument(
        "--images", type=int, default=0, help="power cuts in one run, as copies"
    )
    parser.add_argument("--terms", type=int, default=10, help="by SIGTERM")
    parser.add_argument(
        "--steps", type=int, help="of a run; 600, or 2000 with --memory"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true", help="the other measurement")
    parser.add_argument(
        "--folder", help="keep all files here; a temporary folder by default"
    )
    parser.add_argument("--output", help="the report, JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
