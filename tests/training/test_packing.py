"""Packing: small arrays become one, large ones stay, also inside larger trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from biedsnet_jax.training.packing import SMALL, Packed, Packing

PARAMS = {
    "kernel": jnp.arange(6.0).reshape(2, 3),
    "large": jnp.ones(SMALL + 1),
    "scale": jnp.asarray(7.0),
}


def test_small_arrays_lie_one_after_another_and_large_ones_apart():
    packed = Packing(PARAMS).pack(PARAMS)
    np.testing.assert_array_equal(packed.small, [0, 1, 2, 3, 4, 5, 7])
    assert [x.shape for x in packed.large] == [(SMALL + 1,)]


def test_every_tree_like_the_parameters_is_packed_and_comes_back():
    state = {"moments": optax.adam(0.1).init(PARAMS), "step": jnp.asarray(3)}
    packing = Packing(PARAMS)
    packed = packing.pack(state)
    moments = packed["moments"][0]
    assert isinstance(moments.mu, Packed) and isinstance(moments.nu, Packed)
    assert moments.count.shape == ()
    back = packing.unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_arrays_that_devices_share_stay_apart():
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    whole, shared = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (None, "fsdp"))
    )
    params = {
        "kernel": jnp.ones((3, 4)),
        "shared": jnp.ones((3, 4)),
        "scale": jnp.ones(()),
    }
    sharding = {"kernel": whole, "shared": shared, "scale": whole}
    packed = Packing(params, sharding).pack(params)
    assert packed.small.shape == (13,)
    assert [x.shape for x in packed.large] == [(3, 4)]


@pytest.mark.parametrize(
    "params",
    [
        {"large": jnp.ones(SMALL + 1)},
        {"small": jnp.ones(2)},
        {"half": jnp.ones(2, jnp.bfloat16), "whole": jnp.ones(3)},
    ],
    ids=["only-large", "only-small", "types"],
)
def test_trees_of_one_kind_come_back_with_their_types(params):
    packing = Packing(params)
    back = packing.unpack(packing.pack(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert [x.dtype for x in jax.tree.leaves(back)] == [
        x.dtype for x in jax.tree.leaves(params)
    ]


def test_an_update_of_packed_parameters_is_that_of_each():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01)
    )
    grads = jax.tree.map(lambda x: 0.1 * x + 0.01, PARAMS)
    expected, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    packing = Packing(PARAMS)
    updates, _ = optimizer.update(
        *(packing.pack(x) for x in (grads, optimizer.init(PARAMS), PARAMS))
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        packing.unpack(updates),
        expected,
    )
