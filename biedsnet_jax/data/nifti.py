"""NIfTI files: a volume or its header read, a mask or a map written back on the same grid.

What is wrong with a file is one line that names it. Nothing is unpickled.
"""

import gzip
import zlib
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from biedsnet_jax import files
from biedsnet_jax.data.volumes import Volume, check_affine
from biedsnet_jax.errors import BadInput, reason

EXTENSIONS = (".nii", ".nii.gz")
_CHUNK = 2**24  # bytes decompressed at once
_GZIP_MOST = 1100  # deflate packs no better than 1032 to 1, so a header that says more is damaged


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(EXTENSIONS)


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    lower = path.name.lower()
    return path.name[: -len(next(e for e in reversed(EXTENSIONS) if lower.endswith(e)))]


def open_header(path: Path, stream: BufferedIOBase | None = None, packed: int = 0) -> nib.Nifti1Image:
    """The file with its voxels still on disk: `.shape` without trailing axes of 1, `.affine`, `.header`.

    Of a file in an archive give its unpacked `stream` and its `packed` size; `path` is then what errors call it.

    Raises BadInput for what is no NIfTI, holds no voxels or colours, or declares more than the file can hold.
    """
    try:
        image = nib.Nifti1Image.from_stream(stream) if stream else nib.load(path)
        shape, kind = image.shape, image.get_data_dtype()
    except Exception as error:  # a broken header meets nibabel with anything from HeaderDataError to OverflowError
        raise BadInput(f"not a NIfTI file, {reason(error)}, {path}; replace or remove it") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2 is one too; pairs and other formats are not
        raise BadInput(f"not a NIfTI file, {type(image).__name__}, {path}; save it as .nii.gz")
    if kind.fields or kind.kind not in "iuf":
        raise BadInput(f"voxels of {kind}, neither whole nor real numbers, {path}; save one grey value a voxel")
    if len(shape) < 2 or min(shape) < 1:
        raise BadInput(f"empty volume, {'x'.join(map(str, shape)) or 'no axes'}, {path}; replace or remove it")
    size = (packed if stream else path.stat().st_size) * (_GZIP_MOST if path.name.lower().endswith(".gz") else 1)
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


def read(path: Path, stream: BufferedIOBase | None = None, packed: int = 0) -> Volume:
    """The volume, in the units that the header's slope and intercept give; `stream` and `packed` as in `open_header`.

    Raises BadInput as `open_header` does, for a truncated file, voxels that are NaN or infinite, and for a fifth axis.
    """
    image = open_header(path, stream, packed)
    shape = volume_shape(image)
    if len(shape) > 4:
        raise BadInput(f"too many axes, {'x'.join(map(str, shape))}, {path}; save one volume, or one a channel")
    proxy = image.dataobj
    try:
        stored = _unzipped(path, proxy) if path.suffix.lower() == ".gz" and not stream else proxy.get_unscaled()
        voxels = np.asarray(stored).reshape(shape)
    except (EOFError, OSError, ValueError, zlib.error, MemoryError) as error:
        raise BadInput(f"unreadable or truncated file, {reason(error)}, {path}; replace or remove it") from error
    if (proxy.slope, proxy.inter) != (1, 0):
        voxels = voxels.astype(np.float32)  # nibabel's own scaling takes float64, twice the memory
        voxels *= np.float32(proxy.slope)
        voxels += np.float32(proxy.inter)
    if voxels.dtype.kind == "f" and (count := _count_not_finite(voxels)):
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
        off = np.abs(whole - voxels) > 1e-3  # less than that is the rounding of a header's slope
        if off.any():
            worst = float(voxels[off][0])
            raise BadInput(f"labels that are not whole, {worst:.4g}, {volume.path}; write whole numbers")
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
        voxels = np.stack([_steps(one, slope) for one in voxels])  # one by one, in little memory
    kind = nib.Nifti2Image if isinstance(volume.header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(voxels, volume.affine, _header(volume.header), dtype=voxels.dtype)
    if volume.header is None:
        image.set_sform(volume.affine, code="scanner")
        image.set_qform(_without_shear(volume.affine), code="scanner")  # which a qform cannot hold
        image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    with files.whole_file(path) as partial:
        image.to_filename(partial)


def _steps(values, slope):
    return np.rint(np.clip(np.ascontiguousarray(values), 0, 1) / slope).astype(np.uint16)


def _without_shear(affine: Shaped[np.ndarray, "4 4"]) -> Shaped[np.ndarray, "4 4"]:
    """The step between slices along their normal, as programs without shear read a tilted scan; slices stay."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    upright = affine.copy()
    upright[:3, 2] = normal * (affine[:3, 2] @ normal)
    return upright


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


def _unzipped(path: Path, proxy) -> Shaped[np.ndarray, "..."]:
    """The stored voxels. Not by nibabel, which stops short of the checksum at the end and takes damage for voxels."""
    voxels = np.empty(proxy.shape, proxy.dtype, order="F")
    left = memoryview(voxels.T.reshape(-1).view(np.uint8))
    with gzip.open(path) as file:
        file.seek(proxy.offset)
        while left:
            read = file.readinto(left[:_CHUNK])
            if not read:
                raise EOFError(f"{len(left)} bytes of voxels are missing")
            left = left[read:]
        while file.read(_CHUNK):
            pass
    return voxels


def _count_not_finite(voxels) -> int:
    """Slice by slice, since a mask of a whole volume is a quarter of it."""
    return sum(int(np.count_nonzero(~np.isfinite(voxels[..., k]))) for k in range(voxels.shape[-1]))
