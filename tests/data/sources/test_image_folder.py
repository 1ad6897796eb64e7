"""ImageFolder on files written here, and on real ones where present."""

import itertools
import os
import re
import socket
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from places import SHARED
from refusals import refused

from biedsnet_jax.data.sources.image_folder import ImageFolder
from biedsnet_jax.data.sources.source import Cached, Facts
from biedsnet_jax.errors import BadInput

REAL = SHARED / "data"
RAMP = np.arange(20, dtype=np.uint8).reshape(4, 5)


def write(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folder(root: Path, names=("a/1", "a/2", "b/1"), shape=(4, 5)) -> Path:
    """Writes images of the running number, and masks {0, 255} of the first pixel."""
    for number, name in enumerate(names):
        write(root / "images" / f"{name}.png", np.full(shape, number, np.uint8))
        mask = np.zeros(shape, np.uint8)
        mask[0, 0] = 255
        write(root / "masks" / f"{name}.png", mask)
    return root


# --- what is read


def test_cases_and_slices_in_natural_order(tmp_path):
    folder(tmp_path, ["p2/10", "p2/9", "p10/1", "p2/1", "p1/series/3"])
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "p2" / "._9.png").write_bytes(b"a file manager's droppings")
    source = ImageFolder(tmp_path)
    source.verify()
    assert source.cases == ["p1", "p2", "p2", "p2", "p10"]
    examples = [source[i] for i in range(len(source))]
    assert [e["case"] for e in examples] == source.cases
    assert [e["slice"] for e in examples] == ["series/3", "1", "9", "10", "1"]
    assert [e["image"][0, 0, 0] for e in examples] == [4, 3, 1, 0, 2]
    assert (
        examples[2]["path"] == str(tmp_path / "images" / "p2" / "9.png")
        and examples[2]["spacing"] is None
    )
    mask = examples[0]["mask"]
    assert (
        mask.dtype == np.uint8
        and mask.shape == (4, 5, 1)
        and mask.sum() == mask[0, 0, 0] == 1
    )


def test_in_a_flat_folder_every_file_is_a_case(tmp_path):
    source = ImageFolder(str(folder(tmp_path, ["x_2", "x_10"])))
    assert source.cases == ["x_2", "x_10"] and source[1]["slice"] == "x_10"


