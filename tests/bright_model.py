"""A made-up model that finds what is bright, so that every mask is known, and a workdir where it was trained."""

import jax
import jax.numpy as jnp
import optax

from biedsnet_jax import checkpoint, config, train_state
from configs import folder, variants

SIZE = 16


class Bright:
    """Certain wherever the normalised image is above a half, but for some noise of each sample."""

    def init(self, key, shape):
        return {"params": {"above": jnp.float32(0.5)}, "batch_stats": {}}

    def loss(self, variables, batch, key, *, train):
        raise NotImplementedError

    def trajectory(self, *_):
        """No steps."""

    def predict(self, variables, image, keys, *, ensemble):
        found = jnp.where(image > variables["params"]["above"], 0.8, 0.1)

        def sample(number):
            noise = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number), image.shape[1:]))(keys)
            return found + 0.1 * noise

        return jax.vmap(sample)(jnp.arange(ensemble))


def write_workdir(workdir):
    """A trained run of the made-up model; returns the folder."""
    cfg = folder.get_config()
    variants.toy(cfg)
    cfg.data.size, cfg.data.normalise, cfg.eval.batch_size, cfg.compile_cache = SIZE, "minmax", 8, ""
    cfg.sampler.ensemble = 2
    state = train_state.create(Bright().init(None, None), optax.identity())
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, config=cfg.to_dict())
    config.save(cfg, workdir / "config.json")
    return workdir
