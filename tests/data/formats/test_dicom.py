"""DICOM series against SimpleITK (GDCM), which reads the same files, and by hand."""

import os
import struct
import sys
import zlib

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.data import walk
from biedsnet_jax.data.formats import dicom, dicom_slice, nifti
from biedsnet_jax.errors import BadInput

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

from made_dicom import (  # noqa: E402
    AXIAL,
    data_set,
    item,
    positions,
    write_enhanced,
    write_series,
    write_slice,
)
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

TURN = np.linalg.qr(np.array([[0.9, 0.2, 0.1], [-0.3, 0.8, 0.2], [0.1, -0.2, 0.95]]))[0]
ORIENTATIONS = {
    "axial": AXIAL,
    "axial, normal to the feet": (1, 0, 0, 0, -1, 0),
    "lying on the belly": (-1, 0, 0, 0, -1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": tuple(TURN[0]) + tuple(TURN[1]),
    "oblique, rows swapped": tuple(-TURN[1]) + tuple(TURN[2]),
}
# Slices, rows and columns.
STORED = np.random.default_rng(1).integers(0, 3000, (5, 7, 6)).astype(np.int16)


def by_itk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def grid(image):
    return np.concatenate(
        [image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()]
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_voxels_and_their_places_are_those_of_simpleitk_and_a_mask_lies_on_them(
    tmp_path, orientation
):
    files = write_series(
        tmp_path / "scan",
        STORED,
        orientation=orientation,
        RescaleIntercept=-1024,
        RescaleSlope=1,
    )
    volume, missing, notes = dicom.read_series(files)
    theirs = by_itk(tmp_path / "scan")
    assert np.array_equal(volume.voxels.T, sitk.GetArrayFromImage(theirs))
    assert np.array_equal(volume.voxels.T, STORED - 1024)
    assert (volume.voxels.dtype, missing, notes) == (np.int16, [], [])
    for index in ((0, 0, 0), (5, 0, 0), (0, 6, 0), (0, 0, 4), (2, 3, 1)):
        # From LPS to RAS.
        place = np.array(theirs.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        assert np.allclose((volume.affine @ [*index, 1])[:3], place, atol=1e-5)
    assert volume.voxel_ml == pytest.approx(0.8 * 0.6 * 2.5 / 1000)

    mask = (volume.slices > 500).astype(np.uint8)
    nifti.write(tmp_path / "mask.nii.gz", volume.restore(mask), volume)
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert np.allclose(grid(written), grid(theirs), atol=1e-5)
    assert np.array_equal(
        sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(theirs) > 500
    )


def test_a_tilted_gantry_shears_the_grid_and_the_mask_still_stands_upright_for_others(
    tmp_path,
):
    where = positions(5) + np.arange(5)[:, None] * [0, 0.5, 0]
    files = [
        write_slice(tmp_path / f"{n}.dcm", STORED[n], position=where[n])
        for n in range(5)
    ]
    volume, _, notes = dicom.read_series(files)
    assert np.allclose(
        (volume.affine @ [3, 2, 4, 1])[:3],
        [-(10 + 3 * 0.6), -(-20 + 2 * 0.8 + 4 * 0.5), 30 + 4 * 2.5],
    )
    assert str(tmp_path) in notes[0] and " 0.5 mm aside" in notes[0]
    nifti.write(tmp_path / "mask.nii", (volume.voxels > 0).astype(np.uint8), volume)
    written = sitk.ReadImage(str(tmp_path / "mask.nii"))
    assert np.allclose(written.GetDirection(), np.eye(3).ravel(), atol=1e-6)
    assert np.allclose(written.GetSpacing(), (0.6, 0.8, 2.5))


@pytest.mark.parametrize(
    ("slope", "intercept", "kind"),
    [
        (1, -1024, np.int16),
        (1, 0.5, np.float32),
        (0.25, -8, np.float32),
        # Beyond int16.
        (1, 32000, np.float32),
    ],
)
def test_rescaled_values(tmp_path, slope, intercept, kind):
    volume, _, _ = dicom.read_series(
        write_series(tmp_path, STORED, RescaleSlope=slope, RescaleIntercept=intercept)
    )
    assert volume.voxels.dtype == kind
    assert np.array_equal(volume.voxels.T, STORED * float(slope) + intercept)
    assert np.allclose(sitk.GetArrayFromImage(by_itk(tmp_path)), volume.voxels.T)


def test_each_slice_has_its_own_scale_as_in_pet(tmp_path):
    files = write_series(
        tmp_path,
        STORED,
        fields=lambda n: {"RescaleSlope": 1 + n / 4, "RescaleIntercept": n},
    )
    expected = [STORED[n] * (1 + n / 4) + n for n in range(5)]
    assert np.array_equal(dicom.read_series(files)[0].voxels.T, expected)


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [(np.uint16, 12, [4095, 95, 0]), (np.int16, 16, [-1, -4001, -4096])],
)
def test_monochrome1_is_inverted(tmp_path, kind, bits, expected):
    path = write_slice(
        tmp_path / "a.dcm",
        np.array([[0, 4000, 4095]], kind),
        position=(0, 0, 0),
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=bits,
        HighBit=bits - 1,
    )
    volume, _, _ = dicom.read_series([path])
    assert volume.voxels[:, 0, 0].tolist() == expected


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_an_even_grid(tmp_path):
    where = np.round(positions(20, step=0.625), 1)
    files = [
        write_slice(tmp_path / f"{n}.dcm", STORED[0] + n, position=where[n])
        for n in range(20)
    ]
    volume, missing, notes = dicom.read_series(files)
    assert (volume.shape[2], missing, notes) == (20, [], [])
    assert volume.spacing[0] == pytest.approx(0.625, abs=0.1 / 19)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path):
    path = write_slice(
        tmp_path / "a.dcm", STORED[0], position=(1, 2, 3), SliceThickness=4
    )
    volume, _, _ = dicom.read_series([path])
    assert volume.shape == (6, 7, 1)
    assert volume.spacing == pytest.approx((4, 0.8, 0.6))


@pytest.mark.parametrize(
    ("orientation", "axis", "start"),
    [(AXIAL, "z", 30), (ORIENTATIONS["sagittal"], "x", 10)],
)
def test_missing_slices_are_reported_and_the_others_keep_their_place(
    tmp_path, orientation, axis, start
):
    stored = np.concatenate([STORED, STORED + 1])
    sign = np.cross(orientation[:3], orientation[3:]).sum()
    files = write_series(tmp_path, stored, orientation=orientation, skip=(2, 5, 6, 7))
    volume, missing, (note,) = dicom.read_series(files)
    at = [f"{axis}={start + sign * 2.5 * k:.1f}" for k in range(10)]
    assert f"1 between {at[1]} and {at[3]} mm, 3 between {at[4]} and {at[8]} mm" in note
    assert str(tmp_path) in note and "export all slices" in note
    assert missing == [2, 5, 6, 7]
    there = [0, 1, 3, 4, 8, 9]
    assert np.array_equal(volume.voxels.T[there], stored[there])
    # Missing slices repeat the nearest, and of two the lower.
    assert np.array_equal(volume.voxels.T[missing], stored[[1, 4, 4, 8]])
    files = write_series(tmp_path / "whole", stored, orientation=orientation)
    assert np.allclose(volume.affine, dicom.read_series(files)[0].affine)


def test_many_gaps_are_one_short_note(tmp_path):
    stored = np.repeat(STORED, 6, axis=0)
    _, missing, (note,) = dicom.read_series(
        write_series(tmp_path, stored, skip=range(3, 30, 4))
    )
    assert len(missing) == 7
    assert note.count("between") == 4
    assert ", and in 3 more gaps" in note


def test_enhanced_dicom_has_a_place_and_a_scale_for_each_frame(tmp_path):
    where = positions(5)[[3, 0, 4, 1, 2]]
    path = write_enhanced(tmp_path / "all.dcm", STORED[[3, 0, 4, 1, 2]], where=where)
    volume, missing, notes = dicom.read_series([path])
    expected = np.concatenate([STORED[:3] - 1024, STORED[3:4] * 2, STORED[4:] - 1024])
    assert np.array_equal(volume.voxels.T, expected)
    classic = dicom.read_series(write_series(tmp_path / "classic", STORED))[0]
    assert np.allclose(volume.affine, classic.affine)
    assert (missing, notes, dicom.count_slices([path])) == ([], [], 5)


def test_compressed_pixels_are_unpacked_where_pydicom_can(tmp_path):
    files = write_series(tmp_path, STORED)
    for path in files:
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    assert np.array_equal(dicom.read_series(files)[0].voxels.T, STORED)


def write_jpeg(path):
    data = data_set(path, STORED[0], syntax=JPEGLosslessSV1)
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.ImagePositionPatient = [0, 0, 0]
    data.ImageOrientationPatient = list(AXIAL)
    data.PixelSpacing, data.SliceThickness = [1, 1], 1
    data.save_as(path, enforce_file_format=True)


def test_compressed_pixels_that_need_a_plugin_are_named(tmp_path, monkeypatch):
    write_jpeg(tmp_path / "a.dcm")
    decoder = pydicom.pixels.get_decoder(JPEGLosslessSV1)
    # A machine may have the plugin.
    monkeypatch.setattr(type(decoder), "is_available", False)
    refused(
        lambda: dicom.read_series([tmp_path / "a.dcm"]),
        tmp_path / "a.dcm",
        "JPEG Lossless",
        "pip install 'pylibjpeg[all]'",
    )


def write_odd(path, pixels=STORED[0], position=(10, -20, 42.5), **fields):
    """Writes a slice that would follow those of `write_series`, but for the fields."""
    return write_slice(path, pixels, position=position, **fields)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"position": (10, -20, 35.0)}, ["odd.dcm", "z=35.0 mm", "one phase"]),
        ({"position": (10, -20, 43.5)}, ["odd.dcm", "3.5 mm", "2.5 mm", "each even part"]),
        ({"position": (10.3, -20, 42.5)}, [".dcm", "0.4 voxels"]),
        ({"position": (10, -20, 400)}, ["6 slices", "143", "each part"]),
        ({"pixels": STORED[0][:5]}, ["odd.dcm", "size", "5 for 7"]),
        ({"spacing": (0.8, 0.8)}, ["odd.dcm", "spacing", "0.8 for 0.6"]),
        ({"orientation": (0, 1, 0, 0, 0, -1)}, ["odd.dcm", "direction"]),
        ({"PhotometricInterpretation": "RGB"}, ["odd.dcm", "RGB", "grey images"]),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, ["odd.dcm", "PALETTE COLOR"]),
        ({"ImagePositionPatient": None}, ["odd.dcm", "ImagePositionPatient", "Export"]),
        ({"ImageOrientationPatient": ["1", "0", "0"]}, ["odd.dcm", "ImageOrientationPatient"]),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, ["odd.dcm", "ImageOrientationPatient"]),
        ({"PixelSpacing": None}, ["odd.dcm", "PixelSpacing", "Export"]),
        ({"NumberOfFrames": 3}, ["odd.dcm", "3 frames", "enhanced DICOM"]),
        ({"PixelData": STORED[0].tobytes()[:40]}, ["odd.dcm", "less than expected"]),
        ({"PixelData": None}, ["odd.dcm", "Export it again"]),
        ({"PixelData": STORED[:2].tobytes()}, ["odd.dcm", "2 images of 7x6", " 1."]),
        ({"PixelData": STORED.tobytes()}, ["odd.dcm", "5 images of 7x6", " 1."]),
    ],
)  # fmt: skip
def test_a_slice_that_does_not_fit_is_refused_by_name(tmp_path, odd, says):
    files = write_series(tmp_path, STORED)
    files.append(write_odd(tmp_path / "odd.dcm", **odd))
    refused(lambda: dicom.read_series(files), *says)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    whole = write_slice(tmp_path / "a.dcm", STORED[0], position=(0, 0, 0)).read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in range(0, len(whole) - 1, 7):
        cut.write_bytes(whole[:length])
        series = dicom.search([cut]).files
        assert list(series.values()) == [[cut]]
        refused(lambda: dicom.read_series([cut]), cut)


