"""Measures whether batches come twice as fast as training uses them, augmented or not.

    python benchmarks/augmentation.py [--root=DIR] [--variant=cpu]

Times the batches of a variant of configs/covid.py, with today's augmentation, with nnU-Net's
(`:nnunet_augment`) and with all of it at once on every slice, each with a third of the
rows from slices with a lesion; then the training step of the same config. Slices come
from DIR, in folders images/ and masks/, or are drawn.

Exit code 1 where the slowest stream has less than twice the batches that the step uses.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts

LEAST_RATIO = 2.0
FOREGROUND = 0.33


def main() -> int:
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--root", help="folder of slices; they are drawn by default")
    parser.add_argument("--variant", default="cpu", help="of configs/covid.py")
    parser.add_argument("--batches", type=int, default=100, help="batches to time")
    arguments = parser.parse_args()
    configs = _configs(arguments.root, arguments.variant)
    rates = {}
    for name, cfg in configs.items():
        rates[name] = batches_a_second(cfg, arguments.batches)
        print(
            f"{name:10s}", json.dumps({"batches_per_second": rates[name]}), flush=True
        )
    steps = scripts.steps_a_second(configs["today"])
    ratio = min(rates.values()) / steps
    print(f"step       {steps:.2f} a second; {ratio:.1f} times, must be {LEAST_RATIO}")
    return 0 if ratio >= LEAST_RATIO else 1


def batches_a_second(cfg, count: int) -> float:
    """Times `count` batches once every slice lies in memory."""
    from biedsnet_jax.config import build_data
    from biedsnet_jax.data import pipeline

    data = build_data.open_data(cfg)
    batches = pipeline.train_batches(
        data.source,
        data.train,
        prepare=build_data.make_prepare(cfg),
        augment=cfg.augment.to_dict(),
        batch_size=cfg.train.batch_size,
        seed=0,
        # Finding the slices with a lesion reads every slice.
        foreground=build_data.find_foreground(cfg, data),
    )
    with contextlib.closing(batches):
        next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return count / (time.perf_counter() - start)


def _configs(root, variant):
    from configs import covid

    every = covid.get_config(f"{variant},nnunet_augment")
    for name in every.augment:
        if name not in ("rotate_degrees", "scale", "intensity"):
            every.augment[name] = 1.0
    configs = {
        "today": covid.get_config(variant),
        "nnunet": covid.get_config(f"{variant},nnunet_augment"),
        "all": every,
    }
    for cfg in configs.values():
        cfg.data.foreground = FOREGROUND
        cfg.data.root = root
        if not root:
            cfg.data.source = "phantom"
    return configs


if __name__ == "__main__":
    sys.exit(main())