@pytest.mark.parametrize("extension", [".png", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depth_is_kept(tmp_path, extension, dtype):
    pixels = RAMP.astype(dtype) * (np.iinfo(dtype).max // 19)
    write(tmp_path / "images" / f"a{extension}", pixels)
    write(tmp_path / "masks" / "a.png", RAMP % 2)
    image = ImageFolder(tmp_path)[0]["image"]
    assert image.dtype == dtype
    np.testing.assert_array_equal(image[..., 0], pixels)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_signed_and_float_tiff_become_float32(tmp_path, dtype):
    # Such as Hounsfield units.
    pixels = (RAMP.astype(dtype) - 10) * 100
    write(tmp_path / "images" / "a.tif", pixels)
    write(tmp_path / "masks" / "a.tif", RAMP % 2)
    image = ImageFolder(tmp_path)[0]["image"]
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[..., 0], pixels)


def test_a_lossy_image_with_a_png_mask_and_a_lossy_mask(tmp_path):
    smooth = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (48, 1))
    block = np.zeros((48, 48), np.uint8)
    block[11:30, 5:23] = 255
    for name, extension in (("a", ".png"), ("b", ".jpeg")):
        write(tmp_path / "images" / f"{name}.jpg", smooth, quality=95)
        write(tmp_path / "masks" / f"{name}{extension}", block)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "masks" / "b.jpeg")))) > 2
    source = ImageFolder(tmp_path)
    for i in (0, 1):
        np.testing.assert_array_equal(source[i]["mask"][..., 0], block // 255)
    np.testing.assert_allclose(source[0]["image"][..., 0], smooth, atol=4)


def test_real_colour_is_refused_for_one_channel_and_kept_for_three(tmp_path):
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[0] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    colour[1] = 77
    write(tmp_path / "images" / "rgb.png", colour)
    write(
        tmp_path / "images" / "rgba.png",
        np.concatenate([colour, np.full((2, 3, 1), 9, np.uint8)], axis=-1),
    )
    Image.fromarray(colour).quantize(8).save(tmp_path / "images" / "palette.png")
    write(tmp_path / "images" / "grey.png", RAMP[:2, :3])
    for name in ("rgb", "rgba", "palette", "grey"):
        write(tmp_path / "masks" / f"{name}.png", np.zeros((2, 3), np.uint8))

    one = ImageFolder(tmp_path)
    three = ImageFolder(tmp_path, channels=3)
    names = one.cases
    for name in ("rgb", "rgba", "palette"):
        refused(
            lambda name=name: one[names.index(name)],
            f"{name}.png",
            "255 of 255",
            "data.channels=3",
        )
        np.testing.assert_array_equal(three[names.index(name)]["image"], colour)
    grey = three[names.index("grey")]["image"]
    np.testing.assert_array_equal(grey, np.stack([RAMP[:2, :3]] * 3, axis=-1))


def test_grey_saved_as_colour_becomes_grey_by_luma(tmp_path):
    nearly = np.zeros((2, 3, 3), np.uint8)
    # By hand the luma is 108.1, 9.6 and 5, and the spread 20, 32 and 0.
    nearly[0] = [[100, 110, 120], [32, 0, 0], [5, 5, 5]]
    write(tmp_path / "images" / "a.png", nearly)
    write(tmp_path / "masks" / "a.png", np.zeros((2, 3), np.uint8))
    np.testing.assert_array_equal(
        ImageFolder(tmp_path)[0]["image"][..., 0], [[108, 10, 5], [0, 0, 0]]
    )


@pytest.mark.parametrize("value", [1, 2, 128, 255])
def test_one_class_takes_any_second_value(tmp_path, value):
    write(tmp_path / "images" / "a.png", RAMP)
    write(tmp_path / "masks" / "a.png", (RAMP > 15).astype(np.uint8) * np.uint8(value))
    np.testing.assert_array_equal(ImageFolder(tmp_path)[0]["mask"][..., 0], RAMP > 15)


def test_several_classes_from_labels_and_from_a_palette(tmp_path):
    labels = (RAMP % 3).astype(np.uint8)
    write(tmp_path / "images" / "a.png", RAMP)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    (tmp_path / "masks").mkdir()
    palette.save(tmp_path / "masks" / "a.png")
    mask = ImageFolder(tmp_path, classes=3)[0]["mask"]
    assert mask.shape == (4, 5, 3)
    for j in range(3):
        np.testing.assert_array_equal(mask[..., j], labels == j + 1)


# --- what is refused


def test_no_folder_and_no_images(tmp_path):
    refused(lambda: ImageFolder(tmp_path / "nowhere"), "nowhere", "data.root")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "volume.nii.gz").write_bytes(b"")
    refused(lambda: ImageFolder(tmp_path), tmp_path / "images", "(.gz)", ".png")


def test_images_without_masks_and_the_reverse(tmp_path):
    folder(tmp_path, ["a/1", "a/2", "a/3"])
    for name in ("a/2", "a/3"):
        (tmp_path / "masks" / f"{name}.png").unlink()
    refused(
        lambda: ImageFolder(tmp_path),
        "2 of 3 images",
        tmp_path / "images" / "a" / "2.png",
        f"under {tmp_path / 'masks'}",
    )
    for name in ("a/2", "a/3"):
        (tmp_path / "images" / f"{name}.png").unlink()
    write(tmp_path / "masks" / "a" / "7.png", RAMP)
    refused(
        lambda: ImageFolder(tmp_path),
        "1 of 2 masks",
        tmp_path / "masks" / "a" / "7.png",
        f"under {tmp_path / 'images'}",
    )


def test_two_files_of_one_name(tmp_path):
    write(folder(tmp_path) / "images" / "a" / "1.tif", RAMP)
    refused(lambda: ImageFolder(tmp_path), tmp_path / "images" / "a", "1.png", "1.tif")


def test_sizes_that_differ(tmp_path):
    path = write(folder(tmp_path) / "masks" / "a" / "2.png", np.zeros((5, 4), np.uint8))
    refused(ImageFolder(tmp_path).verify, path, "4x5", "5x4")


