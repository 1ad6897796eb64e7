"""Tests the files and figures of a prediction, from made-up maps, against figures by
hand, and what remains of half a write.
"""

import csv
from pathlib import Path

import csv_files
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.formats.pictures import read_picture_turned
from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.prediction import outputs, scans
from biedsnet_jax.prediction.result import UNCERTAINTIES, Prediction
from biedsnet_jax.prediction.scans import Item, Scan

# Axes d h w.
SHAPE = (3, 4, 5)
# The voxel axes run to the front, up, and to the left.
AFFINE = np.array([[0, 0, -2.0, 9], [0.5, 0, 0, 8], [0, 0.8, 0, 7], [0, 0, 0, 1]])


def volume():
    """Makes a volume whose canonical slices are 3 of 4 by 5."""
    return Volume(
        np.arange(60, dtype=np.int16).reshape(4, 3, 5),
        AFFINE,
        "scan.nii.gz",
        nib.Nifti1Header(),
    )


def scan(kind="nifti", scanned=None, name="a"):
    item = Item(name, kind, (Path(f"{name}.nii.gz"),), 3)
    if kind == "picture":
        return Scan(item, np.arange(20, dtype=np.uint8).reshape(1, 4, 5, 1))
    return Scan(item, volume().slices[..., None], volume(), [], scanned)


def prediction(probability, labels=((1,),), entropy=None, samples=None):
    maps = {"probability": np.asarray(probability, np.float32)}
    if entropy is not None:
        maps |= {"entropy": np.asarray(entropy, np.float32)}
        maps |= {
            name: np.full_like(maps["probability"], 0.25) for name in UNCERTAINTIES[1:]
        }
    return Prediction(
        Fit(SHAPE[1:]).way(SHAPE[1:]),
        maps,
        samples,
        threshold=0.5,
        labels=labels,
        seconds=1.25,
    )


def random_maps(k=1, slices=3, seed=0):
    return (
        np.random.default_rng(seed).random((slices, *SHAPE[1:], k)).astype(np.float32)
    )


def written(tmp_path, scan, prediction):
    """Writes a prediction; returns the rows and the paths."""
    where = outputs.paths(
        tmp_path,
        scan.item,
        classes=len(prediction.labels),
        diffusion="entropy" in prediction.maps,
        samples=prediction.sample_count,
    )
    rows = outputs.write(scan, prediction, where)
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(where.values())
    return rows, where


def canonical(path):
    """Reads a NIfTI file of AFFINE as slices, by hand.

    Its second axis is slices, the first reversed rows, the third columns.
    """
    return np.asarray(nib.load(path).dataobj).transpose(1, 0, 2)[:, ::-1]


# --- files ---


def test_maps_and_labels_of_a_volume(tmp_path):
    p, entropy = random_maps(), random_maps(seed=1)
    samples = np.stack([random_maps(seed=2), random_maps(seed=3)])
    _, where = written(
        tmp_path, scan(name="s/a.b"), prediction(p, entropy=entropy, samples=samples)
    )
    names = ["overlay.png"]
    names += [
        f"{n}.nii.gz"
        for n in ("probability", *UNCERTAINTIES, "sample_1", "sample_2", "mask")
    ]
    assert [str(path.relative_to(tmp_path)) for path in where.values()] == [
        f"s/a.b_{name}" for name in names
    ]
    np.testing.assert_array_equal(canonical(where["mask"]), p[..., 0] > 0.5)
    maps = {
        "probability": p,
        "entropy": entropy,
        "variance": p * 0 + 0.25,
        "sample_1": samples[0],
        "sample_2": samples[1],
    }
    for name, expected in maps.items():
        np.testing.assert_allclose(canonical(where[name]), expected[..., 0], atol=1e-5)
    for path in where.values():
        if path.suffix == ".gz":
            np.testing.assert_allclose(nib.load(path).affine, AFFINE, atol=1e-6)


def test_maps_of_several_classes_are_numbered_and_labels_are_those_of_training(
    tmp_path,
):
    p = random_maps(2)
    rows, where = written(tmp_path, scan(), prediction(p, labels=((4,), (2, 300))))
    assert list(where) == ["overlay", "probability_1", "probability_2", "mask"]
    best = np.where(p[..., 1] > p[..., 0], 2, 4) * (p.max(axis=-1) > 0.5)
    np.testing.assert_array_equal(canonical(where["mask"]), best)
    np.testing.assert_allclose(canonical(where["probability_2"]), p[..., 1], atol=1e-5)
    assert [(row["class"], row["labels"]) for row in rows] == [(1, "4"), (2, "2+300")]
    assert [row["pixels"] for row in rows] == [(best == 4).sum(), (best == 2).sum()]


