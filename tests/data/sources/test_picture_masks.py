"""Masks in picture files: every way to write one is read, or refused by name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_pictures import chunk, tiff
from PIL import Image
from refusals import refused

from biedsnet_jax.data.sources.picture_masks import read_mask, read_truth

TRUTH = np.zeros((48, 56), bool)
TRUTH[10:30, 12:40] = True
LABELS = TRUTH.astype(np.uint8)
LABELS[34:44, 5:50] = 2
WHITE = TRUTH * np.uint8(255)


def blobs(seed: int) -> np.ndarray:
    """Draws discs of several sizes."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :96]
    found = np.zeros((96, 96), bool)
    for radius in (3, 6, 11, 15):
        y, x = rng.integers(16, 80, 2)
        found |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return found


def save(path: Path, pixels, mode=None, **options) -> Path:
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def palette(path: Path, indices, colours, **options) -> Path:
    picture = Image.frombytes(
        "P", indices.shape[::-1], np.ascontiguousarray(indices, np.uint8).tobytes()
    )
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path, **options)
    return path


def grey(*levels):
    return [(level,) * 3 for level in levels]


def is_read(path: Path, truth=TRUTH, classes: int = 1) -> None:
    mask = read_mask(path, classes)
    assert mask.dtype == np.uint8 and mask.shape == (*truth.shape, classes)
    wanted = truth[..., None] == np.arange(1, classes + 1)
    np.testing.assert_array_equal(mask, wanted)


# --- with loss


@pytest.mark.parametrize("level", [32, 64, 100, 128, 200, 255])
@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_jpeg_of_zero_and_any_level(tmp_path, level, quality):
    for seed in range(3):
        truth = blobs(seed)
        path = save(tmp_path / "a.jpg", truth * np.uint8(level), quality=quality)
        mask = read_mask(path, 1)[..., 0] > 0
        assert (mask & truth).sum() / (mask | truth).sum() > 0.97, (
            level,
            quality,
            seed,
        )


@pytest.mark.parametrize("level", [64, 255])
def test_a_jpeg_of_a_few_pixels_and_of_three_channels(tmp_path, level):
    small = np.zeros((64, 64), bool)
    small[21:26, 30:35] = True
    for pixels in (small * np.uint8(level), np.dstack([small * np.uint8(level)] * 3)):
        mask = read_mask(save(tmp_path / "a.jpg", pixels, quality=90), 1)[..., 0] > 0
        assert (mask & small).sum() / (mask | small).sum() > 0.75


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_jpeg_of_one_level(tmp_path, value):
    mask = read_mask(save(tmp_path / "a.jpg", np.full((32, 32), value, np.uint8)), 1)
    assert mask.min() == mask.max() == (value > 0)


@pytest.mark.parametrize(
    "levels",
    [(0, 1), (0, 2), (0, 8), (100, 200), (0, 128, 255), (0, 64, 255), (0, 100, 200)],
)
def test_a_jpeg_of_other_levels_is_refused(tmp_path, levels):
    path = save(
        tmp_path / "a.jpg", np.array(levels, np.uint8)[LABELS % len(levels)], quality=95
    )
    refused(lambda: read_mask(path, 1), path, "as PNG")


def test_colours_and_several_classes_in_a_jpeg_are_refused(tmp_path):
    path = save(tmp_path / "a.jpg", np.dstack([WHITE, WHITE * 0, WHITE * 0]))
    refused(lambda: read_mask(path, 1), path, "colour", "one grey channel")
    path = save(tmp_path / "b.jpg", LABELS)
    refused(lambda: read_mask(path, 2), path, "2 classes", "as PNG")


@pytest.mark.parametrize(
    ("held", "called"),
    [("PNG", "a.jpg"), ("TIFF", "a.jpeg"), ("PNG", "a.tif"), ("BMP", "a.jpg")],
)
def test_a_file_is_judged_by_what_it_holds(tmp_path, held, called):
    is_read(save(tmp_path / called, TRUTH.astype(np.uint8), format=held))
    is_read(save(tmp_path / called, LABELS, format=held), LABELS, 2)


