"""Networks by the name that `config.network` gives."""

from biedsnet_jax.networks.attention_unet import AttentionUNet
from biedsnet_jax.networks.biedsnet import BIEDSNet
from biedsnet_jax.networks.medsegdiff import MedSegDiff
from biedsnet_jax.networks.swin_unet import SwinUNet
from biedsnet_jax.networks.trans_unet import TransUNet
from biedsnet_jax.networks.unet import UNet
from biedsnet_jax.networks.unetpp import UNetPlusPlus
from biedsnet_jax.networks.unext import UNeXt

NETWORKS = {
    "biedsnet": BIEDSNet,
    "unet": UNet,
    "unetpp": UNetPlusPlus,
    "attention_unet": AttentionUNet,
    "unext": UNeXt,
    "swin_unet": SwinUNet,
    "trans_unet": TransUNet,
    "medsegdiff": MedSegDiff,
}

# Networks called with (x_t, image, t) instead of (image).
DENOISERS = tuple(
    name for name, network in NETWORKS.items() if hasattr(network, "denoise")
)
# Denoisers that predict the noise of x_t and its variance instead of a mask.
NOISE_PREDICTORS = tuple(
    name for name in DENOISERS if hasattr(NETWORKS[name], "predicts_noise")
)
