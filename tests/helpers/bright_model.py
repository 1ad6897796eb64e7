"""A made-up model that finds what is bright, so that every mask is known.

There is a workdir where it was trained, and a server of it.
"""

import contextlib
import tempfile

import jax
import jax.numpy as jnp
import optax
import pytest

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.prediction import predictor
from biedsnet_jax.runtime import devices
from configs import folder, variants

SIZE = 16


class Bright:
    """Gives probability 0.8 where the normalised image is above a half, else 0.1.

    Each sample adds noise of at most 0.1.
    """

    draws_samples = True

    def init(self, key, shape):
        return {"params": {"above": jnp.float32(0.5)}, "batch_stats": {}}

    def loss(self, variables, batch, key, *, train):
        raise NotImplementedError

    def trajectory(self, *_):
        """No steps."""

    def predict(self, variables, image, keys, *, ensemble):
        found = jnp.where(image > variables["params"]["above"], 0.8, 0.1)

        def sample(number):
            noise = jax.vmap(
                lambda key: jax.random.uniform(
                    jax.random.fold_in(key, number), image.shape[1:]
                )
            )(keys)
            return found + 0.1 * noise

        return jax.vmap(sample)(jnp.arange(ensemble))


def write_workdir(workdir, above=0.5, class_names=()):
    """Writes a run of the model that finds what is brighter than `above`; returns it."""
    cfg = folder.get_config()
    variants.toy(cfg)
    cfg.data.update(size=SIZE, normalise="minmax", class_names=class_names)
    cfg.eval.batch_size = 8
    cfg.compile_cache = ""
    cfg.sampler.ensemble = 2
    variables = Bright().init(None, None)
    variables["params"]["above"] = jnp.float32(above)
    state = train_state.create(variables, optax.identity())
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, config=cfg.to_dict())
    run_config.save(cfg, workdir / "config.json")
    return workdir


@contextlib.contextmanager
def in_place():
    """Makes every workdir one of the model, on one device, which is quicker than eight."""
    one = devices.make_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "make_mesh", lambda *args, **fields: one)
        patch.setattr(build_model, "build", lambda cfg: Bright())
        yield


@contextlib.contextmanager
def served(workdir, folder, limits, token=None):
    """Gives the address of a server in this process.

    Its temporary files are in `folder`.
    """
    from biedsnet_jax.serving import serve

    with (
        pytest.MonkeyPatch.context() as patch,
        serve.listening("127.0.0.1", 0) as listener,
    ):
        patch.setattr(tempfile, "tempdir", str(folder))
        with serve.serving(
            predictor.load(workdir), listener, limits, token=token
        ) as url:
            yield url