@pytest.mark.parametrize(
    "options", [{"format": "JPEG"}, {"format": "TIFF", "compression": "jpeg"}], ids=str
)
def test_a_lossy_file_is_one_whatever_it_is_called(tmp_path, options):
    truth = blobs(0)
    path = save(tmp_path / "a.png", truth * np.uint8(255), **options)
    mask = read_mask(path, 1)[..., 0] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.97
    path = save(tmp_path / "b.png", LABELS, **options)
    refused(lambda: read_mask(path, 2), path, "2 classes", "as PNG")


# --- alpha


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 30)])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_a_mask_in_the_alpha_channel_under_one_colour(tmp_path, colour, extension):
    pixels = np.dstack([np.full((*TRUTH.shape, 3), colour, np.uint8), WHITE])
    is_read(save(tmp_path / f"a.{extension}", pixels))
    empty = np.dstack([np.full((*TRUTH.shape, 3), colour, np.uint8), WHITE * 0])
    is_read(save(tmp_path / f"b.{extension}", empty), TRUTH & False)


@pytest.mark.parametrize("level", [0, 1, 255])
def test_a_mask_in_the_alpha_channel_of_grey(tmp_path, level):
    is_read(save(tmp_path / "a.png", np.dstack([np.full_like(WHITE, level), WHITE])))
    is_read(
        tiff(
            tmp_path / "a.tif",
            np.dstack([np.full_like(WHITE, level), WHITE]).astype(np.uint16),
            extra=(2,),
        )
    )


@pytest.mark.parametrize("alpha", [255, 7])
def test_the_same_alpha_everywhere_says_nothing(tmp_path, alpha):
    is_read(save(tmp_path / "a.png", np.dstack([WHITE, np.full_like(WHITE, alpha)])))
    is_read(
        save(
            tmp_path / "b.png", np.dstack([LABELS] * 3 + [np.full_like(WHITE, alpha)])
        ),
        LABELS,
        2,
    )


