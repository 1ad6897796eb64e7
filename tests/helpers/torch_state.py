"""Flax variables of a network that hold a PyTorch state."""

import jax
import jax.numpy as jnp

from biedsnet_jax.importing.torch_weights import to_variables
from biedsnet_jax.networks import NETWORKS


def load_torch_state(network, state, *, inputs=None, **constructor):
    """Gives a state the layout of `NETWORKS[network](**constructor)`.

    The network is called on `inputs`, by default one grey image.
    """
    module = NETWORKS[network](**constructor)
    if inputs is None:
        inputs = (
            jax.ShapeDtypeStruct(
                (1, module.image_size, module.image_size, 1), jnp.float32
            ),
        )
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    target = jax.eval_shape(lambda *xs: module.init(rngs, *xs, train=False), *inputs)
    return to_variables(network, state, target)
