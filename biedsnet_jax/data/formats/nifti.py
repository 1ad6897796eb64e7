"""Reads NIfTI volumes and headers, and writes masks and maps on the grid of a scan.

Affines and spacings are in millimetres, whatever unit the header names (micrometres or
metres; without a unit, millimetres are meant). A written file keeps the affine and the
unit of its scan. Whether a file is packed (gzip) follows from its first bytes, not from
its name. Nothing is unpickled.
"""

import gzip
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped

from biedsnet_jax.data.formats.volumes import Volume, check_affine
from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import files

EXTENSIONS = (".nii", ".nii.gz")
# Bytes unpacked at once.
_CHUNK = 2**24
# Deflate packs no better than 1032 to 1, so a header that declares more is damaged.
_GZIP_MOST = 1100
_GZIP_MARK = b"\x1f\x8b"
# Bits of xyzt_units with the unit of length; the rest is the unit of time.
_UNIT_BITS = 7
# Millimetres of a metre, a millimetre and a micrometre, by NIfTI's codes.
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}


def is_nifti(path: Path) -> bool:
    """Whether a file has the name of a NIfTI file."""
    return path.name.lower().endswith(EXTENSIONS)


def stem(path: Path) -> str:
    """Drops .nii or .nii.gz from the end of a name."""
    unpacked = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return unpacked.stem


def open_header(
    path: Path, stream: BufferedIOBase | None = None, packed: int = 0
) -> nib.Nifti1Image:
    """Opens a file with its voxels still on disk; for its place see `affine`.

    For a file in an archive give its unpacked `stream` and its `packed` size; errors
    then call it `path`. Raises BadInput for a file that is no NIfTI, holds no voxels or
    colours, or declares more than it can hold.
    """
    if not stream:
        check_regular(path)
    try:
        image = nib.Nifti1Image.from_stream(stream) if stream else _load(path)
        shape = image.shape
        kind = image.get_data_dtype()
    # Nibabel raises anything from HeaderDataError to OverflowError for a broken header.
    except Exception as error:
        raise BadInput(
            f"{path} is no NIfTI file: {reason(error)}. Replace or remove it."
        ) from error
    # Nifti2 is one too; pairs and other formats are not.
    if not isinstance(image, nib.Nifti1Image):
        raise BadInput(
            f"{path} is no NIfTI file but {type(image).__name__}. Save it as .nii.gz."
        )
    if kind.fields or kind.kind not in "iuf":
        raise BadInput(
            f"{path} has voxels of {kind}, neither whole nor real numbers. "
            "Save one grey value a voxel."
        )
    if len(shape) < 2 or min(shape) < 1:
        size = "x".join(map(str, shape)) or "no axes"
        raise BadInput(
            f"{path} holds an empty volume, of {size}. Replace or remove it."
        )
    if stream:
        most = packed
        zipped = path.name.lower().endswith(".gz")
    else:
        most = path.stat().st_size
        zipped = _is_packed(path)
    if zipped:
        most *= _GZIP_MOST
    declared = np.prod(shape, dtype=float) * kind.itemsize
    if declared > most:
        raise BadInput(
            f"{path} is truncated: it declares {declared:.0f} bytes of voxels. "
            "Replace or remove it."
        )
    check_affine(affine(image.header), path)
    return image


def affine(header: nib.Nifti1Header, *, unit: float = 1.0) -> Float[np.ndarray, "4 4"]:
    """Affine from voxels to mm; a header that names no unit counts in `unit` mm."""
    return _scaled(header.get_best_affine(), unit_mm(header) or unit)


def unit_mm(header: nib.Nifti1Header | None) -> float | None:
    """Millimetres of the unit that a header names; None where it names none."""
    if header is None:
        return None
    return _MM.get(int(header["xyzt_units"]) & _UNIT_BITS)


def unit_note(volume: Volume) -> str:
    """Warns of a file in another unit than millimetres; empty for others."""
    unit = unit_mm(volume.header) or 1.0
    if unit == 1:
        return ""
    name = "micrometres" if unit < 1 else "metres"
    sizes = " x ".join(f"{size:.4g}" for size in nib.affines.voxel_sizes(volume.affine))
    return f"{volume.path} is in {name} by its header, so its voxels are taken as {sizes} mm."


