"""What a config may hold.

Every mistake raises BadInput with the field, its value and the fix.
"""

from ml_collections import ConfigDict

from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config.build_data import SOURCES
from biedsnet_jax.config.fields import find, get_field
from biedsnet_jax.config.known_fields import check_known
from biedsnet_jax.config.rules import (
    ABOVE_0,
    ABOVE_0_OR_INF,
    BELOW_1,
    CASES,
    CLASS_NAMES,
    COUNT,
    COUNT_OR_0,
    FOLDER,
    FROM_0,
    LABELS,
    NAMES,
    PATTERNS,
    RANGE,
    SHARE,
    SPACING,
    TEXT,
    UNANNOTATED,
    YES_OR_NO,
    Rule,
    at_least,
    like,
    numbers,
    one_of,
)
from biedsnet_jax.data import case_names, fit, transforms
from biedsnet_jax.data.formats import volumes
from biedsnet_jax.data.sources import picture_masks
from biedsnet_jax.diffusion.process import MASK_RANGES
from biedsnet_jax.diffusion.sampler import METHODS
from biedsnet_jax.diffusion.schedule import SCHEDULES, SPACINGS
from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks import DENOISERS, NETWORKS
from biedsnet_jax.runtime import files
from biedsnet_jax.segmenters import mirror
from biedsnet_jax.segmenters.fusion import FUSIONS
from biedsnet_jax.segmenters.losses import LOSSES

# Label maps are read as whole numbers of 16 bits.
_LARGEST_LABEL = 2**16 - 1


def _is_label(value):
    # Longer texts of digits may be too long for a number.
    if not isinstance(value, str) or len(value) > 5:
        return False
    if not value.isascii() or not value.isdecimal():
        return False
    number = int(value)
    return 0 < number <= _LARGEST_LABEL


def _is_colour(value):
    return isinstance(value, str) and picture_masks.is_colour(value)


