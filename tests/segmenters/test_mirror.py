"""Mirrored passes against passes of a network that is mirrored by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import normal

from biedsnet_jax.diffusion import schedule
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.segmenters import mirror
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.segmenters.noise_diffusion import NoisePrediction

# Axes that each pass turns round.
PASSES = {
    "lr": [(), (2,)],
    "ud": [(), (1,)],
    "lr,ud": [(), (2,), (1,), (1, 2)],
}
# DDIM of one step draws noise once, DDPM at every step.
SAMPLINGS = [Sampling(steps=1), Sampling("ddpm", steps=3)]


class Slanted(nn.Module):
    """A network of single pixels, whose answer depends on where in the image they are.

    Seen in a mirror it is the same network with its slopes turned round: `turned`.
    """

    turned: tuple[int, ...] = ()
    channels: int = 1  # of the answer
    classes: int = 1

    def slope(self, x):
        rows = jnp.linspace(-1.0, 2.0, x.shape[1])[None, :, None, None]
        columns = jnp.linspace(0.5, 3.0, x.shape[2])[None, None, :, None]
        return jnp.flip(rows + columns**2, self.turned)

    def encode(self, image, *, train):
        return self.slope(image) * image

    def denoise(self, features, x_t, image, t, *, train):
        x = features + self.slope(x_t) * x_t + image
        return jnp.tile(x, self.channels), {}

    def __call__(self, x_t, image, t, *, train):
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)


class Flat(Slanted):
    """A network that does the same in a mirror."""

    def slope(self, x):
        return 1.5 * jnp.ones((1, 1, 1, 1))


def no_loss(heads, y):
    raise NotImplementedError


def methods(network, turns, sampling):
    """Each method with a network; `turns` is sampler.mirror."""
    noises = schedule.linear(100)
    wide = network.clone(channels=2)
    return {
        "direct": Direct(network, no_loss, mirror=turns),
        "mask": Diffusion(network, noises, no_loss, sampling=sampling, mirror=turns),
        "noise": NoisePrediction(wide, noises, sampling, mirror=turns),
    }


def predicted(method):
    image = normal(2, 5, 6, 1)
    keys = jax.random.split(jax.random.key(0))
    return np.asarray(method.predict({"params": {}}, image, keys, ensemble=3))


@pytest.mark.parametrize("turns", PASSES)
@pytest.mark.parametrize("name", ["direct", "mask", "noise"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["one step", "noisy steps"])
def test_samples_are_means_of_passes_of_mirrored_networks(name, turns, sampling):
    found = predicted(methods(Slanted(), turns, sampling)[name])
    passes = [
        predicted(methods(Slanted(axes), "", sampling)[name]) for axes in PASSES[turns]
    ]
    assert found.shape == (1 if name == "direct" else 3, 2, 5, 6, 1)
    np.testing.assert_allclose(found, np.mean(passes, axis=0), atol=1e-6)
    assert np.abs(found - passes[0]).max() > 0.01


@pytest.mark.parametrize("name", ["direct", "mask", "noise"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["one step", "noisy steps"])
def test_a_mirrored_pass_is_of_the_same_noise(name, sampling):
    # So a network that does the same in a mirror gives the same samples.
    found = predicted(methods(Flat(), "lr,ud", sampling)[name])
    plain = predicted(methods(Flat(), "", sampling)[name])
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_a_trajectory_is_that_of_the_pass_that_is_not_mirrored():
    image = normal(2, 5, 6, 1)
    keys = jax.random.split(jax.random.key(0))
    for name in ("mask", "noise"):
        found, plain = (
            methods(Slanted(), turns, SAMPLINGS[1])[name].trajectory(
                {"params": {}}, image, keys
            )
            for turns in ("lr,ud", "")
        )
        jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_every_choice_is_made_of_known_words():
    for chosen in mirror.CHOICES:
        assert set(mirror.words(chosen)) <= set(mirror.AXES)
    assert set(mirror.CHOICES) == {"", *PASSES}


def test_passes_do_not_make_the_program_grow():
    def lines(turns):
        method = methods(Slanted(), turns, SAMPLINGS[1])["mask"]
        image = jnp.zeros((2, 5, 6, 1))
        keys = jax.random.split(jax.random.key(0))

        def predict(image, keys):
            return method.predict({"params": {}}, image, keys, ensemble=3)

        return len(jax.jit(predict).lower(image, keys).as_text().splitlines())

    # Each mirroring adds a few lines, and no pass of the network.
    assert lines("lr,ud") < 1.5 * lines("")
