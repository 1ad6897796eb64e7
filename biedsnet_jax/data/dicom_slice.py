"""One DICOM file: the place of each of its slices by the header, and their values. pydicom is used here alone.

Whatever pydicom raises over a file becomes a BadFile, a BadInput that names the file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from biedsnet_jax.errors import BadInput, reason, shown

_GROUP = {  # where a file of many frames has what a file of one slice has at the top
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
_MADE = ("SEG", "RTDOSE")  # Modality


class BadFile(BadInput):
    """One file is not usable; other errors, such as no pydicom, concern all."""


@dataclass(frozen=True)
class Slice:
    """One plane, its pixels not read yet. Lengths in mm, in DICOM's axes."""

    path: Path
    frame: int
    size: tuple[int, int]  # rows, columns
    spacing: Float[np.ndarray, "2"]  # between rows, between columns
    thickness: float
    directions: Float[np.ndarray, "2 3"]  # along a row, along a column
    position: Float[np.ndarray, "3"]  # of the first pixel
    slope: float
    intercept: float

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """Along a row x along a column."""
        return np.cross(*self.directions)

    @property
    def height(self) -> float:
        """Along the normal."""
        return float(self.position @ self.normal)


@contextmanager
def opened(path: Path, *, pixels: bool = False) -> Iterator:
    """The data set of a file, up to its pixels or with them; an error meanwhile is a BadFile."""
    try:
        import pydicom.pixels  # since version 3
    except ImportError:
        raise BadInput(f"DICOM without pydicom, {path.name}, {path.parent}; pip install 'pydicom>=3'") from None
    try:
        yield pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (BadInput, MemoryError):
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise BadFile(f"not a DICOM file, no DICM after 128 bytes, {path}; export it again or remove it") from error
    except Exception as error:  # a broken file meets pydicom with anything
        raise BadFile(f"unreadable or truncated file, {reason(error)}, {path}; export it again") from error


def is_scan(header, path: Path) -> bool:
    """False for reports, and for what has pixels but was made from a scan. Raises BadFile for an image cut short."""
    if "Rows" in header:
        return header.get("Modality") not in _MADE
    # in order of their tags, so that the class is complete where the instance follows
    report = "SOPInstanceUID" in header and "Image Storage" not in header.SOPClassUID.name
    if not report and "DirectoryRecordSequence" not in header:  # which is a DICOMDIR
        raise BadFile(f"unreadable or truncated file, an image without Rows, {path}; export it again")
    return False


def height(header, path: Path) -> float:
    """`Slice.height` by the header; 0 for a file of many frames or without a place."""
    try:
        directions = _directions(header, 0, path)
        return float(_numbers(header, 0, "ImagePositionPatient", 3, path) @ np.cross(*directions))
    except BadFile:
        return 0.0


def read(path: Path) -> list[Slice]:
    """The slices of one file: one, or of enhanced DICOM one a frame.

    Raises BadFile for colour, values by a table, and frames or slices without place and size.
    """
    with opened(path) as header:
        colours = header.get("PhotometricInterpretation")
        if not is_scan(header, path) or colours not in ("MONOCHROME1", "MONOCHROME2"):
            raise BadFile(
                f"not one grey value a pixel, {shown(colours)}, {path}; export the grey images or leave it out"
            )
        if header.get("ModalityLUTSequence"):
            raise BadFile(f"values by a table, ModalityLUTSequence, {path}; export it with slope and intercept")
        frames = int(header.get("NumberOfFrames") or 1)
        if frames != len(header.get("PerFrameFunctionalGroupsSequence") or [None]):
            raise BadFile(f"frames without a place each, {frames}, {path}; export a file a slice, or enhanced DICOM")
        return [_slice(header, frame, path) for frame in range(frames)]


def values(slices: Sequence[Slice]) -> Iterator[Num[np.ndarray, "h w"]]:
    """Of slices of one file: whole numbers where slope and intercept keep them whole, else float32.

    MONOCHROME1, where low is bright, is turned round before. Raises BadFile for pixels that are cut short, need a
    plugin of pydicom, or are not numbers.
    """
    path = slices[0].path
    with opened(path, pixels=True) as data:
        highest = -1 if data.PixelRepresentation else 2**data.BitsStored - 1
        inverted = data.PhotometricInterpretation == "MONOCHROME1"
        for one, pixels in zip(slices, _decode(data, [one.frame for one in slices], path)):
            if pixels.shape != one.size:
                raise BadFile(f"pixels of another size, {pixels.shape} for {one.size}, {path}; export it again")
            yield _rescale(highest - pixels.astype(np.int64) if inverted else pixels, one)


def _slice(header, frame, path) -> Slice:
    def number(name, missing=None):
        return float(_numbers(header, frame, name, 1, path, missing=missing)[0])

    return Slice(
        path=path,
        frame=frame,
        size=(int(number("Rows")), int(number("Columns"))),
        spacing=_numbers(header, frame, "PixelSpacing", 2, path),
        thickness=number("SliceThickness", missing=0),
        directions=_directions(header, frame, path),
        position=_numbers(header, frame, "ImagePositionPatient", 3, path),
        slope=number("RescaleSlope", missing=1),
        intercept=number("RescaleIntercept", missing=0),
    )


def _numbers(header, frame, name, count, path, *, missing=None) -> Float[np.ndarray, " n"]:
    """A field of a frame: its own, else what all frames share, else the file's. Raises BadFile where it is unusable."""
    value = header.get(name)
    for groups, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        group = header.get(groups)
        inner = group[index].get(_GROUP.get(name, "")) if group else None
        value = inner[0].get(name, value) if inner else value
    value = missing if value is None else value
    try:
        numbers = np.array(value, float).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        what = f"no {name}, nothing" if value is None else f"no usable {name}, {shown(value)}"
        raise BadFile(f"{what}, {path}; export it again with its place and size in mm, or leave it out")
    return numbers


def _directions(header, frame, path) -> Float[np.ndarray, "2 3"]:
    directions = _numbers(header, frame, "ImageOrientationPatient", 6, path).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
        raise BadFile(f"no usable ImageOrientationPatient, {directions.ravel().tolist()}, {path}; export it again")
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _decode(data, frames, path) -> Iterator[Num[np.ndarray, "h w"]]:
    """Stored values of each frame."""
    import pydicom.pixels

    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        try:
            readable = pydicom.pixels.get_decoder(syntax).is_available
        except NotImplementedError:
            readable = False
        if not readable:
            name = shown(syntax.name)
            raise BadFile(f"compressed pixels, {name}, {path}; pip install 'pylibjpeg[all]', or export uncompressed")
    return pydicom.pixels.iter_pixels(data, indices=frames)


def _rescale(pixels: Num[np.ndarray, "h w"], one: Slice) -> Num[np.ndarray, "h w"]:
    if one.slope == 1 and one.intercept.is_integer() and pixels.dtype.kind in "iu":
        return pixels.astype(np.int64) + int(one.intercept)
    scaled = (pixels * one.slope + one.intercept).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise BadFile(f"values that are not numbers, NaN or infinite, {one.path}; export it again or remove it")
    return scaled
