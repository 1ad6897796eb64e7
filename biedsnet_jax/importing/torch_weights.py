"""PyTorch weights of the published networks, as Flax variables.

A PyTorch state_dict maps `module.path.leaf` to a tensor. `RENAMES` renames the module's
path; the leaf decides the rest:

    weight, 4-D (2-D, 1-D conv)   kernel, OIHW -> HWIO   (a depthwise kernel "c 1 h w" too)
    weight, 3-D                   kernel, OIK -> KIO
    weight, 2-D (linear)          kernel, OI -> IO
    weight, 1-D (any norm)        scale
    bias                          bias
    running_mean, running_var     mean, var of `batch_stats`
    anything else                 a parameter of that name, as it is (position and bias tables)

A 1x1 convolution may be a `Dense` here, so leading axes of length one are dropped where
the target has fewer.
"""

import math
import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from biedsnet_jax.errors import BadInput

# (regex, replacement) of each network, which `re.sub` applies in order to the module's
# path, such as "block1.0.mlp.fc1". Its dots then become the slashes of the Flax path. A
# network without an entry has the same names.
RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "attention_unet": (
        (r"\.conv\.0$", ".conv1"),
        (r"\.conv\.1$", ".bn1"),
        (r"\.conv\.3$", ".conv2"),
        (r"\.conv\.4$", ".bn2"),
        (r"\.up\.1$", ".conv"),
        (r"\.up\.2$", ".bn"),
        (r"\.(W_g|W_x|psi)\.0$", r".\1"),
        (r"\.(W_g|W_x|psi)\.1$", r".\1_bn"),
    ),
    # Blocks of the reference implementation, below this project's names of the levels,
    # such as "condition.level_1.conv.0" or "denoiser.encoder_1_block_1.inconv.0".
    "biedsnet": (
        (r"\.conv\.0$", ".conv_1"),
        (r"\.conv\.1$", ".norm_1"),
        (r"\.conv\.3$", ".conv_2"),
        (r"\.conv\.4$", ".norm_2"),
        (r"\.PEE\.SE\.conv1$", ".squeeze"),
        (r"\.PEE\.SE\.conv2$", ".excite"),
        (r"\.fuse\.0$", ".reduce"),
        (r"\.fuse\.2$", ".depthwise"),
        (r"\.fuse\.3$", ".norm_3"),
        (r"\.fuse\.4$", ".pointwise"),
        (r"\.inconv\.0$", ".cgr_1.conv"),
        (r"\.inconv\.1$", ".cgr_1.norm"),
        (r"\.outconv\.0$", ".cgr_2.conv"),
        (r"\.outconv\.1$", ".cgr_2.norm"),
        (r"\.emb_layers\.1$", ".linear"),
        (r"\.skip_connection$", ".conv_skip"),
        (r"\.cSE\.Conv_Squeeze\.0$", ".squeeze"),
        (r"\.cSE\.Conv_Excitation\.0$", ".excite"),
        (r"\.sSE\.Conv1x1\.0$", ".spatial"),
    ),
    "medsegdiff": (
        (r"^time_embed\.0$", "denoiser.time_1"),
        (r"^time_embed\.2$", "denoiser.time_2"),
        (r"^out\.0$", "denoiser.out_norm"),
        (r"^out\.2$", "denoiser.out_conv"),
        (r"^input_blocks\.0\.0$", "denoiser.input_0"),
        (r"^input_blocks\.(\d+)\.0\.op$", r"denoiser.input_\1_down"),
        (r"^output_blocks\.(\d+)\.[12]\.conv$", r"denoiser.output_\1_up"),
        (r"^middle_block\.1\.", "denoiser.middle_1_attention."),
        (r"^middle_block\.([02])\.", r"denoiser.middle_\1_res."),
        (r"^(input|output)_blocks\.(\d+)\.1\.", r"denoiser.\1_\2_attention."),
        (r"^(input|output)_blocks\.(\d+)\.0\.", r"denoiser.\1_\2_res."),
        (r"\.in_layers\.0$", ".norm_1"),
        (r"\.in_layers\.2$", ".conv_1"),
        (r"\.emb_layers\.1$", ".time"),
        (r"\.out_layers\.0$", ".norm_2"),
        (r"\.out_layers\.3$", ".conv_2"),
        (r"\.skip_connection$", ".skip"),
        (r"\.proj_out$", ".project"),
        (r"^hwm\.seg_outputs\.0$", "highway.head"),
        (
            r"^hwm\.conv_blocks_context\.5\.([01])\.blocks\.0\.",
            r"highway.bottleneck_\1.",
        ),
        (r"^hwm\.conv_blocks_context\.(\d)\.blocks\.([01])\.", r"highway.down_\1_\2."),
        (
            r"^hwm\.conv_blocks_localization\.(\d)\.([01])\.blocks\.0\.",
            r"highway.up_\1_\2.",
        ),
        # The published block keeps nnU-Net's name for what is a batch norm.
        (r"\.instnorm$", ".norm"),
    ),
    "unext": (
        (r"^(d?block[12])\.0\.", r"\1."),
        (r"\.dwconv\.dwconv$", ".dwconv"),
    ),
    "swin_unet": (
        (r"^patch_embed\.proj$", "embed"),
        (r"^patch_embed\.norm$", "embed_norm"),
        (r"^layers\.(\d)\.blocks\.(\d)\.", r"encoder_\1_block_\2."),
        (r"^layers\.(\d)\.downsample\.", r"merge_\1."),
        (r"^layers_up\.(\d)\.blocks\.(\d)\.", r"decoder_\1_block_\2."),
        (r"^layers_up\.(\d)\.(upsample\.)?(expand|norm)$", r"expand_\1.\3"),
        (r"^concat_back_dim\.(\d)$", r"concat_\1"),
        (r"\.mlp\.", "."),
        (r"^up\.", "expand_last."),
        (r"^output$", "head"),
    ),
    "trans_unet": (
        (r"^transformer\.embeddings$", ""),
        (r"^transformer\.embeddings\.patch_embeddings$", "embed"),
        (
            r"^transformer\.embeddings\.hybrid_model\.root\.(conv|gn)$",
            r"resnet.root_\1",
        ),
        (
            r"^transformer\.embeddings\.hybrid_model\.body\.(block\d)\.(unit\d)\.",
            r"resnet.\1_\2.",
        ),
        (r"\.downsample$", ".conv_proj"),
        (r"^transformer\.encoder\.layer\.(\d+)\.", r"encoder_\1."),
        (r"^encoder_(\d+)\.(attn|ffn)\.", r"encoder_\1."),
        (r"^transformer\.encoder\.", ""),
        (r"^decoder\.conv_more\.0$", "decoder_in_conv"),
        (r"^decoder\.conv_more\.1$", "decoder_in_norm"),
        (r"^decoder\.blocks\.(\d)\.conv([12])\.0$", r"decoder_\1_\2_conv"),
        (r"^decoder\.blocks\.(\d)\.conv([12])\.1$", r"decoder_\1_\2_norm"),
        (r"^segmentation_head\.0$", "head"),
    ),
}