def test_colour_and_alpha_that_agree_or_differ(tmp_path):
    is_read(save(tmp_path / "a.png", np.dstack([WHITE, WHITE])))
    is_read(
        save(tmp_path / "b.png", np.dstack([LABELS, (LABELS > 0) * np.uint8(255)])),
        LABELS,
        2,
    )
    for name, alpha in (
        ("inverse", 255 - WHITE),
        ("shifted", np.roll(WHITE, 3, axis=0)),
        ("half", WHITE // 2 + 1),
    ):
        path = save(tmp_path / f"{name}.png", np.dstack([WHITE, alpha]))
        refused(
            lambda path=path: read_mask(path, 1),
            path,
            "0, 255",
            "alpha",
            "one grey channel",
        )


@pytest.mark.parametrize("hidden", [0, 255])
def test_one_transparent_value(tmp_path, hidden):
    path = save(tmp_path / "a.png", WHITE, transparency=hidden)
    if hidden == 0:
        is_read(path)
    else:
        refused(lambda: read_mask(path, 1), path, "alpha")


# --- palettes


@pytest.mark.parametrize("extension", ["png", "tif", "gif"])
@pytest.mark.parametrize(
    ("levels", "order"),
    [((0, 255), (0, 1)), ((255, 0), (1, 0)), ((0, 128), (0, 1)), ((9, 1, 0), (2, 1))],
)
def test_two_greys_of_a_palette_in_any_order(tmp_path, extension, levels, order):
    indices = np.array(order)[TRUTH.astype(int)]
    if extension == "gif":
        is_read(palette(tmp_path / "a.png", indices, grey(*levels), format="GIF"))
    else:
        is_read(palette(tmp_path / f"a.{extension}", indices, grey(*levels)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_greys_that_are_the_labels(tmp_path, order):
    levels = np.argsort(order)
    is_read(
        palette(tmp_path / "a.png", np.array(order)[LABELS], grey(*levels.tolist())),
        LABELS,
        2,
    )


@pytest.mark.parametrize("levels", [(0, 128, 255), (10, 20, 30), (0, 85, 170)])
def test_rising_greys_that_are_no_labels_are_read_by_index(tmp_path, levels):
    is_read(palette(tmp_path / "a.png", LABELS, grey(*levels)), LABELS, 2)
    path = palette(tmp_path / "b.png", 2 - LABELS, grey(*levels[::-1]))
    refused(lambda: read_mask(path, 2), path, "palette", "one grey channel")


def test_colours_are_read_by_index_unless_black_is_not_the_first(tmp_path):
    is_read(
        palette(tmp_path / "a.png", LABELS, [(0, 0, 0), (128, 0, 0), (0, 128, 0)]),
        LABELS,
        2,
    )
    is_read(palette(tmp_path / "b.png", TRUTH, [(255, 255, 255), (200, 0, 0)]))
    for name, colours in (
        ("c", [(128, 0, 0), (0, 0, 0), (0, 128, 0)]),
        ("d", [(9, 9, 90), (1, 2, 3), (0, 0, 0)]),
    ):
        path = palette(tmp_path / f"{name}.png", LABELS, colours)
        refused(lambda path=path: read_mask(path, 2), path, "#000000", "palette")


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (10, 200, 10)])
def test_entries_of_a_palette_that_differ_in_alpha_alone(tmp_path, colour):
    is_read(
        palette(tmp_path / "a.png", TRUTH, [colour, colour], transparency=b"\x00\xff")
    )


# --- whatever else stands for black and white


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]
)
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_every_mode_of_a_white_mask_on_black(tmp_path, mode, extension):
    if extension == "png" and mode in ("CMYK", "YCbCr"):
        mode = "RGB"
    picture = Image.fromarray(WHITE)
    if mode == "CMYK":
        # Printers use black ink alone.
        none = Image.new("L", picture.size)
        picture = Image.merge("CMYK", [none, none, none, Image.fromarray(255 - WHITE)])
    else:
        if mode == "YCbCr":
            picture = picture.convert("RGB")
        picture = picture.convert(mode)
    path = tmp_path / f"a.{extension}"
    picture.save(path)
    is_read(path)


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("compression", [1, 8])
def test_white_is_foreground_where_the_smallest_value_is_white(
    tmp_path, bits, compression
):
    most = 2**bits - 1
    stored = np.where(TRUTH, 0, most).astype(np.uint16 if bits == 16 else np.uint8)
    is_read(
        tiff(
            tmp_path / "a.tif",
            stored,
            photometric=0,
            bits=bits,
            compression=compression,
        )
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_stay_labels_where_the_smallest_value_is_white(tmp_path, dtype):
    is_read(tiff(tmp_path / "a.tif", LABELS.astype(dtype), photometric=0), LABELS, 2)
    # The values 0 and 1 are both nearly white.
    is_read(tiff(tmp_path / "b.tif", TRUTH.astype(dtype), photometric=0))


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits(tmp_path, bits):
    is_read(save(tmp_path / "a.png", LABELS), LABELS, 2)
    is_read(tiff(tmp_path / "a.tif", LABELS, bits=bits), LABELS, 2)
    is_read(small_png(tmp_path / "b.png", LABELS, bits), LABELS, 2)
    is_read(small_png(tmp_path / "c.png", TRUTH.astype(np.uint8) * 2, bits))


def small_png(path: Path, pixels, bits: int) -> Path:
    """Writes a grey PNG of 2 or 4 bits, which Pillow does not."""
    rows = b"".join(b"\0" + _row(row, bits) for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    return path


def _row(row, bits: int) -> bytes:
    text = "".join(f"{value:0{bits}b}" for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.uint32, np.float32, np.float64]
)
def test_labels_of_any_type(tmp_path, dtype):
    is_read(tiff(tmp_path / "a.tif", LABELS.astype(dtype), order=">"), LABELS, 2)
    bad = LABELS.astype(dtype)
    bad[0, 0] = 77
    refused(lambda: read_mask(tiff(tmp_path / "b.tif", bad), 2), "77", "b.tif")


@pytest.mark.parametrize("value", [-1, np.nan, 0.5])
def test_labels_that_are_none(tmp_path, value):
    bad = LABELS.astype(np.float32)
    bad[0, 0] = value
    path = tiff(tmp_path / "a.tif", bad)
    refused(lambda: read_mask(path, 2), path, f" {value}", "0 to 2", "data.classes")


# --- pixels that were not annotated

# Rows of the truth and of the background.
VOID = np.zeros_like(TRUTH)
VOID[25:40, 20:30] = True


def is_read_but_void(path: Path, ignore: str, truth=TRUTH, classes: int = 1) -> None:
    mask, known = read_truth(path, classes, ignore)
    assert mask.dtype == np.uint8 and known.dtype == bool
    np.testing.assert_array_equal(known, ~VOID)
    wanted = (truth[..., None] == np.arange(1, classes + 1)) & ~VOID[..., None]
    np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize(
    ("level", "ignore"), [(255, "255"), (128, "128"), (2, "2"), (255, "#ffffff")]
)
def test_a_grey_value_to_ignore(tmp_path, level, ignore):
    pixels = np.where(VOID, level, TRUTH * 7).astype(np.uint8)
    is_read_but_void(save(tmp_path / "a.png", pixels), ignore)
    deep = np.where(VOID, 1000, TRUTH * 7).astype(np.uint16)
    is_read_but_void(save(tmp_path / "b.png", deep), "1000")


def test_labels_beside_a_value_to_ignore(tmp_path):
    pixels = np.where(VOID, 255, LABELS).astype(np.uint8)
    path = save(tmp_path / "a.png", pixels)
    is_read_but_void(path, "255", LABELS, 2)
    refused(lambda: read_mask(path, 2), path, "255", "data.classes=2")
    refused(lambda: read_truth(path, 1, "255"), path, "0, 1, 2", "data.classes=1")


def test_a_colour_to_ignore(tmp_path):
    pixels = np.stack([WHITE] * 3, axis=-1)
    pixels[VOID] = (255, 0, 0)
    is_read_but_void(save(tmp_path / "a.png", pixels), "#ff0000")
    is_read_but_void(save(tmp_path / "a.png", pixels), "#FF0000")
    # Of another colour, the mask is in colour.
    path = save(tmp_path / "a.png", pixels)
    refused(lambda: read_truth(path, 1, "#00ff00"), path, "in colour")


def test_a_palette_with_a_colour_or_an_index_to_ignore(tmp_path):
    indices = np.where(VOID, 255, LABELS).astype(np.uint8)
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0), *[(9, 9, 9)] * 252]
    path = palette(tmp_path / "a.png", indices, [*colours, (224, 224, 192)])
    is_read_but_void(path, "255", LABELS, 2)
    is_read_but_void(path, "#e0e0c0", LABELS, 2)


def test_a_picture_that_has_nothing_or_everything_to_ignore(tmp_path):
    path = save(tmp_path / "a.png", WHITE)
    mask, known = read_truth(path, 1, "7")
    np.testing.assert_array_equal(mask[..., 0], TRUTH)
    assert known.all()
    for ignore in ("9", "#090909"):
        mask, known = read_truth(
            save(tmp_path / "b.png", np.full_like(WHITE, 9)), 1, ignore
        )
        assert not mask.any() and not known.any()


def test_a_lossy_mask_has_no_value_to_ignore(tmp_path):
    path = save(tmp_path / "a.jpg", WHITE)
    refused(lambda: read_truth(path, 1, "255"), path, "data.ignore", "PNG")
