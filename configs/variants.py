"""Variants of a config, `--config=FILE:VARIANT,VARIANT`: networks, ablations, sizes.

They are applied in the order that the command line gives them.
"""

from ml_collections import ConfigDict


def apply(config: ConfigDict, variants: str | None, **own) -> ConfigDict:
    """Applies comma-separated variants to a config, in place.

    `own` are further variants of one config file. Raises ValueError for an unknown one.
    """
    table = VARIANTS | own
    for name in filter(None, (variants or "").split(",")):
        if name not in table:
            raise ValueError(
                f"--config has no variant {name}. Use one of {', '.join(sorted(table))}."
            )
        table[name](config)
    return config


def tiles(c: ConfigDict) -> None:
    """Tiles of 128x128 pixels at the scale of the files, a third of them with lesions.

    A step costs four times one at 64x64. It comes behind `:cpu`.
    """
    c.data.size = 128
    c.data.fit = "tile"
    c.data.foreground = 0.33


def lineage(c: ConfigDict) -> None:
    """The choices of the PyTorch reference implementation.

    BIEDSNet then has 33,848,273 parameters on one-channel images.
    """
    c.networks.biedsnet.update(
        dconv="lineage", count_include_pad=True, residual="conv", attention_per="level"
    )
    c.diffusion.mask_range = "zero_one"
    c.augment.update(hflip=0.5, vflip=0.0, rotate_degrees=0.0, scale=0.0, intensity=0.0)


def direct(c: ConfigDict) -> None:
    """BIEDSNet without diffusion: one pass, in which x_t and t are zero."""
    c.row = "direct"
    c.method = "direct"


def no_bffm(c: ConfigDict) -> None:
    """BIEDSNet without its boundary modules, all else kept.

    The paper's rows add one part after another instead.
    """
    c.row = "no_bffm"
    c.networks.biedsnet.bffm = False


def no_attention(c: ConfigDict) -> None:
    """BIEDSNet without attention in its denoising blocks, all else kept."""
    c.row = "no_attention"
    c.networks.biedsnet.attention = "none"


def _row(number: int):
    def row(c: ConfigDict) -> None:
        c.row = f"row{number}"
        c.networks.biedsnet.bffm = number >= 2
        if number < 3:
            c.networks.biedsnet.attention = "none"
        c.loss.name = "joint" if number >= 4 else "mse"
        c.networks.biedsnet.supervision = number >= 5

    row.__doc__ = f"Row {number} of the paper's ablation, Table 2."
    return row


def _network(
    name: str,
    dice_weight: float = 1.0,
    bce_weight: float = 0.5,
    weights: tuple[float, ...] = (1.0,),
):
    """The variant of a comparison network, with the loss of its authors.

    Dice and BCE stand for a loss that they do not give.
    """

    def network(c: ConfigDict) -> None:
        c.network = name
        c.loss.update(
            name="dice_bce",
            dice_smooth=1e-5,
            dice_weight=dice_weight,
            bce_weight=bce_weight,
        )
        c.loss.supervision_weights = weights

    return network


def _medsegdiff(c: ConfigDict) -> None:
    """MedSegDiff, which brings a loss of its own."""
    c.network = "medsegdiff"
    c.diffusion.mask_range = "zero_one"
    # It predicts noise, of which a few steps of DDIM make poor masks.
    c.sampler.method = "dpm_solver"
    c.sampler.steps = 20


def _medsegdiff_v1(c: ConfigDict) -> None:
    """MedSegDiff's first version, whose denoiser gates the highway network."""
    _medsegdiff(c)
    c.row = "medsegdiff_v1"
    c.networks.medsegdiff.version = "v1"


def small(c: ConfigDict) -> None:
    """Every network at 64x64, narrow enough for a CPU.

    They have 0.25 to 2.2 million parameters.
    """
    c.data.size = 64
    n = c.networks
    n.biedsnet.update(channels=(16, 32, 64, 96), dconv="lineage")
    n.unet.channels = n.unetpp.channels = (16, 32, 64, 96, 128)
    n.attention_unet.channels = (16, 32, 64, 96, 128)
    n.unext.channels = (8, 16, 32, 64, 128)
    n.swin_unet.update(window=4, embed_dim=24, depths=(2, 2, 2), heads=(3, 6, 12))
    n.trans_unet.update(
        hidden=96,
        mlp=192,
        heads=4,
        layers=4,
        resnet_units=(2, 2, 2),
        resnet_width=32,
        decoder=(64, 32, 32, 16),
    )
    n.medsegdiff.update(
        channels=32,
        channel_mult=(1, 1, 2, 2),
        num_res_blocks=1,
        attention_downsample=(8,),
        groups=8,
        highway_channels=8,
        highway_cap=64,
    )
    if len(c.loss.supervision_weights) == 4 and c.network == "biedsnet":
        c.loss.supervision_weights = (0.7, 0.15, 0.15)


