"""NIfTI files: a volume or its header read, a mask or a map written back on the same
grid.

Affines and spacings are in millimetres, whatever unit the header names (micrometres or
metres; without a unit, millimetres are meant). A written file keeps the affine and the
unit of its scan. Whether a file is packed (gzip) is told by its first bytes, not by its
name. What is wrong with a file is one line that names it. Nothing is unpickled.
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
# bytes decompressed at once
_CHUNK = 2**24
# deflate packs no better than 1032 to 1, so a header that says more is damaged
_GZIP_MOST = 1100
_GZIP_MARK = b"\x1f\x8b"
# of xyzt_units, the rest being the unit of time
_UNIT_BITS = 7
# of a metre, a millimetre, a micrometre, by NIfTI's codes
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(EXTENSIONS)


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    lower = path.name.lower()
    return path.name[: -len(next(e for e in reversed(EXTENSIONS) if lower.endswith(e)))]


def open_header(
    path: Path, stream: BufferedIOBase | None = None, packed: int = 0
) -> nib.Nifti1Image:
    """The file with its voxels still on disk: `.shape`, `.header`; for its place see
    `affine`.

    Of a file in an archive give its unpacked `stream` and its `packed` size; `path` is
    then what errors call it.

    Raises BadInput for what is no NIfTI, holds no voxels or colours, or declares more
    than the file can hold.
    """
    if not stream:
        check_regular(path)
    try:
        image = nib.Nifti1Image.from_stream(stream) if stream else _load(path)
        shape, kind = image.shape, image.get_data_dtype()
    # a broken header meets nibabel with anything from HeaderDataError to OverflowError
    except Exception as error:
        raise BadInput(
            f"not a NIfTI file, {reason(error)}, {path}; replace or remove it"
        ) from error
    # Nifti2 is one too; pairs and other formats are not
    if not isinstance(image, nib.Nifti1Image):
        raise BadInput(
            f"not a NIfTI file, {type(image).__name__}, {path}; save it as .nii.gz"
        )
    if kind.fields or kind.kind not in "iuf":
        raise BadInput(
            f"voxels of {kind}, neither whole nor real numbers, {path}; save one grey value a voxel"
        )
    if len(shape) < 2 or min(shape) < 1:
        raise BadInput(
            f"empty volume, {'x'.join(map(str, shape)) or 'no axes'}, {path}; replace or remove it"
        )
    zipped = path.name.lower().endswith(".gz") if stream else _is_packed(path)
    size = (packed if stream else path.stat().st_size) * (_GZIP_MOST if zipped else 1)
    declared = np.prod(shape, dtype=float) * kind.itemsize
    if declared > size:
        raise BadInput(
            f"truncated file, {declared:.0f} bytes of voxels declared, {path}; replace or remove it"
        )
    check_affine(affine(image.header), path)
    return image


def affine(header: nib.Nifti1Header, *, unit: float = 1.0) -> Float[np.ndarray, "4 4"]:
    """Voxels to millimetres; `unit` is what a header without a unit counts in, in mm."""
    return _scaled(header.get_best_affine(), unit_mm(header) or unit)


def unit_mm(header: nib.Nifti1Header | None) -> float | None:
    """Millimetres of the unit that a header names; None where it names none."""
    return None if header is None else _MM.get(int(header["xyzt_units"]) & _UNIT_BITS)


def unit_note(volume: Volume) -> str:
    """What to tell of a file in another unit than millimetres; empty for others."""
    unit = unit_mm(volume.header) or 1.0
    if unit == 1:
        return ""
    name = "micrometres" if unit < 1 else "metres"
    sizes = " x ".join(f"{size:.4g}" for size in nib.affines.voxel_sizes(volume.affine))
    return f"{volume.path} is in {name} by its header, so its voxels are taken as {sizes} mm."


def _scaled(matrix, factor) -> Float[np.ndarray, "4 4"]:
    """Other units of place for the same voxels."""
    return np.diag([factor, factor, factor, 1.0]) @ matrix


def volume_shape(image: nib.Nifti1Image) -> tuple[int, ...]:
    """(i, j, k), or (i, j, k, c) with several channels: trailing axes of 1 dropped, a
    plane made a slice.
    """
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (3 - len(shape))


def read_channels(paths: Sequence[Path]) -> list[Volume]:
    """The files of one scan; one that names no unit of length counts in that of the
    first.
    """
    first = read(paths[0])
    return [
        first,
        *(read(path, unit=unit_mm(first.header) or 1.0) for path in paths[1:]),
    ]


def read(
    path: Path,
    stream: BufferedIOBase | None = None,
    packed: int = 0,
    *,
    unit: float = 1.0,
) -> Volume:
    """The volume, in the units that the header's slope and intercept give; `stream` and
    `packed` as in `open_header`.

    `unit` as in `affine`.

    Raises BadInput as `open_header` does, for a truncated file, voxels that are NaN or
    infinite, and for a fifth axis.
    """
    image = open_header(path, stream, packed)
    shape = volume_shape(image)
    if len(shape) > 4:
        raise BadInput(
            f"too many axes, {'x'.join(map(str, shape))}, {path}; save one volume, or one a channel"
        )
    proxy = image.dataobj
    try:
        voxels = np.asarray(
            proxy.get_unscaled() if stream else _stored(path, proxy)
        ).reshape(shape)
    except (EOFError, OSError, ValueError, zlib.error, MemoryError) as error:
        raise BadInput(
            f"unreadable or truncated file, {reason(error)}, {path}; replace or remove it"
        ) from error
    if (proxy.slope, proxy.inter) != (1, 0):
        # nibabel's own scaling takes float64, twice the memory
        voxels = voxels.astype(np.float32)
        voxels *= np.float32(proxy.slope)
        voxels += np.float32(proxy.inter)
    if voxels.dtype.kind == "f" and (count := _count_not_finite(voxels)):
        raise BadInput(
            f"voxels that are not numbers, {count} of {voxels.size} are NaN or infinite, {path}; write finite values"
        )
    return Volume(voxels, affine(image.header, unit=unit), str(path), image.header)


def check_content(volume: Volume) -> None:
    """Raises BadInput for a scan in which every voxel is the same."""
    low, high = volume.voxels.min(), volume.voxels.max()
    if low == high:
        raise BadInput(
            f"empty volume, every voxel is {low}, {volume.path}; replace or remove it"
        )


def labels(volume: Volume) -> Shaped[np.ndarray, "i j k"]:
    """The voxels of a label map as whole numbers. Raises BadInput for fractions,
    negative values and channels.
    """
    voxels = volume.voxels
    if voxels.ndim > 3:
        raise BadInput(
            f"a mask of {voxels.shape[3]} channels, {volume.path}; save one label map"
        )
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        # less than that is the rounding of a header's slope
        off = np.abs(whole - voxels) > 1e-3
        if off.any():
            worst = float(voxels[off][0])
            raise BadInput(
                f"labels that are not whole, {worst:.4g}, {volume.path}; write whole numbers"
            )
        voxels = whole
    if voxels.min() < 0 or voxels.max() > np.iinfo(np.uint16).max:
        worst = int(voxels.min() if voxels.min() < 0 else voxels.max())
        raise BadInput(
            f"label outside 0 to 65535, {worst}, {volume.path}; write labels from 0"
        )
    return voxels.astype(np.uint8 if voxels.max() < 256 else np.uint16, copy=False)


def write(path: Path, voxels: Shaped[np.ndarray, "i j k"], volume: Volume) -> None:
    """Whole numbers, or a map of [0, 1] in steps of 1/65535, on the grid of `volume`:
    its affine, codes and units.

    Viewers see the values of the map, since the header holds the step. The file appears
    under its name when complete.
    """
    slope = 1.0
    if voxels.dtype.kind == "f":
        slope = 1 / np.iinfo(np.uint16).max
        # one by one, in little memory
        voxels = np.stack([_steps(one, slope) for one in voxels])
    kind = (
        nib.Nifti2Image
        if isinstance(volume.header, nib.Nifti2Header)
        else nib.Nifti1Image
    )
    there = _scaled(volume.affine, 1 / (unit_mm(volume.header) or 1.0))
    image = kind(voxels, there, _header(volume.header), dtype=voxels.dtype)
    if volume.header is None:
        image.set_sform(volume.affine, code="scanner")
        # which a qform cannot hold
        image.set_qform(_without_shear(volume.affine), code="scanner")
        image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    with files.whole_file(path) as partial:
        image.to_filename(partial)


def _steps(values, slope):
    return np.rint(np.clip(np.ascontiguousarray(values), 0, 1) / slope).astype(
        np.uint16
    )


def _without_shear(affine: Shaped[np.ndarray, "4 4"]) -> Shaped[np.ndarray, "4 4"]:
    """The step between slices along their normal, as programs without shear read a
    tilted scan; slices stay.
    """
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    upright = affine.copy()
    upright[:3, 2] = normal * (affine[:3, 2] @ normal)
    return upright


def _header(header):
    """A copy without what belongs to the grey values; nibabel keeps affine, codes and
    units.
    """
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
    """The image, which nibabel opens by its name; by its content where the name says
    otherwise.
    """
    packed = _is_packed(path)
    if packed == path.name.lower().endswith(".gz"):
        return nib.load(path)
    with gzip.open(path) if packed else path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(0)
        sizes = [int.from_bytes(head, order) for order in ("little", "big")]
        kind = (
            nib.Nifti2Image if nib.Nifti2Header.sizeof_hdr in sizes else nib.Nifti1Image
        )
        return kind.from_stream(stream)


def _stored(path: Path, proxy) -> Shaped[np.ndarray, "..."]:
    """The voxels as they are in the file: memory-mapped, or unpacked."""
    if _is_packed(path):
        return _unzipped(path, proxy)
    return np.memmap(
        path, proxy.dtype, mode="c", offset=proxy.offset, shape=proxy.shape, order="F"
    )


def _unzipped(path: Path, proxy) -> Shaped[np.ndarray, "..."]:
    """The stored voxels. Not by nibabel, which stops short of the checksum at the end
    and takes damage for voxels.
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
    """Compare the checksum; what follows it harms no voxel, and gzip itself passes over
    it.
    """
    try:
        while file.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):
            raise


def _count_not_finite(voxels) -> int:
    """In float32, as networks compute; by slice, since a mask of a volume is a quarter
    of it.
    """
    count = 0
    with np.errstate(over="ignore"):
        for k in range(voxels.shape[-1]):
            one = voxels[..., k].astype(np.float32, copy=False)
            count += int(np.count_nonzero(~np.isfinite(one)))
    return count