def test_a_picture_gets_a_mask_to_be_seen_and_16_bit_maps(tmp_path):
    p = random_maps(slices=1)
    rows, where = written(
        tmp_path, scan("picture"), prediction(p, labels=((300,),), entropy=p)
    )
    mask = Image.open(where["mask"])
    assert mask.mode == "L"
    assert mask.size == (5, 4)
    np.testing.assert_array_equal(np.asarray(mask), (p[0, ..., 0] > 0.5) * 255)
    np.testing.assert_allclose(
        np.asarray(Image.open(where["entropy"])) / 65535, p[0, ..., 0], atol=1e-5
    )
    assert (rows[0]["volume_ml"], rows[0]["largest_area_mm2"]) == ("", "")


def test_a_picture_of_several_classes_keeps_its_labels(tmp_path):
    p = random_maps(3, slices=1)
    _, where = written(
        tmp_path, scan("picture"), prediction(p, labels=((1,), (2,), (3,)))
    )
    expected = (p[0].argmax(axis=-1) + 1) * (p[0].max(axis=-1) > 0.5)
    np.testing.assert_array_equal(np.asarray(Image.open(where["mask"])), expected)


def test_maps_and_figures_are_empty_where_slices_are_missing(tmp_path):
    scanned = np.ones(SHAPE, bool)
    scanned[1] = False
    rows, where = written(
        tmp_path,
        scan(scanned=scanned),
        prediction(
            np.full((*SHAPE, 1), 0.9), entropy=np.arange(60).reshape(*SHAPE, 1) / 60
        ),
    )
    for name in ("mask", "probability", "variance"):
        found = canonical(where[name])
        assert (found[1] == 0).all()
        assert (found[[0, 2]] > 0.2).all()
    assert rows[0]["pixels"] == 40
    assert float(rows[0]["mean_uncertainty"]) == pytest.approx(
        np.mean([*range(20), *range(40, 60)]) / 60, abs=1e-4
    )


# --- figures ---


def test_the_row_of_a_scan_by_hand(tmp_path):
    p = np.zeros((*SHAPE, 1))
    # Slices of 4, 3 and, since 0.5 is not above the threshold, 0 pixels.
    p[0, :2, :2], p[1, 0, :3], p[2, 0, 0] = 0.9, 0.8, 0.5
    entropy = np.full((*SHAPE, 1), 0.0)
    # The last value does not count, since p is 0 there.
    entropy[0, 0, 0], entropy[2, 0, 0], entropy[2, 3, 3] = 0.8, 0.4, 1.0
    (row,), _ = written(tmp_path, scan(), prediction(p, entropy=entropy))
    assert set(row) == set(outputs.COLUMNS)
    assert row == {
        "name": "a",
        "class": 1,
        "labels": "1",
        "slices": 3,
        "height": 4,
        "width": 5,
        "pixels": 7,
        # 7 voxels of 0.5 x 0.8 x 2 mm.
        "volume_ml": "0.0056",
        # 4 pixels of 0.5 x 2 mm.
        "largest_area_mm2": "4",
        "largest_area_pixels": 4,
        # 0.8 and 0.4 over 8 likely pixels.
        "mean_uncertainty": "0.1500",
        "seconds": "1.250",
        "file": "a.nii.gz",
    }


def test_figures_of_regions_are_those_of_the_written_mask(tmp_path):
    p = np.zeros((*SHAPE, 2))
    # The whole: three pixels.
    p[0, 0, :3, 0] = 0.9
    # The core: one of them, and one outside, which makes the whole larger.
    p[0, 0, 2:4, 1] = 0.9
    rows, where = written(tmp_path, scan(), prediction(p, labels=((1, 2), (2,))))
    assert canonical(where["mask"])[0, 0].tolist() == [1, 1, 2, 2, 0]
    assert [(row["labels"], row["pixels"]) for row in rows] == [("1+2", 4), ("2", 2)]


# --- the summary ---


def row(name, number=1, file="f"):
    return dict.fromkeys(outputs.COLUMNS, "0") | {
        "name": name,
        "class": str(number),
        "file": file,
    }


def rows_of(folder):
    return csv_files.read(folder / "summary.csv")


