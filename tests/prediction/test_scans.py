"""Tests which scans are found in a folder, under which names, and how each is read."""

import gzip
import os
import unicodedata

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import scans

VOXELS = np.random.default_rng(2).integers(0, 900, (4, 5, 6)).astype(np.int16)
# The first axis runs to the right: reading reverses it.
AFFINE = np.diag([0.7, 1.1, 3.0, 1.0])


def write_nifti(path, voxels=VOXELS, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_picture(path, pixels=VOXELS[0]):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_dicom(folder, count=3, **kwargs):
    pytest.importorskip("pydicom")
    from made_dicom import write_series

    return write_series(
        folder, np.arange(count * 20).reshape(count, 4, 5).astype(np.int16), **kwargs
    )


def found(source, *, channels=1, leave_out=None):
    items = scans.search(source, channels=channels, leave_out=leave_out).items
    return {item.name: (item.kind, item.depth) for item in items}


def read(path, *, channels=1):
    (item,) = scans.search(path, channels=channels).items
    return scans.read(item, channels=channels)


def test_a_mixed_folder_is_found_whole_and_in_natural_order(tmp_path):
    write_nifti(tmp_path / "v10.nii.gz")
    write_nifti(tmp_path / "v2.nii")
    write_nifti(
        tmp_path / "sub" / "v.NII.GZ", np.swapaxes(VOXELS, 0, 2), AFFINE[[2, 1, 0, 3]]
    )
    write_picture(tmp_path / "p.png")
    write_picture(tmp_path / "sub" / "deep" / "p.jpeg")
    write_dicom(tmp_path / "patient" / "two", 2, series="1.5", SeriesNumber=4)
    write_dicom(tmp_path / "patient" / "one" / "again", 3)
    for path in write_dicom(tmp_path / "more", 4, series="1.2", SeriesNumber=2):
        # A second series in one folder, whose files have no extension.
        path.rename(tmp_path / "patient" / "two" / f"IM{path.stem}")
    (tmp_path / "notes.txt").write_text("no scan")
    write_nifti(tmp_path / ".hidden.nii")
    write_picture(tmp_path / ".cache" / "p.png")
    write_nifti(tmp_path / "masks" / "v2_mask.nii.gz")
    assert list(found(tmp_path, leave_out=tmp_path / "masks").items()) == [
        ("p", ("picture", 1)),
        ("patient/one/again", ("dicom", 3)),
        ("patient/two_series_1", ("dicom", 4)),
        ("patient/two_series_2", ("dicom", 2)),
        ("sub/deep/p", ("picture", 1)),
        ("sub/v", ("nifti", 6)),
        ("v2", ("nifti", 6)),
        ("v10", ("nifti", 6)),
    ]
    assert "masks/v2_mask" in found(tmp_path)


def test_one_file_or_one_series_is_called_by_itself(tmp_path):
    assert found(write_nifti(tmp_path / "in" / "v.nii.gz"), leave_out=tmp_path) == {
        "v": ("nifti", 6)
    }
    files = write_dicom(tmp_path / "series")
    assert found(tmp_path / "series") == {"series": ("dicom", 3)}
    assert found(files[1]) == {files[1].stem: ("dicom", 1)}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], ["--input", ".png", ".nii.gz", "DICOM"]),
        (["a.nii", "a.nii.gz"], ["/a.nii ", "/a.nii.gz ", "Rename"]),
        (["a_0000.nii", "a_0000.nii.gz"], ["a_0000.nii ", "a_0000.nii.gz", "Rename"]),
        (["sub/a.png", "sub/a.nii"], ["sub/a.png", "sub/a.nii", "Rename"]),
    ],
)
def test_what_stops_every_scan_is_refused(tmp_path, names, says):
    for name in names:
        write = write_picture if name.endswith(".png") else write_nifti
        write(tmp_path / name)
    for channels in (1, 2):
        refused(
            lambda channels=channels: found(tmp_path, channels=channels),
            tmp_path,
            *says,
        )


def test_an_input_that_is_missing_or_among_the_masks_is_refused(tmp_path):
    absent = tmp_path / "absent"
    refused(lambda: found(absent), absent, "--input")
    write_picture(tmp_path / "in" / "p.png")
    inside = tmp_path / "in"
    refused(lambda: found(inside, leave_out=tmp_path), inside, "--output")