# What each field may hold. The other fields of a network are like its class's defaults.
FIELDS: dict[str, Rule] = {
    # Any text here, since a user's file brings names of its own. Other names are refused
    # by build_model.network_class.
    "network": Rule(one_of(NETWORKS).says, lambda value: isinstance(value, str)),
    "method": one_of(("auto", "diffusion", "direct")),
    "dtype": one_of(("float32", "bfloat16")),
    "data.source": one_of(SOURCES),
    "data.normalise": one_of(transforms.METHODS),
    "data.fit": one_of(fit.METHODS),
    "data.spacing": SPACING,
    "data.plane": one_of(("auto", *volumes.PLANES)),
    "data.target": one_of(transforms.TARGETS),
    "diffusion.schedule": one_of(SCHEDULES),
    "diffusion.mask_range": one_of(MASK_RANGES),
    "loss.name": one_of(LOSSES),
    "fusion": one_of(FUSIONS),
    "sampler.method": one_of(METHODS),
    "sampler.spacing": one_of(SPACINGS),
    "sampler.mirror": one_of(mirror.CHOICES),
    "networks.biedsnet.dconv": one_of(("separable", "lineage")),
    "networks.biedsnet.residual": one_of(("cgr", "conv")),
    "networks.biedsnet.attention": one_of(("parallel", "sequential", "none")),
    "networks.biedsnet.attention_per": one_of(("block", "level")),
    "networks.biedsnet.norm": one_of(("group", "batch")),
    "networks.biedsnet.condition_joins": one_of(("after", "before")),
    "networks.medsegdiff.version": one_of(("new", "v1")),
    "data.phantom.n_cases": COUNT,
    "data.phantom.slices_per_case": COUNT,
    "data.phantom.seed": COUNT_OR_0,
    "split.fold": COUNT_OR_0,
    "data.size": COUNT,
    "data.channels": COUNT,
    "data.classes": COUNT,
    "data.context": COUNT_OR_0,
    "data.min_foreground": COUNT_OR_0,
    "diffusion.timesteps": COUNT,
    "sampler.steps": COUNT,
    "sampler.ensemble": COUNT,
    "train.steps": COUNT,
    "train.batch_size": COUNT,
    "train.accumulate": COUNT,
    "train.warmup_steps": COUNT_OR_0,
    "train.max_bad_steps": COUNT,
    "eval.every": COUNT_OR_0,
    "eval.batch_size": COUNT,
    "eval.val_images": COUNT_OR_0,
    "eval.val_ensemble": COUNT,
    "eval.pictures": COUNT_OR_0,
    "checkpoint.every": COUNT,
    "checkpoint.keep_latest": COUNT,
    "checkpoint.keep_best": COUNT_OR_0,
    "log.every": COUNT,
    "log.images": COUNT_OR_0,
    "networks.biedsnet.blocks_per_level": COUNT,
    "networks.biedsnet.reduction": COUNT,
    "networks.biedsnet.groups": COUNT,
    "parallel.fsdp": COUNT,
    "seed": COUNT_OR_0,
    "split.seed": COUNT_OR_0,
    "split.folds": COUNT_OR_0,
    "diffusion.mask_scale": ABOVE_0,
    "loss.smooth_l1_beta": ABOVE_0,
    "train.learning_rate": ABOVE_0,
    # inf never clips.
    "train.clip_norm": ABOVE_0_OR_INF,
    "sampler.eta": SHARE,
    "threshold": SHARE,
    "train.ema": SHARE,
    "train.final_fraction": SHARE,
    "augment.hflip": SHARE,
    "augment.vflip": SHARE,
    "augment.rotate": SHARE,
    "augment.zoom": SHARE,
    "augment.elastic": SHARE,
    "augment.noise": SHARE,
    "augment.blur": SHARE,
    "augment.brightness": SHARE,
    "augment.contrast": SHARE,
    "augment.low_resolution": SHARE,
    "augment.inverted_gamma": SHARE,
    "augment.gamma": SHARE,
    "data.foreground": SHARE,
    "eval.lesion_overlap": SHARE,
    "data.phantom.difficulty": SHARE,
    "data.phantom.empty_fraction": SHARE,
    "eval.nsd_tolerance": FROM_0,
    "eval.nsd_tolerance_mm": FROM_0,
    "train.weight_decay": FROM_0,
    "loss.dice_smooth": FROM_0,
    "loss.dice_weight": FROM_0,
    "loss.bce_weight": FROM_0,
    "augment.rotate_degrees": FROM_0,
    # A magnification by 0 leaves nothing, a negative one mirrors.
    "augment.scale": BELOW_1,
    # A contrast below 0 turns bright to dark.
    "augment.intensity": SHARE,
    "split.fractions": numbers((0.8, 0.1, 0.1), "three"),
    "loss.supervision_weights": numbers((0.7, 0.3)),
    "postprocess": YES_OR_NO,
    "data.verify": YES_OR_NO,
    "data.cache": YES_OR_NO,
    "diffusion.self_condition": YES_OR_NO,
    "eval.lesions": YES_OR_NO,
    "eval.paper": YES_OR_NO,
    "log.tensorboard": YES_OR_NO,
    "row": TEXT,
    "network_file": TEXT,
    "data.name": TEXT,
    "data.hint": TEXT,
    "data.case": TEXT,
    "data.cache_dir": TEXT,
    "compile_cache": TEXT,
    "init.source": TEXT,
    "init.freeze": PATTERNS,
    "split.train": CASES,
    "split.val": CASES,
    "split.test": CASES,
    "data.window": RANGE,
    "data.labels": LABELS,
    "data.ignore": Rule(
        "a label from '1' to '65535', for folder a colour such as '#ff0000' too, or ''",
        lambda value: value == "" or _is_label(value) or _is_colour(value),
    ),
    "data.unannotated": UNANNOTATED,
    "data.class_names": CLASS_NAMES,
    "data.channel_names": NAMES,
    "data.root": FOLDER,
    "data.tfds.name": TEXT,
    "data.tfds.data_dir": TEXT,
    "data.tfds.split": TEXT,
    "data.tfds.image": TEXT,
    "data.tfds.mask": TEXT,
    "data.tfds.case": TEXT,
    "data.tfds.slice": TEXT,
    "data.tfds.spacing": TEXT,
    "data.tfds.units": RANGE,
}
# Fields that hold a path.
PATHS = (
    "data.root",
    "data.cache_dir",
    "data.tfds.data_dir",
    "compile_cache",
    "network_file",
    "distill.teacher",
    "init.source",
)
# Fields of networks whose tuple may be ().
_MAY_BE_EMPTY = ("attention_downsample",)


