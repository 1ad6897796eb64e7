"""Uploads for load.py: scans to segment, and files that are broken, huge or cut off.

Every scan has a size of its own, so that no two masks are the same bytes. SECRET stands
in names and contents.
"""

import dataclasses
import gzip
import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, PngImagePlugin

SECRET = "SECRETWORD"
MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file, how it is sent, and how the upload must end."""

    name: str
    content: bytes
    ends: str  # "done", "refused", "too large", "cut off"
    # Or "declared": the size is sent, not the content; "chunked": the content is sent,
    # not the size; "half".
    how: str = "whole"
    like: str = ""


def scans(folder: Path) -> list[Upload]:
    """Three pictures, three volumes and, with pydicom, two zipped series.

    They are also written below `folder`, by name.
    """
    rng = np.random.default_rng(0)
    made = [Upload(f"picture_{n}", _png(rng, 60 + n, 50), "done") for n in range(3)]
    made += [
        Upload(f"volume_{n}", gzip.compress(_nifti(rng, (70 + n, 60, 9 + n))), "done")
        for n in range(3)
    ]
    for one in made:
        extension = ".png" if one.name.startswith("picture") else ".nii.gz"
        (folder / f"{one.name}{extension}").write_bytes(one.content)
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return made
    for n in range(2):
        place = folder / f"series_{n}"
        place.mkdir()
        for k in range(5 + n):
            (place / f"{k}.dcm").write_bytes(
                _dicom(_pixels(rng, (40 + n, 44)).astype(np.int16), k, f"1.2.3.{n + 1}")
            )
        # An archive may hold names that lead out of the folder it is unpacked in.
        files = {f"{SECRET}/{path.name}": path.read_bytes() for path in place.iterdir()}
        made.append(
            Upload(place.name, _zip(files | {f"../../{SECRET}": b"climbs out"}), "done")
        )
    return made


def others(largest: int, unpacked: int = 2**31) -> list[Upload]:
    """Files that a server must not segment.

    It takes `largest` bytes, and `unpacked` bytes once they are unpacked.
    """
    rng = np.random.default_rng(1)
    secret = SECRET.encode()
    volume = gzip.compress(_nifti(rng, (30, 30, 5)))
    picture = _png(rng, 30, 30)
    # A little above the limit, so that the server must count.
    too_large = bytes(largest + MEBI // 4)
    return [
        Upload("truncated volume", volume[: len(volume) // 2], "refused"),
        Upload("truncated picture", picture[: len(picture) // 2], "refused"),
        Upload("text", secret * 100, "refused"),
        Upload("text as a volume", secret * 100, "refused", like=".nii.gz"),
        Upload("a name for a kind", secret, "refused", like=f"../{SECRET}"),
        Upload("archive of text", _zip({f"{SECRET}.txt": secret}), "refused"),
        Upload("broken archive", _zip({f"{SECRET}.dcm": secret * 9})[:-30], "refused"),
        Upload(
            "archive bomb",
            _zip({"0.dcm": bytes(min(largest, unpacked))}, declared=unpacked + 1),
            "refused",
        ),
        Upload(
            "volume bomb",
            gzip.compress(_nifti(rng, (4, 4, 4)) + bytes(unpacked // 8)) * 8,
            "refused",
        ),
        Upload("huge, declared", too_large, "too large", how="declared"),
        Upload("huge, chunked", too_large, "too large", how="chunked"),
        Upload("cut off", volume, "cut off", how="half"),
    ]


def _pixels(rng, shape):
    """Noise with a bright block."""
    pixels = rng.integers(0, 60, shape)
    pixels[tuple(slice(n // 4, n // 2) for n in shape)] += 150
    return pixels


def _png(rng, height, width) -> bytes:
    out = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET)
    Image.fromarray(_pixels(rng, (height, width)).astype(np.uint8)).save(
        out, "PNG", pnginfo=text
    )
    return out.getvalue()


def _nifti(rng, shape) -> bytes:
    image = nib.Nifti1Image(
        _pixels(rng, shape).astype(np.int16), np.diag([0.8, 0.8, 2, 1])
    )
    image.header["descrip"] = SECRET.encode()
    return image.to_bytes()


def _zip(files, declared=None) -> bytes:
    """A zip, whose last file claims to have `declared` bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
        if declared:
            file.infolist()[-1].file_size = declared
    return out.getvalue()


def _dicom(pixels, k, series) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID = series
    data.PatientName = SECRET
    data.Modality = "CT"
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel = 1
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 1
    data.PixelSpacing = [0.7, 0.7]
    data.SliceThickness = 2
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [0, 0, 2 * k]
    data.PixelData = pixels.tobytes()
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()
