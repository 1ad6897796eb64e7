"""BIEDSNet on volumes: NIfTI images with label maps, as axial slices.

    python -m biedsnet_jax.main --config=configs/nifti.py --config.data.root=DIR --workdir=runs/own

`DIR` holds `images/` and `labels/`, or Medical Decathlon's or nnU-Net's `imagesTr/` and
`labelsTr/`. CT wants a window, `--config.data.window="(-1250.,250.)"
--config.data.normalise=none`. `:cpu` is a small network at 64x64 for two cores.
"""

from configs import default, folder, variants


def get_config(chosen: str | None = None):
    c = default.get_config()
    c.data.source = "nifti"
    c.data.name = "nifti"
    # Labels may tell left from right and front from back.
    c.augment.update(hflip=0.0, vflip=0.0)
    # Many slices of a volume are empty; validation cases preferred this (RESULTS.md).
    c.data.foreground = 0.33
    # Slices are memory-mapped from data.cache_dir already.
    c.data.cache = False
    c.data.hint = (
        "Give --config.data.root=DIR, a folder with images/ and labels/, or imagesTr/ and "
        "labelsTr/."
    )
    return variants.apply(c, chosen, cpu=folder.cpu)
