"""NIfTI files: a volume or its header read, a mask or a map written back on the same grid.

What is wrong with a file is one line that names it. Nothing is unpickled.
"""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from biedsnet_jax.data.volumes import Volume, check_affine
from biedsnet_jax.types import BadInput

EXTENSIONS = (".nii", ".nii.gz")
_GZIP_MOST = 1100  # deflate packs no better than 1032 to 1, so a header that says more is damaged


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(EXTENSIONS)


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    lower = path.name.lower()
    return path.name[: -len(next(e for e in reversed(EXTENSIONS) if lower.endswith(e)))]


def open_header(path: Path) -> nib.Nifti1Image:
    """The file with its voxels still on disk: `.shape` without trailing axes of 1, `.affine`, `.header`.

    Raises BadInput for what is no NIfTI, holds no voxels or colours, or declares more than the file can hold.
    """
    try:
        image = nib.load(path)
        shape, kind = image.shape, image.get_data_dtype()
    except Exception as error:  # a broken header meets nibabel with anything from HeaderDataError to OverflowError
        raise BadInput(f"not a NIfTI file, {_reason(error)}, {path}; replace or remove it") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2 is one too; pairs and other formats are not
        raise BadInput(f"not a NIfTI file, {type(image).__name__}, {path}; save it as .nii.gz")
    if kind.fields or kind.kind not in "iuf":
        raise BadInput(f"voxels of {kind}, neither whole nor real numbers, {path}; save one grey value a voxel")
    if 0 in shape or len(shape) < 2:
        raise BadInput(f"empty volume, {'x'.join(map(str, shape)) or 'no axes'}, {path}; replace or remove it")
    size = path.stat().st_size * (_GZIP_MOST if path.name.lower().endswith(".gz") else 1)
    declared = np.prod(shape, dtype=float) * kind.itemsize
    if declared > size:
        raise BadInput(f"truncated file, {declared:.0f} bytes of voxels declared, {path}; replace or remove it")
    check_affine(image.affine, path)
    return image


def volume_shape(image: nib.Nifti1Image) -> tuple[int, ...]:
    """(i, j, k), or (i, j, k, c) with several channels: trailing axes of 1 dropped, a plane made a slice."""
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (3 - len(shape))


def read(path: Path) -> Volume:
    """The volume, in the units that the header's slope and intercept give.

    Raises BadInput as `open_header` does, for a truncated file, voxels that are NaN or infinite, and for a fifth axis.
    """
    image = open_header(path)
    shape = volume_shape(image)
    if len(shape) > 4:
        raise BadInput(f"too many axes, {'x'.join(map(str, shape))}, {path}; save one volume, or one a channel")
    proxy = image.dataobj
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    try:
        voxels = proxy.get_scaled(np.float32) if scaled else np.asanyarray(proxy.get_unscaled())
        voxels = voxels.reshape(shape)
        finite = voxels.dtype.kind != "f" or _count_not_finite(voxels) == 0
    except (EOFError, OSError, ValueError, zlib.error, MemoryError) as error:
        raise BadInput(f"unreadable or truncated file, {_reason(error)}, {path}; replace or remove it") from error
    if not finite:
        count = _count_not_finite(voxels)
        raise BadInput(
            f"voxels that are not numbers, {count} of {voxels.size} are NaN or infinite, {path}; write finite values"
        )
    return Volume(voxels, image.affine, str(path), image.header)


def check_content(volume: Volume) -> None:
    """Raises BadInput for a scan in which every voxel is the same."""
    low, high = volume.voxels.min(), volume.voxels.max()
    if low == high:
        raise BadInput(f"empty volume, every voxel is {low}, {volume.path}; replace or remove it")


def labels(volume: Volume) -> Shaped[np.ndarray, "i j k"]:
    """The voxels of a label map as whole numbers. Raises BadInput for fractions, negative values and channels."""
    voxels = volume.voxels
    if voxels.ndim > 3:
        raise BadInput(f"a mask of {voxels.shape[3]} channels, {volume.path}; save one label map")
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        if not np.array_equal(whole, voxels):
            raise BadInput(f"labels that are not whole, {float(voxels[whole != voxels][0]):.4g}, {volume.path}; round")
        voxels = whole
    if voxels.min() < 0 or voxels.max() > np.iinfo(np.uint16).max:
        worst = int(voxels.min() if voxels.min() < 0 else voxels.max())
        raise BadInput(f"label outside 0 to 65535, {worst}, {volume.path}; write labels from 0")
    return voxels.astype(np.uint8 if voxels.max() < 256 else np.uint16, copy=False)


def write(path: Path, voxels: Shaped[np.ndarray, "i j k"], volume: Volume) -> None:
    """Whole numbers, or a map of [0, 1] in steps of 1/65535, on the grid of `volume`: its affine, codes and units.

    Viewers see the values of the map, since the header holds the step. The file appears under its name when complete.
    """
    slope = 1.0
    if voxels.dtype.kind == "f":
        slope = 1 / np.iinfo(np.uint16).max
        voxels = np.rint(voxels.clip(0, 1) / slope).astype(np.uint16)
    image = nib.Nifti1Image(voxels, volume.affine, _header(volume.header), dtype=voxels.dtype)
    if volume.header is None:
        image.set_sform(volume.affine, code="scanner")
        image.set_qform(volume.affine, code="scanner", strip_shears=True)
        image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    partial = path.with_name(f".partial_{path.name}")  # the end of the name chooses compression
    image.to_filename(partial)
    partial.replace(path)


def _header(header):
    """A copy without what belongs to the grey values; nibabel keeps affine, codes and units."""
    if header is None:
        return None
    header = header.copy()
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = header["aux_file"] = header["intent_name"] = b""
    header.set_intent("none")
    header.extensions = type(header.extensions)()
    return header


def _count_not_finite(voxels) -> int:
    """Slice by slice, since a mask of a whole volume is a quarter of it."""
    return sum(np.count_nonzero(~np.isfinite(voxels[..., k])) for k in range(voxels.shape[-1]))


def _reason(error: Exception) -> str:
    """The first line of what an error says; its type where it says nothing."""
    text = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())
