"""A small BIEDSNet on made-up chest CT slices, which runs anywhere without data.

python -m biedsnet_jax.main --config=configs/phantom.py --workdir=runs/phantom
"""

from configs import default, variants


def get_config(chosen: str | None = None):
    c = default.get_config()
    c.data.source = "phantom"
    c.data.name = "phantom"
    variants.small(c)
    c.networks.biedsnet.channels = (16, 24, 48)
    c.loss.supervision_weights = (0.7, 0.3)
    c.train.steps = 210
    c.train.batch_size = 8
    c.train.learning_rate = 2e-3
    c.train.warmup_steps = 20
    c.train.ema = 0.98
    c.eval.every = 210
    c.eval.batch_size = 16
    c.eval.val_images = 16
    c.eval.val_ensemble = 2
    c.checkpoint.every = 40
    c.log.every = 20
    c.sampler.ensemble = 2
    return variants.apply(c, chosen)
