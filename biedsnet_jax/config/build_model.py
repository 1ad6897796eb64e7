"""The network and the method that a config asks for, ready to train and to predict."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp

from biedsnet_jax.config import network_file
from biedsnet_jax.config.build_data import image_shape
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.diffusion.schedule import SCHEDULES, Schedule
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.networks import DENOISERS, NETWORKS, NOISE_PREDICTORS
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.consistency import Consistency
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.segmenters.noise_diffusion import NoisePrediction
from biedsnet_jax.segmenters.segmenter import Segmenter


def network_class(config) -> type[nn.Module]:
    """The class of the network that a config names, of NETWORKS or of the user's
    `network_file`.

    `config` may also be its fields by dotted name. Raises BadInput where there is no
    such network.
    """
    name, file = config["network"], config.get("network_file")
    if file:
        return network_file.load(file, name)
    if not isinstance(name, str) or name not in NETWORKS:
        raise BadInput(
            f"network is {shown(repr(name))}. Use one of {', '.join(map(repr, NETWORKS))}."
        )
    return NETWORKS[name]


def make_network(config) -> nn.Module:
    """The network that a config asks for. `make_network(config).check_size((h, w))`
    refuses what it cannot take.
    """
    network = network_class(config)
    fields = dict(config.networks.get(config.network, {}))
    if hasattr(network, "image_size"):
        fields["image_size"] = config.data.size
    return network(classes=config.data.classes, dtype=jnp.dtype(config.dtype), **fields)


def build(config) -> Segmenter:
    """The segmenter that a checked config asks for, with its teacher's loss where it
    has a section `distill`.
    """
    if "distill" not in config:
        return _build_untaught(config)
    return Consistency(
        _build_untaught(config), config.distill.grid, config.distill.truth_weight
    )


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


def init_variables(model: Segmenter, config) -> dict:
    """Fresh variables, the same for the same seed. Raises BadInput where the fields of
    the network do not fit.
    """
    try:
        return model.init(jax.random.key(config.seed), image_shape(config))
    except BadInput:
        raise
    # layers refuse widths, heads and depths with anything
    except Exception as error:
        raise BadInput(
            f"network that cannot be, {reason(error)}, in networks.{config.network}; see configs/default.py"
        ) from error


def make_schedule(config) -> Schedule:
    """The noise schedule of a diffusion method."""
    return SCHEDULES[config.diffusion.schedule](config.diffusion.timesteps)


def make_sampling(config) -> Sampling:
    """How a diffusion method samples."""
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
    """What `draws_samples` of the config's segmenter is; `method` "auto" means
    diffusion wherever it can be.
    """
    return is_denoiser(config) and config.method != "direct"


def _loss_function(fields) -> losses.LossFn:
    """The loss of a config's section `loss`, whose fields are its keyword arguments by
    their names.
    """
    loss = losses.LOSSES[fields.name]
    taken = inspect.signature(loss).parameters
    return functools.partial(
        loss, **{name: value for name, value in fields.items() if name in taken}
    )
