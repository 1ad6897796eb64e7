"""What a config may hold. Every mistake raises BadInput with the field, its value and the fix."""

import math

from ml_collections import ConfigDict

from biedsnet_jax.config import build_model
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.config.known_fields import check_known
from biedsnet_jax.data import case_names
from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.networks import DENOISERS
from biedsnet_jax.segmenters.fusion import FUSIONS

_CHOICES = {
    "method": ("auto", "diffusion", "direct"),
    "dtype": ("float32", "bfloat16"),
    "data.source": ("folder", "nifti", "phantom", "tfds"),
    "data.normalise": ("percentile", "minmax", "zscore", "none"),
    "diffusion.schedule": ("linear", "cosine"),
    "diffusion.mask_range": ("plus_minus", "zero_one"),
    "loss.name": ("joint", "mse", "dice_bce"),
    "fusion": tuple(FUSIONS),
    "sampler.method": ("ddpm", "ddim", "dpm_solver"),
    "sampler.spacing": ("trailing", "linspace", "leading"),
    "networks.biedsnet.dconv": ("separable", "lineage"),
    "networks.biedsnet.residual": ("cgr", "conv"),
    "networks.biedsnet.attention": ("parallel", "sequential", "none"),
    "networks.biedsnet.attention_per": ("block", "level"),
    "networks.biedsnet.norm": ("group", "batch"),
    "networks.biedsnet.condition_joins": ("after", "before"),
    "networks.medsegdiff.version": ("new", "v1"),
}
_AT_LEAST = {
    "data.phantom.n_cases": 1, "data.phantom.slices_per_case": 1, "data.phantom.seed": 0, "split.fold": 0,
    "data.size": 1, "data.channels": 1, "data.classes": 1, "data.context": 0, "data.min_foreground": 0,
    "diffusion.timesteps": 1, "sampler.steps": 1, "sampler.ensemble": 1,
    "train.steps": 1, "train.batch_size": 1, "train.accumulate": 1, "train.warmup_steps": 0, "train.max_bad_steps": 1,
    "eval.every": 0, "eval.batch_size": 1, "eval.val_images": 0, "eval.val_ensemble": 1, "eval.pictures": 0,
    "checkpoint.every": 1, "checkpoint.keep_latest": 1, "checkpoint.keep_best": 0, "log.every": 1, "log.images": 0,
    "networks.biedsnet.blocks_per_level": 1, "networks.biedsnet.reduction": 1, "networks.biedsnet.groups": 1,
    "parallel.fsdp": 1, "seed": 0, "split.seed": 0, "split.folds": 0,
}  # fmt: skip
_MOST = 2**31 - 1  # of all these: counters and seeds are int32
_NUMBERS = ("split.fractions", "loss.supervision_weights")
_POSITIVE = (
    "diffusion.mask_scale", "loss.smooth_l1_beta", "train.learning_rate", "train.clip_norm",
)  # fmt: skip
_UNIT_INTERVAL = (
    "sampler.eta", "threshold", "train.ema", "train.final_fraction", "augment.hflip",
    "augment.vflip", "eval.lesion_overlap", "data.phantom.difficulty", "data.phantom.empty_fraction",
)  # fmt: skip
_DISTANCES = ("eval.nsd_tolerance", "eval.nsd_tolerance_mm")
_NOT_NEGATIVE = (
    "train.weight_decay", "loss.dice_smooth", "loss.dice_weight", "loss.bce_weight", "augment.rotate_degrees",
    "augment.scale", "augment.intensity",
)  # fmt: skip
_YES_OR_NO = ("data.verify", "data.cache", "diffusion.self_condition", "eval.lesions", "log.tensorboard")
_TEXTS = ("row", "data.name", "data.hint", "data.case", "data.cache_dir", "compile_cache")
_MAY_BE_EMPTY = ("attention_downsample",)  # of the tuples of networks
_NAMES = ("split.train", "split.val", "split.test")