def _scaled(matrix, factor) -> Float[np.ndarray, "4 4"]:
    """Scales an affine to another unit of length."""
    return np.diag([factor, factor, factor, 1.0]) @ matrix


def volume_shape(image: nib.Nifti1Image) -> tuple[int, ...]:
    """Shape (i, j, k), or (i, j, k, c) with several channels.

    Trailing axes of 1 are dropped, and a plane becomes a slice.
    """
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (3 - len(shape))


def read_channels(paths: Sequence[Path]) -> list[Volume]:
    """Reads the files of one scan; where one names no unit, the first file's holds."""
    first = read(paths[0])
    unit = unit_mm(first.header) or 1.0
    return [first, *(read(path, unit=unit) for path in paths[1:])]


def read(
    path: Path,
    stream: BufferedIOBase | None = None,
    packed: int = 0,
    *,
    unit: float = 1.0,
) -> Volume:
    """Reads a volume, in the units that the header's slope and intercept give.

    For `stream` and `packed` see `open_header`, for `unit` see `affine`. Raises BadInput
    as `open_header` does, for a truncated file, voxels that are NaN or infinite, and a
    fifth axis.
    """
    image = open_header(path, stream, packed)
    shape = volume_shape(image)
    if len(shape) > 4:
        raise BadInput(
            f"{path} has too many axes, {'x'.join(map(str, shape))}. "
            "Save one volume, or one a channel."
        )
    proxy = image.dataobj
    try:
        voxels = proxy.get_unscaled() if stream else _stored(path, proxy)
        voxels = np.asarray(voxels).reshape(shape)
    except (EOFError, OSError, ValueError, zlib.error, MemoryError) as error:
        raise BadInput(
            f"{path} is damaged or truncated: {reason(error)}. Replace or remove it."
        ) from error
    if (proxy.slope, proxy.inter) != (1, 0):
        # Nibabel's own scaling takes float64, twice the memory.
        voxels = voxels.astype(np.float32)
        voxels *= np.float32(proxy.slope)
        voxels += np.float32(proxy.inter)
    if voxels.dtype.kind == "f":
        count = _count_not_finite(voxels)
        if count:
            raise BadInput(
                f"{path} has voxels that are no numbers: {count} of {voxels.size} are NaN or "
                "infinite. Write finite values."
            )
    return Volume(voxels, affine(image.header, unit=unit), str(path), image.header)


def check_content(volume: Volume) -> None:
    """Raises BadInput for a scan in which every voxel is the same."""
    low = volume.voxels.min()
    high = volume.voxels.max()
    if low == high:
        raise BadInput(
            f"{volume.path} is empty: every voxel is {low}. Replace or remove it."
        )


def labels(volume: Volume) -> Shaped[np.ndarray, "i j k"]:
    """Returns the voxels of a label map as whole numbers.

    Raises BadInput for fractions, values outside 0 to 65535 and channels.
    """
    voxels = volume.voxels
    if voxels.ndim > 3:
        raise BadInput(
            f"The mask {volume.path} has {voxels.shape[3]} channels. Save one label map."
        )
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        # A smaller difference is the rounding of a header's slope.
        off = np.abs(whole - voxels) > 1e-3
        if off.any():
            raise BadInput(
                f"The mask {volume.path} holds the label {voxels[off][0]:.4g}, which is not whole. "
                "Write whole numbers."
            )
        voxels = whole
    low, high = voxels.min(), voxels.max()
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise BadInput(
            f"The mask {volume.path} holds the label {int(low if low < 0 else high)}, outside 0 to "
            "65535. Write labels from 0."
        )
    return voxels.astype(np.uint8 if high < 256 else np.uint16, copy=False)


