"""Reads one DICOM file: the places of its slices, and their values.

Only this module uses pydicom, and makes what it raises over a file a BadFile, a BadInput
that names the file. A file has the mark DICM after 128 bytes or, as older archives wrote
it, begins with its first element at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from biedsnet_jax.data.walk import is_regular
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import extras

# A file of many frames has these fields in a sequence, a file of one slice at its top.
_GROUP = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
# Modalities of images that were made from a scan.
_MADE = ("SEG", "RTDOSE")
# ImageType of the scout that most series of CT and MR come with.
_LOCALIZER = "LOCALIZER"
# Modalities of slices, which have a place in the body.
_STACKED = ("CT", "MR", "PT", "NM", "")
_MARK, _BEFORE_MARK = b"DICM", 128
# The first element of a file without the mark is of one of these groups.
_META, _IDENTIFICATION = 2, 8
# If it is of _IDENTIFICATION, it is one of these elements.
_FIRST_ELEMENTS = (0x0, 0x1, 0x5, 0x8, 0x12, 0x16, 0x18, 0x20, 0x60)
# Its value representation, if it is given, is one of these.
_TYPES = (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM", b"DT", b"SH", b"LO", b"SQ")
# Value representations in _META whose length takes four bytes.
_LONG = (b"OB", b"UN")
# The most bytes that all elements of _META may take.
_META_MOST = 2**16
_DEFLATED = "1.2.840.10008.1.2.1.99"


class BadFile(BadInput):
    """One file is not usable; other errors, such as a missing pydicom, concern all."""


class NotDicom(BadFile):
    """The file is no DICOM, whatever its name or its first bytes say."""


@dataclass(frozen=True)
class Slice:
    """One plane whose pixels are not read yet; lengths in mm, in DICOM's axes."""

    path: Path
    frame: int
    size: tuple[int, int]  # rows, columns
    spacing: Float[np.ndarray, "2"]  # between rows, between columns
    thickness: float  # 0: the file does not say
    directions: Float[np.ndarray, "2 3"]  # along a row, along a column
    position: Float[np.ndarray, "3"]  # of the first pixel
    slope: float
    intercept: float

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """Normal of the plane, along a row x along a column."""
        return np.cross(*self.directions)

    @property
    def height(self) -> float:
        """Height of the plane along its normal."""
        return float(self.position @ self.normal)


def looks_like_dicom(path: Path) -> bool:
    """Whether a file has the mark, or begins as DICOM files without it do."""
    head = _head(path, _BEFORE_MARK + len(_MARK))
    return head[_BEFORE_MARK:] == _MARK or _begins_at_once(head)


def _begins_at_once(head: bytes) -> bool:
    """Whether bytes begin with a first element: known group, type or fitting length."""
    if len(head) < _BEFORE_MARK:
        return False
    group, element = (int.from_bytes(head[n : n + 2], "little") for n in (0, 2))
    if head[4:6] in _TYPES:
        return group == _IDENTIFICATION or (group == _META and element <= 2)
    if group != _IDENTIFICATION or element not in _FIRST_ELEMENTS:
        return False
    length = int.from_bytes(head[4:8], "little")
    # The first two elements are numbers of four bytes.
    longest = 4 if element < 2 else _BEFORE_MARK
    return 0 < length <= longest and length % 2 == 0


def _head(path: Path, size: int) -> bytes:
    """Reads the first bytes; none of what is no file."""
    if not is_regular(path):
        return b""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _is_deflated(path: Path) -> bool:
    """Whether a file that begins at once is deflated, or too long to say."""
    head, place = _head(path, _META_MOST), 0
    while int.from_bytes(head[place : place + 2], "little") == _META:
        if head[place + 4 : place + 6] in _LONG:
            start, size = place + 12, 4
        else:
            start, size = place + 8, 2
        length = int.from_bytes(head[start - size : start], "little")
        if head[start : start + length].rstrip(b"\0 ") == _DEFLATED.encode():
            return True
        place = start + length
    return place >= _META_MOST


@contextmanager
def opened(path: Path, *, pixels: bool = False) -> Iterator:
    """Opens the data set of a file, up to its pixels or with them.

    Whatever is raised meanwhile becomes a BadFile.
    """
    if not is_regular(path):
        raise BadFile(
            f"{path} is a named pipe or a device, not a file. Replace or remove it."
        )
    extras.need("dicom", f"{path} is DICOM, and reading it")
    import pydicom

    try:
        yield _read(path, pixels=pixels)
    except (BadInput, MemoryError):
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise NotDicom(
            f"{path} is no DICOM file: it has no DICM after 128 bytes. Export it again or "
            "remove it."
        ) from error
    # Pydicom raises errors of any kind for a broken file.
    except Exception as error:
        raise _damaged(path, reason(error)) from error


