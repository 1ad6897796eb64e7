"""BIEDSNet on the paper's data, COVID-19-CT-Seg; variants give its Tables 1 and 2.

    python -m biedsnet_jax.main --config=configs/covid.py --config.data.root=DIR --workdir=runs/full

DIR holds a folder of slices; with `:tfds`, the archives of zenodo.org/records/3757476,
zipped or unpacked, of which all 20 volumes are read. `:unet` and the like are the other
networks of Table 1. `:paper` is BIEDSNet as the paper has it, where measurement
preferred something else.

Full size wants a GPU or TPU. `:cpu` is a small network at 64x64 that trains in minutes
on two cores. `:quarter` has a quarter of the published channels in every network, for
tables without a GPU.
"""

from configs import default, folder, variants


def get_config(chosen: str | None = None):
    c = default.get_config()
    c.data.name = "covid19_ct_seg"
    c.data.hint = (
        "Download COVID-19-CT-Seg (zenodo.org/records/3757476), put its axial slices into "
        "DIR/images/<case>/<slice>.png and DIR/masks/<case>/<slice>.png, and give "
        "--config.data.root=DIR. To run without data, use --config=configs/phantom.py."
    )
    # Its Tables 1 and 2 have the paper's own figures beside them.
    c.eval.paper = True
    # The paper leaves it open, and validation cases preferred this value (RESULTS.md).
    c.diffusion.mask_scale = 0.1
    return variants.apply(c, chosen, cpu=cpu, quarter=quarter, tfds=tfds, paper=paper)


def cpu(c) -> None:
    """A small network and a short run."""
    folder.cpu(c)
    # A quarter of the slices is tested: of few cases, more than one.
    c.split.fractions = (0.6, 0.15, 0.25)


def quarter(c) -> None:
    """Every network a quarter as wide, at 64x64, and a short run."""
    variants.quarter(c)
    folder.short(c)


def paper(c) -> None:
    """BIEDSNet as the paper has it, without what measurement preferred."""
    c.row = "paper"
    c.diffusion.mask_scale = default.get_config().diffusion.mask_scale


def tfds(c) -> None:
    """All 20 volumes from their archives.

    They are in Hounsfield units, so that a model also segments other CT volumes.
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
    # The window has mapped every slice alike to [0, 1].
    c.data.normalise = "none"
    # Most memories do not hold 20 volumes.
    c.data.cache = False
    c.data.hint = (
        "Download the four archives of COVID-19-CT-Seg (zenodo.org/records/3757476) into a "
        "folder DIR and give --config.data.root=DIR."
    )
