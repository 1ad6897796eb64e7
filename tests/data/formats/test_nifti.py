"""NIfTI files: errors name a wrong file, and a written one lies where the scan did."""

import gzip
import itertools
import os
import pickle

import nibabel as nib
import numpy as np
import pytest
import refusals

from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.formats.volumes import Volume

RAMP = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
# A rotation by the 7-24-25 triangle.
TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "LAS": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "PSR": np.array([[0.0, 0, 2, 5], [-0.5, 0, 0, 6], [0, 0.75, 0, 7], [0, 0, 0, 1]]),
    "anisotropic": np.diag([0.7, 1.1, 5.0, 1.0]),
    "oblique": nib.affines.from_matvec(
        TURN @ np.diag([0.7, -1.1, 5.0]), [10.5, -20.25, 30.0]
    ),
}


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK")


def save(path, voxels, affine=AFFINES["anisotropic"], kind=nib.Nifti1Image, **header):
    image = kind(voxels, affine)
    for name, value in header.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def refused(path, *parts):
    """Reading refuses the file by name, with every part."""
    refusals.refused(lambda: nifti.read(path), path, *parts)


# --- reading


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "<i4", ">i2", "f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_stay_as_they_are(tmp_path, name, dtype, kind):
    volume = nifti.read(save(tmp_path / name, RAMP.astype(dtype), kind=kind))
    np.testing.assert_array_equal(volume.voxels, RAMP)
    assert volume.voxels.dtype.kind == np.dtype(dtype).kind
    np.testing.assert_allclose(volume.affine, AFFINES["anisotropic"], atol=1e-6)
    assert (
        nifti.is_nifti(tmp_path / name) and nifti.stem(tmp_path / name).lower() == "a"
    )


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, -1024.0), (0.5, 0.0), (2.5, 10.0)])
def test_slope_and_intercept_are_applied(tmp_path, sitk, stored, slope, inter):
    image = nib.Nifti1Image(RAMP.astype(stored), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    image.to_filename(tmp_path / "a.nii.gz")
    volume = nifti.read(tmp_path / "a.nii.gz")
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, RAMP * slope + inter)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(volume.voxels, itk.T)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 4, 1), (2, 3, 4)),
        ((2, 3, 4, 1, 1), (2, 3, 4)),
        ((4, 6), (4, 6, 1)),
        ((2, 3, 2, 2), (2, 3, 2, 2)),
    ],
)
def test_axes_of_one_voxel_are_dropped_and_a_plane_is_a_slice(
    tmp_path, shape, expected
):
    volume = nifti.read(save(tmp_path / "a.nii", RAMP.reshape(shape)))
    assert volume.voxels.shape == expected and volume.shape == expected[:3]
    np.testing.assert_array_equal(volume.voxels.ravel(), RAMP.ravel())


def test_a_fifth_axis_is_refused(tmp_path):
    refused(save(tmp_path / "a.nii", RAMP.reshape(2, 3, 2, 1, 2)), "2x3x2x1x2")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.98])
def test_a_truncated_file(tmp_path, name, kept):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    whole = save(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    refused(tmp_path / name, "Replace or remove it")


def test_a_flipped_bit_in_the_middle_of_gzip(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    refused(path, "Replace or remove it")


def test_a_header_that_declares_too_much_is_refused_before_memory_is_asked_for(
    tmp_path,
):
    path = save(tmp_path / "a.nii", RAMP)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(content)
    refused(path, "54000000000000 bytes", "Replace or remove it")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a volume at all" * 40,
        pickle.dumps({"a": np.arange(300)}),
        b"PK" * 500,
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_garbage_and_pickles(tmp_path, monkeypatch, content, name):
    monkeypatch.setattr(pickle, "Unpickler", None)
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "NIfTI", "Replace or remove it")


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "gone.nii.gz", "o such file")


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_numbers_are_counted(tmp_path, value, count):
    voxels = RAMP.astype(np.float32)
    voxels.ravel()[[0, 3, 9, 17, 23][:count]] = value
    refused(save(tmp_path / "a.nii.gz", voxels), f"{count} of 24 are NaN or infinite")


@pytest.mark.parametrize(
    "dtype",
    [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])],
    ids=["complex", "colour"],
)
def test_complex_and_colour_voxels(tmp_path, dtype):
    path = save(tmp_path / "a.nii", np.zeros((2, 3, 4), dtype))
    refused(path, "one grey value a voxel")


