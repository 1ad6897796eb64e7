"""The network and the method that a config asks for, ready to train and to predict."""

import functools
import inspect

import flax.linen as nn
import jax.numpy as jnp

from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.diffusion.schedule import SCHEDULES, Schedule
from biedsnet_jax.networks import DENOISERS, NETWORKS, NOISE_PREDICTORS
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.consistency import Consistency
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.segmenters.noise_diffusion import NoisePrediction
from biedsnet_jax.segmenters.segmenter import Segmenter


def make_network(config) -> nn.Module:
    """The network that a config asks for. `make_network(config).check_size((h, w))` refuses what it cannot take."""
    network = NETWORKS[config.network]
    fields = dict(config.networks[config.network])
    if hasattr(network, "image_size"):
        fields["image_size"] = config.data.size
    return network(classes=config.data.classes, dtype=jnp.dtype(config.dtype), **fields)


def build(config) -> Segmenter:
    """The segmenter that a checked config asks for, with its teacher's loss where it has a section `distill`."""
    if "distill" not in config:
        return _build_untaught(config)
    return Consistency(_build_untaught(config), config.distill.grid, config.distill.truth_weight)


def _build_untaught(config):
    network = make_network(config)
    loss, weights = _loss_function(config.loss), config.loss.supervision_weights

    def heads_loss(heads, y):
        return losses.supervised(loss, heads, y, weights)

    if not draws_samples(config):
        return Direct(network, heads_loss)
    if config.network in NOISE_PREDICTORS:
        return NoisePrediction(network, make_schedule(config), make_sampling(config))
    return Diffusion(
        network,
        make_schedule(config),
        heads_loss,
        mask_range=config.diffusion.mask_range,
        mask_scale=config.diffusion.mask_scale,
        self_condition=config.diffusion.self_condition,
        sampling=make_sampling(config),
    )


def make_schedule(config) -> Schedule:
    """The noise schedule of a diffusion method."""
    return SCHEDULES[config.diffusion.schedule](config.diffusion.timesteps)


def make_sampling(config) -> Sampling:
    """How a diffusion method samples."""
    fields = config.sampler
    return Sampling(fields.method, fields.steps, fields.eta, fields.spacing)


def draws_samples(config) -> bool:
    """Whether the config's segmenter draws samples; `method` "auto" means wherever it can."""
    return config.network in DENOISERS and config.method != "direct"


is_diffusion = draws_samples


def _loss_function(fields) -> losses.LossFn:
    """The loss of a config's section `loss`, given those of its fields that it has arguments for."""
    loss = losses.LOSSES[fields.name]
    weights = {name: fields[name] for name in inspect.signature(loss).parameters if name in fields}
    return functools.partial(loss, **weights)
