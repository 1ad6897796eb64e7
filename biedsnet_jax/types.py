"""Array shapes that every module names alike.

The axis letters are b batch, h w space, c image channels, k foreground classes, n
samples and t time.
"""

from jaxtyping import Array, Float, Key

# Normalised intensities.
Image = Float[Array, "b h w c"]
# 0 or 1, one channel per foreground class.
Mask = Float[Array, "b h w k"]
Logits = Float[Array, "b h w k"]
# x_t or x_0, in diffusion units.
Noisy = Float[Array, "b h w k"]
PRNGKey = Key[Array, ""]
# Holds image "b h w c" and mask "b h w k", in evaluation also valid "b".
Batch = dict[str, Array]