@pytest.mark.parametrize("thickness", [None, "", 0, "0.0"])
def test_a_single_slice_of_no_thickness_counts_as_a_millimetre_with_a_warning(
    tmp_path, thickness
):
    path = write_slice(
        tmp_path / "a.dcm", STORED[0], position=(1, 2, 3), SliceThickness=thickness
    )
    volume, _, (note,) = dicom.read_series([path])
    assert volume.spacing == pytest.approx((1, 0.8, 0.6))
    assert str(path) in note and "SliceThickness" in note and "1 mm" in note
    assert np.array_equal(volume.voxels[..., 0].T, STORED[0])


def test_a_single_slice_is_as_thick_as_slices_are_apart(tmp_path):
    path = write_slice(
        tmp_path / "a.dcm",
        STORED[0],
        position=(1, 2, 3),
        SliceThickness=None,
        SpacingBetweenSlices=3,
    )
    volume, _, notes = dicom.read_series([path])
    assert volume.spacing == pytest.approx((3, 0.8, 0.6)) and notes == []


def test_slices_with_places_need_no_thickness(tmp_path):
    volume, _, notes = dicom.read_series(
        write_series(tmp_path, STORED, SliceThickness=None)
    )
    assert volume.spacing[0] == pytest.approx(2.5) and notes == []


