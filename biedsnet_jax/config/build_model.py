"""The network and the method that a config asks for, ready to train and to predict."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp

from biedsnet_jax.config import build_data, network_file
from biedsnet_jax.config.build_data import has_unknown, image_shape
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.diffusion.schedule import SCHEDULES, Schedule
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.networks import DENOISERS, NETWORKS, NOISE_PREDICTORS
from biedsnet_jax.segmenters import losses, tiling
from biedsnet_jax.segmenters.consistency import Consistency
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.segmenters.noise_diffusion import NoisePrediction
from biedsnet_jax.segmenters.segmenter import Segmenter


def network_class(config) -> type[nn.Module]:
    """Class of the network that a config names, of NETWORKS or the user's file.

    `config` may also be its fields by dotted name. Raises BadInput where there is no
    such network.
    """
    name = config["network"]
    if config.get("network_file"):
        return network_file.load(config["network_file"], name)
    if not isinstance(name, str) or name not in NETWORKS:
        raise BadInput(
            f"network is {shown(repr(name))}. Use one of {', '.join(map(repr, NETWORKS))}."
        )
    return NETWORKS[name]


def make_network(config) -> nn.Module:
    """The network that a config asks for, untrained."""
    network = network_class(config)(
        classes=config.data.classes,
        dtype=jnp.dtype(config.dtype),
        **config.networks.get(config.network, {}),
    )
    # Networks with a table of positions are made for one size.
    if hasattr(network, "image_size"):
        return network.clone(image_size=config.data.size)
    return network


def build(config) -> Segmenter:
    """The segmenter that a checked config asks for.

    With a section `distill` its loss is that of a student.
    """
    segmenter = _build_untaught(config)
    if "distill" not in config:
        return segmenter
    return Consistency(segmenter, config.distill.grid, config.distill.truth_weight)


def _build_untaught(config):
    network = make_network(config)
    if build_data.tile(config):
        network = tiling.tiled(network, build_data.tile(config))
    loss = _loss_function(config)
    weights = config.loss.supervision_weights

    def heads_loss(heads, y, known=None):
        return losses.supervised(loss, heads, y, weights, known)

    mirror = config.sampler.mirror
    if not draws_samples(config):
        return Direct(network, heads_loss, mirror=mirror)
    if config.network in NOISE_PREDICTORS:
        return NoisePrediction(
            network, make_schedule(config), make_sampling(config), mirror=mirror
        )
    return Diffusion(
        network,
        make_schedule(config),
        heads_loss,
        mask_range=config.diffusion.mask_range,
        mask_scale=config.diffusion.mask_scale,
        self_condition=config.diffusion.self_condition,
        sampling=make_sampling(config),
        mirror=mirror,
    )


def init_variables(model: Segmenter, config) -> dict:
    """Initial variables of a segmenter, drawn from the config's seed.

    Raises BadInput where the fields of the network do not fit.
    """
    try:
        return model.init(jax.random.key(config.seed), image_shape(config))
    except BadInput:
        raise
    # Layers refuse widths, heads and depths with exceptions of many kinds.
    except Exception as error:
        raise BadInput(
            f"The fields of networks.{config.network} do not fit together: "
            f"{reason(error)}. configs/default.py has ones that do."
        ) from error


def make_schedule(config) -> Schedule:
    """Noise schedule of a diffusion method."""
    return SCHEDULES[config.diffusion.schedule](config.diffusion.timesteps)


def make_sampling(config) -> Sampling:
    """Sampling of a diffusion method."""
    fields = config.sampler
    return Sampling(fields.method, fields.steps, fields.eta, fields.spacing)


def is_denoiser(config) -> bool:
    """Whether a config's network is called with (x_t, image, t) instead of (image).

    `config` may also be its fields by dotted name.
    """
    if config.get("network_file"):
        return hasattr(network_class(config), "denoise")
    return config.get("network") in DENOISERS


def draws_samples(config) -> bool:
    """Whether the config's segmenter draws samples.

    `method` "auto" means diffusion wherever the network can.
    """
    return is_denoiser(config) and config.method != "direct"


def _loss_function(config) -> losses.LossFn:
    """The loss of a config's section `loss`, with those of its fields that it takes.

    Raises BadInput for a loss that cannot leave pixels out where the config asks for it.
    """
    loss = losses.LOSSES[config.loss.name]
    taken = inspect.signature(loss).parameters
    if has_unknown(config) and "known" not in taken:
        raise BadInput(
            f"loss.name is {config.loss.name}, which takes no `known`, but data.ignore or "
            "data.unannotated leave pixels out. Give the function that argument, or choose "
            "another loss."
        )
    return functools.partial(
        loss, **{name: value for name, value in config.loss.items() if name in taken}
    )
