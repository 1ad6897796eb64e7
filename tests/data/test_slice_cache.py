"""Slices kept on disk: what comes back, when it is made anew, and what is left by those who are stopped."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from biedsnet_jax.data import slice_cache
from biedsnet_jax.data.slice_cache import SliceCache
from biedsnet_jax.types import BadInput

ROOT = Path(__file__).resolve().parents[2]
RAMP = np.arange(24).reshape(2, 3, 4, 1)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"its content does not matter here")
    return path


class Reader:
    """Gives a volume and counts how often."""

    def __init__(self, volume):
        self.volume, self.calls = volume, 0

    def __call__(self):
        self.calls += 1
        return self.volume


def decoded(kept):
    return np.stack([kept[z] for z in range(len(kept))])


def made(tmp_path, scan, volume):
    return SliceCache(tmp_path / "cache").images([scan], lambda: volume)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "dtype", "stored"),
    [
        (0, 255, np.uint8, np.uint8),
        (-128, 127, np.int8, np.uint8),  # whose span overflows its own type
        (-1024, 3071, np.int16, np.uint16),
        (-32768, 32767, np.int16, np.uint16),
        (-32768, 32767, ">i2", np.uint16),
        (-40000, 25535, np.int32, np.uint16),
        (70000, 70100, np.uint32, np.uint8),
        (16711680, 16777215, np.int64, np.uint16),
    ],
)
def test_whole_numbers_are_exact(tmp_path, scan, low, high, dtype, stored):
    volume = np.random.default_rng(0).integers(low, high + 1, (3, 5, 4, 2)).astype(dtype)
    volume[0, 0, 0], volume[2, 4, 3] = low, high
    kept = made(tmp_path, scan, volume)
    assert len(kept) == 3 and kept.stored.dtype == stored and isinstance(kept.stored, np.memmap)
    assert kept[1].dtype == np.float32
    np.testing.assert_array_equal(decoded(kept), volume.astype(np.float32))


@pytest.mark.parametrize(
    ("volume", "step"),
    [
        (np.random.default_rng(0).normal(-300, 500, (3, 9, 8, 1)), 0.0),
        (np.random.default_rng(0).normal(0, 1, (3, 9, 8, 1)).astype(np.float32) * 1e-6, 0.0),
        (np.full((2, 3, 4, 1), 7.25), 0.0),
        (np.geomspace(1e-6, 1e6, 96).reshape(4, 6, 4, 1), 1e6 * 3e-8),  # the lowest are below what float16 resolves
        (np.array([-(2**31), 0, 5, 2**31 - 1], np.int32).reshape(1, 2, 2, 1), 0.0),
    ],
)
def test_others_are_kept_to_a_2048th_of_their_height(tmp_path, scan, volume, step):
    kept = made(tmp_path, scan, volume)
    assert kept.stored.dtype == np.float16
    height = volume.astype(np.float64) - volume.min()
    rounding = 1e-6 * np.abs(volume).max()  # of float32
    assert (np.abs(decoded(kept) - volume) <= height / 2048 + step + rounding).all()


def test_each_channel_has_its_own_scale(tmp_path, scan):
    """PET beside CT: 1/2048 of a Hounsfield span would be more than any uptake."""
    rng = np.random.default_rng(0)
    ct, pet = rng.uniform(-1024, 3000, (2, 8, 8)), rng.uniform(0, 4, (2, 8, 8))
    kept = made(tmp_path, scan, np.stack([ct, pet], axis=-1))
    np.testing.assert_allclose(decoded(kept)[..., 1], pet, atol=4 / 2048)
    np.testing.assert_allclose(decoded(kept)[..., 0], ct, atol=4024 / 2048)


def test_labels_are_counted_slice_by_slice(tmp_path, scan):
    volume = np.array([[[0, 2, 2], [0, 0, 300]], [[2, 2, 2], [0, 0, 0]]], np.uint16)
    kept = SliceCache(tmp_path / "cache").labels([scan], lambda: volume)
    again = SliceCache(tmp_path / "cache").labels([scan], lambda: pytest.fail("read again"))
    for one in (kept, again):
        assert one.counts == {2: [2, 3], 300: [1, 0]}
        np.testing.assert_array_equal(decoded(one)[..., 0], volume)


def test_an_image_in_place_of_a_mask(tmp_path, scan):
    with pytest.raises(BadInput, match=r"more than 256 labels, 257, .*scan\.nii\.gz; "):
        SliceCache(tmp_path / "cache").labels([scan], lambda: np.arange(257, dtype=np.uint16).reshape(1, 1, 257))
    assert not (tmp_path / "cache").exists()


# --- when a volume is read again -------------------------------------------------------------------------------------


def test_a_volume_is_read_once_by_all_who_share_the_folder(tmp_path, scan):
    read = Reader(RAMP)
    for _ in range(2):
        cache = SliceCache(tmp_path / "cache")
        for _ in range(3):
            np.testing.assert_array_equal(decoded(cache.images([scan], read)), RAMP)
    assert read.calls == 1


@pytest.mark.parametrize("what", ["size", "time", "another file", "more files", "labels"])
def test_what_asks_for_another_reading(tmp_path, scan, what):
    cache = SliceCache(tmp_path / "cache")
    cache.images([scan], lambda: RAMP)
    read, get, files = Reader(RAMP + 1), cache.images, [scan]
    if what == "size":
        status = scan.stat()
        scan.write_bytes(scan.read_bytes() + b".")
        os.utime(scan, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif what == "time":
        os.utime(scan, ns=(0, scan.stat().st_mtime_ns + 1000))
    elif what == "labels":
        get, read = cache.labels, Reader(RAMP[..., 0] + 1)
    else:
        other = tmp_path / "other.nii.gz"
        other.write_bytes(scan.read_bytes())
        files = [other] if what == "another file" else [scan, other]
    np.testing.assert_array_equal(decoded(get(files, read)), RAMP + 1)
    assert read.calls == 1


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "garbage", "pickle", "no json", "json cut", "json list", "json old"]
)
def test_a_damaged_volume_is_made_again(tmp_path, scan, damage):
    made(tmp_path, scan, RAMP.astype(np.int16))
    (array,) = (tmp_path / "cache").glob("*.npy")
    meta = array.with_suffix(".json")
    if damage == "truncated":
        array.write_bytes(array.read_bytes()[:-1])
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "garbage":
        array.write_bytes(b"x" * 200)
    elif damage == "pickle":
        with array.open("wb") as file:
            np.save(file, np.array([{}], object), allow_pickle=True)
    elif damage == "no json":
        meta.unlink()
    else:
        meta.write_text({"json cut": '{"low": [0', "json list": '{"counts": []}', "json old": '{"low": 0}'}[damage])
    read = Reader(RAMP.astype(np.int16) * 2)
    for _ in range(2):
        np.testing.assert_array_equal(decoded(SliceCache(tmp_path / "cache").images([scan], read)), RAMP * 2)
    assert read.calls == 1


def test_more_volumes_than_may_be_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(slice_cache, "MOST_OPEN", 4)
    cache, reads = SliceCache(tmp_path / "cache"), []
    paths = [tmp_path / f"{number}.nii" for number in range(9)]
    for path in paths:
        path.touch()
    for _ in range(2):
        for number, path in enumerate(paths):
            kept = cache.images([path], lambda number=number: reads.append(number) or RAMP + number)
            np.testing.assert_array_equal(decoded(kept), RAMP + number)
    assert reads == list(range(9))
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert mapped.read_text().count(str(tmp_path / "cache")) <= 5  # the four, and the one in hand


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be(tmp_path, scan):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BadInput, match=r"cannot write the slice cache, .*, .*cache; make room, or set data\.cache_dir"):
        made(tmp_path, scan, RAMP)


def test_a_full_disk_leaves_nothing_and_a_later_try_succeeds(tmp_path, scan, monkeypatch):
    def full(one, *_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(slice_cache, "_encode", full)
        with pytest.raises(BadInput, match="cannot write the slice cache, No space left on device"):
            made(tmp_path, scan, RAMP)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".json"]
    np.testing.assert_array_equal(decoded(made(tmp_path, scan, RAMP)), RAMP)


def test_a_file_that_is_gone(tmp_path, scan):
    cache = SliceCache(tmp_path / "cache")
    cache.images([scan], lambda: RAMP)
    scan.unlink()
    with pytest.raises(BadInput, match=r"file gone, .*scan\.nii\.gz; put it back"):
        cache.images([scan], lambda: RAMP)


def test_an_error_of_reading_passes_through_and_is_tried_again(tmp_path, scan):
    cache = SliceCache(tmp_path / "cache")

    def broken():
        raise BadInput("a, b; c")

    with pytest.raises(BadInput, match="a, b; c"):
        cache.images([scan], broken)
    np.testing.assert_array_equal(decoded(cache.images([scan], lambda: RAMP)), RAMP)


# --- several at once -------------------------------------------------------------------------------------------------


def test_of_threads_that_want_one_volume_one_reads_it(tmp_path, scan):
    cache, together, found = SliceCache(tmp_path / "cache"), threading.Barrier(8), []
    read = Reader(RAMP)

    def want():
        together.wait()
        found.append(decoded(cache.images([scan], read)))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read.calls == 1 and len(found) == 8
    assert all(np.array_equal(one, RAMP) for one in found)


SCRIPT = """
import sys, time, pathlib, numpy as np
from biedsnet_jax.data import slice_cache
folder, scan, slow = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
encode = slice_cache._encode
slice_cache._encode = lambda *a: (print("writing", flush=True), time.sleep(slow), encode(*a))[-1]
volume = np.arange(40 * 64).reshape(40, 8, 8, 1).astype(np.int16)
kept = slice_cache.SliceCache(folder).images([scan], lambda: volume)
print(all(np.array_equal(kept[z], volume[z]) for z in range(40)))
"""


def start(tmp_path, scan, slow):
    line = [sys.executable, "-c", SCRIPT, tmp_path / "cache", scan, str(slow)]
    return subprocess.Popen(list(map(str, line)), cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_at_once_and_one_that_is_killed(tmp_path, scan):
    killed = start(tmp_path, scan, 0.01)
    assert killed.stdout.readline() == "writing\n"
    two = [start(tmp_path, scan, 0.001) for _ in range(2)]
    time.sleep(0.05)  # into the middle of its forty slices; before or after would prove less, but pass too
    killed.kill()
    killed.communicate()
    for process in two:
        assert process.communicate(timeout=60)[0].endswith("True\n")
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len([name for name in names if name.endswith(".npy")]) == 1
    assert all(name.startswith(".partial_") for name in names if not name.endswith((".npy", ".json")))
    kept = SliceCache(tmp_path / "cache").images([scan], lambda: pytest.fail("read again"))
    np.testing.assert_array_equal(decoded(kept).ravel(), np.arange(40 * 64))
