"""What a visitor sends: told by its bytes, unpacked within limits, refused in the words
of mode predict.
"""

import dataclasses
import gzip
import io
import struct
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import scans
from biedsnet_jax.serving import upload
from biedsnet_jax.serving.limits import Limits

LIMITS = Limits(unpacked=2**20, files=20, slices=30, side=200, voxels=50_000)


def png(height=20, width=30, **options) -> bytes:
    out = io.BytesIO()
    pixels = np.arange(height * width).reshape(height, width) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG", **options)
    return out.getvalue()


def nifti(shape=(6, 7, 8), *, zipped=True, kind=nib.Nifti1Image) -> bytes:
    voxels = (np.arange(np.prod(shape)) % 251).reshape(shape).astype(np.int16)
    content = kind(voxels, np.diag([1, 1, 2, 1])).to_bytes()
    return gzip.compress(content, mtime=0) if zipped else content


def archive(files: dict, **fields) -> bytes:
    """A zip of name -> bytes; `fields` are set on each entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            for field, value in fields.items():
                setattr(entry, field, value)
            file.writestr(entry, content)
    return out.getvalue()


def series(folder, count=4, **fields) -> dict[str, bytes]:
    """name -> bytes of a DICOM series, whose names run against its order."""
    made_dicom = pytest.importorskip("made_dicom", reason="needs pydicom")
    stored = np.arange(count * 48).reshape(count, 6, 8).astype(np.int16)
    return {
        path.name: path.read_bytes()
        for path in made_dicom.write_series(folder, stored, **fields)
    }


@pytest.fixture
def read(tmp_path):
    """`read(content)` -> the scan of an upload."""

    def call(content, like="", channels=1, limits=LIMITS):
        folder = tmp_path / "job"
        folder.mkdir()
        (folder / upload.UPLOAD).write_bytes(content)
        return upload.read(folder, like=like, channels=channels, limits=limits)

    return call


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (png(), ".png"),
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"II*\0", ".tif"),
        (b"MM\0*", ".tif"),
        (archive({"a": b""}), ".zip"),
        (nifti(), ".nii.gz"),
        (nifti(zipped=False), ".nii"),
        (nifti(zipped=False, kind=nib.Nifti2Image), ".nii"),
        (b"\0" * 128 + b"DICM", ".dcm"),
        (b"DICM", ""),
        (b"%PDF-1.7", ""),
        (b"", ""),
    ],
)
def test_a_file_is_what_its_bytes_say(head, kind):
    assert upload.kind(head[:1024]) == kind


@pytest.mark.parametrize(
    "content", [nifti(), nifti(zipped=False), nifti(zipped=False, kind=nib.Nifti2Image)]
)
def test_volumes_are_read_whatever_they_are_taken_for(read, content):
    scan = read(content, like=".png")
    assert scan.slices.shape == (8, 7, 6, 1) and scan.volume.spacing == (2, 1, 1)


def test_a_picture_is_read(read):
    np.testing.assert_array_equal(
        read(png()).slices[0, ..., 0], np.arange(600).reshape(20, 30) % 251
    )


def test_a_zipped_series_is_the_series(read, tmp_path):
    files = series(tmp_path / "series")
    scan = read(
        archive(
            {f"../../{name}": b"climbs out" for name in files}
            | {f"CT/{k}": v for k, v in files.items()}
        )
    )
    expected = scans.read(
        scans.search(tmp_path / "series", channels=1).items[0], channels=1
    )
    np.testing.assert_array_equal(scan.slices, expected.slices)
    np.testing.assert_array_equal(scan.volume.affine, expected.volume.affine)
    assert {path.name for path in tmp_path.iterdir()} == {"job", "series"}
    assert all(
        not part.is_symlink() and "CT" not in str(part)
        for part in (tmp_path / "job").rglob("*")
    )


def test_a_dicom_file_alone_is_read(read, tmp_path):
    (content,) = series(tmp_path / "one", count=1).values()
    assert read(content).slices.shape == (1, 6, 8, 1)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"not a volume", "scan.nii.gz"),
        (b"not a volume", "scan.nii"),
        (b"not a picture", "scan.png"),
        (png()[:60], "scan.png"),
        (nifti()[:200], "scan.nii.gz"),
        (nifti()[:-6], "scan.nii.gz"),
        (nifti(zipped=False)[:600], "scan.nii"),
        (nifti(shape=(6, 7, 8, 2)), "scan.nii.gz"),
        (gzip.compress(b"\0" * 900, mtime=0), "scan.nii.gz"),
    ],
)
def test_what_mode_predict_refuses_is_refused_in_its_words(
    read, tmp_path, content, name
):
    alone = tmp_path / "predict" / name
    alone.parent.mkdir()
    alone.write_bytes(content)
    with pytest.raises(BadInput) as expected:
        scans.read(*scans.search(alone, channels=1).items, channels=1)
    with pytest.raises(BadInput) as found:
        read(content, like=name.removeprefix("scan"))
    said = upload.without_paths(str(found.value), tmp_path / "job")
    assert (
        said == str(expected.value).replace(f"{alone.parent}/", "")
        and str(tmp_path) not in said
    )


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%PDF-1.4", b"GIF89a" + bytes(400), b"BM" + bytes(400)]
)
def test_another_format_is_refused_without_words_of_the_command_line(read, content):
    with pytest.raises(BadInput, match="in no format that is read") as refusal:
        read(content)
    assert "--" not in str(refusal.value) and "passed over" not in str(refusal.value)


def test_a_truncated_series_is_refused_in_the_same_words(read, tmp_path):
    files = series(tmp_path / "series", count=3)
    last = list(files)[-1]
    (tmp_path / "series" / last).write_bytes(files[last][:-20])
    with pytest.raises(BadInput) as expected:
        scans.read(scans.search(tmp_path / "series", channels=1).items[0], channels=1)
    with pytest.raises(BadInput) as found:
        read(archive(files | {last: files[last][:-20]}))
    assert str(found.value).split(", /")[0] == str(expected.value).split(", /")[0]


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def huge_png(side=9000) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return (
        png()[:8]
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def declared(shape) -> bytes:
    """A NIfTI that says it is larger than it is."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + b"\0" * 4 + b"\0" * 60_000, mtime=0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            nifti() + gzip.compress(b"\0" * 2**21, mtime=0),
            "is too large when unpacked: ",
        ),
        (
            gzip.compress(nifti(zipped=False) + b"\0" * 2**21, mtime=0),
            "is too large when unpacked: ",
        ),
        (archive({"a.dcm": b"\0" * 2**21}), "is too large when unpacked: "),
        (
            archive({f"{n}.dcm": b"" for n in range(21)}),
            "The archive holds 21 files, where 20 are allowed",
        ),
        (
            archive({"a.dcm": b"x"}, external_attr=0o120777 << 16),
            "The archive holds a link",
        ),
        (
            archive({"notes.txt": b"x", "a.png": png()}),
            "The archive holds no DICOM file",
        ),
        (archive({".hidden/a.dcm": b"x"}), "The archive is empty"),
        (archive({}), "The archive is empty"),
        (archive({"a.dcm": b"x" * 400})[:60], "The archive is unreadable or truncated"),
        (huge_png(), "has slices of 9000x9000 pixels, where 200x200"),
        (png(300, 20), "has slices of 300x20 pixels"),
        (declared((4, 4, 31)), "has 31 slices of 4x4"),
        (declared((100, 100, 6)), "has 6 slices of 100x100"),
    ],
)
def test_what_exceeds_the_limits(read, content, says):
    refused(lambda: read(content), says)