def test_masks_of_earlier_runs_are_no_scans(tmp_path):
    write_nifti(tmp_path / "v.nii.gz")
    write_nifti(tmp_path / "run" / "deep" / "v_mask.nii.gz")
    (tmp_path / "run" / "predict.json").write_text("{}")
    assert list(found(tmp_path)) == ["v"]
    assert list(found(tmp_path / "run")) == ["deep/v_mask"], (
        "where they are what was asked for"
    )


@pytest.mark.parametrize("name", ["v.nii.gz", "p.png", "d.dcm"])
def test_a_link_to_nothing_is_refused(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "absent")
    with pytest.raises(BadInput, match="No such file"):
        read(tmp_path)


def test_a_name_that_no_table_can_hold(tmp_path):
    path = write_picture(tmp_path / "p.png")
    try:
        path.rename(tmp_path / "p\udce4.png")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    refused(lambda: read(tmp_path), r"p\udce4.png", "--input", "Rename")


def test_a_volume_is_read_as_slices_that_go_back_to_its_voxels(tmp_path):
    scan = read(write_nifti(tmp_path / "v.nii.gz"))
    assert scan.slices.shape == (6, 5, 4, 1)
    assert scan.slices[2, 0, 0, 0] == VOXELS[3, 4, 2], (
        "first row at the front, first column at the patient's right"
    )
    assert np.array_equal(scan.volume.restore(scan.slices[..., 0]), VOXELS)
    assert scan.only_scanned(scan.slices) is scan.slices


def test_a_dicom_series_is_read_and_its_gap_left_empty(tmp_path):
    write_dicom(tmp_path / "s", 6, skip=(2, 3))
    scan = read(tmp_path / "s")
    assert scan.slices.shape == (6, 4, 5, 1)
    assert "z=32.5" in scan.notes[0]
    assert "z=40.0" in scan.notes[0]
    scanned = scan.only_scanned(np.ones((6, 4, 5, 2), np.uint8))
    assert scanned.mean(axis=(1, 2, 3)).tolist() == [1, 1, 0, 0, 1, 1]


def test_a_gap_of_a_sagittal_series_is_in_the_columns_of_its_slices(tmp_path):
    write_dicom(tmp_path / "s", 6, skip=(1,), orientation=(0, 1, 0, 0, 0, -1))
    scan = read(tmp_path / "s")
    there = scan.only_scanned(np.ones((4, 5, 6), np.uint8))
    assert scan.slices.shape == (4, 5, 6, 1)
    # Axes: columns, rows and slices of the files.
    restored = scan.volume.restore(there)
    assert restored.min(axis=(0, 1)).tolist() == [1, 0, 1, 1, 1, 1]
    assert restored.max(axis=(0, 1)).tolist() == [1, 0, 1, 1, 1, 1]


def test_a_broken_dicom_file_does_not_take_its_neighbours_along(tmp_path):
    write_dicom(tmp_path / "s")
    (tmp_path / "s" / "bad.dcm").write_bytes(b"not DICOM")
    good, bad = sorted(
        scans.search(tmp_path, channels=1).items, key=lambda item: -item.depth
    )
    assert (good.name, bad.name) == ("s", "s/bad.dcm")
    assert scans.read(good, channels=1).slices.shape == (3, 4, 5, 1)
    refused(lambda: scans.read(bad, channels=1), tmp_path / "s" / "bad.dcm")


@pytest.mark.parametrize(
    ("pixels", "channels"), [(VOXELS[0], 1), (VOXELS[0], 3), (VOXELS[..., :3], 3)]
)
def test_a_picture_is_one_slice_without_a_place(tmp_path, pixels, channels):
    scan = read(write_picture(tmp_path / "p.png", pixels), channels=channels)
    assert scan.slices.shape == (1, *pixels.shape[:2], channels)
    assert np.array_equal(
        scan.slices[0, ..., -1],
        pixels.reshape(*pixels.shape[:2], -1)[..., -1].astype(np.uint8),
    )
    assert scan.volume is None


