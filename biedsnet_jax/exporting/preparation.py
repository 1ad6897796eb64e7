"""What has to be done to a scan before the exported program, and to its maps after it.

Mode predict does the same by `data.fit`. The program takes slices of one size, and neither
cuts nor resizes anything.
"""

from ml_collections import ConfigDict

from biedsnet_jax.config import build_data


def describe(config: ConfigDict) -> dict:
    """The fields of export.json that say how slices come to the program's size.

    fit, and spacing (row, column) in mm or None, to which slices are resampled; plane, in
    which volumes are cut; prepare, all of it as sentences.
    """
    fit = build_data.make_fit(config)
    plane = build_data.plane(config)
    spacing = None if fit.method == "squash" else fit.spacing
    steps = [f"Cut volumes into {plane} slices."]
    steps += _STEPS[fit.method](f"{fit.size}x{fit.size}", _resampled(spacing))
    return {
        "fit": fit.method,
        "spacing": None if spacing is None else list(spacing),
        "plane": plane,
        "prepare": steps,
    }


def _resampled(spacing) -> list[str]:
    """The step that brings slices to a spacing; none where they keep their pixels."""
    if spacing is None:
        return []
    row, column = spacing
    return [
        f"Resample each slice to pixels of {row:g} x {column:g} mm (row, column), "
        "bilinearly, antialiased where it shrinks; one of unknown spacing keeps its pixels."
    ]


def _squash(size, _):
    return [
        f"Resize each slice to {size} pixels, whatever its proportions, bilinearly, "
        "antialiased where it shrinks.",
        "Resize the maps back in the same way.",
    ]


def _pad(size, resampled):
    # Without a spacing a slice fills the square.
    when = (
        "only where it is larger" if resampled else "until two of its sides touch them"
    )
    return [
        *resampled,
        f"Resize each slice to {size} pixels in its proportions, {when}.",
        "Put it in the middle, and fill what is around it with its lowest value of each "
        "channel.",
        "Cut its part out of the maps, and resize that back.",
    ]


def _tile(size, resampled):
    return [
        *resampled,
        f"Fill a slice that is smaller than {size} pixels with its lowest values around it, "
        f"and cut a larger one into tiles of {size} that overlap by half.",
        "Average the maps of the tiles, and resize them back. Mode predict averages at every "
        "denoising step instead, so masks of several tiles differ from its own.",
    ]


_STEPS = {"squash": _squash, "pad": _pad, "tile": _tile}
