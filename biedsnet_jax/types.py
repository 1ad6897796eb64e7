"""Array shapes that every module names alike.

Axis letters, everywhere: b batch, h w space, c image channels, k foreground classes, n samples, t time.
"""

from jaxtyping import Array, Float, Key

Image = Float[Array, "b h w c"]  # normalised intensities
Mask = Float[Array, "b h w k"]  # 0 or 1, one channel per foreground class
Logits = Float[Array, "b h w k"]
Noisy = Float[Array, "b h w k"]  # x_t or x_0, in diffusion units
PRNGKey = Key[Array, ""]
Batch = dict[str, Array]  # image "b h w c", mask "b h w k", and in evaluation valid "b"