@pytest.mark.parametrize("extent", [0, -3])
def test_a_volume_without_voxels(tmp_path, extent):
    path = save(tmp_path / "a.nii", RAMP)
    content = bytearray(path.read_bytes())
    content[44:46] = np.int16(extent).tobytes()
    path.write_bytes(content)
    refused(path, f"2x{extent}x4", "Replace or remove it")


def test_a_scan_of_one_value_has_no_content(tmp_path):
    nifti.check_content(nifti.read(save(tmp_path / "a.nii", RAMP)))
    blank = nifti.read(save(tmp_path / "b.nii", np.full((2, 3, 4), 7, np.int16)))
    refusals.refused(lambda: nifti.check_content(blank), "b.nii", "7", "Replace")


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_affine_that_places_nothing(tmp_path, row, value):
    path = save(tmp_path / "a.nii", RAMP)
    content = bytearray(path.read_bytes())
    # A row of the affine: srow_x, srow_y or srow_z.
    content[280 + 16 * row : 296 + 16 * row] = np.full(4, value, "<f4").tobytes()
    path.write_bytes(content)
    refused(path, "affine", "spacing and direction")


# --- what the name does not say


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("name", "packed"), [("a.nii", True), ("a.nii.gz", False), ("A.NII", True)]
)
def test_packed_or_not_follows_from_the_content(tmp_path, kind, order, name, packed):
    image = kind(RAMP, AFFINES["oblique"], header=kind.header_class(endianness=order))
    content = image.to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "plain.nii").write_bytes(content)
    volume, expected = nifti.read(tmp_path / name), nib.load(tmp_path / "plain.nii")
    np.testing.assert_array_equal(volume.voxels, expected.get_fdata())
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert nifti.open_header(tmp_path / name).shape == RAMP.shape


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("cut", [300, 500, -12, -4])
def test_a_packed_file_cut_short_is_refused_whatever_its_name(tmp_path, name, cut):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    (tmp_path / name).write_bytes(
        gzip.compress(nib.Nifti1Image(noise, np.eye(4)).to_bytes())[:cut]
    )
    refused(tmp_path / name, "Replace or remove it")


@pytest.mark.parametrize(
    "after",
    [
        b"garbage at the end",
        b"\0" * 600,
        b"\x1f\x8c" * 9,
        gzip.compress(b"more", mtime=0),
    ],
    ids=["text", "zeros", "half a magic number", "another file"],
)
def test_what_follows_the_packed_voxels_does_no_harm(tmp_path, after):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", noise)
    path.write_bytes(path.read_bytes() + after)
    np.testing.assert_array_equal(nifti.read(path).voxels, noise)


@pytest.mark.parametrize("parts", [2, 3, 50])
def test_a_file_packed_in_several_members(tmp_path, parts):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    content = nib.Nifti1Image(noise, np.eye(4)).to_bytes()
    cuts = np.linspace(0, len(content), parts + 1).astype(int)
    members = [gzip.compress(content[a:b]) for a, b in itertools.pairwise(cuts)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(members))
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii.gz").voxels, noise)
    (tmp_path / "a.nii.gz").write_bytes(b"".join(members[:-1]) + b"garbage")
    refused(tmp_path / "a.nii.gz", "Replace or remove it")


def test_a_wrong_checksum_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    refused(path, "CRC check failed")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "named pipe")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    refused(tmp_path / name, "a device")


@pytest.mark.parametrize("padding", [1e39, -1.7e308, 5e38])
def test_values_beyond_float32_are_refused(tmp_path, padding):
    voxels = RAMP.astype(np.float64)
    voxels[0, 0, :2] = padding
    refused(save(tmp_path / "a.nii", voxels), "2 of 24 are NaN or infinite")


# --- units

UNITS = {"mm": 1.0, "unknown": 1.0, "micron": 1e-3, "meter": 1e3}


def in_unit(path, unit, matrix, kind=nib.Nifti1Image, codes=(1, 1), seconds="sec"):
    image = kind(RAMP, None)
    image.header.set_qform(matrix, codes[0])
    image.header.set_sform(matrix, codes[1])
    image.header.set_xyzt_units(unit, seconds)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("unit", UNITS)
