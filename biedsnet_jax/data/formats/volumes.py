"""Turns a scan in three dimensions into slices of a plane, and slices back into the scan.

A file keeps its voxels in any axis order and flip. Its affine says which: [x, y, z, 1]
mm = affine @ [i, j, k, 1], with x from the patient's left to right, y from back to
front, z from feet to head (RAS+, as in NIfTI). Slices are canonical, as a radiologist
sees them. Axial ones follow from the feet up, with rows from front to back and columns
from the patient's right to left. Coronal ones follow from front to back, with rows from
the head down and columns from right to left. Sagittal ones follow from right to left,
with rows from the head down and columns from front to back. An oblique scan is brought
to the nearest of these orders and never resampled, so that every voxel of a mask is one
of the scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

# Where columns, rows and slices of a plane lead: left, posterior, superior, inferior.
# Axial ones follow along the axis d of axial slices, coronal ones h, sagittal ones w.
PLANES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
# Slices are so many times further apart than pixels.
_THICK = 2.0
# Slices have so many times the pixels that there are slices.
_FEW = 2
# Pixels of a side: with fewer a stack is refused, or warned of.
_LEAST, _NARROW = 10, 16
# For a scan by itself.
_FIX = "Resample it to even voxels, or train on this plane with data.plane."


@dataclass(frozen=True)
class Volume:
    """Voxels in the file's own order, in units of the scanner, and their places.

    Integers stay as they are; scaled or float voxels are float32 or float64.
    """

    voxels: Shaped[np.ndarray, "i j k *c"]
    affine: Shaped[np.ndarray, "4 4"]
    path: str
    # The header of a NIfTI file, so that a mask gets the same codes and units.
    header: nib.Nifti1Header | None = None
    # The plane of `slices`, one of PLANES.
    plane: str = "axial"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Count of voxels along the file's three axes."""
        return tuple(self.voxels.shape[:3])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns of `slices`."""
        i, j, k = nib.affines.voxel_sizes(self.canonical_affine)
        return float(k), float(j), float(i)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres, of an oblique or sheared grid too."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def canonical_affine(self) -> Shaped[np.ndarray, "4 4"]:
        """Affine of the voxels in canonical order."""
        return self.affine @ inv_ornt_aff(self._to_canonical, self.shape)

    @property
    def slices(self) -> Shaped[np.ndarray, "d h w *c"]:
        """View of the voxels as canonical slices."""
        return np.swapaxes(apply_orientation(self.voxels, self._to_canonical), 0, 2)

    def restore(
        self, slices: Shaped[np.ndarray, "d h w *n"]
    ) -> Shaped[np.ndarray, "i j k *n"]:
        """Brings canonical slices back into the file's own order, as a view."""
        own = ornt_transform(self._canonical, io_orientation(self.affine))
        return apply_orientation(np.swapaxes(slices, 0, 2), own)

    @property
    def _canonical(self):
        return axcodes2ornt(PLANES[self.plane])

    @property
    def _to_canonical(self):
        return ornt_transform(io_orientation(self.affine), self._canonical)


def neighbours(slices, index: int, context: int) -> Shaped[np.ndarray, "h w n"]:
    """Joins slice `index` with `context` slices on each side, from the feet up.

    `slices` is an array "d h w c", or `CachedSlices`, which has len and index as one. The
    result has n = c (2 context + 1) channels. Beyond the ends the last slice is repeated.
    """
    if not context:
        return slices[index]
    around = np.arange(index - context, index + context + 1)
    around = np.clip(around, 0, len(slices) - 1)
    return np.concatenate([slices[i] for i in around.tolist()], axis=-1)


def own_plane(volume: Volume) -> str:
    """The plane in which a scan was taken, where axial slices would cut across it.

    That is where axial slices would be thin or much coarser than the scan's own; else
    it is "axial".
    """
    volume = replace(volume, plane="axial")
    axis = _stack_axis(volume)
    return tuple(PLANES)[axis] if _is_cut_across(volume, axis) else "axial"


def is_lost(volume: Volume) -> bool:
    """Whether slices of the volume's plane leave next to nothing of a stack.

    They cut across it, one of their sides is below 10 pixels, and the scan's own slices
    have none.
    """
    axis = _stack_axis(volume)
    sizes = volume.slices.shape[:3]
    own = [sizes[n] for n in range(3) if n != axis]
    is_narrow = min(sizes[1:]) < _LEAST <= min(own)
    return is_narrow and _is_cut_across(volume, axis)


