"""A made-up model that finds what is bright, so that every mask is known; a workdir
where it was trained, a server.
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
    """Certain wherever the normalised image is above a half, but for some noise of each
    sample.
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


def write_workdir(workdir, above=0.5):
    """A trained run of the made-up model, which finds what is brighter than `above`;
    returns the folder.
    """
    cfg = folder.get_config()
    variants.toy(cfg)
    cfg.data.size, cfg.data.normalise, cfg.eval.batch_size, cfg.compile_cache = (
        SIZE,
        "minmax",
        8,
        "",
    )
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
    """Workdirs are the made-up model's, on one device, which is quicker than eight."""
    one = devices.make_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "make_mesh", lambda **fields: one)
        patch.setattr(build_model, "build", lambda cfg: Bright())
        yield


@contextlib.contextmanager
def served(workdir, folder, limits, token=None):
    """The address of a server in this process, whose temporary files are in `folder`."""
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
