"""Networks on canvases of many tiles, against loops over the tiles."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biedsnet_jax.config import build_model
from biedsnet_jax.diffusion import process, sampler
from biedsnet_jax.segmenters import segmenter, tiling
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.losses import supervised
from configs import covid

TILE = 32


def config(*, fit="tile", variant="toy", **fields):
    c = covid.get_config(variant)
    c.data.fit = fit
    c.sampler.steps = 3
    # Enough that each step reads the fused result of the one before.
    c.diffusion.mask_scale = 1.0
    c.update_from_flattened_dict(fields)
    return c


def images(height, width, count=2, seed=0):
    return jax.random.normal(jax.random.key(seed), (count, height, width, 1))


def keys(count=2):
    return jax.random.split(jax.random.key(7), count)


@pytest.fixture(scope="module")
def variables():
    c = config()
    drawn = build_model.init_variables(build_model.build(c), c)
    leaves, tree = jax.tree.flatten(drawn)
    # Biases and scales too, so that nothing is 0 by chance of the initialiser.
    rng = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, rng)]
    return jax.tree.unflatten(tree, moved)


def corners(canvas):
    steps = [range(0, side - TILE + 1, TILE // 2) for side in canvas]
    return [(row, column) for row in steps[0] for column in steps[1]]


def bell():
    """Gaussian weights of a tile's pixels, an eighth of its side wide."""
    places = np.arange(TILE) - (TILE - 1) / 2
    line = np.exp(-(places**2) / (2 * (TILE / 8) ** 2))
    return np.outer(line, line)[..., None]


def test_tiles_are_cut_in_order_and_averaged_with_their_weights():
    x = images(64, 96)
    tiles = np.asarray(tiling.cut(x, TILE))
    expected = [
        one[row : row + TILE, column : column + TILE]
        for one in np.asarray(x)
        for row, column in corners((64, 96))
    ]
    np.testing.assert_array_equal(tiles, np.stack(expected))
    assert len(tiles) == 2 * tiling.count((64, 96), TILE) == 2 * 15
    other = np.random.default_rng(0).normal(size=tiles.shape).astype(np.float32)
    blended = np.asarray(tiling.blend(jnp.asarray(other), (64, 96)))
    for image in range(2):
        total, weight = np.zeros((64, 96, 1)), np.zeros((64, 96, 1))
        for number, (row, column) in enumerate(corners((64, 96))):
            part = np.s_[row : row + TILE, column : column + TILE]
            total[part] += bell() * other[image * 15 + number]
            weight[part] += bell()
        np.testing.assert_allclose(blended[image], total / weight, atol=1e-5)


