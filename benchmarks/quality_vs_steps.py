"""Compares samplers, steps and samples by Dice, HD95 and seconds an image.

    python benchmarks/quality_vs_steps.py --workdir=DIR [--images=N] [--samples=K]
        [--most-steps=100] [--methods=ddim,ddpm]
        [--config=configs/covid.py:cpu --config.data.root=...]

Trains the config (configs/phantom.py where none is given) into `--workdir`, or goes on
there; a trained workdir needs no --config. Then it scores the validation cases, a row
for each sampler, number of steps, and spacing, and for the chosen ones each number of
samples. Finished rows are kept in DIR/quality_vs_steps.json, so that the same command
goes on where it stopped. Prints Markdown tables and the default that follows: the
fewest steps within 0.003 Dice of the best.

Seconds are those of predicting, in batches of eval.batch_size, without compiling and
without reading the images.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts
from benchmarks.tables import kept_rows
from biedsnet_jax.config import build_model, run_split
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.evaluation.scan_scores import slice_rows
from biedsnet_jax.prediction import trained
from biedsnet_jax.reporting import table
from biedsnet_jax.runtime import devices, files, progress
from biedsnet_jax.scoring import metrics
from biedsnet_jax.training import train

# Dice that fewer steps may cost.
MARGIN = 0.003
# Steps of the samplers; the fewer ones also with DDIM's other spacings.
STEPS = (1, 2, 3, 4, 5, 8, 10, 20, 50)
FEW = (1, 2, 3, 4, 5)
SAMPLES = (1, 2, 5, 10)
METHODS = ("ddim", "dpm_solver", "ddpm")
FILE = "quality_vs_steps.json"


def sweep(timesteps: int) -> list[dict]:
    """The sampler's fields of each row but the number of samples, fewest steps first.

    Rows that equal another one are left out: one trailing step is the same prediction
    by every sampler, linspace's too, and DPM-Solver++ begins with DDIM's steps and ends
    with one.
    """
    rows = [row("ddim", steps) for steps in STEPS]
    rows += [row("dpm_solver", steps) for steps in STEPS if steps > 2]
    rows += [row("ddpm", steps) for steps in (*STEPS, timesteps) if steps > 1]
    for spacing in ("linspace", "leading"):
        rows += [row("ddim", steps, spacing) for steps in FEW if steps > 1]
    possible = [r for r in rows if r["steps"] <= timesteps]
    return sorted(possible, key=lambda r: r["steps"])


def row(method: str, steps: int, spacing: str = "trailing") -> dict:
    """The fields of `sampler` in one row."""
    return {"method": method, "steps": steps, "spacing": spacing}


def choose(rows: list[dict]) -> dict:
    """The row of the fewest evaluations of the network within MARGIN of the best Dice.

    Of rows with as many evaluations it is the better one.
    """
    # Less a billionth, since 0.800 - 0.003 is not 0.797 in binary.
    enough = max(r["dice"] for r in rows) - MARGIN - 1e-9
    good = [r for r in rows if r["dice"] >= enough]
    return min(good, key=lambda r: (r["ensemble"] * r["steps"], -r["dice"]))


def main() -> int:
    arguments, cfg = _arguments()
    workdir = Path(arguments.workdir)
    devices.enable_compile_cache(cfg.compile_cache)
    # Training ends with the results.
    if not (workdir / "results.json").exists():
        train.train(cfg, str(workdir))
    bench = Bench(cfg, workdir, arguments.images)
    samples = arguments.samples or cfg.sampler.ensemble
    rows = [r | {"ensemble": samples} for r in sweep(cfg.diffusion.timesteps)]
    rows = bench.measure([r for r in rows if is_wanted(r, arguments)])
    chosen = choose(rows)
    best = max(rows, key=lambda r: r["dice"])
    same = {name: chosen[name] for name in row("", 0)}
    by_samples = bench.measure(
        [same | {"ensemble": k} for k in sorted({*SAMPLES, samples})]
    )
    print(
        _markdown("Samplers and steps", bench.caption, rows),
        _markdown("Samples", "At the default.", by_samples),
    )
    print(f"default: the fewest steps within {MARGIN} Dice of the best")
    named = {
        "best": best,
        "default": chosen,
        "samples at the default": choose(by_samples),
    }
    for name, r in named.items():
        print(f"{name}: {' '.join(_cells(r)[:4])}, Dice {r['dice']:.4f}")
    return 0


def is_wanted(r: dict, arguments: argparse.Namespace) -> bool:
    """Whether the flags leave this row in.

    --methods leaves the rows of these samplers with trailing steps.
    """
    if arguments.most_steps and r["steps"] > arguments.most_steps:
        return False
    if not arguments.methods:
        return True
    return r["method"] in arguments.methods and r["spacing"] == "trailing"


class Bench:
    """A trained workdir and its validation slices, which measures each row once."""

    def __init__(self, cfg, workdir: Path, images: int):
        self.cfg, self.path = cfg, workdir / FILE
        self.data = run_split.open_training(cfg, workdir)
        self.model = trained.load(workdir, cfg)
        val = self.data.val
        most = min(images or len(val), len(val))
        self.indices = [val[i] for i in np.linspace(0, len(val) - 1, most).astype(int)]
        # What a row depends on beside the sampler.
        self.same = {
            "checkpoint_step": self.model.step,
            "images": len(self.indices),
            "seed": cfg.seed,
            "fusion": cfg.fusion,
            "threshold": cfg.threshold,
            "batch_size": cfg.eval.batch_size,
        }
        size, mesh = cfg.data.size, self.model.mesh
        self.caption = (
            f"{cfg.data.name}, {len(self.indices)} validation slices of "
            f"{len(self.data.cases('val'))} cases at {size}x{size}, checkpoint of step "
            f"{self.model.step}, {mesh.size} x {mesh.devices.flat[0].device_kind}; "
            "HD95 in pixels."
        )

    def measure(self, rows: list[dict]) -> list[dict]:
        """The rows with their scores, in order; the file gets each new one at once."""
        bar = progress.Progress("rows", len(rows))
        kept = kept_rows.read(self.path, "rows", "measured")
        found = []
        for number, fields in enumerate(rows, start=1):
            # A row of another checkpoint or of other slices does not count as done.
            key = fields | self.same
            done = next((r for r in kept if key.items() <= r.items()), None)
            if done is None:
                done = key | self._score(fields)
                kept.append(done)
                files.write_json(self.path, kept)
            found.append(done)
            bar.update(number, {"dice": done["dice"]}, plain=True)
        bar.close()
        return found

    def _score(self, fields):
        cfg = self.cfg.copy_and_resolve_references()
        cfg.sampler.update(fields)
        check_config(cfg)
        clock, rows = trained.Clock(), []
        model = trained.Trained(
            cfg,
            build_model.build(cfg),
            self.model.variables,
            self.model.step,
            self.model.mesh,
        )
        for probability, batch, examples in model.predict_split(
            self.data, self.indices, clock
        ):
            for p, y, example in zip(probability, batch["mask"], examples):
                rows += slice_rows(p > cfg.threshold, y > 0.5, example, cfg.eval)
        scores = metrics.summarise(rows)["standard"]
        if scores["dice"]["mean"] is None:
            raise BadInput(
                f"None of the {len(self.indices)} slices of --images has a lesion. "
                "Give more, or 0 for all."
            )
        means = {name: scores[name]["mean"] for name in ("dice", "hd95")}
        return means | {"seconds_per_image": clock.seconds / clock.images}


def _markdown(title: str, caption: str, rows: list[dict]) -> str:
    header = ["sampler", "steps", "spacing", "K", "Dice", "HD95", "s an image"]
    cells = [_cells(r) for r in rows]
    return table.markdown_tables([table.Table(title, caption, header, cells)])


def _cells(r):
    return [
        r["method"],
        str(r["steps"]),
        r["spacing"],
        str(r["ensemble"]),
        f"{r['dice']:.4f}",
        f"{r['hd95']:.2f}",
        f"{r['seconds_per_image']:.3f}",
    ]


def _methods(text):
    """Names of samplers; DDIM's first row, of one step, stands for all."""
    names = tuple(text.split(","))
    if not set(names) <= set(METHODS):
        raise argparse.ArgumentTypeError(f"{text}. Give some of {', '.join(METHODS)}.")
    return names


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--workdir", required=True, help="the run, trained here if it is not yet"
    )
    parser.add_argument(
        "--images", type=int, default=0, help="validation slices, evenly spaced; 0: all"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        help="K while steps are compared; 0: the config's",
    )
    parser.add_argument(
        "--most-steps", type=int, default=0, help="leave out rows of more; 0: none"
    )
    parser.add_argument(
        "--methods",
        type=_methods,
        default=(),
        help="plain rows of these samplers alone; none: all",
    )
    arguments, rest = parser.parse_known_args()
    if min(arguments.images, arguments.samples, arguments.most_steps) < 0:
        parser.error("--images, --samples and --most-steps start at 0")
    trained_before = (Path(arguments.workdir) / "config.json").exists()
    if not trained_before and not any(word.startswith("--config=") for word in rest):
        rest = [f"--config={scripts.ROOT / 'configs' / 'phantom.py'}", *rest]
    cfg = scripts.read_config([f"--workdir={arguments.workdir}", *rest])
    if not build_model.draws_samples(cfg) or cfg.network == "medsegdiff":
        raise BadInput(
            f"--config has network {cfg.network}, with method {cfg.method}, which has "
            "no sampler to compare. Give a biedsnet trained by diffusion."
        )
    return arguments, cfg


if __name__ == "__main__":
    sys.exit(exit_code(main))