def write_bad(folder, case):
    """Writes one scan that does not fit a model of one channel."""
    if case == "truncated gzip":
        path = write_nifti(
            folder / "v.nii.gz", np.random.default_rng(0).normal(size=(9, 9, 9))
        )
        path.write_bytes(path.read_bytes()[:-900])
        return path
    if case == "no gzip":
        (folder / "v.nii.gz").write_bytes(gzip.compress(b"nothing")[:9])
        return folder / "v.nii.gz"
    if case == "colours":
        return write_picture(
            folder / "v.png", np.indices((90, 90)).sum(0)[..., None] * [1, 0, 1]
        )
    voxels = VOXELS.astype(np.float32)
    if case == "NaN":
        voxels[1, 2, 3] = np.nan
    shapes = {
        "channels": np.stack([voxels] * 3, axis=-1),
        "empty": voxels[:0],
        "even": voxels * 0 + 7,
    }
    return write_nifti(folder / "v.nii.gz", shapes.get(case, voxels))


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("truncated gzip", "eplace"),
        ("no gzip", "eplace"),
        ("NaN", "1 of 120"),
        ("empty", "0x5x6"),
        ("even", "7.0"),
        ("channels", "is 3"),
        ("colours", "grey"),
    ],
)
def test_a_bad_file_is_found_and_refused_when_it_is_read(tmp_path, case, says):
    path = write_bad(tmp_path, case)
    refused(lambda: read(path), path, says)


def test_files_of_channels_make_one_scan_of_a_model_with_two(tmp_path):
    for case, channel in ((case, channel) for case in "ab" for channel in (1, 0)):
        write_nifti(tmp_path / f"{case}_000{channel}.nii.gz", VOXELS + channel)
    assert found(tmp_path, channels=2) == {"a": ("nifti", 6), "b": ("nifti", 6)}
    assert list(found(tmp_path)) == ["a_0000", "a_0001", "b_0000", "b_0001"]
    scan = scans.read(scans.search(tmp_path, channels=2).items[0], channels=2)
    assert scan.slices.shape == (6, 5, 4, 2)
    assert np.array_equal(scan.slices[..., 1], scan.slices[..., 0] + 1)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"voxels": VOXELS[:, :, :5]}, ["4x5x6", "4x5x5", "a_0001.nii"]),
        ({"affine": AFFINE + np.eye(4, k=3)}, ["1 mm", "a_0001.nii"]),
        ({"voxels": np.stack([VOXELS, VOXELS], axis=-1)}, ["a_0000.nii is 3"]),
        (None, ["a_0000.nii is 1", "takes 2"]),
    ],
)
def test_channels_that_do_not_fit_together_are_refused(tmp_path, second, says):
    write_nifti(tmp_path / "a_0000.nii")
    if second is not None:
        write_nifti(tmp_path / "a_0001.nii", **second)
    refused(lambda: read(tmp_path, channels=2), *says)


@pytest.mark.parametrize(
    ("write", "name"), [(write_picture, "p.png"), (write_dicom, "s")]
)
def test_a_model_of_two_channels_takes_neither_pictures_nor_dicom(
    tmp_path, write, name
):
    write(tmp_path / name)
    refused(lambda: read(tmp_path, channels=2), tmp_path / name, "takes 2")


def test_dicom_and_nifti_of_one_scan_are_the_same_slices(tmp_path):
    write_dicom(tmp_path / "s", 5, orientation=(1, 0, 0, 0, 0, -1))
    by_dicom = read(tmp_path / "s")
    volume: Volume = by_dicom.volume
    by_nifti = read(write_nifti(tmp_path / "v.nii.gz", volume.voxels, volume.affine))
    assert np.array_equal(by_dicom.slices, by_nifti.slices)
    assert by_dicom.volume.spacing == pytest.approx(by_nifti.volume.spacing)


# --- channels ---


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["a_0000", "a_0002"],
            "Case a in {} has the channels _0000, _0002, but not _0001. Add",
        ),
        (["a_0001"], "Case a in {} has the channels _0001, but not _0000. Add"),
        (
            ["a_0001", "a_0002"],
            "Case a in {} has the channels _0001, _0002, but not _0000. Add",
        ),
        (["a_0000", "a_0001", "a_0003"], "but not _0002. Add"),
    ],
)
def test_channels_with_a_gap_are_refused_and_other_scans_are_read(
    tmp_path, names, says
):
    for name in [*names, "b_0000", "b_0001"]:
        write_nifti(tmp_path / f"{name}.nii.gz")
    bad, good = scans.search(tmp_path, channels=2).items
    assert (bad.name, good.name) == ("a", "b")
    refused(lambda: scans.read(bad, channels=2), says.format(tmp_path))
    assert scans.read(good, channels=2).slices.shape == (6, 5, 4, 2)