def nnunet_augment(c: ConfigDict) -> None:
    """The augmentation of nnU-Net's 2D networks, but for mirroring.

    hflip and vflip stay, since labels may tell left from right.
    """
    c.augment.update(
        rotate_degrees=180.0,
        rotate=0.2,
        scale=0.0,
        intensity=0.0,
        zoom=0.2,
        elastic=0.0,
        noise=0.1,
        blur=0.2,
        brightness=0.15,
        contrast=0.15,
        low_resolution=0.25,
        inverted_gamma=0.1,
        gamma=0.3,
    )


# The fields of each network that count channels.
WIDTHS = {
    "biedsnet": ("channels", "groups"),
    "unet": ("channels",),
    "unetpp": ("channels",),
    "attention_unet": ("channels",),
    "unext": ("channels",),
    "swin_unet": ("embed_dim",),
    "trans_unet": ("hidden", "mlp", "resnet_width", "groups", "decoder"),
    "medsegdiff": ("channels", "groups", "highway_channels", "highway_cap"),
}


def quarter(c: ConfigDict) -> None:
    """Every network at 64x64 with a quarter of its published channels."""
    c.data.size = 64
    for network, fields in WIDTHS.items():
        for field in fields:
            full = c.networks[network][field]
            if isinstance(full, tuple):
                c.networks[network][field] = tuple(n // 4 for n in full)
            else:
                c.networks[network][field] = full // 4


def toy(c: ConfigDict) -> None:
    """The least of everything, to see in seconds that a command runs.

    Its scores mean nothing.
    """
    c.data.size = 32
    c.data.phantom.update(n_cases=4, slices_per_case=3)
    c.split.fractions = (0.5, 0.25, 0.25)
    n = c.networks
    n.biedsnet.update(channels=(8, 16), blocks_per_level=1, dconv="lineage")
    for name in ("unet", "unetpp", "attention_unet", "unext"):
        n[name].channels = (4, 4, 8, 8, 8)
    n.swin_unet.update(window=2, embed_dim=12, depths=(2, 2), heads=(2, 4))
    n.trans_unet.update(
        hidden=24,
        mlp=48,
        heads=2,
        layers=1,
        resnet_units=(1, 1, 1),
        resnet_width=32,
        decoder=(8, 8, 8, 8),
    )
    n.medsegdiff.update(
        channels=32,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_downsample=(2,),
        groups=8,
        highway_channels=8,
        highway_cap=32,
    )
    if c.network == "biedsnet":
        c.loss.supervision_weights = (1.0,)
    c.train.update(steps=4, batch_size=4, warmup_steps=1)
    c.eval.update(every=4, batch_size=4, val_ensemble=1)
    c.checkpoint.every = 2
    c.log.update(every=2, images=1)
    c.sampler.update(steps=2, ensemble=1)


VARIANTS = {
    "toy": toy,
    "biedsnet": lambda c: None,
    "unet": _network("unet"),
    "unetpp": _network("unetpp", weights=(0.25, 0.25, 0.25, 0.25)),
    "attention_unet": _network("attention_unet"),
    "unext": _network("unext"),
    "swin_unet": _network("swin_unet", dice_weight=0.6, bce_weight=0.4),
    "trans_unet": _network("trans_unet", dice_weight=0.5, bce_weight=0.5),
    "medsegdiff": _medsegdiff,
    "medsegdiff_v1": _medsegdiff_v1,
    "lineage": lineage,
    "direct": direct,
    "nnunet_augment": nnunet_augment,
    "tiles": tiles,
    "no_bffm": no_bffm,
    "no_attention": no_attention,
    **{f"row{i}": _row(i) for i in range(1, 6)},
}
