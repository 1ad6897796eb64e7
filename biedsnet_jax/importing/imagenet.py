"""ImageNet weights as a start for the two transformers, from the files their authors
publish.

`load_pretrained_vit_r50`: TransUNet's encoder from google-research/vision_transformer's
`R50+ViT-B_16.npz`. `load_pretrained_swin_t`: SwinUNet from microsoft/Swin-Transformer's
Swin-T, whose stage i starts both the encoder's stage i and the decoder's stage at the
same resolution, as the authors of Swin-Unet do.

Each parameter asks for its tensor by name, through the tables below; those that match
none (decoder, head) stay as they are, and tensors nobody asks for (classifier, class
token, blocks beyond a stage's depth) are left.

A table of positions made for another size is resized linearly with its corners kept, so
that an entry keeps its position relative to the whole; the authors of TransUNet do this
to theirs, those of Swin-Unet leave it out.
"""

import math
import re
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from flax import traverse_util
from jaxtyping import Float

from biedsnet_jax.errors import BadInput

# (regex of a parameter's path, its tensor's name): the first full match counts.
_VIT_R50 = (
    (r"resnet/root_(conv|gn)/(\w+)", r"\1_root/\2"),
    (r"resnet/(block\d)_(unit\d)/(\w+/\w+)", r"\1/\2/\3"),
    (r"embed/(\w+)", r"embedding/\1"),
    (r"position_embeddings", r"Transformer/posembed_input/pos_embedding"),
    (
        r"encoder_(\d+)/attention_norm/(\w+)",
        r"Transformer/encoderblock_\1/LayerNorm_0/\2",
    ),
    (
        r"encoder_(\d+)/(query|key|value|out)/(\w+)",
        r"Transformer/encoderblock_\1/MultiHeadDotProductAttention_1/\2/\3",
    ),
    (r"encoder_(\d+)/ffn_norm/(\w+)", r"Transformer/encoderblock_\1/LayerNorm_2/\2"),
    (r"encoder_(\d+)/fc1/(\w+)", r"Transformer/encoderblock_\1/MlpBlock_3/Dense_0/\2"),
    (r"encoder_(\d+)/fc2/(\w+)", r"Transformer/encoderblock_\1/MlpBlock_3/Dense_1/\2"),
    (r"encoder_norm/(\w+)", r"Transformer/encoder_norm/\1"),
)

_SWIN_T = (
    (r"embed/(\w+)", r"patch_embed.proj.\1"),
    (r"embed_norm/(\w+)", r"patch_embed.norm.\1"),
    (r"norm/(\w+)", r"norm.\1"),
    (r"merge_(\d)/(\w+)/(\w+)", r"layers.\1.downsample.\2.\3"),
    (r"encoder_(\d)_block_(\d)/(fc\d)/(\w+)", r"layers.\1.blocks.\2.mlp.\3.\4"),
    (r"encoder_(\d)_block_(\d)/(norm\d|attn)/(\w+)", r"layers.\1.blocks.\2.\3.\4"),
    (
        r"encoder_(\d)_block_(\d)/attn/(qkv|proj)/(\w+)",
        r"layers.\1.blocks.\2.attn.\3.\4",
    ),
)


def load_pretrained_vit_r50(tensors: Mapping[str, np.ndarray], variables: dict) -> dict:
    """Variables of a TransUNet with the encoder (ResNet, positions, transformer) of an
    R50-ViT `.npz`.

    tensors: name -> array, as `numpy.load` gives it; convolutions HWIO.
    Raises BadInput that names every missing and misshapen tensor.
    """
    return _start(
        variables,
        tensors,
        source=lambda path: _rename(path, _VIT_R50),
        layout=_vit_layout,
        what="R50-ViT",
    )


def load_pretrained_swin_t(tensors: Mapping[str, np.ndarray], variables: dict) -> dict:
    """Variables of a SwinUNet with encoder and decoder blocks of a Swin-T state_dict
    (official names).

    tensors: name -> array, as `weight_files.read_state` gives it; convolutions OIHW,
    linear layers OI. Raises BadInput that names every missing and misshapen tensor.
    """
    deepest = (
        sum(
            re.fullmatch(r"encoder_\d_block_0", name) is not None
            for name in variables["params"]
        )
        - 1
    )

    def source(path: str) -> str | None:
        # Decoder stage i and encoder stage `deepest` - i work at the same resolution
        # and width.
        mirrored = re.sub(
            r"^decoder_(\d)_block",
            lambda m: f"encoder_{deepest - int(m[1])}_block",
            path,
        )
        name = _rename(mirrored, _SWIN_T)
        return name and re.sub(r"\.(kernel|scale)$", ".weight", name)

    return _start(variables, tensors, source=source, layout=_swin_layout, what="Swin-T")


def _rename(path: str, table: tuple[tuple[str, str], ...]) -> str | None:
    matches = ((re.fullmatch(pattern, path), name) for pattern, name in table)
    return next((match.expand(name) for match, name in matches if match), None)


def _start(
    variables: dict,
    tensors: Mapping[str, np.ndarray],
    *,
    source: Callable[[str], str | None],
    layout: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray],
    what: str,
) -> dict:
    """`variables` with each parameter that has a source replaced by its tensor, laid
    out as the parameter is.
    """
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    missing, misshapen = set(), set()
    for path, parameter in params.items():
        name = source(path)
        if name is None:
            continue
        if name not in tensors:
            missing.add(name)
            continue
        value = layout(path, np.asarray(tensors[name], np.float32), parameter.shape)
        if value.shape != parameter.shape:
            misshapen.add(f"{name} (becomes {value.shape}, needs {parameter.shape})")
        params[path] = jnp.asarray(value)
    problems = {"missing": missing, "misshapen": misshapen}
    if any(problems.values()):
        listed = ", ".join(
            f"{kind}: {', '.join(sorted(names))}"
            for kind, names in problems.items()
            if names
        )
        fix = "give the network the widths, depths and image channels of these weights"
        raise BadInput(f"pretrained {what} weights, {listed}, weights file; {fix}")
    return {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}


def _vit_layout(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    # 1, class token and grid, c
    if path == "position_embeddings" and value.ndim == 3:
        return _resize_square(value[0, 1:], shape[1])[None]
    # c, heads, d; the bias without c
    if re.search(r"/(query|key|value)/", path):
        return value.reshape(*value.shape[:-2], -1)
    # heads, d, c
    if path.endswith("/out/kernel"):
        return value.reshape(-1, value.shape[-1])
    # group norms are 1 1 1 c, the embedding is a 1x1 convolution
    leading = max(0, value.ndim - len(shape))
    return (
        value.reshape(value.shape[leading:])
        if set(value.shape[:leading]) == {1}
        else value
    )


def _swin_layout(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith("relative_position_bias_table"):
        return _resize_square(value, shape[0])
    return value if value.ndim < 2 else np.moveaxis(value, (1, 0), (-2, -1))


def _resize_square(
    table: Float[np.ndarray, "n c"], rows: int
) -> Float[np.ndarray, "m c"]:
    """Linear interpolation of a side x side grid, kept as rows of a table, to another
    with `rows` rows.
    """
    side, wanted = math.isqrt(len(table)), math.isqrt(rows)
    if side == wanted or side * side != len(table):
        return table
    grid = table.reshape(side, side, -1)
    grid = scipy.ndimage.zoom(
        grid, (wanted / side, wanted / side, 1), order=1, mode="nearest"
    )
    return grid.reshape(wanted * wanted, -1)
