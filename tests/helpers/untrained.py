"""Workdirs with random weights instead of trained ones, and images to segment."""

import jax
import numpy as np
import optax

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from configs import folder, variants

SIZE = 16  # pixels, height and width that the networks see


def toy(module=folder, chosen=None, **fields):
    c = module.get_config(chosen)
    variants.toy(c)
    c.data.size = SIZE
    c.data.normalise = "minmax"
    c.eval.batch_size = 8
    c.sampler.ensemble = 3
    c.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return c


def untrained(workdir, cfg, seed=0):
    """Writes a workdir as training leaves it, but with random weights; returns it."""
    model, rng = build_model.build(cfg), np.random.default_rng(seed)

    def draw(path, x):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(
                np.float32
            )
        return np.full(x.shape, path[-1].key in ("scale", "var"), np.float32)

    shapes = jax.eval_shape(lambda: build_model.init_variables(model, cfg))
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    workdir.mkdir(parents=True)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            train_state.create(drawn, optax.identity()), config=cfg.to_dict()
        )
    run_config.save(cfg, workdir / "config.json")
    return workdir


def image(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)