def plane_note(volume: Volume, fix: str = _FIX) -> str:
    """Warns of a scan whose slices are cut across; empty where nothing is lost.

    Raises BadInput, whose last sentence is `fix`, where the scan `is_lost`.
    """
    axis = _stack_axis(volume)
    if not _is_cut_across(volume, axis):
        return ""
    sizes = volume.slices.shape[:3]
    spacing = volume.spacing
    own = [sizes[n] for n in range(3) if n != axis]
    noun = "slice" if sizes[axis] == 1 else "slices"
    here = (
        f"{volume.path} is a stack of {sizes[axis]} {_plane_along(volume, axis)} {noun} "
        f"of {own[0]}x{own[1]} pixels"
    )
    seen = f"{sizes[1]}x{sizes[2]} pixels of {spacing[1]:.3g}x{spacing[2]:.3g} mm"
    if is_lost(volume):
        raise BadInput(
            f"{here}, but the network is given {volume.plane} slices, here of {seen}. {fix}"
        )
    return (
        f"{here}. The network is given {volume.plane} slices, which cut across them: "
        f"{seen}."
    )


def _is_cut_across(volume: Volume, axis: int) -> bool:
    """Whether slices of the volume's plane lose much of a stack along `axis`."""
    if axis == 0:
        return False
    sizes = volume.slices.shape[:3]
    spacing = volume.spacing
    own = [sizes[n] for n in range(3) if n != axis]
    own_spacing = [spacing[n] for n in range(3) if n != axis]
    least = min(sizes[1:])
    thin = least < _NARROW and min(own) > least
    return thin or max(spacing[1:]) >= _THICK * max(own_spacing)


def _plane_along(volume: Volume, axis: int) -> str:
    """The plane whose slices follow along an axis of "d h w"."""
    # Of the letters of columns, rows and slices, those of opposite ways are one axis.
    along = PLANES[volume.plane][2 - axis]
    return {"S": "axial", "I": "axial", "P": "coronal", "L": "sagittal"}[along]


def _stack_axis(volume: Volume) -> int:
    """Finds the axis of "d h w" along which the scan's own slices follow, else 0."""
    sizes = np.array(volume.slices.shape[:3])
    spacing = np.array(volume.spacing)
    fewest = int(sizes.argmin())
    coarsest = int(spacing.argmax())
    second = np.sort(sizes)[1]
    if sizes[fewest] == 1 < second:
        return fewest
    if spacing[coarsest] >= _THICK * np.sort(spacing)[1]:
        return coarsest
    return fewest if second >= _FEW * sizes[fewest] else 0


def check_affine(affine: Shaped[np.ndarray, "4 4"], path: object) -> None:
    """Raises BadInput for an affine that gives voxels no place or no volume."""
    if not _is_usable(affine):
        rows = affine[:3, :3].astype(float).round(6).tolist()
        raise BadInput(
            f"{path} has the affine {rows}, which gives its voxels no place. "
            "Write the scan again with its spacing and direction."
        )


def _is_usable(affine) -> bool:
    """Whether an affine is finite and its axes have lengths and directions."""
    if not np.isfinite(affine).all():
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        # Voxels of a microscope are small, a thousandth of a millimetre or less.
        if not sizes.min() > 1e-9:
            return False
        if not abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-6:
            return False
    # Nibabel drops an axis that has, but for rounding, the direction of another.
    return not np.isnan(io_orientation(affine)).any()


def check_same_grid(
    shape: Sequence[int],
    affine: np.ndarray,
    image_shape: Sequence[int],
    image_affine: np.ndarray,
    path: object,
) -> None:
    """Raises BadInput unless a mask lies voxel on voxel on its image."""
    if tuple(shape) != tuple(image_shape):
        raise BadInput(
            f"{path} has the shape {_by(shape)}, and its image {_by(image_shape)}. "
            "Make the mask on the grid of its image."
        )
    ranges = [(0, n - 1) for n in shape]
    corners = np.array(np.meshgrid(*ranges, [1], indexing="ij")).reshape(4, -1)
    off = np.abs((np.asarray(affine) - image_affine) @ corners)[:3].max()
    # Headers are rounded, so a twentieth of a voxel is no difference.
    if off > 0.05 * min(nib.affines.voxel_sizes(image_affine)):
        raise BadInput(
            f"{path} lies {off:.3g} mm off its image at a corner, by their affines. Resample the "
            "mask onto its image, or copy the image's header to it if only that is wrong."
        )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