def test_a_canvas_of_one_tile_is_predicted_as_without_tiles():
    tiled, whole = config(), config(fit="squash")
    drawn = build_model.init_variables(build_model.build(whole), whole)
    again = build_model.init_variables(build_model.build(tiled), tiled)
    jax.tree.map(np.testing.assert_array_equal, drawn, again)
    found, expected = (
        build_model.build(c).predict(drawn, images(32, 32), keys(), ensemble=2)
        for c in (tiled, whole)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def slowly(c, variables, image, key):
    """Samples one mask with the tiles one after another, each in a random order."""
    network = build_model.make_network(c)
    apply = jax.jit(
        lambda x_t, part, t: network.apply(variables, x_t, part, t, train=False)[0]
    )
    schedule = build_model.make_schedule(c)
    plan = sampler.make_plan(schedule, build_model.make_sampling(c))
    x_t, _ = segmenter.draw(network, image, key[None], 0)
    rng = np.random.default_rng(3)
    canvas = image.shape[1:3]
    for t, a, b in zip(plan.t, plan.a, plan.b):
        total, weight = np.zeros((1, *canvas, 1)), np.zeros((1, *canvas, 1))
        for row, column in rng.permutation(corners(canvas)):
            part = np.s_[:, row : row + TILE, column : column + TILE]
            logits = apply(x_t[part], image[part], jnp.array([t]))
            total[part] += bell() * np.asarray(logits)
            weight[part] += bell()
        p = jax.nn.sigmoid(jnp.asarray(total / weight, jnp.float32))
        x_0 = process.encode_mask(
            p, mask_range=c.diffusion.mask_range, mask_scale=c.diffusion.mask_scale
        )
        x_t = a * x_t + b * x_0
    return p[0]


def test_every_step_is_fused_whatever_the_order_and_the_batch(variables):
    c = config()
    model = build_model.build(c)
    image = images(48, 64, count=3)
    predict = jax.jit(
        lambda image, keys: model.predict(variables, image, keys, ensemble=1)
    )
    together = predict(image, keys(3))[0]
    assert together.shape == (3, 48, 64, 1) and np.ptp(together) > 0.01
    for n in range(3):
        alone = predict(image[n : n + 1], keys(3)[n : n + 1])[0, 0]
        np.testing.assert_allclose(alone, together[n], atol=1e-5)
        expected = slowly(c, variables, image[n : n + 1], keys(3)[n])
        np.testing.assert_allclose(alone, expected, atol=1e-4)


def test_noise_and_direct_networks_take_canvases_too():
    for variant in ("medsegdiff,toy", "unet,toy"):
        c = config(variant=variant)
        model = build_model.build(c)
        drawn = build_model.init_variables(model, c)
        found = model.predict(drawn, images(48, 48), keys(), ensemble=1)
        assert found.shape == (1, 2, 48, 48, 1)
        assert np.isfinite(np.asarray(found)).all()


class Unlike(nn.Module):
    """Sees each tile relative to its mean, so that neighbours differ where they meet."""

    classes: int = 1

    @nn.compact
    def __call__(self, image, *, train):
        return image - image.mean(axis=(1, 2), keepdims=True), {}


def steepness(logits, lines):
    """Mean change across some lines of pixels, and across all others."""
    change = np.abs(np.diff(np.asarray(logits)[0, ..., 0], axis=0)).mean(axis=1)
    at = np.isin(np.arange(len(change)), np.array(lines) - 1)
    return change[at].mean(), change[~at].mean()


def test_there_is_no_seam_where_tiles_end():
    rows, columns = np.mgrid[:128, :128] / 128
    image = jnp.asarray(np.sin(2.2 * rows) + rows * columns, jnp.float32)[
        None, ..., None
    ]
    network = tiling.tiled(Unlike(), TILE)
    logits, _ = network.apply({}, image, train=False)
    # Where tiles begin and end, inside the canvas.
    at, elsewhere = steepness(logits, range(16, 128, 16))
    assert at < 1.3 * elsewhere
    # Tiles that are laid side by side show what would be found.
    side_by_side = np.zeros((1, 128, 128, 1), np.float32)
    for row in range(0, 128, TILE):
        for column in range(0, 128, TILE):
            part = np.s_[:, row : row + TILE, column : column + TILE]
            side_by_side[part] = Unlike().apply({}, image[part], train=False)[0]
    at, elsewhere = steepness(side_by_side, range(32, 128, 32))
    assert at > 5 * elsewhere


def test_training_on_a_tile_sees_the_networks_side_heads():
    seen = []

    class Heads(nn.Module):
        classes: int = 1

        @nn.compact
        def __call__(self, image, *, train):
            return image, {"supervision": [image, 2 * image]}

    def loss(heads, y, known=None):
        seen.append(len(heads))
        return supervised(
            lambda logits, y: (logits - y).mean((1, 2, 3)), heads, y, (1.0, 1.0, 1.0)
        )

    model = Direct(tiling.tiled(Heads(), TILE), loss)
    batch = {"image": images(32, 32), "mask": jnp.zeros((2, 32, 32, 1))}
    model.loss({}, batch, jax.random.key(0), train=True)
    assert seen == [3]
