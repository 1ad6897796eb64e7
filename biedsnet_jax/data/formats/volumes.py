"""A scan in three dimensions and its axial slices, there and back.

A file keeps its voxels in any axis order and flip; its affine says which: [x, y, z, 1]
mm = affine @ [i, j, k, 1], with x to the patient's left-to-right, y back-to-front, z
feet-to-head (RAS+, as NIfTI has it). Slices are canonical, as a radiologist sees them:
from the feet up, rows from front to back, columns from the patient's right to left. An
oblique scan is brought to the nearest of these orders and never resampled, so that
every voxel of a mask has its own voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import nibabel as nib
import numpy as np
from jaxtyping import Shaped
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from biedsnet_jax.errors import BadInput

# i to the left, j to the back, k to the head
CANONICAL = axcodes2ornt("LPS")
# of slices that follow along axis d, h or w
_PLANES = ("axial", "coronal", "sagittal")
# times the spacing of the other axes: that of slices
_THICK = 2.0
# other axes have so many times the voxels: those are slices
_FEW = 2
# pixels of a side: below it is refused, or told
_LEAST, _NARROW = 10, 16


@runtime_checkable
class Slices(Protocol):
    """Slices "h w c" by number: an array "d h w c", or one kept on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Shaped[np.ndarray, "h w c"]: ...


@dataclass(frozen=True)
class Volume:
    """Voxels "i j k" or "i j k c" in the file's own order, in the units of the scanner,
    and where they lie.

    Integers stay as they are; scaled or float voxels are float32 or float64.
    """

    voxels: Shaped[np.ndarray, "i j k *c"]
    affine: Shaped[np.ndarray, "4 4"]
    path: str
    # of a NIfTI file, so that a mask gets the same codes and units
    header: nib.Nifti1Header | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the file's three axes."""
        return tuple(self.voxels.shape[:3])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns of `slices`."""
        i, j, k = nib.affines.voxel_sizes(self.canonical_affine)
        return float(k), float(j), float(i)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres, exact for an oblique or sheared grid too."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def canonical_affine(self) -> Shaped[np.ndarray, "4 4"]:
        """The affine of the canonical order of voxels."""
        return self.affine @ inv_ornt_aff(self._to_canonical, self.shape)

    @property
    def slices(self) -> Shaped[np.ndarray, "d h w *c"]:
        """A view as canonical slices."""
        return np.swapaxes(apply_orientation(self.voxels, self._to_canonical), 0, 2)

    def restore(
        self, slices: Shaped[np.ndarray, "d h w *n"]
    ) -> Shaped[np.ndarray, "i j k *n"]:
        """The way back of `slices`: canonical slices in the file's own order, a view."""
        return apply_orientation(
            np.swapaxes(slices, 0, 2),
            ornt_transform(CANONICAL, io_orientation(self.affine)),
        )

    @property
    def _to_canonical(self):
        return ornt_transform(io_orientation(self.affine), CANONICAL)


def neighbours(slices: Slices, index: int, context: int) -> Shaped[np.ndarray, "h w n"]:
    """Slice `index` between `context` slices on each side as n = c (2 context + 1)
    channels, from the feet up.

    Beyond the ends the last slice is repeated.
    """
    if not context:
        return slices[index]
    around = np.clip(
        np.arange(index - context, index + context + 1), 0, len(slices) - 1
    )
    return np.concatenate([slices[i] for i in around.tolist()], axis=-1)


def plane_note(volume: Volume) -> str:
    """What to tell of a scan in sagittal or coronal slices; empty where nothing is
    lost.

    Raises BadInput where next to nothing is left: an axial slice has a side below 10
    pixels, which the scan's own slices have not.
    """
    sizes, spacing, axis = volume.slices.shape[:3], volume.spacing, _stack_axis(volume)
    own = [sizes[n] for n in range(3) if n != axis]
    least = min(sizes[1:])
    thin = least < _NARROW and min(own) > least
    coarse = max(spacing[1:]) >= _THICK * max(spacing[n] for n in range(3) if n != axis)
    if axis == 0 or not (thin or coarse):
        return ""
    slices = f"{sizes[axis]} {_PLANES[axis]} slice{'s' * (sizes[axis] > 1)}"
    here = f"{volume.path} is a stack of {slices} of {own[0]}x{own[1]} pixels"
    seen = f"{sizes[1]}x{sizes[2]} pixels of {spacing[1]:.3g}x{spacing[2]:.3g} mm"
    if least < _LEAST <= min(own):
        raise BadInput(
            f"{here}, but the network is given axial slices, here of {seen}. "
            "Resample it to even voxels, or turn its axes so that its slices count as axial."
        )
    return f"{here}. The network is given axial slices, which cut across them: {seen}."


def _stack_axis(volume: Volume) -> int:
    """The axis of canonical slices "d h w" along which the scan's own slices follow,
    else 0.
    """
    sizes, spacing = np.array(volume.slices.shape[:3]), np.array(volume.spacing)
    fewest, coarsest = int(sizes.argmin()), int(spacing.argmax())
    second = np.sort(sizes)[1]
    if sizes[fewest] == 1 < second:
        return fewest
    if spacing[coarsest] >= _THICK * np.sort(spacing)[1]:
        return coarsest
    return fewest if second >= _FEW * sizes[fewest] else 0


def check_affine(affine: Shaped[np.ndarray, "4 4"], path: object) -> None:
    """Raises BadInput for an affine that gives voxels no place: not finite, or with an
    axis of no length.
    """
    if not _has_a_volume(affine) or _has_lost_axis(affine):
        rows = [[round(float(x), 6) for x in row] for row in affine[:3, :3]]
        raise BadInput(
            f"no usable affine, {rows}, {path}; write the scan again with its spacing and direction"
        )


def _has_a_volume(affine) -> bool:
    """Whether a voxel has one, however small: a micrometre is a thousandth of the
    millimetre.
    """
    if not np.isfinite(affine).all():
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        return bool(
            sizes.min() > 1e-9 and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-6
        )


def _has_lost_axis(affine) -> bool:
    """Whether an axis has, but for rounding, the direction of another."""
    return bool(np.isnan(io_orientation(affine)).any())


def check_same_grid(
    shape: Sequence[int],
    affine: np.ndarray,
    image_shape: Sequence[int],
    image_affine: np.ndarray,
    path: object,
) -> None:
    """Raises BadInput unless a mask lies voxel on voxel on its image, to 0.05 voxels,
    since headers are rounded.
    """
    if tuple(shape) != tuple(image_shape):
        sizes = " against ".join(
            "x".join(map(str, size)) for size in (image_shape, shape)
        )
        raise BadInput(
            f"image and mask differ in shape, {sizes}, {path}; make the mask on the grid of its image"
        )
    corners = np.array(
        np.meshgrid(*((0, n - 1) for n in shape), [1], indexing="ij")
    ).reshape(4, -1)
    off = np.abs((np.asarray(affine) - image_affine) @ corners)[:3].max()
    if off > 0.05 * min(nib.affines.voxel_sizes(image_affine)):
        raise BadInput(
            f"image and mask differ in affine, {off:.3g} mm apart at a corner, {path}; "
            "resample the mask onto its image, or copy the image's header to it if only that is wrong"
        )