def test_a_summary_goes_on_and_a_scan_done_again_has_its_rows_once(tmp_path):
    first = outputs.Summary(tmp_path, classes=2)
    assert rows_of(tmp_path) == []
    assert first.done == {}
    first.add([row("a, b", 1), row("a, b", 2)])
    first.add([row("c", 1), row("c", 2)])
    again = outputs.Summary(tmp_path, classes=2)
    assert again.done == {"a, b": "f", "c": "f"}
    again.forget(["a, b", "not there"])
    assert [r["name"] for r in rows_of(tmp_path)] == ["c", "c"]
    assert again.done == {"c": "f"}
    again.add([row("a, b", 1, 'new "file"'), row("a, b", 2)])
    assert [(r["name"], r["class"], r["file"]) for r in rows_of(tmp_path)] == [
        ("c", "1", "f"),
        ("c", "2", "f"),
        ("a, b", "1", 'new "file"'),
        ("a, b", "2", "f"),
    ]


@pytest.mark.parametrize("kept", range(1, 45))
def test_a_summary_cut_short_anywhere_loses_that_scan_alone(tmp_path, kept):
    summary = outputs.Summary(tmp_path, classes=2)
    summary.add([row("a", 1), row("a", 2)])
    whole = summary.path.read_bytes()
    summary.add([row("b", 1), row("b", 2)])
    cut = summary.path.read_bytes()[: len(whole) + kept]
    assert len(cut) < summary.path.stat().st_size
    summary.path.write_bytes(cut)
    again = outputs.Summary(tmp_path, classes=2)
    assert again.done == {"a": "f"}
    assert [r["name"] for r in rows_of(tmp_path)] == ["a", "a"]


@pytest.mark.parametrize("text", ["", "name,old column\na,1\n", "no table at all"])
def test_a_summary_of_another_kind_starts_afresh(tmp_path, text):
    (tmp_path / "summary.csv").write_text(text)
    assert outputs.Summary(tmp_path, classes=1).done == {}
    assert rows_of(tmp_path) == []


def damage_row(content):
    """Zeroes the middle of b's first row, as if a page had not reached the disk."""
    start = content.index(b"\nb,") + 4
    return content[:start] + b"\0" * 9 + content[start + 9 :]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (damage_row, ["a", "c"]),
        (lambda content: content.replace(b"\nb,1,0", b"\nb,1,\0"), ["a", "c"]),
        (lambda content: content.replace(b"\nb,1", b"\nb\xff,1"), ["a", "c"]),
        (lambda content: content.replace(b"\nb,1", b'\n"b,1'), ["a"]),
        (lambda content: content[:-30] + b"\0" * 30, ["a", "b"]),
        (
            lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
            ["a", "b", "c"],
        ),
        (lambda content: content.decode().encode("utf-16"), []),
        (lambda content: b"\0" * len(content), []),
        (lambda content: content.replace(b",", b";"), []),
    ],
)
def test_a_damaged_summary_keeps_the_scans_that_are_whole(tmp_path, damage, kept):
    summary = outputs.Summary(tmp_path, classes=2)
    for name in "abc":
        summary.add([row(name, 1), row(name, 2)])
    content = damage(summary.path.read_bytes())
    summary.path.write_bytes(content)
    again = outputs.Summary(tmp_path, classes=2)
    assert sorted(again.done) == kept
    assert [r["name"] for r in rows_of(tmp_path)] == [
        name for name in kept for _ in range(2)
    ]
    if again.replaced:
        assert again.replaced.read_bytes() == content


def test_rows_that_somebody_added_to_are_kept_beside(tmp_path):
    path = tmp_path / "summary.csv"
    for number in (1, 2):
        path.write_text(f"name,reviewed by\na,{number}\n")
        summary = outputs.Summary(tmp_path, classes=1)
        assert summary.replaced.name == f"summary_replaced_{number}.csv"
        assert summary.replaced.read_text() == f"name,reviewed by\na,{number}\n"


@pytest.mark.parametrize(
    "name", ["=1+1", "+a", "-a", "@SUM(A1)", "'=1", "a,b", 'a"b', "a\nb", "-1"]
)
def test_no_name_is_a_formula_and_every_name_is_found_again(tmp_path, name):
    outputs.Summary(tmp_path, classes=1).add([row(name, file=f"{name}/f")])
    assert outputs.Summary(tmp_path, classes=1).done == {name: f"{name}/f"}
    outputs.Summary(tmp_path, classes=1, part=3).add([row("=part")])
    summary = outputs.Summary(tmp_path, classes=1)
    summary.merge_parts(1)
    assert outputs.Summary(tmp_path, classes=1).done == {
        name: f"{name}/f",
        "=part": "f",
    }
    for cells in csv.reader((tmp_path / "summary.csv").open(newline="")):
        assert not any(
            cell.startswith(("=", "+", "-", "@")) for cell in cells if cell != "-1"
        )