def test_millimetres_whatever_the_unit_and_a_mask_on_the_grid_of_its_scan(
    tmp_path, sitk, unit, codes, kind
):
    matrix = AFFINES["oblique"].copy()
    matrix[:3] /= UNITS[unit]
    scan = in_unit(tmp_path / "scan.nii", unit, matrix, kind, codes)
    volume = nifti.read(scan)
    if any(codes):
        np.testing.assert_allclose(
            volume.affine, AFFINES["oblique"], rtol=1e-5, atol=1e-4
        )
    assert volume.spacing == pytest.approx((5, 1.1, 0.7), rel=1e-5)
    assert volume.voxel_ml == pytest.approx(5 * 1.1 * 0.7 / 1000, rel=1e-5)
    nifti.write(tmp_path / "mask.nii", RAMP.astype(np.uint8), volume)
    written, source = nib.load(tmp_path / "mask.nii"), nib.load(scan)
    np.testing.assert_allclose(written.affine, source.affine, rtol=1e-15)
    for name in (
        "xyzt_units",
        "qform_code",
        "sform_code",
        "srow_x",
        "srow_z",
        "pixdim",
    ):
        np.testing.assert_allclose(
            written.header[name], source.header[name], rtol=1e-15
        )
    # SimpleITK reads no other kind.
    if kind is nib.Nifti1Image:
        same_grid(sitk.ReadImage(tmp_path / "mask.nii"), sitk.ReadImage(scan))


@pytest.mark.parametrize("unit", UNITS)
def test_spacing_is_that_of_simpleitk(tmp_path, sitk, unit):
    scale = 1e-3 if unit == "meter" else 1.0
    matrix = np.diag([20.0 * scale, 30 * scale, 50 * scale, 1])
    path = in_unit(tmp_path / "a.nii", unit, matrix)
    theirs = sitk.ReadImage(path).GetSpacing()
    assert nifti.read(path).spacing == pytest.approx(theirs[::-1], rel=1e-5)


@pytest.mark.parametrize(
    ("size", "unit"),
    [(0.5, "micron"), (0.001, "micron"), (5e-7, "meter"), (1e-4, "mm")],
)
def test_a_voxel_may_be_as_small_as_a_nanometre(tmp_path, size, unit):
    volume = nifti.read(
        in_unit(tmp_path / "a.nii", unit, np.diag([size, size, size, 1]))
    )
    assert volume.spacing == pytest.approx([size * UNITS[unit]] * 3, rel=1e-5)


@pytest.mark.parametrize("code", [4, 5, 7])
def test_a_unit_that_does_not_exist_is_no_unit(tmp_path, code):
    path = save(tmp_path / "a.nii", RAMP)
    content = bytearray(path.read_bytes())
    content[123] = code
    path.write_bytes(content)
    np.testing.assert_allclose(
        nifti.read(path).affine, AFFINES["anisotropic"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("unit", "says"),
    [("mm", ""), ("unknown", ""), ("micron", "in micrometres"), ("meter", "in metres")],
)
def test_another_unit_than_millimetres_is_warned_of(tmp_path, unit, says):
    note = nifti.unit_note(nifti.read(in_unit(tmp_path / "a.nii", unit, np.eye(4))))
    assert says in note and bool(note) == bool(says)


# --- labels


@pytest.mark.parametrize(
    ("voxels", "dtype"),
    [
        (RAMP, np.uint8),
        (RAMP.astype(np.float64), np.uint8),
        (RAMP.astype(">i4") * 100, np.uint16),
        (RAMP * 0, np.uint8),
    ],
)
def test_labels_are_the_least_whole_numbers_that_hold_them(voxels, dtype):
    labels = nifti.labels(Volume(voxels, np.eye(4), "a.nii"))
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, voxels)


def test_labels_scaled_by_the_header_are_whole_again(tmp_path):
    image = nib.Nifti1Image((RAMP * 10).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.1, 0)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_array_equal(nifti.labels(nifti.read(tmp_path / "a.nii")), RAMP)


@pytest.mark.parametrize(
    ("voxels", "says"),
    [
        (RAMP + 0.25, ["0.25", "whole numbers"]),
        (RAMP - 3, ["-3", "0 to 65535"]),
        (RAMP.astype(np.int32) * 3000, ["69000", "0 to 65535"]),
        (np.zeros((2, 3, 4, 2), np.uint8), ["2 channels", "one label map"]),
    ],
)
def test_what_is_no_label_map(voxels, says):
    volume = Volume(voxels, np.eye(4), "a.nii")
    refusals.refused(lambda: nifti.labels(volume), "a.nii", *says)


# --- writing


