"""Any bytes as a scan are refused in one line, or segmented on the grid of the file."""

import functools
import gzip
import io
import shutil
import struct
import tempfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from damage import damaged, tried
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.prediction import outputs, result, scans

GREY = np.arange(20 * 24, dtype=np.uint8).reshape(20, 24)


def picture(kind: str, pixels: np.ndarray = GREY, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


PICTURES = {
    "grey.png": picture("PNG"),
    "deep.png": picture("PNG", GREY.astype(np.uint16) * 257),
    "colour.png": picture("PNG", np.dstack([GREY] * 4)),
    "grey.jpg": picture("JPEG"),
    "progressive.jpg": picture("JPEG", np.dstack([GREY] * 3), progressive=True),
    "plain.tif": picture("TIFF"),
    "float.tif": picture("TIFF", GREY.astype(np.float32)),
    "lzw.tif": picture("TIFF", compression="tiff_lzw"),
    "deflate.tif": picture(
        "TIFF", GREY.astype(np.uint16), compression="tiff_adobe_deflate"
    ),
}


@st.composite
def pictures(draw):
    name = draw(st.sampled_from(sorted(PICTURES)))
    return name, draw(damaged(PICTURES[name]))


@st.composite
def png_headers(draw):
    """Draws PNG headers whose checksums fit, so that the decoder believes them."""
    sides = st.integers(0, 40) | st.sampled_from([2**16, 2**31 - 1, 2**32 - 1])
    bits = st.sampled_from([1, 2, 4, 8, 16]) | st.integers(0, 255)
    kinds = st.sampled_from([0, 2, 3, 4, 6]) | st.integers(0, 255)
    # compression, filter, interlace
    methods = st.tuples(*[st.sampled_from([0, 0, 1])] * 3)
    header = struct.pack(
        ">IIBBBBB", *(draw(x) for x in (sides, sides, bits, kinds)), *draw(methods)
    )
    parts = {
        b"IHDR": header,
        b"IDAT": zlib.compress(draw(st.binary(max_size=300))),
        b"IEND": b"",
    }
    return "made.png", b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, body) for name, body in parts.items()
    )


def chunk(name, body):
    return (
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
    )


def volume(kind=nib.Nifti1Image, dtype=np.int16) -> bytes:
    voxels = np.arange(4 * 5 * 6, dtype=dtype).reshape(4, 5, 6)
    return kind(voxels, np.diag([-0.8, 0.8, 2.5, 1]), dtype=dtype).to_bytes()


@st.composite
def nifti_headers(draw):
    """Draws whole volumes whose headers have other values in up to three fields."""
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    whole = volume(kind, draw(st.sampled_from([np.uint8, np.int16, np.float32])))
    fields = kind.header_class.template_dtype
    header = np.frombuffer(whole[: fields.itemsize], fields).copy()
    for name in draw(st.lists(st.sampled_from(fields.names), min_size=1, max_size=3)):
        numbers = np.atleast_1d(header[0][name])
        numbers[draw(st.integers(0, len(numbers) - 1))] = draw(values(numbers.dtype))
        header[0][name] = numbers.reshape(fields[name].shape)
    data = header.tobytes() + whole[fields.itemsize :]
    if draw(st.booleans()):
        return "made.nii", data
    packed = gzip.compress(data, mtime=0)
    return "made.nii.gz", packed[
        : draw(st.just(len(packed)) | st.integers(0, len(packed)))
    ]


def values(dtype: np.dtype) -> st.SearchStrategy:
    if dtype.kind == "f":
        return st.floats(width=32) | st.sampled_from([0.0, np.nan, np.inf, 1e-30, 1e30])
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        return (
            st.integers(max(low, -1), 8)
            | st.sampled_from([low, high])
            | st.integers(low, high)
        )
    return st.binary(max_size=dtype.itemsize)


@st.composite
def nifti_bytes(draw):
    plain = volume()
    name, whole = draw(
        st.sampled_from(
            [("made.nii", plain), ("made.nii.gz", gzip.compress(plain, mtime=0))]
        )
    )
    return name, draw(damaged(whole, within=360 if name == "made.nii" else None))


@functools.cache
def dicom() -> bytes:
    # made_dicom needs pydicom.
    import made_dicom

    with tempfile.TemporaryDirectory() as folder:
        return made_dicom.write_slice(
            Path(folder) / "a.dcm", GREY.astype(np.int16), position=(1, 2, 3)
        ).read_bytes()


def dicom_bytes():
    header = len(dicom()) - 2 * GREY.size
    return st.tuples(
        st.just("made.dcm"), damaged(dicom(), within=header) | damaged(dicom())
    )


NEEDS_PYDICOM = pytest.mark.skipif(find_spec("pydicom") is None, reason="no pydicom")


# pydicom warns of each damaged file.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "files",
    [
        pictures,
        png_headers,
        nifti_headers,
        nifti_bytes,
        pytest.param(dicom_bytes, marks=NEEDS_PYDICOM),
    ],
)
def test_any_scan_is_refused_or_segmented(place, files):
    @given(file=files(), channels=st.sampled_from([1, 1, 3]))
    def check(file, channels):
        name, data = file
        shutil.rmtree(place / "in", ignore_errors=True)
        shutil.rmtree(place / "out", ignore_errors=True)
        (place / "in").mkdir()
        (place / "out").mkdir()
        (place / "in" / name).write_bytes(data)
        scan = tried(
            lambda: segmented(place / "in", place / "out", channels),
            inside=place,
            writes=place / "out",
        )
        if scan is not None:
            assert scan.slices.shape[-1] == channels and np.isfinite(scan.slices).all()
            (mask,) = (place / "out").glob("*_mask.*")
            if scan.volume is not None:
                written = nib.load(mask)
                assert written.shape == scan.volume.shape
                unit = {"micron": 1e-3, "meter": 1e3}.get(unit_of(written), 1.0)
                in_mm = np.diag([unit, unit, unit, 1]) @ written.affine
                np.testing.assert_allclose(
                    in_mm, scan.volume.affine, rtol=1e-5, atol=1e-5
                )

    check()


def unit_of(image) -> str:
    code = int(image.header["xyzt_units"]) & 7
    return nib.nifti1.unit_codes.label[code] if code in (1, 2, 3) else "unknown"


def segmented(source: Path, folder: Path, channels: int):
    """Reads the first scan of a folder and writes its mask as mode predict does.

    A constant probability stands in for the network's.
    """
    item = scans.search(source, channels=channels).items[0]
    scan = scans.read(item, channels=channels)
    maps = {"probability": np.full((len(scan.slices), 4, 4, 1), 0.7, np.float32)}
    size = scan.slices.shape[1:3]
    made = result.Prediction(Fit(4).way(size), maps, None, 0.5, ((1,),), 0.0)
    outputs.write(
        scan, made, outputs.paths(folder, item, classes=1, diffusion=False, samples=0)
    )
    return scan
