"""A small BIEDSNet on made-up chest CT slices: runs anywhere, without data."""

from configs import default


def get_config(variants: str | None = None):
    c = default.get_config()
    c.data.source = "phantom"
    c.data.name = "phantom"
    c.data.size = 64
    c.networks.biedsnet.channels = (16, 24, 32, 48)
    c.networks.biedsnet.dconv = "lineage"  # a quarter of the depthwise work, which is slow on a CPU
    c.loss.supervision_weights = (0.7, 0.15, 0.15)
    c.train.steps = 400
    c.train.batch_size = 8
    c.train.learning_rate = 2e-3
    c.train.warmup_steps = 20
    c.train.ema = 0.99
    c.eval.every = 200
    c.eval.batch_size = 16
    c.eval.val_images = 32
    c.checkpoint.every = 100
    c.log.every = 20
    c.sampler.steps = 5
    c.sampler.ensemble = 3
    return default.choose(c, variants, default.VARIANTS)
