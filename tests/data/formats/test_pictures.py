"""Pixels of picture files against bytes written by hand, and against SimpleITK."""

import io
import struct

import numpy as np
import pytest
from made_pictures import png16, tiff
from PIL import Image, ImageOps
from refusals import refused

from biedsnet_jax.data.formats import pictures
from biedsnet_jax.data.formats.pictures import (
    read_picture_turned,
    turn_back,
    turn_upright,
)
from biedsnet_jax.errors import BadInput

RNG = np.random.default_rng(0)
SHAPE = (21, 35)
WHOLE = (
    np.uint8,
    np.int8,
    np.uint16,
    np.int16,
    np.uint32,
    np.int32,
    np.uint64,
    np.int64,
)
FLOATS = (np.float16, np.float32, np.float64)


def read_picture(path, channels):
    return read_picture_turned(path, channels)[0]


def values(dtype, samples=1):
    """Draws pixels over the whole range of a type, floats with a deviation of 300."""
    shape = (*SHAPE, samples)
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 300, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def as_read(pixels):
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    return pixels.astype(np.float32)


def by_itk(path):
    """Reads with SimpleITK; the test is skipped where it is not installed."""
    itk = pytest.importorskip("SimpleITK")
    return np.atleast_3d(itk.GetArrayFromImage(itk.ReadImage(str(path))))


# --- TIFF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", WHOLE + FLOATS)
def test_every_type_of_tiff_in_both_byte_orders(tmp_path, dtype, order):
    pixels = values(dtype)
    read = read_picture(tiff(tmp_path / "a.tif", pixels, order=order), 1)
    assert read.dtype == as_read(pixels).dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, as_read(pixels))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 5, 8, 32946, 32773])
@pytest.mark.parametrize("layout", [{"rows": 5}, {"tile": 16}, {}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "samples", "planar"),
    [(np.uint16, 1, 1), (np.int16, 3, 1), (np.uint16, 3, 2)],
)
def test_compressions_strips_tiles_and_planes(
    tmp_path, order, compression, layout, dtype, samples, planar
):
    pixels = values(dtype, samples)
    path = tiff(
        tmp_path / "a.tif",
        pixels,
        order=order,
        compression=compression,
        planar=planar,
        **layout,
    )
    np.testing.assert_array_equal(read_picture(path, samples), as_read(pixels))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", [{"rows": 4}, {"tile": 16}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "samples", "predictor"),
    [
        (np.uint8, 3, 2),
        (np.uint16, 1, 2),
        (np.uint16, 3, 2),
        (np.uint32, 1, 2),
        (np.float32, 1, 3),
        (np.float64, 3, 3),
    ],
)
def test_predictors(tmp_path, dtype, samples, predictor, order, layout):
    pixels = values(dtype, samples)
    path = tiff(
        tmp_path / "a.tif",
        pixels,
        order=order,
        compression=8,
        predictor=predictor,
        **layout,
    )
    np.testing.assert_array_equal(read_picture(path, samples), as_read(pixels))
    # ITK reads these in full depth.
    if dtype in (np.uint16, np.float32) and samples == 1 and "rows" in layout:
        np.testing.assert_array_equal(by_itk(path), pixels)


@pytest.mark.parametrize(
    ("dtype", "samples"),
    [
        (np.uint8, 1),
        (np.int8, 1),
        (np.uint16, 1),
        (np.int16, 1),
        (np.float32, 1),
        (np.uint8, 3),
        (np.uint16, 3),
    ],
)
def test_another_reader_sees_the_same(tmp_path, dtype, samples):
    path = tiff(
        tmp_path / "a.tif", values(dtype, samples), order=">", compression=5, rows=6
    )
    np.testing.assert_array_equal(read_picture(path, samples), as_read(by_itk(path)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_where_the_smallest_value_is_white(tmp_path, dtype):
    pixels = values(dtype)
    shown = np.iinfo(dtype).max - pixels
    read = read_picture(tiff(tmp_path / "a.tif", pixels, photometric=0, order=">"), 1)
    np.testing.assert_array_equal(read, as_read(shown))
    with_alpha = np.concatenate([pixels, values(dtype)], axis=-1)
    path = tiff(tmp_path / "b.tif", with_alpha, photometric=0, extra=(2,))
    np.testing.assert_array_equal(read_picture(path, 1), as_read(shown))


def test_one_bit_where_the_smallest_value_is_white(tmp_path):
    pixels = values(np.uint8) % 2
    for name, photometric, shown in (("black", 1, pixels), ("white", 0, 1 - pixels)):
        path = tiff(tmp_path / f"{name}.tif", pixels, photometric=photometric, bits=1)
        np.testing.assert_array_equal(read_picture(path, 1), shown)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int8])