@pytest.mark.parametrize(
    "options", [{"format": "PNG"}, {"format": "JPEG"}, {"format": "TIFF"}], ids=str
)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
def test_a_truncated_file_is_named(tmp_path, options, kept):
    names = [f"a/{i}" for i in range(6)]
    folder(tmp_path, names, shape=(64, 64))
    broken = tmp_path / "images" / "a" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    write(broken, noise, **options)
    broken.write_bytes(broken.read_bytes()[: int(kept * broken.stat().st_size)])
    refused(ImageFolder(tmp_path).verify, broken, "Replace or remove it")


def test_a_jpeg_that_states_more_pixels_than_its_bytes_can_hold(tmp_path):
    path = write(tmp_path / "images" / "a.jpg", RAMP)
    write(tmp_path / "masks" / "a.png", RAMP)
    data = bytearray(path.read_bytes())
    # Two bytes of length and one of depth follow, then two each of height and width.
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\x20\x00\x20\x00"
    path.write_bytes(data)
    refused(
        ImageFolder(tmp_path).verify, f"8192x8192 pixels in {len(data)} bytes", path
    )


def test_verify_reports_the_first_in_file_order(tmp_path):
    names = [f"a/{i}" for i in range(12)]
    folder(tmp_path, names)
    for i in (11, 4, 7):
        (tmp_path / "images" / "a" / f"{i}.png").write_bytes(b"pickle me")
    for _ in range(5):
        refused(ImageFolder(tmp_path).verify, str(Path("a", "4.png")))


def test_an_image_that_is_not_finite(tmp_path):
    write(
        tmp_path / "images" / "a.tif",
        np.where(RAMP == 3, np.nan, RAMP).astype(np.float32),
    )
    write(tmp_path / "masks" / "a.png", RAMP % 2)
    refused(ImageFolder(tmp_path).verify, "NaN", "a.tif")


@pytest.mark.parametrize(
    ("values", "classes", "says"),
    [
        ([0, 1, 2], 1, "values 0, 1, 2."),
        ([0, 128, 255], 1, "0 and one other value"),
        # Either value could be the background.
        ([1, 2], 1, "values 1, 2."),
        ([0, 1, 2, 3], 2, "the labels 0 to 2"),
        ([0, 255], 2, "values 0, 255."),
        (list(range(20)), 1, "0, 1, 2, 3, 4, 5, 6, 7, ..."),
    ],
)
def test_a_mask_with_more_values_than_classes(tmp_path, values, classes, says):
    folder(tmp_path, ["b/1"])
    bad = write(
        tmp_path / "masks" / "b" / "1.png",
        np.resize(np.array(values, np.uint8), (4, 5)),
    )
    refused(ImageFolder(tmp_path, classes=classes).verify, says, bad, "data.classes")


def test_masks_that_cannot_be_labels(tmp_path):
    folder(tmp_path, ["a"])
    write(tmp_path / "masks" / "a.png", np.dstack([RAMP, RAMP, RAMP + 1]))
    refused(ImageFolder(tmp_path).verify, "a.png", "colour", "one grey channel")
    (tmp_path / "masks" / "a.png").unlink()
    write(tmp_path / "masks" / "a.jpg", RAMP)
    refused(ImageFolder(tmp_path, classes=2).verify, "a.jpg", "as PNG")


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"classes": 0}])
def test_channels_and_classes_are_checked(tmp_path, wrong):
    folder(tmp_path)
    ((name, value),) = wrong.items()
    refused(lambda: ImageFolder(tmp_path, **wrong), f"data.{name} is {value}")


# --- names, folders and what is in them


@pytest.mark.parametrize("name", ["Müller", "é/1", "Å_1", "한국"])
def test_names_spelt_in_two_forms_of_unicode_are_one(tmp_path, name):
    for kind, form in (("images", "NFC"), ("masks", "NFD")):
        write(
            tmp_path / kind / f"{unicodedata.normalize(form, name)}.png",
            RAMP // 10 * 255,
        )
    source = ImageFolder(tmp_path)
    assert (
        source.cases == [unicodedata.normalize("NFC", name).split("/")[0]]
        and source[0]["mask"].sum() == 10
    )


