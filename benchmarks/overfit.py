"""Checks that each network can learn: it overfits eight phantom slices.

    python benchmarks/overfit.py [--steps=400] [unet unetpp ...]

Each network is scored on the slices that it learns, eight times on the way, until its
Dice is 0.95. A network that is quietly broken (a dead branch, a wrong skip, a loss with
the wrong sign) stays below. Exit code 1 if any does, or a step is not finite. Widths
are small, slices 64x64, numbers bfloat16 with --dtype=bfloat16. MedSegDiff, which
learns noise and not masks, needs longer: it has slices of 32x32, thrice the steps, and
its published sampler, DDPM, with 100 steps (a deterministic one keeps the errors of its
first steps).
"""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.config.check import check_config
from biedsnet_jax.data import pipeline
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices
from biedsnet_jax.training import train_step
from biedsnet_jax.training.validation import mean_dice
from configs import phantom

NETWORKS = (
    "unet", "unetpp", "attention_unet", "unext", "swin_unet", "trans_unet", "medsegdiff",
    "biedsnet", "direct",
)  # fmt: skip
# Slices to learn, the Dice that is enough, and how often it is measured.
SLICES, ENOUGH, VALIDATIONS = 8, 0.95, 8


def main() -> int:
    arguments = _arguments()
    devices.enable_compile_cache("auto")
    failed = []
    for name in arguments.networks or NETWORKS:
        start = time.monotonic()
        dice, steps, skipped = overfit(
            name, steps=arguments.steps, dtype=arguments.dtype
        )
        seconds = time.monotonic() - start
        print(
            f"{name:15s} Dice {dice:.4f} after {steps} steps, {skipped} not finite, "
            f"{seconds:.0f} s",
            flush=True,
        )
        if dice < ENOUGH or skipped:
            failed.append(name)
    return 1 if failed else 0


def overfit(name: str, *, steps: int, dtype: str) -> tuple[float, int, int]:
    """(mean Dice on the learnt slices, steps it took, steps that were not finite)."""
    c = phantom.get_config(name)
    c.dtype = dtype
    transformer = name in ("swin_unet", "trans_unet")
    c.train.update(steps=steps, learning_rate=1e-3 if transformer else 2e-3)
    c.eval.batch_size = SLICES
    if name == "medsegdiff":
        steps *= 3
        c.data.size, c.train.steps = 32, steps
        c.sampler.update(method="ddpm", steps=100)
    check_config(c)
    data = build_data.open_data(c)
    model = build_model.build(c)
    mesh = devices.make_mesh()
    # Every ninth, since neighbouring slices of a case are alike.
    with_lesion = [i for i in data.train if data.source[i]["mask"].sum() > 40]
    chosen = with_lesion[: SLICES * 9 : 9]
    assert len(chosen) == SLICES
    optimizer, _ = make_optimizer(c.train)
    step = train_step.make_train_step(
        train_step.Update(model, optimizer, ema_decay=c.train.ema), mesh
    )
    fresh = jax.jit(
        lambda: train_state.create(build_model.init_variables(model, c), optimizer),
        compiler_options=devices.RUN_ONCE,
    )
    state = jax.device_put(fresh(), devices.replicated(mesh))
    batches = pipeline.train_batches(
        data.source,
        chosen,
        prepare=build_data.make_prepare(c),
        # No augmentation, since these very slices are to be learnt.
        augment=dict.fromkeys(c.augment, 0.0),
        batch_size=SLICES,
        seed=0,
    )
    c.sampler.ensemble = 1
    fitted = Trained(c, model, {}, 0, mesh)
    every = math.ceil(steps / VALIDATIONS)
    with contextlib.closing(batches):
        for done in range(1, steps + 1):
            batch = devices.put_batch(next(batches), mesh)
            state, metrics = step(state, batch, jax.random.key(0))
            if done % every == 0 or done == steps:
                fitted = dataclasses.replace(fitted, variables=state.ema_variables)
                dice = mean_dice(fitted, data, chosen)
                if dice >= ENOUGH:
                    break
    return dice, done, int(metrics["skipped_steps"])


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "networks", nargs="*", choices=[*NETWORKS, []], help="all by default"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
