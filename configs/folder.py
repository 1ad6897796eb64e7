"""BIEDSNet on your own images: `images/<case>/<slice>.png` with `masks/` mirrored.

    python -m biedsnet_jax.main --config=configs/folder.py --config.data.root=DIR --workdir=runs/own

`:cpu` is a small network at 64x64 that trains in minutes on two cores.
"""

from configs import default, variants


def get_config(chosen: str | None = None):
    c = default.get_config()
    c.data.hint = (
        "Give --config.data.root=DIR, a folder with images/ and masks/ of the same file "
        "names."
    )
    return variants.apply(c, chosen, cpu=cpu)


def cpu(c) -> None:
    """A small network and a short run."""
    variants.small(c)
    short(c)


def short(c) -> None:
    """A run of minutes on a CPU at 64x64."""
    c.train.update(
        steps=1200, batch_size=8, learning_rate=2e-3, warmup_steps=50, ema=0.995
    )
    c.eval.update(every=300, batch_size=16, val_images=64)
    c.checkpoint.every = 100
    c.log.every = 20
    c.sampler.ensemble = 3