def test_inverted_values_without_a_largest_one_are_refused(tmp_path, dtype):
    path = tiff(tmp_path / "a.tif", values(dtype), photometric=0)
    refused(lambda: read_picture(path, 1), path, "smallest value is white")


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_values_packed_without_gaps(tmp_path, bits):
    pixels = values(np.uint16) >> (16 - bits)
    np.testing.assert_array_equal(
        read_picture(tiff(tmp_path / "a.tif", pixels, bits=bits, order=">"), 1), pixels
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("samples", [1, 3])
def test_alpha_is_dropped_in_full_depth(tmp_path, dtype, samples):
    pixels = values(dtype, samples + 1)
    path = tiff(
        tmp_path / "a.tif", pixels, extra=(2,), photometric=2 if samples == 3 else 1
    )
    np.testing.assert_array_equal(
        read_picture(path, samples), as_read(pixels[..., :samples])
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_were_multiplied_by_alpha(tmp_path, dtype):
    most = np.iinfo(dtype).max
    alpha = np.array([[most, most // 5, 0]], dtype)[..., None]
    # The grey value 100, under each alpha but the last.
    grey = np.array([[100, 20, 0]], dtype)[..., None]
    path = tiff(tmp_path / "a.tif", np.concatenate([grey, alpha], axis=-1), extra=(1,))
    np.testing.assert_array_equal(read_picture(path, 1)[..., 0], [[100, 100, 0]])


@pytest.mark.parametrize("write", [tiff, png16], ids=["tiff", "png"])
def test_16_bit_grey_in_three_channels_stays_16_bit(tmp_path, write):
    grey = values(np.uint16)
    path = write(tmp_path / "a", np.repeat(grey, 3, axis=-1))
    read = read_picture(path, 1)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, grey)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colour_for_one_channel_is_refused_in_every_depth(tmp_path, dtype):
    path = tiff(tmp_path / "a.tif", values(dtype, 3))
    refused(lambda: read_picture(path, 1), path, "data.channels=3")


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(735, dtype=np.uint32).reshape(SHAPE) + np.uint32(2**31),
        np.arange(735, dtype=np.int64).reshape(SHAPE) + 2**40,
        np.arange(735).reshape(SHAPE) * 1e-9 + 1.0,
        np.arange(735).reshape(SHAPE) * 1e300,
    ],
    ids=["uint32", "int64", "float64", "too large"],
)
def test_values_that_float32_cannot_tell_apart_are_refused(tmp_path, pixels):
    refused(
        lambda: read_picture(tiff(tmp_path / "a.tif", pixels), 1),
        "float32",
        "Subtract an offset",
    )


@pytest.mark.parametrize(
    ("dtype", "changes", "says"),
    [
        (np.uint16, {"photometric": 5, "extra": ()}, "photometric interpretation 5"),
        (np.uint16, {"photometric": 3}, "16-16-16-16 bits"),
        (np.uint8, {"more": {259: (3, (34887,))}}, "compression 34887"),
        (np.float32, {"more": {339: (3, (6, 6, 6, 6))}}, "sample format 6"),
    ],
)
def test_what_is_not_read_is_named_by_its_kind(tmp_path, dtype, changes, says):
    path = tiff(tmp_path / "a.tif", values(dtype, 4), **changes)
    refused(lambda: read_picture(path, 3), path, says, "Save it as PNG")


@pytest.mark.parametrize("pages", [(1,), (1, 1), (4,), (5,)])
def test_previews_and_masks_beside_the_picture_are_not_pages(tmp_path, pages):
    pixels = values(np.uint16)
    np.testing.assert_array_equal(
        read_picture(tiff(tmp_path / "a.tif", pixels, pages=pages), 1), pixels
    )


@pytest.mark.parametrize(("pages", "count"), [((0,), 2), ((2, 2), 3), ((0, 1), 2)])
def test_pages_are_refused(tmp_path, pages, count):
    path = tiff(tmp_path / "a.tif", values(np.uint16), order=">", pages=pages)
    refused(lambda: read_picture(path, 1), f"{count} pages", path)


def test_directories_in_a_circle_end(tmp_path):
    path = tiff(tmp_path / "a.tif", values(np.uint8), pages=(0,))
    data = bytearray(path.read_bytes())
    first = data[4:8]
    where = struct.unpack("<I", first)[0]
    entries = struct.unpack("<H", data[where : where + 2])[0]
    # The link to the next directory, after the entries, leads to the first again.
    link = where + 2 + 12 * entries
    data[link : link + 4] = first
    path.write_bytes(data)
    assert read_picture(path, 1).shape == (*SHAPE, 1)


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_tiff_of_64_bits_is_named(tmp_path, compression, kept):
    path = tiff(tmp_path / "a.tif", values(np.float64), compression=compression, rows=3)
    data = path.read_bytes()
    where = struct.unpack("<I", data[4:8])[0]
    path.write_bytes(data[: int(8 + kept * (where - 8))])
    refused(lambda: read_picture(path, 1), "Replace or remove it", path)


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_a_tiff_that_states_more_pixels_than_its_bytes_can_hold(tmp_path, compression):
    path = tiff(tmp_path / "a.tif", values(np.float64), compression=compression)
    data = bytearray(path.read_bytes())
    where = struct.unpack("<I", data[4:8])[0]
    for entry in range(where + 2, where + 2 + 12 * 12, 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257, 278):
            struct.pack_into("<I", data, entry + 8, 16000)
    path.write_bytes(data)
    refused(lambda: read_picture(path, 1), "2048000000 bytes", path)


# --- PNG and JPEG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize(
    "filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 0, 2, 1)], ids=str
)
def test_16_bit_png_of_several_channels(tmp_path, samples, filters, interlaced):
    pixels = values(np.uint16, samples)
    path = png16(tmp_path / "a.png", pixels, filters=filters, interlaced=interlaced)
    wanted = 3 if samples > 2 else 1
    np.testing.assert_array_equal(read_picture(path, wanted), pixels[..., :wanted])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 5)])
