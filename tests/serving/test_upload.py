"""Tests that an upload is identified by its bytes, unpacked within limits, and refused
as mode predict refuses it.
"""

import dataclasses
import gzip
import io
import re
import struct
import zipfile

import hostile_files as hostile
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
    """Makes a zip of name -> bytes; `fields` are set on each entry."""
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
    """Makes the files of a DICOM series, whose names run against its order."""
    made_dicom = pytest.importorskip("made_dicom", reason="needs pydicom")
    stored = np.arange(count * 48).reshape(count, 6, 8).astype(np.int16)
    return {
        path.name: path.read_bytes()
        for path in made_dicom.write_series(folder, stored, **fields)
    }


@pytest.fixture
def read(tmp_path):
    """`read(content)` returns the scan of an upload."""

    def call(content, like="", channels=1, limits=LIMITS):
        folder = tmp_path / "job"
        folder.mkdir()
        (folder / upload.UPLOAD).write_bytes(content)
        return upload.read(folder, like=like, channels=channels, limits=limits)

    return call


def alone(path):
    """Reads the one scan of a file or folder as mode predict does."""
    return scans.read(*scans.search(path, channels=1).items, channels=1)


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
    assert scan.slices.shape == (8, 7, 6, 1)
    assert scan.volume.spacing == (2, 1, 1)


def test_a_picture_is_read(read):
    np.testing.assert_array_equal(
        read(png()).slices[0, ..., 0], np.arange(600).reshape(20, 30) % 251
    )


def test_a_zipped_series_is_the_series(read, tmp_path):
    files = series(tmp_path / "series")
    climbing = {f"../../{name}": b"climbs out" for name in files}
    inside = {f"CT/{name}": content for name, content in files.items()}
    scan = read(archive(climbing | inside))
    expected = alone(tmp_path / "series")
    np.testing.assert_array_equal(scan.slices, expected.slices)
    np.testing.assert_array_equal(scan.volume.affine, expected.volume.affine)
    assert {path.name for path in tmp_path.iterdir()} == {"job", "series"}
    for part in (tmp_path / "job").rglob("*"):
        assert not part.is_symlink()
        assert "CT" not in str(part)


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
    path = tmp_path / "predict" / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BadInput) as expected:
        alone(path)
    with pytest.raises(BadInput) as found:
        read(content, like=name.removeprefix("scan"))
    message = upload.without_paths(str(found.value), tmp_path / "job")
    assert message == str(expected.value).replace(f"{path.parent}/", "")
    assert str(tmp_path) not in message


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%PDF-1.4", b"GIF89a" + bytes(400), b"BM" + bytes(400)]
)
def test_another_format_is_refused_without_words_of_the_command_line(read, content):
    with pytest.raises(BadInput, match="PNG, JPEG, TIFF, NIfTI or DICOM") as refusal:
        read(content)
    assert "--" not in str(refusal.value)
    assert "passed over" not in str(refusal.value)


def test_a_truncated_series_is_refused_in_the_same_words(read, tmp_path):
    files = series(tmp_path / "series", count=3)
    last = list(files)[-1]
    (tmp_path / "series" / last).write_bytes(files[last][:-20])
    with pytest.raises(BadInput) as expected:
        alone(tmp_path / "series")
    with pytest.raises(BadInput) as found:
        read(archive(files | {last: files[last][:-20]}))
    expected, found = (
        re.sub(r"/\S+\.dcm", "PATH", str(error.value)) for error in (expected, found)
    )
    assert found == expected


def declared(shape) -> bytes:
    """Makes a NIfTI file whose header declares more voxels than it has."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + b"\0" * 4 + b"\0" * 60_000, mtime=0)


ZEROS = b"\0" * 2**21


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (nifti() + gzip.compress(ZEROS, mtime=0), "when unpacked"),
        (gzip.compress(nifti(zipped=False) + ZEROS, mtime=0), "when unpacked"),
        (archive({"a.dcm": ZEROS}), "when unpacked"),
        (archive({f"{n}.dcm": b"" for n in range(21)}), "21 files, where 20"),
        (archive({"a.dcm": b"x"}, external_attr=0o120777 << 16), "a link"),
        (archive({"notes.txt": b"x", "a.png": png()}), "no DICOM file"),
        (archive({".hidden/a.dcm": b"x"}), "empty"),
        (archive({}), "empty"),
        (archive({"a.dcm": b"x" * 400})[:60], "BadZipFile"),
        (hostile.png(side=9000), "9000x9000 pixels, where 200x200"),
        (png(300, 20), "300x20 pixels"),
        (declared((4, 4, 31)), "31 slices of 4x4"),
        (declared((100, 100, 6)), "6 slices of 100x100"),
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
    refused(lambda: read(bytes(content)), "encrypted")


def test_two_series_in_an_archive(read, tmp_path):
    others = series(tmp_path / "two", series="1.2.3.9")
    others = {f"2{name}": content for name, content in others.items()}
    files = series(tmp_path / "one") | others
    refused(lambda: read(archive(files)), "2 scans")


def test_a_series_with_too_many_slices(read, tmp_path):
    content = archive(series(tmp_path / "one"))
    limits = dataclasses.replace(LIMITS, slices=3)
    refused(lambda: read(content, limits=limits), "4 slices of 6x8")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("FOLDER/scan.png is bad: 3.", "scan.png is bad: 3."),
        ("FOLDER is bad.", "the upload is bad."),
        ('"/home/someone/cut sh..." is bad.', '"the upload sh..." is bad.'),
        ("Steps of 1/65535 or a/b, 1/2.", "Steps of 1/65535 or a/b, 1/2."),
    ],
)
def test_a_message_has_no_path_of_this_machine(tmp_path, text, left):
    assert upload.without_paths(text.replace("FOLDER", str(tmp_path)), tmp_path) == left