def write(path: Path, voxels: Shaped[np.ndarray, "i j k"], volume: Volume) -> None:
    """Writes a mask, or a map of [0, 1], on the grid of `volume`.

    The file gets the affine, codes and unit of `volume`. A map is stored in steps of
    1/65535; viewers see its values, since the header holds the step. The file appears
    under its name when it is complete.
    """
    slope = 1.0
    if voxels.dtype.kind == "f":
        slope = 1 / np.iinfo(np.uint16).max
        # Plane by plane, which takes little memory.
        voxels = np.stack([_steps(one, slope) for one in voxels])
    kind = nib.Nifti1Image
    if isinstance(volume.header, nib.Nifti2Header):
        kind = nib.Nifti2Image
    own_affine = _scaled(volume.affine, 1 / (unit_mm(volume.header) or 1.0))
    image = kind(voxels, own_affine, _header(volume.header), dtype=voxels.dtype)
    if volume.header is None:
        image.set_sform(volume.affine, code="scanner")
        # A qform holds no shear.
        image.set_qform(_without_shear(volume.affine), code="scanner")
        image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    with files.whole_file(path) as partial:
        image.to_filename(partial)


def _steps(values, slope):
    steps = np.clip(np.ascontiguousarray(values), 0, 1) / slope
    return np.rint(steps).astype(np.uint16)


def _without_shear(affine: Shaped[np.ndarray, "4 4"]) -> Shaped[np.ndarray, "4 4"]:
    """Turns the step between slices to their normal, and leaves the slices as they are.

    Programs that know no shear read a tilted scan so.
    """
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    upright = affine.copy()
    upright[:3, 2] = normal * (affine[:3, 2] @ normal)
    return upright


def _header(header):
    """Copies a header without the fields of grey values; affine and codes stay."""
    if header is None:
        return None
    header = header.copy()
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = header["aux_file"] = header["intent_name"] = b""
    header.set_intent("none")
    header.extensions = type(header.extensions)()
    return header


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP_MARK)) == _GZIP_MARK


def _load(path: Path) -> nib.Nifti1Image:
    """Opens an image with nibabel, by its content where its name says otherwise."""
    packed = _is_packed(path)
    if packed == path.name.lower().endswith(".gz"):
        return nib.load(path)
    with gzip.open(path) if packed else path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(0)
        # A file begins with the size of its header, in its own byte order.
        sizes = [int.from_bytes(head, order) for order in ("little", "big")]
        kind = nib.Nifti1Image
        if nib.Nifti2Header.sizeof_hdr in sizes:
            kind = nib.Nifti2Image
        return kind.from_stream(stream)


def _stored(path: Path, proxy) -> Shaped[np.ndarray, "..."]:
    """Reads the voxels as they are in the file: memory-mapped, or unpacked."""
    if _is_packed(path):
        return _unzipped(path, proxy)
    return np.memmap(
        path, proxy.dtype, mode="c", offset=proxy.offset, shape=proxy.shape, order="F"
    )


def _unzipped(path: Path, proxy) -> Shaped[np.ndarray, "..."]:
    """Unpacks the stored voxels and compares their checksum.

    Nibabel stops short of the checksum at the end, and so takes damage for voxels.
    """
    voxels = np.empty(proxy.shape, proxy.dtype, order="F")
    left = memoryview(voxels.T.reshape(-1).view(np.uint8))
    with gzip.open(path) as file:
        file.seek(proxy.offset)
        while left:
            read = file.readinto(left[:_CHUNK])
            if not read:
                raise EOFError(f"{len(left)} bytes of voxels are missing")
            left = left[read:]
        _read_to_the_end(file)
    return voxels


def _read_to_the_end(file: gzip.GzipFile) -> None:
    """Reads on to the checksum, which gzip compares."""
    try:
        while file.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        # Bytes after the checksum harm no voxel, and gzip itself passes over them.
        if not str(error).startswith("Not a gzipped file"):
            raise


def _count_not_finite(voxels) -> int:
    """Counts voxels that are NaN or infinite in float32, in which networks compute."""
    count = 0
    with np.errstate(over="ignore"):
        # Slice by slice, since flags of a whole volume take a quarter of its memory.
        for k in range(voxels.shape[-1]):
            one = voxels[..., k].astype(np.float32, copy=False)
            count += int(np.count_nonzero(~np.isfinite(one)))
    return count