def check_config(config: ConfigDict) -> None:
    """Raise BadInput at the first field that cannot be, or that does not exist."""
    check_known(config)
    _leaf(config, "network")
    build_model.network_class(config)
    for name, allowed in _CHOICES.items():
        if _leaf(config, name) not in allowed:
            raise BadInput(f"unknown choice, {_leaf(config, name)!r}, in {name}; use {_alternatives(allowed)}")
    for name, least in _AT_LEAST.items():
        value = _number(config, name)
        if not isinstance(value, int):
            raise BadInput(f"not a whole number, {value}, in {name}; use one from {least}")
        if value < least:
            raise BadInput(f"value too small, {value}, in {name}; use {least} or more")
        if value > _MOST:
            raise BadInput(f"value too large, {min(value, 10**99):.3g}, in {name}; use {_MOST} or less")
    for name in _POSITIVE:
        if not _number(config, name) > 0:
            raise BadInput(f"value not positive, {_leaf(config, name)}, in {name}; use a number above 0")
        # Gradients that are never clipped are meant so.
        if math.isinf(_number(config, name)) and name != "train.clip_norm":
            raise BadInput(f"{name} is infinite. Give a finite number above 0.")
    for name in _UNIT_INTERVAL:
        if not 0 <= _number(config, name) <= 1:
            raise BadInput(f"value outside 0 to 1, {_leaf(config, name)}, in {name}; use a number from 0 to 1")
    for name in _DISTANCES:
        if not 0 <= _number(config, name) < math.inf:
            raise BadInput(f"no distance, {_leaf(config, name)}, in {name}; use 0 or more, such as 2.0")
    for name in _NOT_NEGATIVE:
        if not 0 <= _number(config, name) < math.inf:
            raise BadInput(f"negative or not finite, {_leaf(config, name)}, in {name}; use a number from 0")
    for name in _NUMBERS:
        if not _are_finite(_leaf(config, name)):
            raise BadInput(f"not numbers, {shown(_leaf(config, name))}, in {name}; give them like (0.5, 0.3, 0.2)")
    _check_kinds(config)
    if len(config.split.fractions) != 3:
        raise BadInput(f"{len(config.split.fractions)} fractions, in split.fractions; give three, as (0.8, 0.1, 0.1)")
    _check_sampler(config)
    if config.method == "diffusion" and not build_model.is_denoiser(config):
        raise BadInput(f"no diffusion network, {config.network}, in method; use 'auto', or {_alternatives(DENOISERS)}")
    if config.method == "direct" and config.network == "medsegdiff":
        raise BadInput("no direct form, medsegdiff, in method; use 'auto': its network predicts noise, not masks")
    _check_data(config.data)
    _check_batch(config)
    _check_network_fields(config)
    if config.network == "biedsnet":
        _check_biedsnet(config)
    elif config.diffusion.self_condition:
        raise BadInput(f"no network for it, {config.network}, in diffusion.self_condition; use biedsnet, or False")
    if "distill" in config:
        _check_distill(config)
    build_model.make_network(config).check_size((config.data.size, config.data.size))


def _check_kinds(config):
    """Flags are of the right kind by themselves; Python and a workdir's config.json may hold anything."""
    for names, right, usual in (
        (_YES_OR_NO, lambda value: isinstance(value, bool), "True or False"),
        (_TEXTS, lambda value: isinstance(value, str), "a text"),
        (_NAMES, lambda value: _are(value, str | int), "names of cases, such as ('a', 'b')"),
        (("data.window", "data.labels", "data.tfds.units"), lambda value: isinstance(value, tuple | list), "a tuple"),
        (("data.root",), lambda value: value is None or isinstance(value, str), "a folder"),
    ):
        for name in names:
            value = _leaf(config, name)
            if not right(value):
                raise BadInput(f"wrong kind of value, {shown(repr(value))}, in {name}; give {usual}")


def _check_sampler(config):
    """As many times as steps."""
    steps, timesteps = config.sampler.steps, config.diffusion.timesteps
    if steps > timesteps:
        raise BadInput(f"more sampling steps than timesteps, {steps}, in sampler.steps; use at most {timesteps}")


def _check_distill(config):
    """Fields that a student's config has, and what its teacher may be."""
    if not build_model.draws_samples(config):
        raise BadInput(
            f"teacher in one pass, {config.network}, in network; distill a BIEDSNet trained by diffusion, "
            "this one is as fast as it can be"
        )
    if config.network != "biedsnet":
        raise BadInput(
            f"teacher that predicts noise, {config.network}, in network; distill a BIEDSNet, which predicts masks"
        )
    if config.diffusion.self_condition:
        raise BadInput("teacher that sees its last answer, True, in diffusion.self_condition; distill one without")
    grid = _number(config, "distill.grid")
    if not isinstance(grid, int) or not 2 <= grid <= config.diffusion.timesteps:
        raise BadInput(f"no grid of times, {grid}, in distill.grid; use 2 to {config.diffusion.timesteps}")
    if not 0 <= _number(config, "distill.truth_weight") < math.inf:
        raise BadInput(f"no weight, {config.distill.truth_weight}, in distill.truth_weight; use 0 or more")


