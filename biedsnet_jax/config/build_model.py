"""The network and the method that a config asks for, ready to train and to predict."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from biedsnet_jax.config.fields import get_field
from biedsnet_jax.diffusion import schedule
from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.networks import DENOISERS, NETWORKS
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.consistency import Consistency
from biedsnet_jax.segmenters.segmenter import Diffusion, Direct, NoisePrediction, Sampling, Segmenter

SIZED = ("swin_unet", "trans_unet", "medsegdiff")  # networks whose parameters may depend on the image size


def network_class(config) -> type:
    """The class of a config's network. Raises BadInput where there is none."""
    name = get_field(config, "network")
    if not isinstance(name, str) or name not in NETWORKS:
        raise BadInput(f"network is {shown(repr(name))}. Use one of {', '.join(map(repr, NETWORKS))}.")
    return NETWORKS[name]


def make_network(config) -> nn.Module:
    """The network that a config asks for. `make_network(config).check_size((h, w))` refuses what it cannot take."""
    fields = dict(config.networks[config.network])
    if config.network in SIZED:
        fields["image_size"] = config.data.size
    return network_class(config)(classes=config.data.classes, dtype=jnp.dtype(config.dtype), **fields)


def build(config) -> Segmenter:
    """The segmenter that a checked config asks for, with its teacher's loss where it has a section `distill`."""
    if "distill" not in config:
        return _build_untaught(config)
    return Consistency(_build_untaught(config), config.distill.grid, config.distill.truth_weight)


def _build_untaught(config):
    network = make_network(config)
    loss, weights = _loss_function(config.loss), config.loss.supervision_weights
    denoiser = config.network == "biedsnet"

    def heads_loss(heads, y):
        return losses.supervised(loss, heads, y, weights)

    if not is_diffusion(config):
        return Direct(network, heads_loss, denoiser)
    noise_schedule, sampling = make_schedule(config), make_sampling(config)
    if config.network == "medsegdiff":
        return NoisePrediction(network, noise_schedule, sampling)
    fields = {name: config.diffusion[name] for name in ("mask_range", "mask_scale", "self_condition")}
    return Diffusion(network, noise_schedule, heads_loss, **fields, sampling=sampling)


def make_schedule(config) -> schedule.Schedule:
    """The noise schedule of a diffusion method."""
    return schedule.make(config.diffusion.schedule, config.diffusion.timesteps)


def make_sampling(config) -> Sampling:
    """How a diffusion method samples."""
    return Sampling(**{field.name: config.sampler[field.name] for field in dataclasses.fields(Sampling)})


def is_diffusion(config) -> bool:
    """Whether a config's network is used as a diffusion model; `method` "auto" means wherever it can be."""
    return config.network in DENOISERS and config.method != "direct"


def _loss_function(fields) -> losses.LossFn:
    if fields.name == "mse":
        return losses.mse_only
    weights = {"dice_smooth": fields.dice_smooth, "bce_weight": fields.bce_weight}
    if fields.name == "dice_bce":
        return functools.partial(losses.dice_bce, dice_weight=fields.dice_weight, **weights)
    return functools.partial(losses.joint, beta=fields.smooth_l1_beta, dice_weight=fields.dice_weight, **weights)