def check_config(config: ConfigDict) -> None:
    """Raises BadInput at the first field that does not exist or may not have its value."""
    _check_paths(config)
    check_known(config)
    network = build_model.network_class(config)
    for name, rule in FIELDS.items():
        rule.check(name, get_field(config, name))
    _check_counts(config)
    _check_method(config)
    check_mirror(config, config.sampler.mirror)
    _check_data(config.data)
    for field, value in config.networks.get(config.network, {}).items():
        network_rule(network, field).check(f"networks.{config.network}.{field}", value)
    if config.network == "biedsnet":
        _check_biedsnet(config)
    elif config.diffusion.self_condition:
        raise BadInput(
            f"diffusion.self_condition is True, but network {config.network} does not have "
            "it. Use False."
        )
    if "distill" in config:
        _check_distill(config)
    if config.init.freeze and not config.init.source:
        raise BadInput(
            f"init.freeze is {config.init.freeze}, but init.source is empty. Give the "
            "weights to start from, or freeze nothing."
        )
    build_model.make_network(config).check_size((config.data.size, config.data.size))


def network_rule(network: type, field: str) -> Rule:
    """Rule of one of a network's own fields."""
    return like(getattr(network, field, None), empty=field in _MAY_BE_EMPTY)


def _check_paths(config):
    for name in PATHS:
        value = find(config, name)
        if isinstance(value, str):
            files.check_no_address(value, name)


def _check_counts(config):
    """Checks whole numbers that must fit each other."""
    steps = config.sampler.steps
    timesteps = config.diffusion.timesteps
    if steps > timesteps:
        raise BadInput(
            f"sampler.steps is {steps}, more than diffusion.timesteps. Use at most "
            f"{timesteps}."
        )
    size = config.train.batch_size
    parts = config.train.accumulate
    if size % parts:
        raise BadInput(
            f"train.accumulate is {parts}, which does not divide train.batch_size. Use a "
            f"divisor of {size}."
        )


def _check_method(config):
    if config.method == "diffusion" and not build_model.is_denoiser(config):
        names = " or ".join(map(repr, DENOISERS))
        raise BadInput(
            f"method is 'diffusion', but network {config.network} predicts in one pass. Use "
            f"'auto', or network {names}."
        )
    if config.method == "direct" and config.network == "medsegdiff":
        raise BadInput(
            "method is 'direct', but network medsegdiff predicts noise, not masks. Use "
            "'auto'."
        )


def check_mirror(config: ConfigDict, chosen: str, where: str = "training") -> None:
    """Raises BadInput where a mirrored pass shows the network what it never saw.

    `chosen` is a value of sampler.mirror, `config` that of the training, and `where`
    names the training in the message.
    """
    trained = {"lr": "augment.hflip", "ud": "augment.vflip"}
    for word in mirror.words(chosen):
        if not get_field(config, trained[word]) > 0:
            raise BadInput(
                f"sampler.mirror is {chosen!r}, but {trained[word]} was 0 in {where}. "
                f"Leave {word!r} out."
            )


def _check_distill(config):
    """Checks the section `distill`, and that its teacher can have a student."""
    if not build_model.draws_samples(config):
        raise BadInput(
            f"Cannot distill network {config.network} with method {config.method!r}: it "
            "already predicts in one pass. Use a BIEDSNet trained by diffusion."
        )
    if config.network != "biedsnet":
        raise BadInput(
            f"Cannot distill network {config.network}: it predicts noise, not masks. Use a "
            "BIEDSNet."
        )
    if config.diffusion.self_condition:
        raise BadInput(
            "Cannot distill with diffusion.self_condition. Use a BIEDSNet trained without "
            "it."
        )
    if config.init.source:
        raise BadInput(
            f"init.source is {config.init.source}, but a student starts as its teacher. "
            "Leave it empty."
        )
    at_least(2, config.diffusion.timesteps).check(
        "distill.grid", get_field(config, "distill.grid")
    )
    FROM_0.check("distill.truth_weight", get_field(config, "distill.truth_weight"))


