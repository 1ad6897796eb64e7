"""Tests mode predict on folders, with a made-up model that finds what is bright.

So every mask is known. Runs go through the command line in this process, and their
volumes are read back with SimpleITK.
"""

import csv
import errno
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import csv_files
import jax
import nibabel as nib
import numpy as np
import pytest
import rules
from absl import flags
from bright_model import SIZE, Bright, write_workdir
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    ornt_transform,
)
from PIL import Image

from biedsnet_jax import main
from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.data import walk
from biedsnet_jax.data.formats import nifti
from biedsnet_jax.prediction import predictor, read_ahead, scans
from biedsnet_jax.runtime import devices, lock

# voxels along x, y, z
SHAPE = (SIZE, SIZE, 5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trained run of the made-up model."""
    return write_workdir(tmp_path_factory.mktemp("runs") / "bright")


@pytest.fixture
def predict(workdir, tmp_path, monkeypatch, capsys):
    """`predict(*flags)` -> (exit code, stdout, stderr) of a run from `in` to `out`."""
    # One device compiles quicker than eight.
    one = devices.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(devices, "make_mesh", lambda **fields: one)
    monkeypatch.setattr(build_model, "build", lambda cfg: Bright())
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def call(*arguments, source=tmp_path / "in", output=tmp_path / "out"):
        forget_flags()
        where = [
            "--mode=predict",
            f"--workdir={workdir}",
            f"--input={source}",
            f"--output={output}",
        ]
        code = main.run(["biedsnet_jax", *where, *arguments])
        return code, *capsys.readouterr()

    yield call
    forget_flags()


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK")


def forget_flags():
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()


def anatomy(dtype=np.int16):
    """Makes an image and where it is bright, in RAS order.

    Every slice has dark and bright pixels, and none is symmetric.
    """
    bright = np.zeros(SHAPE, bool)
    bright[2:6, 3:10] = True
    bright[8:12, 2:4, 1::2] = True
    return np.where(bright, 900, -700).astype(dtype), bright


def turned(degrees):
    a, b = np.radians([degrees, degrees / 2])
    about_z = np.array(
        [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    )
    return about_z @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )


# name: order of the file, spacing in mm, turn in degrees, type, shape of further axes
SCANS = {
    "ras": ("RAS", (1, 1, 1), 0, np.int16, ()),
    "lps": ("LPS", (0.7, 0.7, 5.0), 0, np.float32, ()),
    "las": ("LAS", (1.0, 1.5, 3.0), 0, np.int16, (1,)),
    "sub/psr": ("PSR", (0.5, 0.8, 2.5), 0, np.float64, ()),
    "sub/oblique": ("RPI", (0.9, 1.1, 4.0), 20, np.int16, ()),
}


def save_scan(
    path, order="RAS", spacing=(1, 1, 2), degrees=0, dtype=np.int16, further=()
):
    """Writes the anatomy; returns where it is bright, in the order of the file."""
    image, bright = anatomy(dtype)
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(order))
    affine = nib.affines.from_matvec(
        turned(degrees) @ np.diag(spacing), [-12.5, 30.25, 7.0]
    ) @ inv_ornt_aff(change, SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = apply_orientation(image, change)
    nib.Nifti1Image(voxels.reshape(*voxels.shape, *further), affine).to_filename(path)
    return apply_orientation(bright, change)


def save_picture(path, height=SIZE, width=SIZE, channels=0):
    """Writes a bright block on dark; returns where it is."""
    bright = np.zeros((height, width), bool)
    bright[2 : height // 2, 3 : width // 2] = True
    pixels = np.where(bright, 200, 20).astype(np.uint8)
    if channels:
        pixels = np.stack([pixels, pixels // 2, 255 - pixels], axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return bright


def rows(output):
    return {row["name"]: row for row in csv_files.read(output / "summary.csv")}


def outputs(output):
    """Returns the time of each file by its name; 0 for a lock, which a run rewrites."""
    times = {
        path.relative_to(output).as_posix(): path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file()
    }
    return {name: 0 if name == ".lock" else time for name, time in times.items()}


def changed(before, after):
    """Returns the files of `after` that are new or written again."""
    return {name for name, time in after.items() if before.get(name) != time}


MAPS = ("probability", "entropy", "mutual_information", "variance")
RECORDS = {"summary.csv", "predict.json", "made_from.jsonl", ".lock"}


def expected(name, extension, maps=MAPS):
    return {f"{name}_overlay.png"} | {
        f"{name}_{one}{extension}" for one in (*maps, "mask")
    }


def refused(result, *says):
    """Checks that a run ended with exit code 2 and one line that holds `says`."""
    code, _, err = result
    assert code == 2
    assert err.startswith("biedsnet: ")
    assert err.count("\n") == 1
    for part in says:
        assert str(part) in err


# --- a folder of everything ---


def test_a_folder_of_pictures_volumes_and_one_bad_file(predict, tmp_path, sitk):
    source, output = tmp_path / "in", tmp_path / "out"
    bright = {
        name: save_scan(source / f"{name}.nii.gz", *how) for name, how in SCANS.items()
    }
    picture = save_picture(source / "photo.png", 24, 40)
    (source / "bad.nii.gz").write_bytes(b"not a volume")
    (source / "notes.txt").write_text("nothing to segment")
    code, out, err = predict()

    assert code == 3
    assert "6 of 7 scans segmented" in out
    listed = err[err.index("1 of 7 scans failed") :].splitlines()
    assert len(listed) == 2
    assert "bad.nii.gz" in listed[1]
    volumes = set().union(*(expected(name, ".nii.gz") for name in SCANS))
    files = RECORDS | {"passed_over.csv"} | expected("photo", ".png") | volumes
    assert set(outputs(output)) == files

    found = rows(output)
    assert list(found)
    assert set(found) == {*SCANS, "photo"}
    for name, (_, spacing, *_) in SCANS.items():
        scan = sitk.ReadImage(source / f"{name}.nii.gz")
        mask = sitk.ReadImage(output / f"{name}_mask.nii.gz")
        scan = scan[..., 0] if scan.GetDimension() == 4 else scan
        assert mask.GetSize() == scan.GetSize()
        assert mask.GetPixelID() == sitk.sitkUInt8
        for get in ("GetOrigin", "GetSpacing", "GetDirection"):
            np.testing.assert_allclose(
                getattr(mask, get)(), getattr(scan, get)(), atol=1e-6
            )
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, bright[name])
        ml = bright[name].sum() * np.prod(spacing) / 1000
        assert float(found[name]["volume_ml"]) == pytest.approx(ml, rel=1e-5)
        assert int(found[name]["pixels"]) == bright[name].sum()
        probability = sitk.GetArrayFromImage(
            sitk.ReadImage(output / f"{name}_probability.nii.gz")
        ).T
        np.testing.assert_array_equal(probability > 0.5, bright[name])
    mask = np.asarray(Image.open(output / "photo_mask.png"))
    assert mask.shape == (24, 40)
    # Its border is where the resized probability crosses a half.
    assert (mask == 255 * picture).mean() > 0.97
    assert int(found["photo"]["pixels"]) == (mask == 255).sum()
    assert found["photo"]["volume_ml"] == ""


def test_what_is_finished_is_skipped_and_what_lost_a_file_is_done_again(
    predict, tmp_path
):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "c"):
        save_scan(source / f"{name}.nii.gz")
    assert predict()[0] == 0
    before, figures = outputs(output), rows(output)
    code, _, err = predict()
    assert code == 0
    assert "3 of 3 scans done before" in err
    after = outputs(output)
    assert set(after) == set(before)
    assert changed(before, after) <= RECORDS
    assert rows(output) == figures

    (output / "b_entropy.nii.gz").unlink()
    (output / "c_mask.nii.gz").unlink()
    save_scan(source / "d.nii.gz")
    code, out, err = predict()
    assert code == 0
    assert "1 of 4 scans done before" in err
    assert "4 of 4 scans segmented" in out
    made = set().union(*(expected(name, ".nii.gz") for name in "bcd"))
    assert changed(before, outputs(output)) - RECORDS == made
    assert sorted(rows(output)) == ["a", "b", "c", "d"]
    with (output / "summary.csv").open() as file:
        assert len(file.readlines()) == 5

    # A scan without figures is not finished.
    (output / "summary.csv").unlink()
    _, _, err = predict()
    assert "done before" not in err
    assert sorted(rows(output)) == ["a", "b", "c", "d"]


def test_a_folder_of_the_same_names_gets_masks_of_its_own(predict, tmp_path):
    bright = save_picture(tmp_path / "in" / "a.png")
    other = tmp_path / "other" / "a.png"
    other.parent.mkdir()
    Image.open(tmp_path / "in" / "a.png").rotate(180).save(other)
    assert predict()[0] == 0
    _, _, err = predict(source=other.parent)
    assert "done before" not in err
    assert rows(tmp_path / "out")["a"]["file"] == str(other)
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    np.testing.assert_array_equal(mask == 255, bright[::-1, ::-1])


def test_outputs_inside_the_input_are_no_input(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    for _ in range(2):
        code, out, _ = predict(output=tmp_path / "in" / "masks")
        assert code == 0
        assert "1 of 1 scans" in out


def test_samples_are_kept_where_asked_for(predict, tmp_path):
    bright = save_scan(tmp_path / "in" / "a.nii.gz")
    assert predict()[0] == 0
    # The scan is segmented again for its samples.
    assert predict("--samples")[0] == 0
    assert set(outputs(tmp_path / "out")) == RECORDS | expected(
        "a", ".nii.gz", (*MAPS, "sample_1", "sample_2")
    )

    def read(name):
        return nib.load(tmp_path / "out" / f"a_{name}.nii.gz").get_fdata()

    one, two = read("sample_1"), read("sample_2")
    assert np.abs(one - two).max() > 0.05
    np.testing.assert_allclose((one + two) / 2, read("probability"), atol=1e-4)
    np.testing.assert_allclose((one - two) ** 2 / 4, read("variance"), atol=1e-4)
    np.testing.assert_array_equal(read("mask"), bright)


def test_a_method_without_samples_has_no_uncertainty_either(
    predict, tmp_path, monkeypatch
):
    monkeypatch.setattr(Bright, "draws_samples", False)
    save_picture(tmp_path / "in" / "a.png")
    assert predict("--samples")[0] == 0
    assert set(outputs(tmp_path / "out")) == RECORDS | expected(
        "a", ".png", ("probability",)
    )
    assert rows(tmp_path / "out")["a"]["mean_uncertainty"] == ""


def test_many_pictures_of_several_sizes_are_segmented(predict, tmp_path):
    bright = {}
    for number in range(10):
        name = f"p{number}"
        path = tmp_path / "in" / f"{name}.png"
        bright[name] = save_picture(path, SIZE + number % 3, SIZE)
    (tmp_path / "in" / "p4.png").write_bytes(b"broken")
    code, out, _ = predict()
    assert code == 3
    assert "9 of 10" in out
    for name in ("p0", "p3", "p9"):
        mask = np.asarray(Image.open(tmp_path / "out" / f"{name}_mask.png"))
        np.testing.assert_array_equal(mask == 255, bright[name])
    assert len(rows(tmp_path / "out")) == 9


def test_pictures_share_a_batch_and_volumes_do_not():
    kinds = ["picture", "nifti", "picture", "picture", "dicom", "picture"]
    items = [scans.Item(str(n), kind, ()) for n, kind in enumerate(kinds)]
    groups = read_ahead.groups(items, 3)
    assert [[item.name for item in group] for group in groups] == [
        ["1"],
        ["0", "2", "3"],
        ["4"],
        ["5"],
    ]


# --- what changed since ---


def test_what_changed_is_made_again_and_reported(predict, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "c", "d"):
        save_picture(source / f"{name}.png")
    assert predict()[0] == 0
    before = outputs(output)
    bright = np.zeros((SIZE, SIZE), bool)
    bright[9:14, 1:5] = True
    Image.fromarray(np.where(bright, 200, 20).astype(np.uint8)).save(source / "a.png")
    (output / "b_mask.png").write_bytes(b"edited")
    (source / "c.png").unlink()
    code, out, err = predict("--quiet")
    assert code == 0
    assert f"3 of 3 scans segmented, in {output}" in out
    assert "1 done before" in out
    assert "2 made again" in out
    assert "1 because the scan changed" in out
    assert "1 because an output file was changed" in out
    assert "no longer there were left: 1" in out
    assert out.count("\n") == 1
    assert str(output) in err
    assert "1 in all" in err
    assert "b_mask_replaced_1.png" in err
    assert err.count("\n") == 1
    np.testing.assert_array_equal(
        np.asarray(Image.open(output / "a_mask.png")) == 255, bright
    )
    assert (output / "b_mask_replaced_1.png").read_bytes() == b"edited"
    kept = expected("c", ".png") | expected("d", ".png")
    assert not changed(before, outputs(output)) & kept
    _, out, err = predict()
    assert "made again" not in out + err
    assert "3 of 3 scans done before" in err


def test_progress_counts_the_slices_of_the_plane(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(build_data, "plane", lambda cfg: "sagittal")
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(size=(16, 14, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / "a.nii.gz")
    code, _, err = predict()
    assert code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("predict ")]
    assert lines[-1].startswith("predict 16/16 ")


def test_a_model_that_was_trained_further_gives_new_masks(predict, tmp_path):
    workdir = tmp_path / "run"
    save_scan(tmp_path / "in" / "a.nii.gz")
    save_picture(tmp_path / "in" / "b.png")
    write_workdir(workdir)
    assert predict(f"--workdir={workdir}")[0] == 0
    first = (tmp_path / "out" / "a_mask.nii.gz").read_bytes()
    assert np.asarray(nib.load(tmp_path / "out" / "a_mask.nii.gz").dataobj).any()
    shutil.rmtree(workdir)
    # Nothing is so bright. The step is the same.
    write_workdir(workdir, above=2.0)
    code, out, err = predict(f"--workdir={workdir}")
    assert code == 0
    for text in (out, err):
        assert (
            "2 made again: 2 because the model or its post-processing changed" in text
        )
    assert (tmp_path / "out" / "a_mask.nii.gz").read_bytes() != first
    assert not np.asarray(nib.load(tmp_path / "out" / "a_mask.nii.gz").dataobj).any()
    other = write_workdir(tmp_path / "other")
    refused(predict(f"--workdir={other}"), workdir, other, "--output")


@pytest.mark.parametrize("name", ["a.png", "v.nii.gz", "broken link.png"])
def test_masks_of_a_scan_that_broke_do_not_keep_its_name(predict, tmp_path, name):
    source, output = tmp_path / "in", tmp_path / "out"
    save_picture(source / "other.png")
    (save_scan if name.endswith(".gz") else save_picture)(source / name)
    assert predict()[0] == 0
    stem, _, extension = name.partition(".")
    extension = f".{extension}"
    whole = (output / f"{stem}_mask{extension}").read_bytes()
    (source / name).unlink()
    if "link" in name:
        (source / name).symlink_to("nowhere")
    else:
        (source / name).write_bytes(b"no scan")
    code, out, err = predict()
    assert code == 3
    assert "1 of 2 scans segmented" in out
    assert "made again" not in out
    assert f" {stem}_" in err.splitlines()[-1]
    assert "_replaced_1" in err.splitlines()[-1]
    assert not (output / f"{stem}_mask{extension}").exists()
    assert (output / f"{stem}_mask_replaced_1{extension}").read_bytes() == whole
    assert set(rows(output)) == {"other"}


def test_a_scan_that_changes_while_it_is_read_is_not_taken(
    predict, tmp_path, monkeypatch
):
    save_picture(tmp_path / "in" / "a.png")
    save_picture(tmp_path / "in" / "b.png")
    read = scans.read

    def replace(item, **named):
        scan = read(item, **named)
        if item.name == "a":
            save_picture(item.files[0], SIZE + 8)
        return scan

    with monkeypatch.context() as patch:
        patch.setattr(scans, "read", replace)
        code, _, err = predict()
    assert code == 3
    assert "a.png changed while it was read" in err
    assert set(rows(tmp_path / "out")) == {"b"}
    assert predict()[0] == 0
    assert Image.open(tmp_path / "out" / "a_mask.png").size == (SIZE, SIZE + 8)


def test_a_named_pipe_among_scans_fails_alone(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.png")
    Path(tmp_path / "in" / "c.png").symlink_to("b.png")
    code, _, _ = predict()
    assert code in (0, 3)
    assert set(rows(tmp_path / "out")) == {"a"}


def test_what_was_passed_over_is_reported_and_listed(predict, tmp_path, monkeypatch):
    save_picture(tmp_path / "in" / "a.png")
    search = scans.search
    why = [
        "not a format that is read (.bmp)",
        "hidden",
        "not a format that is read (.bmp)",
    ]
    passed = [
        walk.PassedOver(tmp_path / "in" / f"=x{n}\udcff", one)
        for n, one in enumerate(why)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(
            scans,
            "search",
            lambda *a, **named: search(*a, **named)._replace(passed=passed),
        )
        code, out, _ = predict("--quiet")
    assert code == 0
    assert "3 files passed over" in out
    assert "2 not a format that is read (.bmp), 1 hidden" in out
    found = csv_files.read(tmp_path / "out" / "passed_over.csv")
    assert [row["why"] for row in found] == why
    predict()
    listed = (tmp_path / "out" / "passed_over.csv").exists()
    assert listed is bool(
        search(tmp_path / "in", channels=1, leave_out=tmp_path / "out").passed
    )


# --- names ---


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0", "+1+1", "-x", "@SUM(1)", "a,b", "a\nb", "'quoted"]
)
def test_names_that_a_spreadsheet_would_run(predict, tmp_path, name):
    save_picture(tmp_path / "in" / name / "p.png")
    assert predict()[0] == 0
    for row in csv.reader((tmp_path / "out" / "summary.csv").open(newline="")):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    assert "1 of 1 scans done before" in predict()[2]


@pytest.mark.parametrize("length", [200, 240, 251])
def test_a_name_that_is_too_long_for_its_masks_is_cut(predict, tmp_path, length):
    name = "n" * length
    save_picture(tmp_path / "in" / "short.png")
    bright = save_picture(tmp_path / "in" / f"{name}.png")
    code, out, err = predict()
    assert code == 0
    assert "2 of 2" in out
    assert set(rows(tmp_path / "out")) == {"short", name}
    (mask,) = (tmp_path / "out").glob("n*_mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(mask)) == 255, bright)
    assert (f"1, such as {mask.name}" in err) == (length > 200)
    assert "2 of 2 scans done before" in predict()[2]


# --- two runs ---


def test_a_second_run_into_one_folder_is_refused(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    assert predict()[0] == 0
    before = outputs(tmp_path / "out")
    with lock.Lock(tmp_path / "out", another="--output"):
        code, _, err = predict()
    refused((code, "", err), tmp_path / "out", os.getpid(), "another --output")
    assert outputs(tmp_path / "out") == before
    assert predict()[0] == 0


# --- what is refused ---


def test_one_file_alone(predict, tmp_path):
    bright = save_picture(tmp_path / "in" / "a.png")
    code, out, _ = predict(source=tmp_path / "in" / "a.png")
    assert code == 0
    assert "1 of 1" in out
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out" / "a_mask.png")) == 255, bright
    )


@pytest.mark.parametrize("name", ["gone", "gone.nii.gz"])
def test_an_input_that_is_not_there(predict, tmp_path, name):
    refused(predict(source=tmp_path / name), tmp_path / name, "--input")
    assert not (tmp_path / "out").exists()


def test_an_input_without_scans(predict, tmp_path):
    (tmp_path / "in").mkdir()
    refused(predict(), tmp_path / "in", "--input")


def test_a_scan_of_an_absurd_spacing_fails_alone(predict, tmp_path):
    other = write_workdir(tmp_path / "tiled")
    cfg = run_config.load(other)
    cfg.data.update(fit="tile", spacing="1,1")
    run_config.save(cfg, other / "config.json")
    save_scan(tmp_path / "in" / "good.nii.gz")
    save_scan(tmp_path / "in" / "metres.nii.gz", spacing=(1000, 1000, 2000))
    code, _, err = predict(f"--workdir={other}")
    assert code == 3
    for part in ("metres.nii.gz", "data.spacing is 1,1", "16000x16000"):
        assert part in err.splitlines()[-1]
    assert set(rows(tmp_path / "out")) == {"good"}


@pytest.mark.parametrize("missing", ["input", "output"])
def test_a_flag_that_is_missing(predict, tmp_path, missing):
    save_picture(tmp_path / "in" / "a.png")
    refused(predict(f"--{missing}="), f"--{missing}", "Give")


def test_an_untrained_workdir(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    refused(predict(f"--workdir={tmp_path}"), tmp_path)


def test_a_colour_picture_for_a_grey_model(predict, tmp_path):
    colour = tmp_path / "in" / "colour.png"
    save_picture(colour, channels=3)
    save_picture(tmp_path / "in" / "grey.png")
    code, _, err = predict()
    assert code == 3
    assert str(colour) in err.splitlines()[-1]
    assert set(rows(tmp_path / "out")) == {"grey"}
    code, _, err = predict(source=colour)
    assert code == 2
    assert str(colour) in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("biedsnet: ")


def test_a_volume_of_two_channels_for_a_grey_model(predict, tmp_path):
    save_scan(tmp_path / "in" / "a.nii.gz")
    two = np.stack([anatomy()[0]] * 2, axis=-1)
    nib.Nifti1Image(two, np.eye(4)).to_filename(tmp_path / "in" / "b.nii.gz")
    code, _, err = predict()
    assert code == 3
    assert "b.nii.gz is 2" in err.splitlines()[-1]


def test_a_folder_that_holds_masks_of_another_model(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    assert predict()[0] == 0
    before = outputs(tmp_path / "out")
    refused(predict("--config.threshold=0.4"), "threshold was ", "--output")
    refused(predict("--config.sampler.ensemble=3"), "sampler.ensemble was ")
    assert outputs(tmp_path / "out") == before
    # The batch size changes no mask.
    assert predict("--config.eval.batch_size=16")[0] == 0


def test_masks_of_other_rules_are_made_again(predict, workdir, tmp_path):
    own = shutil.copytree(workdir, tmp_path / "own")
    flag = f"--workdir={own}"
    bright = save_scan(tmp_path / "in" / "a.nii.gz", spacing=(1, 1, 2))
    save_picture(tmp_path / "in" / "b.png")
    assert predict(flag)[0] == 0
    out = tmp_path / "out"
    mask = np.asarray(nib.load(out / "a_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, bright)
    of_picture = (out / "b_mask.png").read_bytes()
    # Beside the large object there are two of 8 voxels, 16 mm3 each.
    rules.write(own, run_config.load(own), smallest=(17.0,), unit="mm3")
    code, _, err = predict(flag)
    assert code == 0
    assert "again" in err
    large = bright.copy()
    large[8:12] = False
    mask = np.asarray(nib.load(out / "a_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, large)
    # The rules are of volumes.
    assert (out / "b_mask.png").read_bytes() == of_picture
    assert float(rows(out)["a"]["pixels"]) == large.sum()
    # The same rules again change nothing.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*_mask.*")}
    assert predict(flag)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    off = "--config.postprocess=False"
    refused(predict(flag, off), "postprocess was True", "--output")
    assert predict(flag, off, output=tmp_path / "off")[0] == 0
    mask = np.asarray(nib.load(tmp_path / "off" / "a_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, bright)


def test_an_output_that_is_a_file(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    (tmp_path / "out").write_text("a file")
    refused(predict(), tmp_path / "out", "File exists", "--output")


# --- stopped ---


def test_a_full_disk_stops_in_one_line_and_the_next_run_goes_on(
    predict, tmp_path, monkeypatch
):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "c"):
        bright = save_scan(source / f"{name}.nii.gz")
    write = nib.Nifti1Image.to_filename

    def full(self, path):
        if path.name == ".partial_b_variance.nii.gz":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(nib.Nifti1Image, "to_filename", full)
        code, _, err = predict()
    assert code == 2
    last = err.splitlines()[-1]
    assert f"{output / 'b_mask.nii.gz'}: No space left on device. Make room" in last
    assert "b_variance.nii.gz" not in outputs(output)
    assert not list(output.rglob(".partial*"))
    assert set(rows(output)) == {"a"}
    before = outputs(output)
    assert predict()[0] == 0
    assert before["a_mask.nii.gz"] == outputs(output)["a_mask.nii.gz"]
    np.testing.assert_array_equal(
        nib.load(output / "b_mask.nii.gz").get_fdata(), bright
    )
    assert set(rows(output)) == {"a", "b", "c"}


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EIO])
def test_a_scan_that_cannot_be_written_fails_alone(
    predict, tmp_path, monkeypatch, number
):
    for name in ("a", "b", "c"):
        save_scan(tmp_path / "in" / f"{name}.nii.gz")
    assert predict()[0] == 0
    for name in ("a", "b", "c"):
        save_scan(tmp_path / "in" / f"{name}.nii.gz", "LPS")
    write = nib.Nifti1Image.to_filename

    def refuse(self, path):
        if path.name == ".partial_b_mask.nii.gz":
            raise OSError(number, os.strerror(number))
        write(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(nib.Nifti1Image, "to_filename", refuse)
        code, out, err = predict()
    assert code == 3
    assert "2 of 3 scans segmented" in out
    assert set(rows(tmp_path / "out")) == {"a", "c"}
    last = err.splitlines()[-1]
    for part in ("b.nii.gz", tmp_path / "out" / "b_mask.nii.gz", os.strerror(number)):
        assert str(part) in last
    # Nothing is left of half a scan.
    assert not list((tmp_path / "out").glob("b_*"))
    assert predict()[0] == 0
    assert set(rows(tmp_path / "out")) == {"a", "b", "c"}


def test_a_folder_where_a_mask_should_be_fails_that_scan_alone(predict, tmp_path):
    save_picture(tmp_path / "in" / "a.png")
    save_picture(tmp_path / "in" / "a_mask.png" / "b.png")
    save_picture(tmp_path / "in" / "c.png")
    code, _, err = predict()
    assert code == 3
    assert set(rows(tmp_path / "out")) in (
        {"c", "a"},
        {"c", "a_mask.png/b"},
    )
    assert len(err[err.index("1 of 3 scans failed") :].splitlines()) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_stops_every_scan_stops_the_run(predict, tmp_path, monkeypatch, number):
    for name in ("a", "b"):
        save_scan(tmp_path / "in" / f"{name}.nii.gz")

    def refuse(self, path):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(nib.Nifti1Image, "to_filename", refuse)
        code, _, err = predict()
    assert code == 2
    assert f": {os.strerror(number)}. Make " in err.splitlines()[-1]
    assert predict()[0] == 0


@pytest.mark.parametrize("where", ["reading", "predicting", "writing"])
def test_ctrl_c_is_one_line_and_whole_files(predict, tmp_path, monkeypatch, where):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b"):
        save_scan(source / f"{name}.nii.gz")
    seen = []

    def interrupt(original):
        def stop(*arguments, **named):
            seen.append(0)
            # Scan b is the second, and each scan has five volumes.
            if len(seen) == (8 if where == "writing" else 2):
                # Reading has a thread of its own, where no signal arrives.
                if where != "reading":
                    signal.raise_signal(signal.SIGINT)
                raise KeyboardInterrupt
            return original(*arguments, **named)

        return stop

    places = {
        "reading": (scans, "read"),
        "predicting": (predictor.Predictor, "predict"),
        "writing": (nifti, "write"),
    }
    module, name = places[where]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt(getattr(module, name)))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code, _, err = predict()
        finally:
            signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "Ctrl-C" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list(output.rglob(".partial*"))
    for path in output.glob("*.nii.gz"):
        nifti.read(path)
    assert predict()[0] == 0
    assert set(rows(output)) == {"a", "b"}
    assert set(outputs(output)) == RECORDS | expected("a", ".nii.gz") | expected(
        "b", ".nii.gz"
    )


def test_progress_counts_slices_and_shows_the_time_to_go(predict, tmp_path):
    for name in ("a", "b"):
        save_scan(tmp_path / "in" / f"{name}.nii.gz")
    _, _, err = predict()
    lines = [line for line in err.splitlines() if line.startswith("predict ")]
    assert lines[-1].startswith("predict 10/10 ")
    assert "ETA 0:00" in lines[-1]


def test_the_next_scan_is_read_while_one_is_segmented(tmp_path, monkeypatch):
    begun = {name: threading.Event() for name in "abc"}

    def read(item, channels, plane):
        begun[item.name].set()
        return scans.Scan(item, np.zeros((1, 2, 2, 1)))

    monkeypatch.setattr(scans, "read", read)
    items = [scans.Item(name, "nifti", (tmp_path / name,)) for name in "abc"]
    for item in items:
        item.files[0].touch()
    ahead = read_ahead.read_groups([[item] for item in items], 1)
    for item, following in zip(items, "bc-"):
        (found,) = next(ahead)
        assert found.item is found.scan.item is item
        # Meanwhile the caller would segment this one.
        assert following == "-" or begun[following].wait(60)
    assert not list(ahead)