def write_without_place(path, modality):
    return write_slice(
        path,
        STORED[0],
        position=(0, 0, 0),
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        ImagerPixelSpacing=[0.1, 0.1],
        Modality=modality,
    )


@pytest.mark.parametrize("modality", ["DX", "CR", "MG", "US", "XA", "OT"])
def test_pictures_without_a_place_are_no_damaged_scans(tmp_path, modality):
    path = write_without_place(tmp_path / "a.dcm", modality)
    refused(lambda: dicom.read_series([path]), path, f"modality {modality}", "PNG")


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_scan_without_a_place_lacks_it(tmp_path, modality):
    path = write_without_place(tmp_path / "a.dcm", modality)
    refused(lambda: dicom.read_series([path]), path, "PixelSpacing", "Export it again")


# --- files without the mark


def without_mark(path, syntax=ExplicitVRLittleEndian, *, meta=False):
    """Drops the first 132 bytes, and unless `meta` the meta information too."""
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    if meta:
        data.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes()[132:])
        return path
    implicit = syntax == ImplicitVRLittleEndian
    data.save_as(
        path, implicit_vr=implicit, little_endian=True, enforce_file_format=True
    )
    content = path.read_bytes()[132:]
    # The meta information ends after the length that its first element gives.
    rest = 12 + int.from_bytes(content[8:12], "little")
    path.write_bytes(content[rest:])
    return path