def _damaged(path: Path, why: str) -> BadFile:
    return BadFile(f"{path} is damaged or truncated: {why}. Export it again.")


def _read(path: Path, *, pixels: bool):
    """Reads a data set, without the mark only if its first bytes are those of DICOM."""
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except pydicom.errors.InvalidDicomError:
        if not looks_like_dicom(path):
            raise
    if _is_deflated(path):
        raise BadFile(
            f"{path} is deflated and has no mark DICM. Export it uncompressed."
        )
    try:
        data = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
    except MemoryError:
        raise
    # Only its first bytes are those of DICOM.
    except Exception as error:
        raise pydicom.errors.InvalidDicomError from error
    expected = ("SOPClassUID", "Rows", "DirectoryRecordSequence")
    if not any(name in data for name in expected):
        raise pydicom.errors.InvalidDicomError
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, _ = data.original_encoding
        explicit_uid, implicit_uid = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
        data.file_meta.TransferSyntaxUID = implicit_uid if implicit else explicit_uid
    return data


def why_no_scan(header) -> str:
    """Names what a file is for which `is_scan` is False."""
    kind = shown(header.get("Modality") or "no modality")
    if "DirectoryRecordSequence" in header:
        return "a DICOM directory"
    if _is_localizer(header):
        return f"a DICOM localizer ({kind})"
    if "Rows" in header:
        return f"DICOM made from a scan ({kind})"
    return f"DICOM without an image ({kind})"


def is_scan(header, path: Path) -> bool:
    """Whether a file is a scan: not a report, a localizer, or made from a scan.

    Raises BadFile for an image that is cut short.
    """
    if "Rows" in header:
        return header.get("Modality") not in _MADE and not _is_localizer(header)
    if "DirectoryRecordSequence" in header:
        return False
    # Elements are in the order of their tags, so the class is whole if the instance
    # follows.
    if "SOPInstanceUID" in header and "Image Storage" not in header.SOPClassUID.name:
        return False
    raise _damaged(path, "it is an image without Rows")


def _is_localizer(header) -> bool:
    kinds = header.get("ImageType") or ()
    return _LOCALIZER in ([kinds] if isinstance(kinds, str) else list(kinds))


def height(header, path: Path) -> float:
    """Height as `Slice.height`; 0 for a file of many frames or without a place."""
    try:
        position = _numbers(header, 0, "ImagePositionPatient", 3, path)
        return float(position @ np.cross(*_directions(header, 0, path)))
    except BadFile:
        return 0.0


def read(path: Path) -> list[Slice]:
    """Reads the slices of a file by its header: one, or of enhanced DICOM one a frame.

    Raises BadFile for colour, values by a table, and frames or slices without place and
    size.
    """
    with opened(path) as header:
        colours = header.get("PhotometricInterpretation")
        if not is_scan(header, path) or colours not in ("MONOCHROME1", "MONOCHROME2"):
            raise BadFile(
                f"{path} has not one grey value a pixel, but {shown(colours)}. "
                "Export the grey images or leave it out."
            )
        if header.get("ModalityLUTSequence"):
            raise BadFile(
                f"{path} gives its values by a table, ModalityLUTSequence. "
                "Export it with slope and intercept."
            )
        _check_stacked(header, path)
        frames = int(header.get("NumberOfFrames") or 1)
        if frames != len(header.get("PerFrameFunctionalGroupsSequence") or [None]):
            raise BadFile(
                f"{path} has {frames} frames, and not a place for each. "
                "Export a file a slice, or enhanced DICOM."
            )
        return [_slice(header, frame, path) for frame in range(frames)]


def _check_stacked(header, path: Path) -> None:
    """Raises BadFile for X-rays and other pictures, which have no place in the body."""
    modality = str(header.get("Modality") or "")
    if modality in _STACKED:
        return
    try:
        _numbers(header, 0, "ImagePositionPatient", 3, path)
    except BadFile:
        raise BadFile(
            f"{path} holds a picture without a place in the body, as X-rays and ultrasound are "
            f"(modality {shown(modality)}). "
            "Save such pictures as PNG, for training and for prediction."
        ) from None


