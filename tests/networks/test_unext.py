"""The parts of UNeXt: the shift against a plain loop, drop-path, initialisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biedsnet_jax.networks.unext import ShiftedBlock, TokenisedMLP, shift


def slow_shift(x, axis):
    """Pads by two, rolls each of five channel chunks, crops, pixel by pixel."""
    out = np.zeros_like(x)
    chunk = math.ceil(x.shape[-1] / 5)
    for b, i, j, c in np.ndindex(x.shape):
        source = [i, j]
        source[axis - 1] -= c // chunk - 2
        if 0 <= source[axis - 1] < x.shape[axis]:
            out[b, i, j, c] = x[b, source[0], source[1], c]
    return out


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    "shape", [(2, 6, 7, 10), (1, 5, 4, 13), (1, 1, 2, 7), (1, 4, 4, 2)]
)
def test_shift_moves_channel_groups_as_a_plain_loop_does(shape, axis):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(shift(jnp.asarray(x), axis=axis), slow_shift(x, axis))


def test_shift_by_hand():
    # Three pixels high, five channels.
    x = jnp.asarray([[1.0] * 5, [2.0] * 5, [3.0] * 5])[None, :, None, :]
    expected = [[3, 2, 1, 0, 0], [0, 3, 2, 1, 0], [0, 0, 3, 2, 1]]
    np.testing.assert_array_equal(shift(x, axis=1)[0, :, 0], expected)


@pytest.mark.slow
def test_drop_path_drops_whole_samples_and_scales_the_rest():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2, 2, 5)), jnp.float32)
    block = ShiftedBlock(drop_path=0.25)
    variables = block.init(jax.random.key(0), x, train=False)
    branch = block.apply(variables, x, train=False) - x
    dropped = (
        block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)}) - x
    )
    kept = np.asarray(jnp.any(dropped != 0, axis=(1, 2, 3)))
    # Of 64 draws 48 are kept on average, with a standard deviation of 3.5.
    assert 36 <= kept.sum() <= 60
    np.testing.assert_allclose(dropped[kept], branch[kept] / 0.75, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(dropped[~kept], 0)


def test_initial_spreads_are_those_of_the_source():
    params = TokenisedMLP().init(jax.random.key(0), jnp.zeros((1, 2, 2, 256)))["params"]
    # The standard deviation of 2304 and 65536 numbers is known to 1.5 % and 0.3 %.
    assert float(jnp.std(params["dwconv"]["kernel"])) == pytest.approx(
        math.sqrt(2 / 9), rel=0.06
    )
    assert float(jnp.std(params["fc1"]["kernel"])) == pytest.approx(0.02, rel=0.02)