def test_an_archive_that_lies_about_its_size(read, monkeypatch):
    content = bytearray(archive({"a.dcm": b"\0" * 2**21}))
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 100)
    refused(lambda: read(bytes(content)), "archive")


def test_an_encrypted_archive(read):
    content = bytearray(archive({"a.dcm": b"x"}))
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(mark) + offset] |= 1
    refused(lambda: read(bytes(content)), "The archive is encrypted")


def test_two_series_in_an_archive(read, tmp_path):
    files = series(tmp_path / "one") | {
        f"2{k}": v for k, v in series(tmp_path / "two", series="1.2.3.9").items()
    }
    refused(lambda: read(archive(files)), "holds 2 scans")


def test_a_series_with_too_many_slices(read, tmp_path):
    refused(
        lambda: read(
            archive(series(tmp_path / "one")),
            limits=dataclasses.replace(LIMITS, slices=3),
        ),
        "has 4 slices of 6x8",
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("bad, 3, FOLDER/scan.png; fix", "bad, 3, scan.png; fix"),
        ("bad, FOLDER; fix", "bad, the upload; fix"),
        ('bad, "/home/someone/cut sh...", x; fix', 'bad, "the upload sh...", x; fix'),
        ("steps of 1/65535 or a/b, 1/2; fix", "steps of 1/65535 or a/b, 1/2; fix"),
    ],
)
def test_no_path_is_told(tmp_path, text, left):
    assert upload.without_paths(text.replace("FOLDER", str(tmp_path)), tmp_path) == left