def _check_data(data):
    """Fields that only some sources have, and those that must fit each other."""
    case_names.compiled(data.case)
    if not _is_range(data.window):
        raise BadInput(f"no window, {shown(data.window)}, in data.window; give (low, high), such as (-1250, 250)")
    for name, usual in (("context", 0), ("min_foreground", 0), ("labels", ())):
        if data[name] != usual and data.source != "nifti" and (name, data.source) != ("labels", "tfds"):
            raise BadInput(f"source without volumes, {data.source!r}, for data.{name}; use data.source='nifti'")
    if data.source == "tfds":
        _check_tfds(data.tfds)
    if data.source != "nifti" and data.channels not in (1, 3):
        raise BadInput(f"channels of a picture, {data.channels}, in data.channels; use 1 (grey) or 3 (colour)")
    if not _are(data.labels, tuple | list) or not all(_are(group, int) and group for group in data.labels):
        raise BadInput(
            f"no label values, {shown(data.labels)}, in data.labels; give a tuple for each class, as ((1,), (2, 3))"
        )
    if data.labels and len(data.labels) != data.classes:
        raise BadInput(
            f"{len(data.labels)} sets of labels for {data.classes} classes, in data.labels; give one for each class"
        )


def _check_tfds(fields):
    """Names of a TFDS set's features; whether it has them is seen when it is opened."""
    for name in fields:
        if name != "units" and not isinstance(fields[name], str):
            raise BadInput(f"no name, {shown(repr(fields[name]))}, in data.tfds.{name}; give a text")
    for name in ("name", "split", "image", "mask"):
        if not fields[name]:
            raise BadInput(f"no name, nothing, in data.tfds.{name}; give one")
    if not _is_range(fields.units):
        raise BadInput(f"no units, {shown(fields.units)}, in data.tfds.units; give (low, high), such as (-1250, 250)")


def _is_range(value) -> bool:
    """(low, high), or nothing."""
    return not value or (_are_finite(value) and len(value) == 2 and value[0] < value[1])


def _check_batch(config):
    if config.train.batch_size % config.train.accumulate:
        raise BadInput(
            f"batch of {config.train.batch_size} does not divide into {config.train.accumulate} parts, in "
            "train.accumulate; use a divisor of train.batch_size"
        )


def _check_network_fields(config):
    """Each is of the kind that the network has there by default; tuples hold whole numbers."""
    network = build_model.network_class(config)
    for name, value in config.networks.get(config.network, {}).items():
        usual = getattr(network, name, None)
        empty = value == () and name not in _MAY_BE_EMPTY
        if empty or not _alike(value, usual):
            where = shown(f"networks.{config.network}.{name}")
            raise BadInput(f"wrong kind of value, {shown(repr(value))}, in {where}; give one like {usual!r}")


def _alike(value, usual) -> bool:
    if isinstance(usual, tuple):
        return _are(value, int)
    if isinstance(usual, float):
        return isinstance(value, int | float)
    return type(value) is type(usual)


def _check_biedsnet(config):
    fields = config.networks.biedsnet
    if not _are(fields.channels, int) or min(fields.channels, default=2) < 2:
        raise BadInput(f"no widths, {shown(fields.channels)}, in networks.biedsnet.channels; give whole numbers from 2")
    if len(fields.channels) < 2:
        raise BadInput(f"too few levels, {fields.channels}, in networks.biedsnet.channels; give two widths or more")
    if fields.fold and fields.norm == "batch":
        raise BadInput("folded maps with batch norm, True, in networks.biedsnet.fold; use norm='group' or fold=False")
    heads = len(fields.channels) - 1
    if fields.supervision and heads > 1 and len(config.loss.supervision_weights) != heads:
        raise BadInput(
            f"{len(config.loss.supervision_weights)} weights for {heads} heads, in loss.supervision_weights; "
            "give one for the final head and one for each side head"
        )


def _are(values, kind) -> bool:
    if not isinstance(values, tuple | list):
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _are_finite(values) -> bool:
    return _are(values, int | float) and all(abs(value) < math.inf for value in values)


def _leaf(config, name):
    """The one value of a field."""
    value = get_field(config, name)
    if isinstance(value, ConfigDict):
        raise BadInput(f"many values where one belongs, {shown(value)}, in {name}; give one")
    return value


def _number(config, name):
    value = _leaf(config, name)
    # To Python True is the number 1.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadInput(f"not a number, {shown(repr(value))}, in {name}; give one")
    return value


def _alternatives(values) -> str:
    return " or ".join(repr(v) for v in values)