def same_grid(one, two):
    assert one.GetSize() == two.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(
            getattr(one, get)(), getattr(two, get)(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("axes", [(2, 3, 4), (2, 3, 4, 1)], ids=["3-D", "4-D"])
@pytest.mark.parametrize("name", AFFINES)
def test_simpleitk_finds_written_labels_on_the_grid_of_the_scan(
    tmp_path, sitk, name, axes, dtype
):
    source = save(
        tmp_path / "scan.nii.gz", RAMP.reshape(axes).astype(dtype), AFFINES[name]
    )
    volume = nifti.read(source)
    labels = (RAMP % 5).astype(np.uint8)
    nifti.write(tmp_path / "mask.nii.gz", labels, volume)
    scan, mask = sitk.ReadImage(source), sitk.ReadImage(tmp_path / "mask.nii.gz")
    if scan.GetDimension() == 4:
        scan = scan[..., 0]
    same_grid(mask, scan)
    assert mask.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, labels)
    np.testing.assert_array_equal(
        nib.load(tmp_path / "mask.nii.gz").affine, nib.load(source).affine
    )


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0), (2, 4)])
def test_codes_and_units_are_kept_grey_values_settings_and_extensions_are_not(
    tmp_path, sitk, codes
):
    image = nib.Nifti1Image(RAMP, None)
    image.header.set_qform(AFFINES["oblique"], codes[0])
    image.header.set_sform(AFFINES["oblique"], codes[1])
    image.header.set_xyzt_units("micron", "sec")
    image.header["descrip"], image.header["cal_max"] = b"a patient's name", 80
    image.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", b"said in confidence" * 50)
    )
    image.to_filename(tmp_path / "scan.nii.gz")
    volume = nifti.read(tmp_path / "scan.nii.gz")
    nifti.write(tmp_path / "mask.nii.gz", RAMP.astype(np.uint8), volume)
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == codes
    assert header.get_xyzt_units()[0] == "micron"
    assert (
        header["descrip"].item() == b""
        and header["cal_max"] == 0
        and not header.extensions
    )
    same_grid(
        sitk.ReadImage(tmp_path / "mask.nii.gz"),
        sitk.ReadImage(tmp_path / "scan.nii.gz"),
    )


@pytest.mark.parametrize("name", AFFINES)
def test_a_scan_without_a_header_gets_its_affine_too(tmp_path, sitk, name):
    nifti.write(
        tmp_path / "mask.nii.gz",
        RAMP.astype(np.uint16) * 1000,
        Volume(RAMP, AFFINES[name], "series"),
    )
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINES[name], atol=1e-6)
    np.testing.assert_allclose(written.header.get_qform(), AFFINES[name], atol=1e-5)
    assert written.header.get_xyzt_units()[0] == "mm"
    itk = sitk.ReadImage(tmp_path / "mask.nii.gz")
    # ITK's axes run to the left and to the back.
    lps = np.diag([-1, -1, 1]) @ AFFINES[name][:3]
    np.testing.assert_allclose(itk.GetOrigin(), lps[:, 3], atol=1e-5)
    np.testing.assert_allclose(
        np.reshape(itk.GetDirection(), (3, 3)) * itk.GetSpacing(), lps[:, :3], atol=1e-5
    )
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(itk).T, RAMP.astype(int) * 1000
    )


def test_a_map_is_seen_by_its_values_in_steps_of_a_65535th(tmp_path, sitk):
    values = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    values[0, 0, :2] = -1e-7, 1 + 1e-7
    nifti.write(
        tmp_path / "map.nii.gz",
        values,
        Volume(RAMP, AFFINES["LPS"], "scan", nib.Nifti1Header()),
    )
    seen = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "map.nii.gz")).T
    np.testing.assert_allclose(seen, values.clip(0, 1), rtol=0, atol=0.51 / 65535)
    assert seen[0, 0, 0] == 0 and seen[0, 0, 1] == pytest.approx(1, abs=1e-7)


def test_what_fails_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch
):
    volume = nifti.read(save(tmp_path / "scan.nii.gz", RAMP))
    nifti.write(tmp_path / "mask.nii.gz", RAMP.astype(np.uint8), volume)
    before = (tmp_path / "mask.nii.gz").read_bytes()

    def cut(self, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", cut)
    with pytest.raises(OSError, match="No space left"):
        nifti.write(tmp_path / "mask.nii.gz", RAMP.astype(np.uint8), volume)
    assert (tmp_path / "mask.nii.gz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mask.nii.gz",
        "scan.nii.gz",
    ]
