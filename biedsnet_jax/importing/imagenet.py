"""ImageNet weights, as their authors publish them, as a start for the two transformers.

TransUNet's encoder starts from `R50+ViT-B_16.npz` of google-research/vision_transformer,
SwinUNet from Swin-T of microsoft/Swin-Transformer. Stage i of Swin-T starts both the
encoder's stage i and the decoder's stage at the same resolution, as in Swin-Unet.

The tables below name the tensor of each parameter. Parameters without one (decoder,
head) stay as they are, and tensors without a parameter (classifier, class token, blocks
beyond a stage's depth) are left out.

A table of positions of another size is resized linearly with its corners kept, so that
an entry keeps its position relative to the whole. The authors of TransUNet do the same;
those of Swin-Unet leave such a table out.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from flax import traverse_util
from jaxtyping import Float

from biedsnet_jax.errors import BadInput
from biedsnet_jax.importing.torch_weights import list_misfits

# (regex of a parameter's path, its tensor's name). The first full match counts.
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


@dataclasses.dataclass(frozen=True)
class _Kind:
    """An ImageNet classifier: the tensor of a parameter's path, and its layout here."""

    name: str
    source: Callable[[str], str | None]
    layout: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]


def find_loader(network: str, names: Collection[str]) -> Callable | None:
    """Loader of the tensors of an ImageNet classifier; None for the network's own."""
    if network == "trans_unet" and any(n.startswith("Transformer/") for n in names):
        return load_pretrained_vit_r50
    if network == "swin_unet" and "head.weight" in names:
        return load_pretrained_swin_t
    return None


def load_pretrained_vit_r50(tensors: Mapping[str, np.ndarray], variables: dict) -> dict:
    """Starts a TransUNet's encoder (ResNet, positions, transformer) from an R50-ViT.

    `tensors` are arrays by name, as in its `.npz`; convolutions are HWIO. Returns all
    variables. Raises BadInput that names every missing and misshapen tensor.
    """
    return _start(variables, tensors, _vit_r50())


def load_pretrained_swin_t(tensors: Mapping[str, np.ndarray], variables: dict) -> dict:
    """Starts a SwinUNet's encoder and decoder blocks from a Swin-T.

    `tensors` are arrays by their official names; convolutions are OIHW, linear layers
    OI. Returns all variables. Raises BadInput that names every missing and misshapen
    tensor.
    """
    return _start(variables, tensors, _swin_t(variables["params"]))


def lay_out(
    network: str, tensors: Mapping[str, np.ndarray], params: Mapping
) -> dict[str, np.ndarray] | None:
    """Lays a classifier's tensors out as parameters, by path, whatever their shapes.

    `params` are the network's own or their shapes. Returns None for tensors that are of
    no ImageNet classifier.
    """
    loader = find_loader(network, tensors)
    if loader is None:
        return None
    is_vit = loader is load_pretrained_vit_r50
    kind = _vit_r50() if is_vit else _swin_t(params)
    found = {}
    for path, parameter in traverse_util.flatten_dict(dict(params), sep="/").items():
        name = kind.source(path)
        if name in tensors:
            value = np.asarray(tensors[name], np.float32)
            found[path] = kind.layout(path, value, parameter.shape)
    return found


def _vit_r50() -> _Kind:
    return _Kind("R50-ViT", lambda path: _rename(path, _VIT_R50), _vit_layout)


def _swin_t(params) -> _Kind:
    stages = len([n for n in params if re.fullmatch(r"encoder_\d_block_0", n)])

    def source(path: str) -> str | None:
        decoder = re.fullmatch(r"decoder_(\d)(_block.*)", path)
        if decoder:
            # The encoder's stage of the same resolution and width.
            path = f"encoder_{stages - 1 - int(decoder[1])}{decoder[2]}"
        name = _rename(path, _SWIN_T)
        return name and re.sub(r"\.(kernel|scale)$", ".weight", name)

    return _Kind("Swin-T", source, _swin_layout)


def _rename(path, table):
    matches = ((re.fullmatch(pattern, path), name) for pattern, name in table)
    return next((match.expand(name) for match, name in matches if match), None)


def _start(variables, tensors, kind):
    """Replaces each parameter that has a source by that tensor, in its own layout."""
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    missing, misshapen = set(), set()
    for path, parameter in params.items():
        name = kind.source(path)
        if name is None:
            continue
        if name not in tensors:
            missing.add(name)
            continue
        tensor = np.asarray(tensors[name], np.float32)
        value = kind.layout(path, tensor, parameter.shape)
        if value.shape != parameter.shape:
            misshapen.add(f"{name} (becomes {value.shape}, needs {parameter.shape})")
        params[path] = jnp.asarray(value)
    problems = list_misfits(
        {"missing": sorted(missing), "misshapen": sorted(misshapen)}
    )
    if problems:
        raise BadInput(
            f"The {kind.name} weights do not fit the network: {problems}. Give it their widths, "
            "depths and image channels."
        )
    return {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}


def _vit_layout(path, value, shape):
    # "1 n c", the first of n the class token.
    if path == "position_embeddings" and value.ndim == 3:
        return _resize_square(value[0, 1:], shape[1])[None]
    # "c heads d"; a bias has no c.
    if re.search(r"/(query|key|value)/", path):
        return value.reshape(*value.shape[:-2], -1)
    # "heads d c".
    if path.endswith("/out/kernel"):
        return value.reshape(-1, value.shape[-1])
    # Group norms are "1 1 1 c", and the embedding is a 1x1 convolution.
    leading = max(0, value.ndim - len(shape))
    if set(value.shape[:leading]) == {1}:
        return value.reshape(value.shape[leading:])
    return value


def _swin_layout(path, value, shape):
    if path.endswith("relative_position_bias_table"):
        return _resize_square(value, shape[0])
    return value if value.ndim < 2 else np.moveaxis(value, (1, 0), (-2, -1))


def _resize_square(
    table: Float[np.ndarray, "n c"], rows: int
) -> Float[np.ndarray, "m c"]:
    """Resizes a square grid, kept as the rows of a table, linearly to `rows` rows."""
    side = math.isqrt(len(table))
    wanted = math.isqrt(rows)
    if side == wanted or side * side != len(table):
        return table
    grid = table.reshape(side, side, -1)
    grid = scipy.ndimage.zoom(
        grid, (wanted / side, wanted / side, 1), order=1, mode="nearest"
    )
    return grid.reshape(wanted * wanted, -1)
