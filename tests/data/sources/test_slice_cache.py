"""Slices kept on disk: their values, when they are made anew, damage and kills."""

import itertools
import os
import stat
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from refusals import refused

from biedsnet_jax.data.sources import slice_cache
from biedsnet_jax.data.sources.slice_cache import SliceCache
from biedsnet_jax.errors import BadInput

RAMP = np.arange(24).reshape(2, 3, 4, 1)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"its content does not matter here")
    return path


class Reader:
    """Returns a volume and counts how often."""

    def __init__(self, volume):
        self.volume, self.calls = volume, 0

    def __call__(self):
        self.calls += 1
        return self.volume


def decoded(kept):
    return np.stack([kept[z] for z in range(len(kept))])


def made(tmp_path, scan, volume):
    return SliceCache(tmp_path / "cache").images([scan], lambda: volume)


# --- values


@pytest.mark.parametrize(
    ("low", "high", "dtype", "stored"),
    [
        (0, 255, np.uint8, np.uint8),
        # The span overflows the type.
        (-128, 127, np.int8, np.uint8),
        (-1024, 3071, np.int16, np.uint16),
        (-32768, 32767, np.int16, np.uint16),
        (-32768, 32767, ">i2", np.uint16),
        (-40000, 25535, np.int32, np.uint16),
        (70000, 70100, np.uint32, np.uint8),
        (16711680, 16777215, np.int64, np.uint16),
    ],
)
def test_whole_numbers_are_exact(tmp_path, scan, low, high, dtype, stored):
    volume = np.random.default_rng(0).integers(low, high + 1, (3, 5, 4, 2))
    volume[0, 0, 0], volume[2, 4, 3] = low, high
    volume = volume.astype(dtype)
    kept = made(tmp_path, scan, volume)
    assert len(kept) == 3 and isinstance(kept.stored, np.memmap)
    assert kept.stored.dtype == stored
    assert kept[1].dtype == np.float32
    np.testing.assert_array_equal(decoded(kept), volume.astype(np.float32))


TISSUE = np.random.default_rng(0).integers(-1024, 3072, (3, 9, 8, 1))
FRACTIONS = np.random.default_rng(0).normal(-300, 500, (3, 9, 8, 1))