@pytest.mark.parametrize("name", ["a", "IM00001", "a.dcm", "a.img"])
@pytest.mark.parametrize(
    ("syntax", "meta"),
    [
        (ExplicitVRLittleEndian, True),
        (ExplicitVRLittleEndian, False),
        (ImplicitVRLittleEndian, False),
    ],
)
def test_a_file_without_the_mark_is_read(tmp_path, name, syntax, meta):
    write_slice(
        tmp_path / name,
        STORED[0],
        position=(0, 0, 0),
        RescaleIntercept=-7,
        RescaleSlope=1,
    )
    path = without_mark(tmp_path / name, syntax, meta=meta)
    assert path.read_bytes()[:2] == (b"\x02\0" if meta else b"\x08\0")
    assert dicom.is_dicom(path)
    assert list(dicom.search([path]).files.values()) == [[path]]
    assert np.array_equal(dicom.read_series([path])[0].voxels[..., 0].T, STORED[0] - 7)


@pytest.mark.parametrize(
    ("content", "looked_at"),
    [
        (np.arange(8, 300, dtype="<u4").tobytes(), False),
        # Begins as 0008,0000 with a length of 4.
        (np.array([8, 4] * 100, "<u4").tobytes(), True),
        (np.array([8, 6] * 100, "<u4").tobytes(), False),
        # Begins as 0002,0000, but without a type in letters.
        (np.array([2, 4] * 100, "<u4").tobytes(), False),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + b"no more" * 30, True),
        (b"\x08\0\x18\0UI\x1a\0" + b"1.2.3.4.5" * 30, True),
        (b"text, not a scan" * 20, False),
        (b"\0" * 300, False),
    ],
)
@pytest.mark.parametrize("name", ["a", "a.bin"])
def test_other_files_that_begin_alike_are_passed_over(
    tmp_path, content, looked_at, name
):
    (tmp_path / name).write_bytes(content)
    assert dicom.is_dicom(tmp_path / name) == looked_at
    if looked_at:
        found = dicom.search([tmp_path / name])
        assert found.files == {} and found.passed == [walk.unread(tmp_path / name)]