def test_two_files_that_look_alike_are_refused(tmp_path):
    folder(tmp_path)
    for form in ("NFC", "NFD"):
        write(
            tmp_path / "images" / "a" / f"{unicodedata.normalize(form, 'Müller')}.png",
            RAMP,
        )
    refused(lambda: ImageFolder(tmp_path), "NFC", tmp_path / "images" / "a")


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("what", ["pipe", "socket", "device"])
def test_what_only_looks_like_a_file_is_refused_and_not_waited_for(
    tmp_path, kind, what
):
    path = folder(tmp_path) / kind / "a" / "1.png"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        listening = socket.socket(socket.AF_UNIX)
        here = os.open(path.parent, os.O_RDONLY)
        # The whole path may be too long for a socket.
        listening.bind(f"/proc/self/fd/{here}/1.png")
        os.close(here)
    refused(ImageFolder(tmp_path).verify, path, "not a file")


def test_linked_folders_are_read_and_the_rest_is_passed_over(tmp_path):
    folder(tmp_path / "data", ["a/1"])
    folder(tmp_path / "elsewhere", ["x/1", "x/2"])
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "b").symlink_to(tmp_path / "elsewhere" / kind / "x")
        (tmp_path / "data" / kind / "back").symlink_to(tmp_path / "data" / kind)
    for name in ("a/1.nrrd", "a/.hidden.png", "b/notes"):
        (tmp_path / "data" / "images" / name).write_bytes(b"")
    source = ImageFolder(tmp_path / "data")
    assert source.cases == ["a", "b", "b"]
    passed = sorted((one.path.name, one.why) for one in source.facts.passed)
    assert [name for name, _ in passed] == [
        ".hidden.png",
        "1.nrrd",
        "back",
        "back",
        "notes",
    ]
    assert passed[1][1] == "not a format that is read (.nrrd)"


def test_facts_hold_sides_files_and_notes(tmp_path):
    names = [
        f"{side}/p_{n}_s_{m}"
        for side, n in (("train", 1), ("train", 2), ("test", 3), ("val", 4))
        for m in (1, 2)
    ]
    source = ImageFolder(folder(tmp_path, names))
    assert (
        set(source.cases) == {"p_1", "p_2", "p_3", "p_4"}
        and source[0]["slice"] == "s_1"
    )
    facts = source.facts
    assert facts.sides == {"p_1": "train", "p_2": "train", "p_3": "test", "p_4": "val"}
    assert [path.name for path in facts.files["p_3"]] == ["p_3_s_1.png"] * 2 + [
        "p_3_s_2.png"
    ] * 2
    assert len(facts.notes) == 1 and "p_1_s_1" in facts.notes[0]


@pytest.mark.parametrize(
    ("case", "cases"), [("", 12), ("auto", 4), (r"slice_(\d)", 3), ("patient", 1)]
)
def test_the_rule_of_cases_in_a_flat_folder(tmp_path, case, cases):
    names = [f"patient_{n}_slice_{m}" for n in range(4) for m in range(3)]
    source = ImageFolder(folder(tmp_path, names), case=case)
    found = source.cases
    assert len(set(found)) == cases
    # Slices of a case follow one another.
    assert sum(a != b for a, b in itertools.pairwise(found)) == cases - 1
    assert len({(source[i]["case"], source[i]["slice"]) for i in range(12)}) == 12


@pytest.mark.parametrize(
    ("count", "foreground", "fine"),
    [(3, 0, False), (3, 1, True), (200, 1, True), (201, 1, False), (401, 2, False)],
)
def test_a_data_set_nearly_without_foreground_is_refused(
    tmp_path, count, foreground, fine
):
    empty, full = np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    for number in range(count):
        write(tmp_path / "images" / "a" / f"{number}.png", full)
        write(
            tmp_path / "masks" / "a" / f"{number}.png",
            full if number < foreground else empty,
        )
    source = ImageFolder(tmp_path)
    if fine:
        source.verify()
    else:
        refused(
            source.verify,
            f"{foreground} of {count} masks",
            "data.classes",
            "data.verify=False",
        )


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_image_and_mask_are_turned_by_one_rule(tmp_path, turn):
    stored = RAMP // 12 * 255
    exif = Image.Exif()
    exif[0x112] = turn
    for kind in ("images", "masks"):
        write(tmp_path / kind / "a.png", stored, exif=exif)
    write(tmp_path / "images" / "b.jpg", stored, exif=exif, quality=100)
    shown = np.asarray(
        ImageOps.exif_transpose(Image.open(tmp_path / "masks" / "a.png"))
    )
    write(tmp_path / "masks" / "b.tif", shown)
    source = ImageFolder(tmp_path)
    for i in (0, 1):
        np.testing.assert_array_equal(source[i]["mask"][..., 0] * 255, shown)
        np.testing.assert_array_equal(source[i]["image"][..., 0] > 127, shown > 127)
    if turn > 4:
        write(tmp_path / "masks" / "b.tif", stored)
        refused(
            ImageFolder(tmp_path).verify,
            "b.tif",
            "5x4",
            "4x5",
            f"EXIF orientation {turn}",
        )


