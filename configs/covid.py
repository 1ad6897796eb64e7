"""The paper's data, COVID-19-CT-Seg, as a folder of slices; Tables 1 and 2 by variant.

    python -m biedsnet_jax.main --config=configs/covid.py --config.data.root=DIR --workdir=runs/covid
    python -m biedsnet_jax.main --config=configs/covid.py:unet,cpu --config.data.root=DIR --workdir=runs/unet

`:tfds` takes all 20 volumes from the archives of zenodo.org/records/3757476 in DIR,
zipped or unpacked. `:paper` is BIEDSNet as the paper has it where measurement preferred
something else. Full size wants a GPU or TPU. `:cpu` is a small network at 64x64 that
trains in minutes on two cores; `:quarter` has a quarter of the published channels in
every network, for tables without a GPU.
"""

from configs import default, folder, variants


def get_config(chosen: str | None = None):
    c = default.get_config()
    c.data.name = "covid19_ct_seg"
    c.data.hint = (
        "download COVID-19-CT-Seg (zenodo.org/records/3757476), put its axial slices into "
        "DIR/images/<case>/<slice>.png and DIR/masks/<case>/<slice>.png, and give --config.data.root=DIR; without "
        "data, python -m biedsnet_jax.main --config=configs/phantom.py --workdir=runs/phantom runs"
    )
    # where the paper leaves it open, validation cases preferred it (RESULTS.md)
    c.diffusion.mask_scale = 0.1
    return variants.apply(c, chosen, cpu=cpu, quarter=quarter, tfds=tfds, paper=paper)


def cpu(c) -> None:
    """Small network, short run; a quarter of the slices is tested, so that more than
    one of few cases is.
    """
    folder.cpu(c)
    c.split.fractions = (0.6, 0.15, 0.25)


def quarter(c) -> None:
    """Every network alike, a quarter as wide, at 64x64; a short run."""
    variants.quarter(c)
    folder.short(c)


def paper(c) -> None:
    """What measurement changed, as the paper has it or nearest to it."""
    c.row = "paper"
    c.diffusion.mask_scale = default.get_config().diffusion.mask_scale


def tfds(c) -> None:
    """All 20 volumes from their archives, in Hounsfield units, so that a model also
    segments other CT volumes.
    """
    c.data.source = "tfds"
    c.data.tfds.update(
        name="covid19_ct_seg",
        mask="infection",
        case="patient",
        slice="name",
        spacing="spacing",
    )
    c.data.tfds.units = (-1250.0, 250.0)
    c.data.window = (-1250.0, 250.0)
    # the window has mapped to [0, 1], the same in every slice
    c.data.normalise = "none"
    # 20 volumes are more than most memories hold
    c.data.cache = False
    c.data.hint = (
        "download the four archives of COVID-19-CT-Seg (zenodo.org/records/3757476) into a folder and give it, "
        "--config.data.root=DIR"
    )
