"""Keeps canonical slices of volumes on disk, memory-mapped, to unpack each file once.

A volume is `<key>.npy`, "d h w c", with `<key>.json` beside it. That holds how to decode
it, a checksum of each slice and, of a label map, the pixels of each label in each slice.
The key follows from the path, size and time of the files: a changed file is read anew.

Every value comes back as its float32, so that training sees what prediction sees,
whatever pads a scan. Whole numbers up to 2^24 are kept as their height above the lowest
in uint8 or uint16 where it fits, everything else as float32. Nothing is rounded further.

A slice is compared with its checksum when it is first read. If it differs, as after a
power cut, its volume is made again. The folder may be deleted at any time.
"""

# `hidden` is `dataclasses.field`, which this rule allows by that name alone.
# ruff: noqa: RUF009

import functools
import hashlib
import json
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from biedsnet_jax.data.sources.source import hidden, stamp
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import whole_file

# Version of the stored format; a new one lets no old volume be read.
VERSION = 3
# Float32 holds every whole number up to here.
EXACT = 2**24
MOST_LABELS = 256
# Each memory-mapped volume holds a file descriptor, of which some systems give 256.
MOST_OPEN = 100


@dataclass(frozen=True)
class CachedSlices:
    """Slices of one volume; `[index]` decodes one."""

    # Memory-mapped; a value is low + stored.
    stored: Shaped[np.ndarray, "d h w c"]
    low: Float32[np.ndarray, " c"]
    # Of a label map: label -> its pixels in each slice.
    counts: dict[int, list[int]]
    # Checksum of each slice.
    sums: Sequence[int]
    # Makes the volume anew where this one is damaged.
    again: Callable[["CachedSlices"], "CachedSlices"]
    # Slices that agreed with their checksum.
    _sound: set[int] = hidden(set)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Float32[np.ndarray, "h w c"]:
        one = self.stored[index]
        number = range(len(self.stored))[index]
        if number not in self._sound:
            if _sum(one) != self.sums[number]:
                return self.again(self)[index]
            self._sound.add(number)
        return one + self.low