@pytest.mark.parametrize("padding", [-2000, -32768, -1e6, -3.4e38, 65535.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("tissue", [TISSUE, FRACTIONS], ids=["whole", "fractions"])
def test_padding_leaves_the_tissue_as_prediction_sees_it(
    tmp_path, scan, padding, dtype, tissue
):
    volume = tissue.astype(dtype)
    volume[:, :2] = padding
    kept = made(tmp_path, scan, volume)
    np.testing.assert_array_equal(decoded(kept), volume.astype(np.float32))


@pytest.mark.parametrize(
    "volume",
    [
        np.random.default_rng(0).normal(0, 1, (3, 9, 8, 1)) * 1e-6,
        np.full((2, 3, 4, 1), 7.25),
        np.geomspace(1e-6, 1e6, 96).reshape(4, 6, 4, 1),
        np.array([-(2**31), 0, 5, 2**31 - 1], np.int32).reshape(1, 2, 2, 1),
        # Float32 rounds these, in prediction too.
        np.array([2**24 + 1, 2**24 + 3], np.int64).reshape(1, 1, 2, 1),
    ],
)
def test_others_are_kept_as_float32(tmp_path, scan, volume):
    kept = made(tmp_path, scan, volume)
    assert kept.stored.dtype == np.float32
    np.testing.assert_array_equal(decoded(kept), volume.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_numbers_of_real_files_take_two_bytes(tmp_path, scan, dtype):
    assert made(tmp_path, scan, TISSUE.astype(dtype)).stored.dtype == np.uint16


def test_channels_of_different_kinds(tmp_path, scan):
    """PET lies beside CT, and whole numbers beside others far above."""
    rng = np.random.default_rng(0)
    both = np.stack(
        [rng.integers(-1024, 3000, (2, 8, 8)), rng.uniform(0, 4, (2, 8, 8))], axis=-1
    )
    np.testing.assert_array_equal(
        decoded(made(tmp_path, scan, both)), both.astype(np.float32)
    )
    whole = np.stack([both[..., 0], both[..., 0] + 1_000_000], axis=-1)
    kept = SliceCache(tmp_path / "other").images([scan], lambda: whole)
    assert kept.stored.dtype == np.uint16, "each channel has its own lowest value"
    np.testing.assert_array_equal(decoded(kept), whole.astype(np.float32))


def test_labels_are_counted_slice_by_slice(tmp_path, scan):
    volume = np.array([[[0, 2, 2], [0, 0, 300]], [[2, 2, 2], [0, 0, 0]]], np.uint16)
    kept = SliceCache(tmp_path / "cache").labels([scan], lambda: volume)
    again = SliceCache(tmp_path / "cache").labels(
        [scan], lambda: pytest.fail("read again")
    )
    for one in (kept, again):
        assert one.counts == {2: [2, 3], 300: [1, 0]}
        np.testing.assert_array_equal(decoded(one)[..., 0], volume)


def test_an_image_in_place_of_a_mask(tmp_path, scan):
    volume = np.arange(257, dtype=np.uint16).reshape(1, 1, 257)
    cache = SliceCache(tmp_path / "cache")
    refused(lambda: cache.labels([scan], lambda: volume), scan, "257", "256")
    assert not (tmp_path / "cache").exists()


# --- when a volume is read again


def test_a_volume_is_read_once_by_all_who_share_the_folder(tmp_path, scan):
    read = Reader(RAMP)
    for _ in range(2):
        cache = SliceCache(tmp_path / "cache")
        for _ in range(3):
            np.testing.assert_array_equal(decoded(cache.images([scan], read)), RAMP)
    assert read.calls == 1


@pytest.mark.parametrize(
    "what", ["size", "time", "another file", "more files", "labels"]
)
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


def replaced(path, old, new):
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def zeroed(path, start):
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(len(content) - start))


# A power cut or a disk may do this to a volume and the file beside it.
DAMAGE = {
    "truncated": lambda array, meta: array.write_bytes(array.read_bytes()[:-1]),
    "half": lambda array, meta: array.write_bytes(
        array.read_bytes()[: array.stat().st_size // 2]
    ),
    "empty": lambda array, meta: array.write_bytes(b""),
    "garbage": lambda array, meta: array.write_bytes(b"x" * 200),
    "zeroed": lambda array, meta: zeroed(array, 0),
    "zeroed tail": lambda array, meta: zeroed(array, array.stat().st_size - 24),
    "zeroed to the header": lambda array, meta: zeroed(array, 128),
    "one byte": lambda array, meta: array.write_bytes(
        array.read_bytes()[:-1] + b"\x7f"
    ),
    "other shape": lambda array, meta: replaced(
        array, b"(2, 3, 4, 1)", b"(2, 4, 3, 1)"
    ),
    "pickle": lambda array, meta: np.save(
        array, np.array([{}], object), allow_pickle=True
    ),
    "no array": lambda array, meta: array.unlink(),
    "no json": lambda array, meta: meta.unlink(),
    "json cut": lambda array, meta: meta.write_text('{"low": [0'),
    "json list": lambda array, meta: meta.write_text('{"meta": [], "sum": 1}'),
    "json zeroed": lambda array, meta: zeroed(meta, 10),
    "json old": lambda array, meta: meta.write_text('{"low": 0}'),
    "json other low": lambda array, meta: replaced(
        meta, b'"low": [0.0]', b'"low": [7.0]'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_volume_is_made_again(tmp_path, scan, damage):
    made(tmp_path, scan, RAMP.astype(np.int16))
    (array,) = (tmp_path / "cache").glob("*.npy")
    DAMAGE[damage](array, array.with_suffix(".json"))
    read = Reader(RAMP.astype(np.int16) * 2)
    for _ in range(2):
        kept = SliceCache(tmp_path / "cache").images([scan], read)
        assert kept[-1].tolist() == (RAMP[-1] * 2).tolist()
    kept = SliceCache(tmp_path / "cache").images([scan], read)
    np.testing.assert_array_equal(decoded(kept), RAMP * 2)
    assert read.calls == 1


@pytest.mark.parametrize("seed", range(50))
def test_a_power_cut_anywhere_leaves_the_values_right(tmp_path, scan, seed):
    rng = np.random.default_rng(seed)
    volume = rng.integers(0, [200, 60_000, 2**20][seed % 3], (6, 8, 8, 1))
    made(tmp_path, scan, volume)
    for path in rng.permutation(sorted((tmp_path / "cache").iterdir()))[: 1 + seed % 2]:
        content, place = path.read_bytes(), int(rng.integers(path.stat().st_size))
        path.write_bytes(
            content[:place] + bytes(len(content) - place) * (seed // 2 % 2)
        )
    np.testing.assert_array_equal(decoded(made(tmp_path, scan, volume)), volume)


def test_threads_that_meet_one_damage_read_once_and_get_every_slice(tmp_path, scan):
    volume = np.arange(8 * 12).reshape(8, 3, 4, 1)
    made(tmp_path, scan, volume)
    (array,) = (tmp_path / "cache").glob("*.npy")
    zeroed(array, 128)
    read = Reader(volume)
    kept = SliceCache(tmp_path / "cache").images([scan], read)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda z: kept[z], range(8)))
    np.testing.assert_array_equal(np.stack(found), volume)
    assert read.calls == 1


def test_a_disk_that_never_gives_back_what_was_written(tmp_path, scan, monkeypatch):
    made(tmp_path, scan, RAMP)
    real, number = zlib.crc32, itertools.count()

    def changing(data):
        return real(data) if isinstance(data, bytes) else next(number)

    monkeypatch.setattr(zlib, "crc32", changing)
    cache = SliceCache(tmp_path / "cache")
    refused(
        lambda: cache.images([scan], lambda: RAMP)[0],
        tmp_path / "cache",
        "data.cache_dir",
    )


def test_files_reach_the_disk_before_their_names_and_follow_the_umask(
    tmp_path, scan, monkeypatch
):
    events, fsync, replace = [], os.fsync, os.replace

    def noted(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (events.append(str(b)), replace(a, b))
    )
    before = os.umask(0o027)
    try:
        made(tmp_path, scan, RAMP)
    finally:
        os.umask(before)
    names = [Path(event).name for event in events]
    (array,) = (tmp_path / "cache").glob("*.npy")
    for path in (array, array.with_suffix(".json")):
        place = names.index(path.name)
        assert names[place - 1].endswith(path.name) and names[place - 1] != path.name
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names.index(array.name) < names.index(array.with_suffix(".json").name)


def test_more_volumes_than_may_be_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(slice_cache, "MOST_OPEN", 4)
    cache, reads = SliceCache(tmp_path / "cache"), []
    paths = [tmp_path / f"{number}.nii" for number in range(9)]
    for path in paths:
        path.touch()
    for _ in range(2):
        for number, path in enumerate(paths):
            kept = cache.images(
                [path], lambda number=number: reads.append(number) or RAMP + number
            )
            np.testing.assert_array_equal(decoded(kept), RAMP + number)
    assert reads == list(range(9))
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        # Four are open, and the one in hand is.
        assert mapped.read_text().count(str(tmp_path / "cache")) <= 5


# --- what goes wrong


def test_a_folder_that_cannot_be(tmp_path, scan):
    (tmp_path / "cache").write_text("a file")
    refused(lambda: made(tmp_path, scan, RAMP), tmp_path / "cache", "data.cache_dir")


def test_a_full_disk_leaves_nothing_and_a_later_try_succeeds(
    tmp_path, scan, monkeypatch
):
    def full(data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        # The checksum of a slice is taken between two writes.
        patch.setattr(zlib, "crc32", full)
        refused(
            lambda: made(tmp_path, scan, RAMP),
            tmp_path / "cache",
            "No space left on device",
        )
    assert not [
        path for path in (tmp_path / "cache").iterdir() if path.suffix != ".json"
    ]
    np.testing.assert_array_equal(decoded(made(tmp_path, scan, RAMP)), RAMP)


def test_a_file_that_is_gone(tmp_path, scan):
    cache = SliceCache(tmp_path / "cache")
    cache.images([scan], lambda: RAMP)
    scan.unlink()
    refused(lambda: cache.images([scan], lambda: RAMP), scan, "Put it back")


def test_an_error_of_reading_passes_through_and_is_tried_again(tmp_path, scan):
    cache = SliceCache(tmp_path / "cache")

    def broken():
        raise BadInput("It is broken.")

    refused(lambda: cache.images([scan], broken), "It is broken.")
    np.testing.assert_array_equal(decoded(cache.images([scan], lambda: RAMP)), RAMP)


# --- several at once


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
import sys, time, pathlib, zlib, numpy as np
from biedsnet_jax.data.sources import slice_cache
folder, scan = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
crc32 = zlib.crc32
def slow(data):
    print("writing", flush=True)
    time.sleep(float(sys.argv[3]))
    return crc32(data)
zlib.crc32 = slow
volume = np.arange(40 * 64).reshape(40, 8, 8, 1).astype(np.int16)
kept = slice_cache.SliceCache(folder).images([scan], lambda: volume)
print(all(np.array_equal(kept[z], volume[z]) for z in range(40)))
"""


def start(tmp_path, scan, slow):
    line = [sys.executable, "-c", SCRIPT, tmp_path / "cache", scan, str(slow)]
    return subprocess.Popen(
        list(map(str, line)), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_processes_at_once_and_one_that_is_killed(tmp_path, scan):
    killed = start(tmp_path, scan, 0.01)
    assert killed.stdout.readline() == "writing\n"
    two = [start(tmp_path, scan, 0.001) for _ in range(2)]
    # It is killed amid its forty slices; before or after would prove less, and pass.
    time.sleep(0.05)
    killed.kill()
    killed.communicate()
    for process in two:
        assert process.communicate(timeout=60)[0].endswith("True\n")
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    whole = [name for name in names if not name.startswith(".partial_")]
    assert len([name for name in whole if name.endswith(".npy")]) == 1
    assert all(
        name.startswith(".partial_")
        for name in names
        if not name.endswith((".npy", ".json"))
    )
    kept = SliceCache(tmp_path / "cache").images(
        [scan], lambda: pytest.fail("read again")
    )
    np.testing.assert_array_equal(decoded(kept).ravel(), np.arange(40 * 64))
