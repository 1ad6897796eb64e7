"""Array shapes that every module names alike.

Axis letters, everywhere: b batch, h w space, c image channels, k foreground classes, n
samples, t time.
"""

from jaxtyping import Array, Float, Key

# normalised intensities
Image = Float[Array, "b h w c"]
# 0 or 1, one channel per foreground class
Mask = Float[Array, "b h w k"]
Logits = Float[Array, "b h w k"]
# x_t or x_0, in diffusion units
Noisy = Float[Array, "b h w k"]
PRNGKey = Key[Array, ""]
# image "b h w c", mask "b h w k", and in evaluation valid "b"
Batch = dict[str, Array]