@pytest.mark.parametrize("name", ["patient_2019", "a_0001"])
def test_a_file_with_all_channels_may_end_in_a_number(tmp_path, name):
    write_nifti(tmp_path / f"{name}.nii.gz", np.stack([VOXELS, VOXELS + 1], axis=-1))
    assert found(tmp_path, channels=2) == {name: ("nifti", 6)}
    assert read(tmp_path, channels=2).slices.shape == (6, 5, 4, 2)


def test_channels_whose_names_are_stored_in_two_ways(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        write_nifti(
            tmp_path / f"{unicodedata.normalize(form, 'Müller')}_000{number}.nii",
            VOXELS + number,
        )
    scan = read(tmp_path, channels=2)
    assert np.array_equal(scan.slices[..., 1], scan.slices[..., 0] + 1)


# --- what is passed over ---


def passed(source, **options):
    return {
        one.path.relative_to(source).as_posix(): one.why
        for one in scans.search(source, channels=1, **options).passed
    }


def test_files_that_are_not_read_are_listed_with_the_reason(tmp_path):
    write_nifti(tmp_path / "v.nii.gz")
    write_nifti(tmp_path / "masks" / "v_mask.nii.gz")
    (tmp_path / "masks" / "predict.json").write_text("{}")
    write_nifti(tmp_path / "out" / "v_mask.nii.gz")
    for name in (
        "a.nrrd",
        "b.MHA",
        "c.hdr",
        "c.img",
        "d.bmp",
        "sub/e.gif",
        "sub/f",
        ".g.nii",
        ".sub/h.nii",
        "i.zip",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"some bytes")
    os.mkfifo(tmp_path / "pipe")
    assert passed(tmp_path, leave_out=tmp_path / "out") == {
        "a.nrrd": "not a format that is read (.nrrd)",
        "b.MHA": "not a format that is read (.mha)",
        "c.hdr": "not a format that is read (.hdr)",
        "c.img": "not a format that is read (.img)",
        "d.bmp": "not a format that is read (.bmp)",
        "i.zip": "not a format that is read (.zip)",
        "sub/e.gif": "not a format that is read (.gif)",
        "sub/f": "not a format that is read (a name without extension)",
        ".g.nii": "hidden",
        ".sub": "hidden",
        "pipe": "not a file (a named pipe)",
    }
    assert list(found(tmp_path, leave_out=tmp_path / "out")) == ["v"]


def test_dicom_that_is_no_scan_is_listed(tmp_path):
    write_dicom(tmp_path / "s")
    write_dicom(tmp_path / "seg", Modality="SEG", series="1.9")
    assert list(found(tmp_path)) == ["s"]
    assert passed(tmp_path) == {
        f"seg/{n}.dcm": "DICOM made from a scan (SEG)" for n in range(3)
    }


def test_where_nothing_is_read_the_message_says_what_is_there(tmp_path):
    for name in ("a.nrrd", "b.nrrd", "c.mha"):
        (tmp_path / name).write_bytes(b"x")
    refused(lambda: found(tmp_path), tmp_path, "2 not a format that is read (.nrrd), 1")


def test_linked_files_and_folders_are_followed_and_a_loop_ends(tmp_path):
    write_nifti(tmp_path / "disk" / "p1" / "v.nii.gz")
    write_nifti(tmp_path / "disk" / "w.nii.gz")
    write_dicom(tmp_path / "disk" / "p2")
    (tmp_path / "in").mkdir()
    for name in ("p1", "p2", "w.nii.gz"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "p1" / "loop").symlink_to(tmp_path / "in")
    assert list(found(tmp_path / "in")) == ["p1/v", "p2", "w"]
    assert passed(tmp_path / "in") == {
        "p1/loop": "a folder that is read under another name"
    }


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "p.png", "d.dcm"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(lambda: read(tmp_path), tmp_path / name, "named pipe")
    refused(lambda: read(tmp_path / name), tmp_path / name, "named pipe")


# --- DICOM series over folders ---


def spread(folder, parts, **options):
    """Writes one series of 6 slices, with the slices `parts[name]` in folder `name`."""
    for name, there in parts.items():
        write_dicom(
            folder / name, 6, skip=[n for n in range(6) if n not in there], **options
        )
    return folder


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"p/one": (0, 1, 2), "p/two": (3, 4, 5)}, "p"),
        ({"p/odd": (1, 3, 5), "p/even": (0, 2, 4)}, "p"),
        ({"p/1": (0, 3), "p/2": (1, 4), "p/3": (2, 5)}, "p"),
        ({"p": (0, 1, 2), "p/more": (3, 4, 5)}, "p"),
        ({"a": (0, 1, 2), "b": (3, 4, 5)}, "root"),
        # With a gap, which makes a note.
        ({"p/one": (0, 1), "p/two": (4, 5)}, "p"),
    ],
)
def test_a_series_over_folders_is_one_scan(tmp_path, parts, name):
    root = spread(tmp_path / "root", parts)
    count = sum(map(len, parts.values()))
    assert found(root) == {name: ("dicom", count)}
    scan, whole = read(root), read(spread(tmp_path / "whole", {"s": range(6)}))
    there = sorted(n for its in parts.values() for n in its)
    assert np.array_equal(scan.slices[there], whole.slices[there])
    assert np.allclose(scan.volume.affine, whole.volume.affine)
    assert bool(scan.notes) == (count < 6)


