"""Finds values that no scanner gives and that stand for "nothing was scanned here".

Tools fill what lies outside a scan with numbers such as -1e6 or the lowest float32. Such
a fill would stretch the grey scale of its slice until all tissue is one grey, and mix
with the tissue at its border when the slice is resized.
"""

import numpy as np
from jaxtyping import Shaped

# No image in Hounsfield units or of MR comes near it; int16 does not reach it.
HIGHEST = -1e5
# The fill takes this percentile of the other pixels, so it looks like their darkest.
_PERCENTILE = 0.5


def without_padding(image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """Replaces padding in each channel of a slice by the 0.5 percentile of the rest.

    A channel is padded where it has pixels at or below HIGHEST, and more than half of
    these have exactly its lowest value: a fill is one number, but for a few pixels at
    its border where the scan was resampled. A channel of padding alone becomes 0. Any
    other image is returned as it is.
    """
    if image.min() > HIGHEST:
        return image
    # Float64 holds the distance between the ends of float32.
    changed = image.astype(np.float64)
    for channel in np.moveaxis(changed, -1, 0):
        padding = channel <= HIGHEST
        lowest = np.count_nonzero(channel == channel.min())
        if 2 * lowest > np.count_nonzero(padding) > 0:
            rest = channel[~padding]
            channel[padding] = np.percentile(rest, _PERCENTILE) if rest.size else 0
    return changed.astype(np.float32)