@pytest.mark.parametrize(
    "first", ["ImageType", "InstanceCreationDate", "SOPClassUID", "StudyDate"]
)
@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_the_mark_may_begin_with_other_elements(
    tmp_path, first, implicit
):
    path = write_slice(
        tmp_path / "a", STORED[0], position=(0, 0, 0), StudyDate="20200102"
    )
    data = pydicom.dcmread(path)
    data.InstanceCreationDate, data.ImageType = "20200102", ["ORIGINAL", "PRIMARY"]
    before = [
        "ImageType",
        "InstanceCreationDate",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyDate",
    ]
    for name in before[: before.index(first)]:
        delattr(data, name)
    del data.file_meta, data.preamble
    data.save_as(
        path, implicit_vr=implicit, little_endian=True, enforce_file_format=False
    )
    assert path.read_bytes()[:4] == struct.pack(
        "<HH", 8, pydicom.tag.Tag(first).element
    )
    assert dicom.is_dicom(path)
    assert np.array_equal(dicom.read_series([path])[0].voxels[..., 0].T, STORED[0])


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.97])
def test_a_file_without_the_mark_cut_short_is_refused(tmp_path, meta, kept):
    write_slice(tmp_path / "a", STORED[0], position=(0, 0, 0))
    path = without_mark(tmp_path / "a", meta=meta)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert list(dicom.search([path]).files.values()) == [[path]]
    refused(lambda: dicom.read_series([path]), path, "Export it again")


def test_a_deflated_file_without_the_mark_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    path = write_slice(tmp_path / "a.dcm", STORED[0], position=(0, 0, 0))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.file_meta.PrivateInformationCreatorUID = "1.2.3"
    # The transfer syntax lies before this long element.
    data.file_meta.PrivateInformation = b"x" * 5000
    data.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[132:])
    monkeypatch.setattr(zlib, "decompressobj", lambda *_: pytest.fail("unpacked"))
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("unpacked"))
    refused(lambda: dicom.read_series([path]), path, "deflated")


@pytest.mark.parametrize("name", ["a", "a.dcm"])
def test_a_named_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert dicom.is_dicom(tmp_path / name) == (name == "a.dcm")
    refused(lambda: dicom.read_series([tmp_path / name]), tmp_path / name, "named pipe")


def directory():
    data = data_set("DICOMDIR", STORED[0], kind="1.2.840.10008.1.3.10")
    for name in ("Rows", "Columns", "PixelData", "Modality", "SOPInstanceUID"):
        delattr(data, name)
    data.DirectoryRecordSequence = [item(DirectoryRecordType="PATIENT")]
    return data