@pytest.mark.parametrize(
    "second",
    [
        # Slice 2 is in the first folder too.
        {"there": (2, 3, 4, 5)},
        # A copy of the first folder.
        {"there": (0, 1, 2)},
        {"there": (3, 4, 5), "spacing": (0.5, 0.5)},
        {"there": (3, 4, 5), "orientation": (0, 1, 0, 0, 0, -1)},
    ],
)
def test_a_series_that_is_no_one_stack_is_a_scan_a_folder(tmp_path, second):
    spread(tmp_path, {"p/one": (0, 1, 2)})
    spread(tmp_path, {"p/two": second.pop("there")}, **second)
    assert list(found(tmp_path)) == ["p/one", "p/two"]
    for item in scans.search(tmp_path, channels=1).items:
        note = scans.read(item, channels=1).notes[0]
        assert str(tmp_path / "p/one") in note
        assert str(tmp_path / "p/two") in note
        assert "one series" in note


@pytest.mark.parametrize(
    "field", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"]
)
def test_other_patients_whose_series_has_the_same_number_stay_apart(tmp_path, field):
    spread(tmp_path, {"p/one": (0, 1, 2)}, **{field: "1.7"})
    spread(tmp_path, {"p/two": (3, 4, 5)}, **{field: "1.8"})
    assert list(found(tmp_path)) == ["p/one", "p/two"]
    for item in scans.search(tmp_path, channels=1).items:
        assert scans.read(item, channels=1).notes == []


def test_two_series_over_the_same_folders_are_numbered(tmp_path):
    spread(tmp_path, {"p/one": (0, 1, 2), "p/two": (3, 4, 5)}, series="1.5")
    for path in (tmp_path / "p").rglob("*.dcm"):
        path.rename(path.with_name(f"first_{path.name}"))
    spread(tmp_path, {"p/one": (0, 1), "p/two": (2, 3)}, series="1.6")
    assert found(tmp_path) == {"p_series_1": ("dicom", 6), "p_series_2": ("dicom", 4)}


# --- notes ---


def test_units_and_planes_make_notes(tmp_path):
    image = nib.Nifti1Image(
        np.random.default_rng(0).integers(0, 9, (64, 48, 12)), np.eye(4), dtype=np.int16
    )
    image.set_sform(
        [[0, 0, 4000, 0], [-500, 0, 0, 0], [0, -500, 0, 0], [0, 0, 0, 1]], code=1
    )
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "v.nii")
    units, plane = read(tmp_path).notes
    assert "in micrometres" in units
    assert "0.5 x 0.5 x 4 mm" in units
    assert "12 sagittal slices of 48x64 pixels" in plane


@pytest.mark.parametrize("slices", [1, 4, 9])
def test_a_stack_that_would_be_cut_to_lines_is_refused(tmp_path, slices):
    sagittal = np.array(
        [[0, 0, 4, 0], [-0.5, 0, 0, 0], [0, -0.5, 0, 0], [0, 0, 0, 1.0]]
    )
    write_nifti(
        tmp_path / "v.nii",
        np.arange(64 * 48 * slices, dtype=np.int32).reshape(64, 48, slices),
        sagittal,
    )
    refused(
        lambda: read(tmp_path),
        tmp_path / "v.nii",
        f"{slices} sagittal slice",
        "Resample",
    )