def test_a_summary_of_an_earlier_version_has_its_names(tmp_path):
    text = ",".join(outputs.COLUMNS) + "\n" + "=1+1," + ",".join("0" * 11) + ",f\n"
    (tmp_path / "summary.csv").write_text(text)
    assert outputs.Summary(tmp_path, classes=1).done == {"=1+1": "f"}


# --- names ---


@pytest.mark.parametrize("classes", [1, 12])
@pytest.mark.parametrize("character", ["a", "ä", "日", "e\u0301"])
@pytest.mark.parametrize("kind", ["picture", "nifti"])
def test_names_of_any_length_fit_and_stay_apart(tmp_path, classes, character, kind):
    width = len(character.encode())
    seen = set()
    for length in range(195, 256, 15):
        item = Item("below/" + character * (length // width), kind, (Path("f"),))
        where = outputs.paths(
            tmp_path, item, classes=classes, diffusion=True, samples=3
        )
        names = {path.name for path in where.values()}
        assert len(names) == len(where)
        assert max(len(name.encode()) for name in names) <= 255
        assert all(path.parent == tmp_path / "below" for path in where.values())
        assert item.name.startswith("below/" + where["mask"].name[:50])
        few = outputs.paths(tmp_path, item, classes=classes, diffusion=True, samples=0)
        # Whether samples are kept does not change the name of a mask.
        assert few["mask"] == where["mask"]
        extension = where["mask"].name.rpartition("_mask")[2]
        number = f"_{classes}" if classes > 1 else ""
        longest = f"{item.name[6:]}_mutual_information{number}{extension}"
        assert outputs.is_shortened(item, where) is (len(longest.encode()) > 255)
        where["mask"].parent.mkdir(exist_ok=True)
        for path in where.values():
            path.touch()
        seen |= names
    assert len(seen) == len({length // width for length in range(195, 256, 15)}) * len(
        where
    )


@pytest.mark.parametrize(
    "name", ["a_mask.nii.gz", "a.nii_mask.png", "b" * 248 + ".nii.gz", "summary.csv"]
)
def test_a_file_that_is_set_aside_keeps_its_extension(tmp_path, name):
    for number in (1, 2):
        (tmp_path / name).write_text(str(number))
        aside = outputs.set_aside(tmp_path / name)
        assert aside.read_text() == str(number)
        assert aside.parent == tmp_path
        extension = ".nii.gz" if name.endswith(".gz") else Path(name).suffix
        assert aside.name.endswith(f"_replaced_{number}{extension}")
        assert aside.name[:1] == name[:1]
    assert len(list(tmp_path.iterdir())) == 2


# --- the folder ---


@pytest.mark.parametrize("fails", range(6))
def test_a_disk_that_fills_leaves_whole_files_only_and_the_mask_last(
    tmp_path, monkeypatch, fails
):
    left, replace = [fails], Path.replace

    def full(self, target):
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    where = outputs.paths(tmp_path, scan().item, classes=1, diffusion=True, samples=0)
    with pytest.raises(OSError, match="No space left"):
        outputs.write(scan(), prediction(random_maps(), entropy=random_maps()), where)
    assert sorted(tmp_path.iterdir()) == sorted(list(where.values())[:fails])
    for path in list(where.values())[1:fails]:
        nifti.read(path)


@pytest.mark.parametrize("turn", range(1, 9))
def test_maps_of_a_turned_picture_lie_on_it_as_stored_and_are_shown_alike(
    tmp_path, turn
):
    stored = np.arange(20, dtype=np.uint8).reshape((5, 4) if turn > 4 else (4, 5)) * 12
    exif = Image.Exif()
    exif[0x112] = turn
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    (item,) = scans.search(tmp_path / "a.png", channels=1).items
    picture = scans.read(item, channels=1)
    upright = picture.slices[0].astype(np.float32) / 255
    (tmp_path / "out").mkdir()
    rows, where = written(tmp_path / "out", picture, prediction(upright[None]))
    np.testing.assert_array_equal(
        np.asarray(Image.open(where["mask"])), (stored / 255 > 0.5) * 255
    )
    on_stored = np.asarray(Image.open(where["probability"])) / 65535
    np.testing.assert_allclose(on_stored, stored / 255, atol=1e-5)
    np.testing.assert_array_equal(
        read_picture_turned(where["mask"], 1)[0][..., 0], (upright[..., 0] > 0.5) * 255
    )
    assert rows[0]["pixels"] == (stored / 255 > 0.5).sum()