# --- cached, and the real thing


class Counting:
    """A source that counts its readings."""

    cases = ("a", "a", "b")
    facts = Facts()
    readings = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.readings += 1
        return {
            "image": np.full((2, 2, 1), index, np.float32),
            "mask": np.zeros((2, 2, 1), np.uint8),
        }

    def scans(self, case):
        return iter(())

    def verify(self):
        raise BadInput("verified")


def test_cached_reads_once_and_guards_what_it_shares():
    source = Counting()
    cached = Cached(source)
    assert len(cached) == 3 and list(cached.cases) == ["a", "a", "b"]
    for _ in range(4):
        assert cached[2]["image"][0, 0, 0] == 2
    assert source.readings == 1
    with pytest.raises(ValueError, match="read-only"):
        cached[2]["image"][0, 0, 0] = 7
    # Every caller gets a dict of its own.
    cached[2]["image"] = None
    assert cached[2]["image"] is not None
    refused(cached.verify, "verified")


@pytest.mark.skipif(
    not (REAL / "covid19_ct").is_dir(),
    reason="no ../shared/data/covid19_ct beside the checkout",
)
def test_real_ct_slices():
    source = ImageFolder(REAL / "covid19_ct")
    assert len(source) == 1158 and len(set(source.cases)) == 8
    slices = [int(source[i]["slice"]) for i in range(0, 178, 25)]
    assert slices == sorted(slices) and source.cases[:178] == ["coronacases_001"] * 178
    example = source[100]
    assert example["image"].shape == example["mask"].shape == (256, 256, 1)
    assert re.search(r"coronacases_001.\d{3}\.png$", example["path"])
    assert 0 < example["mask"].mean() < 0.2 and example["mask"].max() == 1


@pytest.mark.skipif(
    not (REAL / "medseg_ct").is_dir(),
    reason="no ../shared/data/medseg_ct beside the checkout",
)
def test_real_flat_folder_with_jpeg_images_and_png_masks():
    source = ImageFolder(REAL / "medseg_ct" / "test")
    source.verify()
    assert len(source) == len(set(source.cases)) == 48
    assert all(source[i]["mask"].any() for i in range(0, 48, 8))


@pytest.mark.parametrize("extension", [".bmp", ".gif", ".webp", ".nrrd", ".png.txt"])
@pytest.mark.parametrize("partner", ["masks", "images"])
def test_a_partner_in_a_format_that_is_not_read_is_named(tmp_path, extension, partner):
    other = {"masks": "images", "images": "masks"}[partner]
    for kind in ("images", "masks"):
        (tmp_path / kind / "a").mkdir(parents=True)
        for name in "123":
            Image.fromarray(np.eye(4, dtype=np.uint8)).save(
                tmp_path / kind / "a" / f"{name}.png"
            )
    (tmp_path / partner / "a" / "2.png").rename(
        tmp_path / partner / "a" / f"2{extension}"
    )
    message = refusal_of(tmp_path)
    assert f"{tmp_path}/{other}/a/2.png" in message
    # A name of two extensions is not that of the image.
    is_named = f"{tmp_path}/{partner}/a/2{extension}" in message
    assert is_named == (extension != ".png.txt")


@pytest.mark.parametrize("extension", [".bmp", ".dcm", ".nii"])
def test_images_in_another_format_are_counted(tmp_path, extension):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in "12":
            (tmp_path / kind / f"{name}{extension}").touch()
    message = refusal_of(tmp_path)
    assert "2 files passed over: 2 " in message and f"({extension})" in message


def refusal_of(root):
    with pytest.raises(BadInput) as refusal:
        ImageFolder(root)
    return str(refusal.value)
