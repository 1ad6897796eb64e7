"""A network on a canvas larger than its input, by overlapping tiles.

Tiles lie in steps of half a tile, so that whole tiles cover the canvas. The network's
logits are averaged over the tiles of a pixel, with weights that fall off from the middle
of a tile as a Gaussian does. A sampler sees one network on one canvas: the noise is drawn
once for all tiles, and every denoising step is fused before the next. So a mask has no
seams, and neither the order of tiles nor what shares a batch changes it.
Sources: Isensee et al. 2021 (nnU-Net), the weights; Bar-Tal et al. 2023
(arXiv:2302.08113), fusing at every step.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from biedsnet_jax.types import Image, Noisy

# Standard deviation of the weights, in sides of a tile.
_SIGMA = 1 / 8


def count(canvas: tuple[int, int], tile: int) -> int:
    """Number of tiles of side `tile` that cover a canvas (H, W)."""
    rows, columns = (2 * side // tile - 1 for side in canvas)
    return rows * columns


def cut(x: Float[Array, "b H W c"], tile: int) -> Float[Array, "n h w c"]:
    """Cuts canvases "b H W c" into their tiles, those of an image one after another."""
    x = _join_halves(x, tile // 2, axis=1)
    # "b rows tile W c"
    x = _join_halves(x, tile // 2, axis=3)
    # "b rows tile columns tile c"
    x = x.swapaxes(2, 3)
    return x.reshape(-1, tile, tile, x.shape[-1])


def blend(
    tiles: Float[Array, "n h w c"], canvas: tuple[int, int]
) -> Float[Array, "b H W c"]:
    """Averages tiles, as `cut` orders them, to canvases "b H W c"."""
    tile = tiles.shape[1]
    channels = tiles.shape[-1]
    weights = _weights(canvas, tile)
    rows, columns = weights.shape[:2]
    x = tiles.reshape(-1, rows, columns, tile, tile, channels)
    x = x * weights[None, ..., None]
    x = x.swapaxes(2, 3)
    x = _add_halves(x, tile // 2, axis=3)
    return _add_halves(x, tile // 2, axis=1)


def _weights(canvas, tile) -> Float[np.ndarray, "rows columns h w"]:
    """Share of each tile's pixel in its pixel of the canvas."""
    rows, columns = (_weights_along(side, tile) for side in canvas)
    return np.einsum("rh,cw->rchw", rows, columns).astype(np.float32)


def _weights_along(side, tile) -> Float[np.ndarray, "tiles pixels"]:
    """Share of each tile's pixel along one side of a canvas."""
    places = np.arange(tile) - (tile - 1) / 2
    deviations = places / (_SIGMA * tile)
    bell = np.exp(-0.5 * deviations**2)
    starts = range(0, side - tile + 1, tile // 2)
    spans = [slice(start, start + tile) for start in starts]
    total = np.zeros(side)
    for span in spans:
        total[span] += bell
    return np.stack([bell / total[span] for span in spans])


def _join_halves(x, half, axis):
    """Replaces an axis by two: tiles, and the pixels of each."""
    shape = x.shape
    x = x.reshape(*shape[:axis], -1, half, *shape[axis + 1 :])
    first = jnp.moveaxis(x, axis, 0)[:-1]
    second = jnp.moveaxis(x, axis, 0)[1:]
    tiles = jnp.concatenate([first, second], axis=axis + 1)
    return jnp.moveaxis(tiles, 0, axis)


def _add_halves(x, half, axis):
    """The inverse of `_join_halves`, where the pixels that tiles share are summed."""
    x = jnp.moveaxis(x, axis, 0)
    first, second = jnp.split(x, 2, axis=axis + 1)
    none = jnp.zeros_like(first[:1])
    first = jnp.concatenate([first, none])
    second = jnp.concatenate([none, second])
    x = jnp.moveaxis(first + second, 0, axis)
    before = x.shape[:axis]
    after = x.shape[axis + 2 :]
    return x.reshape(*before, -1, *after)


class Tiled(nn.Module):
    """A network in one pass that takes canvases; its variables are the network's own."""

    network: nn.Module
    tile: int  # pixels: side of the network's input

    @property
    def classes(self) -> int:
        return self.network.classes

    def setup(self):
        nn.share_scope(self, self.network)

    def __call__(self, *inputs: Array, train: bool):
        """Applies the network to tiles of the inputs, of which t has no pixels."""
        return self._fused(self.network, inputs, train)

    def _fused(self, apply, inputs, train, features=()):
        *_, height, width, _ = next(x.shape for x in inputs if x.ndim == 4)
        # Whole, since a loss also reads what the network returns beside the logits.
        if (height, width) == (self.tile, self.tile):
            return apply(*features, *inputs, train=train)
        tiles = count((height, width), self.tile)
        parts = []
        for x in inputs:
            part = cut(x, self.tile) if x.ndim == 4 else jnp.repeat(x, tiles)
            parts.append(part)
        logits, _ = apply(*features, *parts, train=train)
        return blend(logits, (height, width)), {}


class TiledDenoiser(Tiled):
    """A denoiser that takes canvases; features are those of the tiles."""

    def encode(self, image: Image, *, train: bool):
        return self.network.encode(cut(image, self.tile), train=train)

    def denoise(self, features, x_t: Noisy, image: Image, t: Array, *, train: bool):
        inputs = x_t, image, t
        return self._fused(self.network.denoise, inputs, train, features=(features,))


def tiled(network: nn.Module, tile: int) -> Tiled:
    """A network or denoiser on canvases that tiles of its input's size cover."""
    kind = TiledDenoiser if hasattr(network, "denoise") else Tiled
    return kind(network, tile)
