"""What may follow the colon of `--config=FILE:VARIANTS`, applied in order: networks,
ablation rows, readings, sizes.
"""

from ml_collections import ConfigDict


def apply(config: ConfigDict, variants: str | None, **own) -> ConfigDict:
    """Apply comma-separated `variants`; `own` are a config file's further ones. Raises
    ValueError for another name.
    """
    table = VARIANTS | own
    for name in filter(None, (variants or "").split(",")):
        if name not in table:
            raise ValueError(
                f"unknown config variant, {name}, in --config; use one of {', '.join(sorted(table))}"
            )
        table[name](config)
    return config


def lineage(c: ConfigDict) -> None:
    """The choices of the PyTorch lineage: 33,848,273 parameters on one-channel images."""
    c.networks.biedsnet.update(
        dconv="lineage", count_include_pad=True, residual="conv", attention_per="level"
    )
    c.diffusion.mask_range = "zero_one"
    c.augment.update(hflip=0.5, vflip=0.0, rotate_degrees=0.0, scale=0.0, intensity=0.0)


def direct(c: ConfigDict) -> None:
    """BIEDSNet without diffusion: x_t and t are zero, one pass."""
    c.row = "direct"
    c.method = "direct"


def no_bffm(c: ConfigDict) -> None:
    """BIEDSNet without its boundary modules, all else kept; the paper's rows add one
    part after another instead.
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
        c.networks.biedsnet.attention = (
            c.networks.biedsnet.attention if number >= 3 else "none"
        )
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
    """A comparison network with its authors' loss; Dice + BCE where they give none."""

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
    """Its loss is its own; DPM-Solver++ since it predicts noise, of which a few DDIM
    steps make poor masks.
    """
    c.network = "medsegdiff"
    c.diffusion.mask_range = "zero_one"
    c.sampler.method = "dpm_solver"
    c.sampler.steps = 20


def _medsegdiff_v1(c: ConfigDict) -> None:
    """Its first version: the denoiser gates the highway network instead of being
    anchored by it.
    """
    _medsegdiff(c)
    c.row = "medsegdiff_v1"
    c.networks.medsegdiff.version = "v1"


def small(c: ConfigDict) -> None:
    """Every network at 64x64, narrowed until a CPU trains it: 0.25 to 2.2 million
    parameters.
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
        channels=32, channel_mult=(1, 1, 2, 2), num_res_blocks=1, attention_downsample=(8,), groups=8,
        highway_channels=8, highway_cap=64,
    )  # fmt: skip
    if len(c.loss.supervision_weights) == 4 and c.network == "biedsnet":
        c.loss.supervision_weights = (0.7, 0.15, 0.15)


# what of each network counts channels
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
    """Every network at 64x64 with a quarter of its published channels, all else as
    published.
    """
    c.data.size = 64
    for network, fields in WIDTHS.items():
        for field in fields:
            full = c.networks[network][field]
            c.networks[network][field] = (
                tuple(n // 4 for n in full) if isinstance(full, tuple) else full // 4
            )


def toy(c: ConfigDict) -> None:
    """The least of everything, to see in seconds that a command runs; its scores mean
    nothing.
    """
    c.data.size = 32
    c.data.phantom.update(n_cases=4, slices_per_case=3)
    c.split.fractions = (0.5, 0.25, 0.25)
    n = c.networks
    n.biedsnet.update(channels=(8, 16), blocks_per_level=1, dconv="lineage")
    n.unet.channels = n.unetpp.channels = n.attention_unet.channels = (
        n.unext.channels
    ) = (4, 4, 8, 8, 8)
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
        channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_downsample=(2,), groups=8,
        highway_channels=8, highway_cap=32,
    )  # fmt: skip
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
    "no_bffm": no_bffm,
    "no_attention": no_attention,
    **{f"row{i}": _row(i) for i in range(1, 6)},
}
