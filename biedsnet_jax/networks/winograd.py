"""Winograd's F(2x2, 3x3): a 3x3 convolution in four ninths of the products.

Two rows and columns of results come from four of the input (Lavin and Gray 2016,
section 4.1):

    Y = A^T [(G k G^T) * (B^T d B)] A

The transforms add memory traffic. So this pays where channels are many, on a CPU, whose
library for convolutions does not do it by itself, and for a kernel that is used again
and again: `prepare` transforms kernels once for all steps and samples of a prediction.
"""

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import Features

# The variables with transformed kernels, by the path of the module that has the plain
# ones.
COLLECTION = "winograd"
# In and out. At 64 channels the transforms take more time than the products save.
LEAST_CHANNELS = 128
# A kernel's transform takes as long as it saves in about two uses.
_LEAST_USES = 4

Kernel = Float[Array, "16 c c2"]


def prepare(variables: dict, uses: int) -> dict:
    """Adds transformed kernels to `variables` where `uses` evaluations repay them."""
    if uses < _LEAST_USES:
        return variables
    params = traverse_util.flatten_dict(variables.get("params", {}))
    kernels = {
        path: transform(value)
        for path, value in params.items()
        if path[-1] == "kernel"
        and value.shape[:2] == (3, 3)
        and min(value.shape[2:]) >= LEAST_CHANNELS
    }
    return {**variables, COLLECTION: traverse_util.unflatten_dict(kernels)}


def transform(kernel: Float[Array, "3 3 c c2"]) -> Kernel:
    """G k G^T, columns before rows."""
    kernel = kernel.swapaxes(0, 1)
    for axis in (0, 1):
        first, middle, last = jnp.moveaxis(kernel, axis, 0)
        rows = [
            first,
            (first + middle + last) / 2,
            (first - middle + last) / 2,
            last,
        ]
        kernel = jnp.stack(rows, axis)
    return kernel.reshape(16, *kernel.shape[2:])


def convolve(x: Features, kernel: Kernel) -> Float[Array, "b h w c2"]:
    """3x3 convolution at stride 1 to the same size, by a kernel from `transform`.

    Height and width must be even.
    """
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = _mix_input([x[:, i : i + h : 2] for i in range(4)])
    tiles = _mix_input([rows[:, :, :, j : j + w : 2] for j in range(4)])
    # "column row b h/2 w/2 c"
    tiles = tiles.reshape(16, -1, c)
    products = jnp.einsum("tpc,tcd->tpd", tiles, kernel)
    products = products.reshape(4, 4, b, h // 2, w // 2, -1)
    # "2 row b h/2 w/2 c2"
    columns = _mix_output(products)
    # "row column b h/2 w/2 c2"
    both = _mix_output(columns.swapaxes(0, 1))
    both = both.transpose(2, 3, 0, 4, 1, 5)
    return both.reshape(b, h, w, -1)


def _mix_input(d):
    """B^T d along the first axis."""
    rows = [
        d[0] - d[2],
        d[1] + d[2],
        d[2] - d[1],
        d[1] - d[3],
    ]
    return jnp.stack(rows)


def _mix_output(m):
    """A^T m along the first axis."""
    rows = [
        m[0] + m[1] + m[2],
        m[1] - m[2] - m[3],
    ]
    return jnp.stack(rows)