def test_16_bit_png_of_odd_shapes(tmp_path, shape):
    pixels = RNG.integers(0, 65536, (*shape, 3)).astype(np.uint16)
    for interlaced in (False, True):
        path = png16(tmp_path / "a.png", pixels, filters=(4, 3), interlaced=interlaced)
        np.testing.assert_array_equal(read_picture(path, 3), pixels)


@pytest.mark.parametrize("samples", [3, 4])
def test_another_readers_16_bit_png(tmp_path, samples):
    itk = pytest.importorskip("SimpleITK")
    smooth = np.cumsum(RNG.integers(0, 300, (40, 50, samples)), axis=1).astype(
        np.uint16
    )
    itk.WriteImage(
        itk.GetImageFromArray(smooth, isVector=True), str(tmp_path / "a.png")
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 3), smooth[..., :3])


def test_a_damaged_16_bit_png_is_named(tmp_path):
    path = png16(tmp_path / "a.png", values(np.uint16, 3))
    whole = path.read_bytes()
    for damage in (
        whole[: len(whole) // 2],
        whole[:60] + b"\1" + whole[61:],
        whole[:40],
    ):
        path.write_bytes(damage)
        refused(lambda: read_picture(path, 3), "Replace or remove it", path)


def test_one_transparent_value_of_a_png_changes_no_pixel(tmp_path):
    grey = values(np.uint8)[..., 0]
    deep, colour = grey * np.uint16(257), np.dstack([grey] * 3)
    for name, pixels, hidden in (
        ("L", grey, 7),
        ("RGB", colour, (7, 7, 7)),
        ("16", deep, 7),
    ):
        Image.fromarray(pixels).save(tmp_path / "a.png", transparency=hidden)
        read = read_picture(tmp_path / "a.png", 1)
        np.testing.assert_array_equal(
            read[..., 0], pixels[..., 0] if name == "RGB" else pixels
        )


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "JPG"])
def test_a_phones_picture_is_its_first_one(tmp_path, extension):
    first = Image.fromarray(np.full((64, 48, 3), 90, np.uint8))
    preview = Image.fromarray(np.full((16, 12, 3), 200, np.uint8))
    path = tmp_path / f"a.{extension}"
    first.save(path, format="MPO", save_all=True, append_images=[preview, preview])
    np.testing.assert_allclose(read_picture(path, 3), np.full((64, 48, 3), 90), atol=1)


@pytest.mark.parametrize("extension", ["png", "tif", "jpg"])
def test_a_large_picture_is_read_and_a_larger_one_refused_as_too_large(
    tmp_path, monkeypatch, extension, recwarn
):
    path = tmp_path / f"a.{extension}"
    # Pillow would warn of so many pixels.
    Image.new("L", (10_000, 9_000)).save(path)
    assert read_picture(path, 1).shape == (9_000, 10_000, 1)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 89_999_999)
    refused(
        lambda: read_picture(path, 1),
        path,
        "too large",
        "10000x9000",
        "Cut it into parts",
    )
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_a_file_is_what_it_holds_whatever_it_is_called(tmp_path, kind):
    pixels = values(np.uint8)[..., 0]
    for held in ("PNG", "TIFF", "BMP", "GIF"):
        Image.fromarray(pixels).save(tmp_path / f"a.{kind}", format=held)
        np.testing.assert_array_equal(
            read_picture(tmp_path / f"a.{kind}", 1)[..., 0], pixels
        )