def _check_data(data):
    """Checks fields that only some sources have, and those that must fit each other."""
    case_names.compiled(data.case)
    for name, usual in (("context", 0), ("min_foreground", 0), ("labels", ())):
        sources = ("nifti", "tfds") if name == "labels" else ("nifti",)
        if data[name] != usual and data.source not in sources:
            raise BadInput(
                f"data.{name} is {data[name]}, but data.source is {data.source!r}. Use "
                f"{usual}, or data.source='nifti'."
            )
    for name in ("name", "split", "image", "mask"):
        if data.source == "tfds" and not data.tfds[name]:
            raise BadInput(f"data.tfds.{name} is empty. Give a name.")
    if data.source != "nifti" and data.channels not in (1, 3):
        raise BadInput(
            f"data.channels is {data.channels}. A picture has 1 (grey) or 3 (colour)."
        )
    if data.plane not in ("auto", "axial") and data.source != "nifti":
        raise BadInput(
            f"data.plane is {data.plane!r}, but data.source is {data.source!r}. Use 'auto', or "
            "data.source='nifti'."
        )
    if data.fit == "tile" and data.size % 2:
        raise BadInput(
            f"data.size is {data.size}, but data.fit is 'tile', whose tiles overlap by half. "
            "Use an even number."
        )
    if data.labels and len(data.labels) != data.classes:
        raise BadInput(
            f"data.labels has {len(data.labels)} sets of labels for {data.classes} classes. "
            "Give one for each class."
        )
    _check_incomplete(data)
    for name, count in (("class", data.classes), ("channel", data.channels)):
        names = data[f"{name}_names"]
        if names and len(names) != count:
            raise BadInput(
                f"data.{name}_names has {len(names)} names, where there are {count}. Give one "
                f"for each {name}, or ()."
            )


def _check_incomplete(data):
    """Checks what is said of labels that are not complete."""
    if data.ignore and data.source == "phantom":
        raise BadInput(
            f"data.ignore is {data.ignore!r}, but data.source is 'phantom', which draws all "
            "labels. Use ''."
        )
    if _is_colour(data.ignore) and data.source != "folder":
        raise BadInput(
            f"data.ignore is {data.ignore!r}, a colour, but data.source is {data.source!r}. "
            "Give a label value."
        )
    of_classes = set().union(*build_data.class_labels_of(data))
    # All labels but 0 are the one class, which the ignored one is taken out of.
    all_labels = data.classes == 1 and not data.labels
    if _is_label(data.ignore) and int(data.ignore) in of_classes and not all_labels:
        raise BadInput(
            f"data.ignore is {data.ignore!r}, which is a label of a class. Give another label, "
            "or take it out of data.labels and data.classes."
        )
    for case, missing in data.unannotated:
        wrong = [k for k in missing if not 1 <= k <= data.classes]
        if wrong:
            raise BadInput(
                f"data.unannotated has class {wrong[0]} for {case!r}, and data.classes is "
                f"{data.classes}. Give classes from 1 to {data.classes}."
            )


def _check_biedsnet(config):
    fields = config.networks.biedsnet
    if len(fields.channels) < 2 or min(fields.channels) < 2:
        raise BadInput(
            f"networks.biedsnet.channels is {fields.channels}. Give two whole numbers from "
            "2, or more."
        )
    if fields.fold and fields.norm == "batch":
        raise BadInput(
            "networks.biedsnet.fold is True, which batch norm does not allow. Use "
            "norm='group' or fold=False."
        )
    heads = len(fields.channels) - 1
    weights = len(config.loss.supervision_weights)
    if fields.supervision and heads > 1 and weights != heads:
        raise BadInput(
            f"loss.supervision_weights has {weights} weights for {heads} heads. Give one "
            "for the final head and one for each side head."
        )