@dataclass(frozen=True)
class SliceCache:
    """Volumes kept in one folder, for threads and processes at once."""

    folder: Path
    # The plane of the slices, see `volumes.PLANES`.
    plane: str = "axial"
    _open: dict[str, CachedSlices] = hidden(dict)
    # A lock for each volume, and one for `_open`.
    _locks: dict[str, threading.Lock] = hidden(lambda: defaultdict(threading.Lock))
    _guard: threading.Lock = hidden(threading.Lock)

    def images(
        self, files: Sequence[Path], read: Callable[[], Shaped[np.ndarray, "d h w c"]]
    ) -> CachedSlices:
        """Returns the slices of `files`, made by `read` where they are not kept yet.

        Raises BadInput where the folder cannot be written.
        """
        return self._get(files, "image", lambda: (read(), {}))

    def labels(
        self, files: Sequence[Path], read: Callable[[], Shaped[np.ndarray, "d h w"]]
    ) -> CachedSlices:
        """Returns the slices of a label map, with `counts`, as `images` does.

        Raises BadInput for more than 256 different labels too.
        """

        def counted():
            slices = read()
            return slices[..., None], _count(slices, files[0])

        return self._get(files, "labels", counted)

    def _get(self, files, kind, make):
        if self.plane != "axial":
            kind = f"{kind} {self.plane}"
        key = _key(files, kind)
        # Of two threads that want one volume, one reads it.
        with self._locks[key]:
            found = (
                self._open.get(key) or self._load(key, make) or self._make(key, make)
            )
        self._keep(key, found)
        return found

    def _again(self, key, make, damaged):
        """Makes a volume anew, once for all threads that met the same damage."""
        with self._locks[key]:
            found = self._open.get(key)
            if found is None or found is damaged:
                found = self._make(key, make)
                if [_sum(one) for one in found.stored] != found.sums:
                    raise BadInput(
                        f"The slice cache in {self.folder} gives back other bytes than were "
                        "written. Set data.cache_dir to a folder on another disk."
                    )
            self._keep(key, found)
        return found

    def _keep(self, key, found):
        with self._guard:
            self._open[key] = found
            if len(self._open) > MOST_OPEN:
                # The first to be opened goes; whoever reads it now keeps it until done.
                del self._open[next(iter(self._open))]

    def _make(self, key, make):
        slices, counts = make()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store(key, slices, counts)
        except OSError as error:
            raise self._cannot_write(error.strerror) from error
        found = self._load(key, make)
        if found is None:
            raise self._cannot_write("what was written is gone")
        return found

    def _cannot_write(self, why) -> BadInput:
        return BadInput(
            f"The slice cache in {self.folder} cannot be written: {why}. "
            "Make room, or set data.cache_dir to another folder."
        )

    def _load(self, key, make):
        """Opens a volume that is kept; None where it is missing or not whole."""
        path = self.folder / f"{key}.npy"
        try:
            whole = json.loads(path.with_suffix(".json").read_text())
            meta = whole["meta"]
            counts = {int(label): pixels for label, pixels in meta["counts"].items()}
            # Nothing is unpickled: open_memmap refuses objects.
            stored = np.lib.format.open_memmap(path, mode="r")
            if whole["sum"] != _sum_of_json(meta) or meta["shape"] != [*stored.shape]:
                return None
            low = np.array(meta["low"], np.float32)
            again = functools.partial(self._again, key, make)
            return CachedSlices(stored, low, counts, meta["sums"], again)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _store(self, key, slices, counts):
        kind, low = _encoding(slices)
        sums = []
        path = self.folder / f"{key}.npy"
        with whole_file(path, shared=True) as partial, partial.open("wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(kind),
                "fortran_order": False,
                "shape": slices.shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            # Slice by slice, so that no second volume stands in memory.
            for one in slices:
                encoded = _encode(one, kind, low)
                sums.append(_sum(encoded))
                file.write(encoded)
        meta = {
            "shape": slices.shape,
            "low": low.tolist(),
            "counts": counts,
            "sums": sums,
        }
        # Written last, since a volume without it does not count as whole.
        with whole_file(path.with_suffix(".json"), shared=True) as partial:
            partial.write_text(json.dumps({"meta": meta, "sum": _sum_of_json(meta)}))


def _encoding(slices) -> tuple[np.dtype, np.ndarray]:
    """Chooses the stored type and `low`, "c", such that value = low + stored."""
    low = slices.min(axis=(0, 1, 2)).astype(float)
    high = slices.max(axis=(0, 1, 2)).astype(float)
    span = (high - low).max()
    exact = max(np.abs(low).max(), np.abs(high).max()) <= EXACT
    if exact and span < 2**16 and _all_whole(slices):
        return np.dtype(np.uint8 if span < 2**8 else np.uint16), low
    return np.dtype(np.float32), np.zeros_like(low)


def _all_whole(slices) -> bool:
    if slices.dtype.kind in "iu":
        return True
    return all(np.array_equal(np.rint(one), one) for one in slices)


def _encode(one, kind, low):
    if kind.kind == "u":
        one = one.astype(np.float32) - low.astype(np.float32)
    return np.ascontiguousarray(one, dtype=kind)


def _sum(one) -> int:
    return zlib.crc32(one)


def _sum_of_json(meta) -> int:
    return zlib.crc32(json.dumps(meta).encode())


def _count(slices, path) -> dict[int, list[int]]:
    values = np.unique(slices)
    if len(values) > MOST_LABELS:
        raise BadInput(
            f"{path} holds {len(values)} different labels, more than {MOST_LABELS}. "
            "Give a label map; this may be an image."
        )
    counts = {}
    for value in values[values != 0]:
        counts[int(value)] = [int(np.count_nonzero(one == value)) for one in slices]
    return counts


def _key(files, kind) -> str:
    facts = [VERSION, kind]
    for file in files:
        try:
            facts.append(stamp(file))
        except OSError as error:
            raise BadInput(
                f"{file} is gone ({error.strerror}). Put it back, or start again without it."
            ) from error
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