# Counters and constants, which PyTorch stores and Flax computes.
IGNORED = ("num_batches_tracked", "relative_position_index", "attn_mask")


def to_variables(
    network_name: str, state: Mapping[str, np.ndarray], target: Mapping
) -> dict:
    """Lays out the tensors of `state` as `target`, Flax variables or their shapes.

    Raises one BadInput that names every tensor that is missing (by its Flax path),
    surplus or misshapen.
    """
    leaves = traverse_util.flatten_dict(dict(target), sep="/")
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    found, surplus, misshapen = {}, [], []
    for name, tensor in state.items():
        if name.rpartition(".")[2] in IGNORED:
            continue
        path, value = _convert(network_name, name, np.asarray(tensor))
        if path not in shapes or path in found:
            surplus.append(name)
            continue
        found[path] = jnp.asarray(
            drop_leading_ones(value, len(shapes[path])), jnp.float32
        )
        if found[path].shape != shapes[path]:
            misshapen.append(
                f"{name} (becomes {found[path].shape}, needs {shapes[path]})"
            )
    missing = sorted(shapes.keys() - found.keys())
    problems = list_misfits(
        {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    )
    if problems:
        raise BadInput(
            f"The weights do not fit network {network_name}: {problems}. "
            f"{_fix(network_name, state)}"
        )
    return traverse_util.unflatten_dict(found, sep="/")


def lay_out(
    network_name: str, state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Lays PyTorch tensors out as Flax variables, by path, whether they fit or not."""
    tensors = {
        name: tensor
        for name, tensor in state.items()
        if name.rpartition(".")[2] not in IGNORED
    }
    return dict(
        _convert(network_name, name, np.asarray(tensor))
        for name, tensor in tensors.items()
    )


def drop_leading_ones(value: np.ndarray, ndim: int) -> np.ndarray:
    """Drops leading axes of length one until `ndim` axes are left."""
    while value.ndim > max(ndim, 1) and value.shape[0] == 1:
        value = value[0]
    return value


def list_misfits(misfits: Mapping[str, Iterable[str]]) -> str:
    """Names of tensors by what is wrong with them, on one line; empty if nothing is."""
    return ", ".join(
        f"{kind}: {', '.join(names)}" for kind, names in misfits.items() if names
    )


def _fix(network_name, state):
    """What to set where weights do not fit, with the size that they were made for."""
    section = f"networks.{network_name}"
    fix = (
        "Set data.channels, data.classes, and the widths and parts in "
        f"{section} to what they were trained with."
    )
    positions = np.shape(state.get("transformer.embeddings.position_embeddings"))
    if len(positions) == 3:
        size = 16 * math.isqrt(positions[1])
        fix += f" Their positions are those of data.size={size}."
    biases = np.shape(state.get("layers.0.blocks.0.attn.relative_position_bias_table"))
    if len(biases) == 2:
        # A window of w has (2 w - 1)^2 relative positions.
        window = (math.isqrt(biases[0]) + 1) // 2
        fix += (
            f" Their windows are {section}.window={window}, which fits "
            f"data.size={32 * window}."
        )
    return fix


def _convert(network_name, name, tensor):
    """Flax path, collection first, and Flax layout of one PyTorch tensor."""
    module, _, leaf = name.rpartition(".")
    for pattern, replacement in RENAMES.get(network_name, ()):
        module = re.sub(pattern, replacement, module)
    collection = "batch_stats" if leaf.startswith("running_") else "params"
    if leaf == "weight":
        leaf = "scale" if tensor.ndim == 1 else "kernel"
        # The two channel axes swap and go last, behind the space axes.
        tensor = tensor if tensor.ndim < 2 else np.moveaxis(tensor, (1, 0), (-2, -1))
    leaf = leaf.removeprefix("running_")
    return "/".join([collection, *filter(None, module.split(".")), leaf]), tensor
