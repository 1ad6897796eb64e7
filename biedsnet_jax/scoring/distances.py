"""Measures how far apart two masks lie: surface distances for `metrics.standard`, the
row-wise Hausdorff distance for `metrics.paper`.

Directed distances run from the points A of one mask to the nearest point of the other's
B, d(a, B) = min_b |a - b|, in both directions: HD = max(max_a d(a, B), max_b d(b, A)).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import cKDTree

from biedsnet_jax.errors import BadInput

# One number an axis, in mm.
Spacing = Sequence[float] | Float[np.ndarray, " axes"]
# Border pixels: a tree of more takes longer than a distance transform of their box.
MOST_POINTS = 4_000_000
# Of one mask: the search for the nearest of the other takes all cores.
_MANY_POINTS = 100_000


@dataclass(frozen=True)
class Borders:
    """Border pixels of a predicted and a true mask on one grid.

    A border pixel has a face neighbour (4 in the plane, 6 in a volume) outside the mask
    or outside the image.
    """

    shape: tuple[int, ...]
    # Of the box that holds both masks; without a predicted or a true pixel, empty.
    pred: Bool[np.ndarray, "*box"]
    truth: Bool[np.ndarray, "*box"]

    def distances(
        self, scale: Float[np.ndarray, " axes"]
    ) -> tuple[Float[np.ndarray, " pred"], Float[np.ndarray, " truth"]]:
        """Distances from each border pixel to the other border, there and back."""
        if (scale != scale[0]).any():
            return self._search(scale)
        # Square pixels need one search for pixels and millimetres.
        there, back = self._in_pixels
        return there * scale[0], back * scale[0]

    @functools.cached_property
    def _in_pixels(self):
        return self._search(np.ones(len(self.shape)))

    def _search(self, scale):
        there = _nearest(self.pred, self.truth, scale)
        return there, _nearest(self.truth, self.pred, scale)


def borders(
    *, pred: Bool[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"]
) -> Borders:
    """Finds the border pixels of two masks, which every distance starts from."""
    box = bounding_box(pred, truth)
    return Borders(truth.shape, _border(pred[box]), _border(truth[box]))


def bounding_box(*masks: Bool[np.ndarray, "*space"]) -> tuple[slice, ...]:
    """Smallest box that holds every pixel of some masks of one shape."""
    box = [slice(None)] * masks[0].ndim
    for axis in range(masks[0].ndim):
        others = tuple(n for n in range(masks[0].ndim) if n != axis)
        # Within the box so far, so that a small mask is read once.
        used = np.any([mask[tuple(box)].any(axis=others) for mask in masks], axis=0)
        places = np.flatnonzero(used)
        if not places.size:
            return (slice(0, 0),) * masks[0].ndim
        box[axis] = slice(int(places[0]), int(places[-1]) + 1)
    return tuple(box)


def surface_distances(
    found: Borders, *, spacing: Spacing, tolerance: float
) -> tuple[float, float, float, float]:
    """Computes (HD, HD95, ASSD, NSD) between the borders of two masks.

    The first three and `tolerance` are in the units of `spacing`, one number an axis.

    From each border pixel of one mask to the nearest of the other, in both directions:
    HD is the largest distance, HD95 the larger of the two directed 95th percentiles
    (linear interpolation), ASSD the mean of the two directed means. Tools that pool both
    directions before the percentile or the mean (medpy) differ slightly in the last
    two. NSD, the surface Dice of Nikolov et al. 2018 (arXiv:1809.04430), is the share of
    all border pixels, of both masks together, that lie no farther than `tolerance` from
    the other's border; they weigh border elements by size, here all count 1.

    Empty truth gives NaN; an empty prediction the image diagonal, and 0 for NSD (see
    `standard`).
    """
    scale = np.asarray(spacing, dtype=float)
    positive = np.isfinite(scale) & (scale > 0)
    if scale.shape != (len(found.shape),) or not positive.all():
        raise BadInput(
            f"The spacing of the image is {scale.tolist()}. Give {len(found.shape)} positive "
            "numbers in its header, mm along each axis."
        )
    if not found.truth.any():
        return math.nan, math.nan, math.nan, math.nan
    if not found.pred.any():
        diagonal = float(np.linalg.norm((np.array(found.shape) - 1) * scale))
        return diagonal, diagonal, diagonal, 0.0
    there, back = found.distances(scale)
    largest = max(there.max(), back.max())
    largest_95 = max(np.percentile(there, 95), np.percentile(back, 95))
    mean = (there.mean() + back.mean()) / 2
    # A distance of exactly the tolerance counts: 3 x 0.1 mm is 0.30000000000000004.
    reach = tolerance * (1 + 1e-9)
    near = np.count_nonzero(there <= reach) + np.count_nonzero(back <= reach)
    share = near / (len(there) + len(back))
    return float(largest), float(largest_95), float(mean), float(share)


def row_hausdorff(
    *, pred: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]
) -> float:
    """Computes the Hausdorff distance of two masks whose points are their image rows.

    That is `scipy.spatial.distance.directed_hausdorff` on the arrays, both directions.

    Two rows of 0 and 1 lie sqrt(number of differing pixels) apart. One matrix product
    gives all pairs, 50 times faster than scipy on a slice with a small lesion; float32
    counts exactly up to 2^24.
    """
    p = pred.astype(np.float32)
    t = truth.astype(np.float32)
    of_p = p.sum(axis=1)[:, None]
    of_t = t.sum(axis=1)[None, :]
    # Rows differ where one has a pixel and not both.
    differing = of_p + of_t - 2 * p @ t.T
    there = differing.min(axis=1).max()
    back = differing.min(axis=0).max()
    return math.sqrt(max(there, back))


def _border(mask: np.ndarray) -> np.ndarray:
    """Marks the pixels of a mask with a face neighbour outside it or the array."""
    # A box without a pixel has no ends.
    if not mask.size:
        return mask.copy()
    inside = mask.copy()
    for axis in range(mask.ndim):
        before = (slice(None),) * axis
        lower = (*before, slice(None, -1))
        upper = (*before, slice(1, None))
        ends = (*before, [0, -1])
        inside[upper] &= mask[lower]
        inside[lower] &= mask[upper]
        inside[ends] = False
    return mask & ~inside


def _nearest(border: np.ndarray, other: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Distances from each pixel of `border` to the nearest of `other`."""
    if np.count_nonzero(border) + np.count_nonzero(other) > MOST_POINTS:
        return _nearest_by_transform(border, other, scale)
    points = np.argwhere(border)
    distances = np.zeros(len(points))
    # Pixels that are of both borders need no search.
    apart = ~other[tuple(points.T)]
    if apart.any():
        # A plain tree is built faster, and is asked once. On a grid many pixels are
        # nearly as near, so that large leaves are faster than a deep tree.
        tree = cKDTree(
            np.argwhere(other) * scale,
            leafsize=64,
            balanced_tree=False,
            compact_nodes=False,
        )
        asked = points[apart] * scale
        # Threads for a slice would take longer to start than to search.
        workers = -1 if len(asked) > _MANY_POINTS else 1
        distances[apart] = tree.query(asked, workers=workers)[0]
    return distances


def _nearest_by_transform(border, other, scale) -> np.ndarray:
    """The same as `_nearest`, in time and memory that follow the box alone."""
    # Indices in int32 take half the memory of distances.
    index = ndimage.distance_transform_edt(
        ~other, sampling=scale, return_distances=False, return_indices=True
    )
    distances = []
    # Slab by slab, since the points of a whole volume would not fit beside the indices.
    for z in range(len(border)):
        points = np.argwhere(border[z])
        here = (z, *points.T)
        nearest = np.stack([axis[here] for axis in index], axis=-1)
        own = np.concatenate([np.full((len(points), 1), z), points], axis=-1)
        distances.append(np.linalg.norm((nearest - own) * scale, axis=-1))
    return np.concatenate(distances)