def test_a_postscript_file_is_never_started(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    )
    refused(lambda: read_picture(tmp_path / "a.png", 1), "a.png", "not an image")


# --- EXIF orientation


def exif(turn):
    found = Image.Exif()
    found[0x112] = turn
    return found


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["png", "jpg", "tif", "tif packed", "tif palette", "tif jpeg", "png 16"]
)
def test_a_turned_picture_is_read_as_it_is_shown(tmp_path, kind, turn):
    rows, columns = np.mgrid[:16, :24]
    grey = (rows * 10 + columns * 3).astype(np.uint8)
    path = tmp_path / f"a.{kind[:3]}"
    tagged = io.BytesIO()
    Image.fromarray(grey).save(tagged, "PNG", exif=exif(turn))
    if kind == "png 16":
        png16(path, np.dstack([grey * np.uint16(257)] * 3))
        start = tagged.getvalue().index(b"eXIf") - 4
        length = struct.unpack(">I", tagged.getvalue()[start : start + 4])[0]
        whole = path.read_bytes()
        path.write_bytes(
            whole[:33] + tagged.getvalue()[start : start + 12 + length] + whole[33:]
        )
    else:
        options = {
            "jpg": {"quality": 100},
            "tif packed": {"compression": "tiff_lzw"},
            "tif jpeg": {"compression": "jpeg", "quality": 100},
        }
        picture = Image.fromarray(grey)
        if kind == "tif palette":
            picture = picture.convert("P")
        picture.save(path, exif=exif(turn), **options.get(kind, {}))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tagged)))
    pixels, found = read_picture_turned(path, 1)
    assert found == turn
    read = pixels[..., 0] // 257 if kind == "png 16" else pixels[..., 0]
    np.testing.assert_allclose(read, shown, atol=1)
    assert read.shape == ((24, 16) if turn > 4 else (16, 24))


@pytest.mark.parametrize("turn", range(1, 9))
def test_turning_back_is_the_inverse(turn):
    for shape in ((3, 5), (3, 5, 2)):
        stored = RNG.random(shape)
        np.testing.assert_array_equal(
            turn_back(turn_upright(stored, turn), turn), stored
        )


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_written_map_lies_on_the_stored_picture_and_is_shown_on_the_shown_one(
    tmp_path, turn
):
    stored = (RNG.random((6, 9)) > 0.5).astype(np.uint8) * 255
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif(turn))
    pixels, found = read_picture_turned(tmp_path / "a.png", 1)
    pictures.save_turned(tmp_path / "mask.png", pixels[..., 0], found)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), stored)
    np.testing.assert_array_equal(read_picture(tmp_path / "mask.png", 1), pixels)


@pytest.mark.parametrize("bad", [0, 9, 77])
def test_an_orientation_that_is_none_is_passed_over(tmp_path, bad):
    pixels = values(np.uint8)
    path = tiff(tmp_path / "a.tif", pixels, turn=bad or 200)
    np.testing.assert_array_equal(read_picture(path, 1), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png", exif=exif(bad))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 1), pixels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_size_by_the_header_alone(tmp_path, order):
    path = tiff(tmp_path / "a.tif", values(np.float64, 3), order=order, planar=2)
    assert pictures.read_size(path) == (*SHAPE, 3)
    Image.new("LA", (7, 5)).save(tmp_path / "a.png")
    assert pictures.read_size(tmp_path / "a.png") == (5, 7, 2)


@pytest.mark.parametrize("tag", [258, 259, 262, 339])
def test_what_a_damaged_tiff_holds_thousands_of_is_cut_in_the_message(tmp_path, tag):
    short = {
        256: 4,
        257: 4,
        258: 16,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 4,
        279: 32,
        339: 1,
    }
    many = 3000
    start = 8 + 32 + 2 * many
    data = (
        b"II*\0" + struct.pack("<I", start) + bytes(32) + struct.pack("<H", 141) * many
    )
    data += struct.pack("<H", len(short))
    for number, value in short.items():
        count, value = (many, 40) if number == tag else (1, value)
        data += struct.pack("<HHII", number, 3, count, value)
    path = tmp_path / "a.tif"
    path.write_bytes(data + bytes(4))
    with pytest.raises(BadInput) as refusal:
        read_picture(path, 1)
    says = str(refusal.value).replace(str(path), "")
    assert len(says) < 500 and "\n" not in says
