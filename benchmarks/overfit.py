"""Can each network learn at all? Fits eight phantom slices by heart and scores those
very slices.

    python benchmarks/overfit.py [--steps=400] [unet unetpp ...]

A network that is quietly broken (a dead branch, a wrong skip, a loss with the wrong
sign) stays below 0.95. Exit code 1 if any does, or a step is not finite. Small widths,
64x64, bfloat16 with --dtype=bfloat16. Each is scored now and then, and done when it is
there. MedSegDiff, which learns noise and not masks, needs longer: it has slices of
32x32, thrice the steps, and its published sampler, DDPM, with 100 steps (a
deterministic one keeps the errors of its first steps).
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config.check import check_config
from biedsnet_jax.data import pipeline
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices
from biedsnet_jax.training import train_step
from biedsnet_jax.training.optimizer import make_optimizer
from biedsnet_jax.training.validation import mean_dice
from configs import phantom

NETWORKS = (
    "unet", "unetpp", "attention_unet", "unext", "swin_unet", "trans_unet", "medsegdiff", "biedsnet", "direct"
)  # fmt: skip
SLICES, ENOUGH, LOOKS = 8, 0.95, 8


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
            f"{name:15s} Dice {dice:.4f} after {steps} steps, {skipped} not finite, {seconds:.0f} s",
            flush=True,
        )
        if dice < ENOUGH or skipped:
            failed.append(name)
    return 1 if failed else 0


def overfit(name: str, *, steps: int, dtype: str) -> tuple[float, int, int]:
    """Mean Dice on the slices that were learnt, the steps it took, and how many of them
    were not finite.
    """
    c = phantom.get_config(name)
    c.dtype = dtype
    c.train.update(
        steps=steps, learning_rate=1e-3 if name in ("swin_unet", "trans_unet") else 2e-3
    )
    c.eval.batch_size = SLICES
    if name == "medsegdiff":
        steps *= 3
        c.data.size, c.train.steps = 32, steps
        c.sampler.update(method="ddpm", steps=100)
    check_config(c)
    data, model, mesh = (
        build_data.open_data(c),
        build_model.build(c),
        devices.make_mesh(),
    )
    chosen = [i for i in data.train if data.source[i]["mask"].sum() > 40][
        : SLICES * 9 : 9
    ]
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
        augment=dict.fromkeys(c.augment, 0.0),
        batch_size=SLICES,
        seed=0,
    )
    c.sampler.ensemble = 1
    fitted = Trained(c, model, {}, 0, mesh)
    with contextlib.closing(batches):
        for done in range(1, steps + 1):
            state, metrics = step(
                state, devices.put_batch(next(batches), mesh), jax.random.key(0)
            )
            if done % -(-steps // LOOKS) == 0 or done == steps:
                dice = mean_dice(
                    dataclasses.replace(fitted, variables=state.ema_variables),
                    data,
                    chosen,
                )
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
