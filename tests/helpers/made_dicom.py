"""Writes small DICOM files with pydicom."""

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = (1, 0, 0, 0, 1, 0)
SPACING = (0.8, 0.6)  # mm between rows, between columns


def data_set(
    path,
    pixels,
    *,
    series="1.2.3.1",
    kind=CTImageStorage,
    syntax=ExplicitVRLittleEndian,
) -> FileDataset:
    """Makes an image without a position.

    Pixels are "rows columns" or "frames rows columns", as stored.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2.3", series, "CT"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    # 1 stands for signed numbers.
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    return data


def write_slice(
    path,
    pixels,
    *,
    position,
    orientation=AXIAL,
    spacing=SPACING,
    series="1.2.3.1",
    **fields,
):
    """Writes one slice and returns its path; a field of None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data_set(path, pixels, series=series)
    fields = {
        "ImagePositionPatient": decimals(position),
        "ImageOrientationPatient": decimals(orientation),
        "PixelSpacing": list(spacing),
        # Positions tell the distance of slices; a reader that used this would fail.
        "SliceThickness": 9,
    } | fields
    for name, value in fields.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            delattr(data, name)
    data.save_as(path, enforce_file_format=True)
    return path


def positions(
    count, *, orientation=AXIAL, step=2.5, start=(10.0, -20.0, 30.0)
) -> np.ndarray:
    """Positions of slices that are `step` mm apart along the normal, "count 3"."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.asarray(start) + step * np.arange(count)[:, None] * normal


def write_series(
    folder,
    stored,
    *,
    orientation=AXIAL,
    step=2.5,
    skip=(),
    fields=lambda n: {},
    **kwargs,
) -> list:
    """Writes slices "n rows columns" without those of `skip`; returns their paths.

    Names and InstanceNumber do not follow the order of positions.
    """
    where = positions(len(stored), orientation=orientation, step=step)
    order = [
        n for n in np.random.default_rng(0).permutation(len(stored)) if n not in skip
    ]
    return [
        write_slice(
            folder / f"{name}.dcm", stored[n], position=where[n], orientation=orientation,
            **({"InstanceNumber": 100 - n} | kwargs | fields(n)),
        )
        for name, n in enumerate(order)
    ]  # fmt: skip


def write_enhanced(path, stored, *, where, orientation=AXIAL, **fields):
    """Writes all slices as frames of one file; only frame 0 has the slope 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data_set(path, stored, kind=EnhancedCTImageStorage)
    data.NumberOfFrames = len(stored)
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=decimals(orientation)),
        PixelMeasuresSequence=item(PixelSpacing=list(SPACING), SliceThickness=9),
        PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-1024),
    )
    frames = [
        item(PlanePositionSequence=item(ImagePositionPatient=decimals(position)))
        for position in where
    ]
    frames[0].PixelValueTransformationSequence = Sequence(
        [item(RescaleSlope=2, RescaleIntercept=0)]
    )
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name, value in fields.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def item(**fields) -> Dataset:
    data = Dataset()
    for name, value in fields.items():
        setattr(data, name, Sequence([value]) if isinstance(value, Dataset) else value)
    return data


def decimals(numbers) -> list[str]:
    """Numbers as DICOM keeps them, in at most 16 characters."""
    return [f"{float(number):.9g}" for number in numbers]
