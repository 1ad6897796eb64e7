"""Names shared by every module: array shapes and the one exception a user's mistake raises.

Axis letters, everywhere: b batch, h w space, c image channels, k foreground classes, n samples, t time.

    Image    Float[Array, "b h w c"]  normalised intensities
    Mask     Float[Array, "b h w k"]  0 or 1, one channel per foreground class
    Logits   Float[Array, "b h w k"]
    Noisy    Float[Array, "b h w k"]  x_t or x_0, in diffusion units
    PRNGKey  Key[Array, ""]
    Batch    dict[str, Array]         image "b h w c", mask "b h w k", and in evaluation valid "b"

The shapes need jax and are made when one is first imported, so that what only reads files takes
BadInput from here without it.
"""

from biedsnet_jax.errors import BadInput as BadInput


def __getattr__(name: str):
    if name in ("Image", "Mask", "Logits", "Noisy", "PRNGKey", "Batch"):
        globals().update(_shapes())
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _shapes() -> dict:
    from jaxtyping import Array, Float, Key

    return {
        "Image": Float[Array, "b h w c"],
        "Mask": Float[Array, "b h w k"],
        "Logits": Float[Array, "b h w k"],
        "Noisy": Float[Array, "b h w k"],
        "PRNGKey": Key[Array, ""],
        "Batch": dict[str, Array],
    }
