"""Canonical slices of volumes on disk, memory-mapped: after the first reading no epoch meets gzip again.

A volume is `<key>.npy`, "d h w c", with `<key>.json` beside it, which says how to decode it and, of a label map, how
many pixels each label has in each slice. The key follows from the path, size and time of the files, so a changed file
is read anew. Whole numbers up to 2^24 are kept exactly, in uint8 or uint16, if the extremes are less than 65536 apart;
others as float16 between each channel's extremes, which keeps them to 1/2048 of their height above the lowest, or to
3e-8 of the range. The folder may be deleted at any time.
"""

import errno
import hashlib
import json
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from biedsnet_jax.types import BadInput

VERSION = 2  # of what is stored
MOST_LABELS = 256
MOST_OPEN = 100  # volumes that are memory-mapped at once: each holds a file descriptor, of which systems give 256


@dataclass(frozen=True)
class CachedSlices:
    """One volume: `[index]` decodes a slice."""

    stored: Shaped[np.ndarray, "d h w c"]  # memory-mapped
    low: Float32[np.ndarray, " c"]  # value = low + step * stored
    step: Float32[np.ndarray, " c"]
    counts: dict[int, list[int]]  # of a label map: label -> pixels in each slice

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Float32[np.ndarray, "h w c"]:
        return self.stored[index] * self.step + self.low


@dataclass(frozen=True)
class SliceCache:
    """The volumes kept in one folder; safe to use from threads and processes at once."""

    folder: Path
    _open: dict[str, CachedSlices] = field(default_factory=dict, init=False, repr=False, compare=False)
    _locks: dict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), init=False, repr=False, compare=False
    )
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def images(self, files: Sequence[Path], read: Callable[[], Shaped[np.ndarray, "d h w c"]]) -> CachedSlices:
        """The slices of `files`; only where they are not kept yet, `read` makes them.

        Raises BadInput where the folder cannot be written.
        """
        return self._get(files, "image", lambda: (read(), {}))

    def labels(self, files: Sequence[Path], read: Callable[[], Shaped[np.ndarray, "d h w"]]) -> CachedSlices:
        """The same for a label map, with `counts`. Raises BadInput for more than 256 different labels."""

        def counted():
            slices = read()
            return slices[..., None], _count(slices, files[0])

        return self._get(files, "labels", counted)

    def _get(self, files, kind, make):
        key = _key(files, kind)
        with self._locks[key]:  # of two threads that want one volume, one reads it
            found = self._open.get(key) or self._load(key) or self._make(key, make)
        with self._guard:
            self._open[key] = found
            if len(self._open) > MOST_OPEN:
                del self._open[next(iter(self._open))]  # the oldest; whoever reads it now keeps it until done
        return found

    def _make(self, key, make):
        slices, counts = make()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store(key, slices, counts)
            return self._load(key) or _vanished(self.folder / f"{key}.npy")
        except OSError as error:
            raise BadInput(
                f"cannot write the slice cache, {error.strerror}, {self.folder}; make room, or set data.cache_dir"
            ) from error

    def _load(self, key):
        """What is kept, None where it is not there or not whole."""
        path = self.folder / f"{key}.npy"
        try:
            meta = json.loads(path.with_suffix(".json").read_text())
            counts = {int(label): pixels for label, pixels in meta["counts"].items()}
            stored = np.lib.format.open_memmap(path, mode="r")  # refuses what would have to be unpickled
            return CachedSlices(stored, _vector(meta["low"]), _vector(meta["step"]), counts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _store(self, key, slices, counts):
        kind, low, step = _encoding(slices)
        meta = json.dumps({"low": low.tolist(), "step": step.tolist(), "counts": counts})
        _write(self.folder / f"{key}.json", lambda file: file.write(meta.encode()))

        def write_slices(file):
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": slices.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for one in slices:  # by slice, so that no second volume stands in memory
                file.write(np.ascontiguousarray(_encode(one, kind, low, step)))

        _write(self.folder / f"{key}.npy", write_slices)  # last: its presence says that both are whole


def _encoding(slices) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """(stored type, low "c", step "c"): value = low + step * stored."""
    low, high = slices.min(axis=(0, 1, 2)), slices.max(axis=(0, 1, 2))
    span = high.astype(np.float64) - low
    if slices.dtype.kind in "iu" and span.max() < 2**16:
        return np.dtype(np.uint8 if span.max() < 2**8 else np.uint16), low, np.ones_like(span)
    return np.dtype(np.float16), low.astype(np.float64), np.where(span > 0, span, 1.0)


def _encode(one, kind, low, step):
    if kind.kind == "u":
        return (one - low).astype(kind)  # may overflow the type of the file, but whole numbers wrap around and back
    return ((one.astype(np.float64) - low) / step).astype(kind)


def _count(slices, path) -> dict[int, list[int]]:
    values = np.unique(slices)
    if len(values) > MOST_LABELS:
        raise BadInput(f"more than {MOST_LABELS} labels, {len(values)}, {path}; is this an image in place of a mask?")
    return {int(value): [int(np.count_nonzero(one == value)) for one in slices] for value in values if value}


def _key(files, kind) -> str:
    facts = [VERSION, kind]
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise BadInput(f"file gone, {error.strerror}, {file}; put it back, or start again without it") from error
        facts.append((str(Path(file).resolve()), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _vector(values) -> Float32[np.ndarray, " c"]:
    return np.array(values, np.float32).reshape(-1)


def _vanished(path):
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _write(path, write) -> None:
    """To a name of this process's own, then over `path`: readers and a kill see all or nothing."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial_")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