DICOMDIR = directory()


def test_search_sorts_by_position_and_passes_over_what_is_no_scan(tmp_path):
    second = write_series(tmp_path / "a", STORED, series="1.2.3.1", SeriesNumber=7)
    first = write_series(tmp_path / "b", STORED[:2], series="1.2.3.9", SeriesNumber=3)
    mask = write_slice(
        tmp_path / "mask.dcm",
        STORED[0],
        position=(0, 0, 0),
        series="1.2.3.5",
        Modality="SEG",
    )
    report = data_set(
        tmp_path / "report.dcm", STORED[0], kind="1.2.840.10008.5.1.4.1.1.88.11"
    )
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM at all")
    DICOMDIR.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    others = [mask, tmp_path / "report.dcm", tmp_path / "DICOMDIR"]
    series, passed = dicom.search(sorted([*first, *second, *others, broken]))
    assert dict(passed) == {
        mask: "DICOM made from a scan (SEG)",
        tmp_path / "report.dcm": "DICOM without an image (CT)",
        tmp_path / "DICOMDIR": "a DICOM directory",
    }
    assert list(series) == [dicom.BROKEN, "1.2.3.9", "1.2.3.1"]
    assert series[dicom.BROKEN] == [broken]
    heights = [
        pydicom.dcmread(path).ImagePositionPatient[2] for path in series["1.2.3.1"]
    ]
    assert heights == [30, 32.5, 35, 37.5, 40]
    refused(lambda: dicom.read_series([broken]), broken, "no DICM", "Export it again")


@pytest.mark.parametrize(
    "kinds",
    [["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "SECONDARY", "LOCALIZER", "M"]],
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_localizer_beside_a_scan_is_passed_over(tmp_path, kinds, modality):
    files = write_series(
        tmp_path, STORED, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], Modality=modality
    )
    write_slice(
        tmp_path / "scout.dcm",
        STORED[0],
        position=(0, 0, 0),
        orientation=(1, 0, 0, 0, 0, -1),
        series="1.2.3.2",
        ImageType=kinds,
        Modality=modality,
    )
    series, passed = dicom.search(sorted(tmp_path.iterdir()))
    assert {name: sorted(found) for name, found in series.items()} == {
        "1.2.3.1": sorted(files)
    }
    assert passed == [(tmp_path / "scout.dcm", f"a DICOM localizer ({modality})")]


def test_a_pixel_more_than_an_image_needs_is_padding(tmp_path):
    files = write_series(
        tmp_path, STORED, fields=lambda n: {"PixelData": STORED[n].tobytes() + b"\0\0"}
    )
    volume, _, _ = dicom.read_series(files)
    assert np.array_equal(volume.voxels, STORED.transpose(2, 1, 0))


@pytest.mark.parametrize("kinds", ["ORIGINAL", ["ORIGINAL", "PRIMARY"], None, ""])
def test_other_kinds_of_image_are_scans(tmp_path, kinds):
    write_series(tmp_path, STORED, ImageType=kinds)
    series, passed = dicom.search(sorted(tmp_path.iterdir()))
    assert len(series["1.2.3.1"]) == 5 and passed == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("IM0001", b"\0" * 128 + b"DICM", True),
        ("a.DCM", b"", True),
        ("a.txt", b"x" * 500, False),
        ("a.bin", b"DICM", False),
    ],
)
def test_is_dicom_by_mark_or_name(tmp_path, monkeypatch, name, content, expected):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / name).write_bytes(content)
    assert dicom.is_dicom(tmp_path / name) == expected


def test_without_pydicom_the_error_says_what_to_install(tmp_path, monkeypatch):
    files = write_series(tmp_path, STORED)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for use in (dicom.search, dicom.read_series):
        with pytest.raises(BadInput, match=r"pip install .*\[dicom\]") as caught:
            use(files)
        assert not isinstance(caught.value, dicom_slice.BadFile)