def values(slices: Sequence[Slice]) -> Iterator[Num[np.ndarray, "h w"]]:
    """Reads the values of slices of one file.

    They are whole numbers where slope and intercept keep them whole, else float32.
    MONOCHROME1, where low is bright, is inverted before. Raises BadFile for pixels that
    are cut short, need a plugin of pydicom, or are not numbers.
    """
    path = slices[0].path
    with opened(path, pixels=True) as data:
        # Signed values are inverted about -1/2, which keeps them in their range.
        highest = -1 if data.PixelRepresentation else 2**data.BitsStored - 1
        inverted = data.PhotometricInterpretation == "MONOCHROME1"
        frames = [one.frame for one in slices]
        for one, pixels in zip(slices, _decode(data, frames, path)):
            if pixels.shape != one.size:
                raise BadFile(
                    f"{path} has pixels of the size {pixels.shape} where its header says "
                    f"{one.size}. Export it again."
                )
            if inverted:
                pixels = highest - pixels.astype(np.int64)
            yield _rescale(pixels, one)


def _slice(header, frame, path) -> Slice:
    def number(name, missing=None):
        return float(_numbers(header, frame, name, 1, path, missing=missing)[0])

    return Slice(
        path=path,
        frame=frame,
        size=(int(number("Rows")), int(number("Columns"))),
        spacing=_numbers(header, frame, "PixelSpacing", 2, path),
        thickness=_thickness(header, frame, path),
        directions=_directions(header, frame, path),
        position=_numbers(header, frame, "ImagePositionPatient", 3, path),
        slope=number("RescaleSlope", missing=1),
        intercept=number("RescaleIntercept", missing=0),
    )


def _thickness(header, frame, path) -> float:
    """Thickness in mm; 0 where the file says nothing that can be used."""
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        try:
            value = abs(float(_numbers(header, frame, name, 1, path, missing=0)[0]))
        except BadFile:
            continue
        if value > 0:
            return value
    return 0.0


def _numbers(
    header, frame, name, count, path, *, missing=None
) -> Float[np.ndarray, " n"]:
    """Reads a field of a frame: its own, else what all frames share, else the file's.

    Raises BadFile where it is unusable.
    """
    value = header.get(name)
    for groups, index in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", frame),
    ):
        group = header.get(groups)
        inner = group[index].get(_GROUP.get(name, "")) if group else None
        value = inner[0].get(name, value) if inner else value
    if value is None:
        value = missing
    try:
        numbers = np.array(value, float).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        what = "has no" if value is None else f"has {shown(value)} for its"
        raise BadFile(
            f"{path} {what} {name}. Export it again with its place and size in mm, or leave it out."
        )
    return numbers


def _directions(header, frame, path) -> Float[np.ndarray, "2 3"]:
    directions = _numbers(header, frame, "ImageOrientationPatient", 6, path)
    directions = directions.reshape(2, 3)
    # Rows and columns are unit vectors at right angles, but for rounding.
    if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
        raise BadFile(
            f"{path} has {directions.ravel().tolist()} for its ImageOrientationPatient, which are "
            "no directions. Export it again."
        )
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _decode(data, frames, path) -> Iterator[Num[np.ndarray, "h w"]]:
    """Decodes the stored values of each frame."""
    import pydicom.pixels

    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        try:
            readable = pydicom.pixels.get_decoder(syntax).is_available
        except NotImplementedError:
            readable = False
        if not readable:
            name = shown(syntax.name)
            raise BadFile(
                f"{path} has pixels compressed by {name}, which nothing here unpacks. "
                "pip install 'pylibjpeg[all]', or export it uncompressed."
            )
    else:
        _check_frames(data, path)
    return pydicom.pixels.iter_pixels(data, indices=frames)


def _check_frames(data, path):
    """Raises BadFile for pixels of more frames than declared: the size is wrong."""
    declared = int(data.get("NumberOfFrames") or 1)
    values = data.Rows * data.Columns * data.get("SamplesPerPixel", 1)
    bits = values * data.BitsAllocated
    there = 8 * len(data.get("PixelData") or b"") // max(1, bits)
    if there > declared:
        raise BadFile(
            f"{path} has pixels of {there} images of {data.Rows}x{data.Columns}, and says that it "
            f"holds {declared}. Export it again."
        )


def _rescale(pixels: Num[np.ndarray, "h w"], one: Slice) -> Num[np.ndarray, "h w"]:
    if one.slope == 1 and one.intercept.is_integer() and pixels.dtype.kind in "iu":
        return pixels.astype(np.int64) + int(one.intercept)
    scaled = (pixels * one.slope + one.intercept).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise BadFile(
            f"{one.path} has values that are NaN or infinite. Export it again or remove it."
        )
    return scaled
