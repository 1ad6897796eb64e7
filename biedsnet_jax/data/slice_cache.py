"""Canonical slices of volumes on disk, memory-mapped: after the first reading no epoch meets gzip again.

A volume is `<key>.npy`, "d h w c", with `<key>.json` beside it, which says how to decode it and, of a label map, how
many pixels each label has in each slice. The key follows from the path, size and time of the files, so a changed file
is read anew. Whole numbers are kept exactly, in uint8 or uint16; others as float16 between the volume's extremes, which
keeps them to 1/2048 of their height above the lowest. The folder may be deleted at any time.
"""

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

VERSION = 1  # of what is stored
MOST_LABELS = 256


@dataclass(frozen=True)
class CachedSlices:
    """One volume: `[index]` decodes a slice."""

    stored: Shaped[np.ndarray, "d h w c"]  # memory-mapped
    low: float
    step: float
    counts: dict[int, list[int]]  # of a label map: label -> pixels in each slice

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Float32[np.ndarray, "h w c"]:
        return self.stored[index] * np.float32(self.step) + np.float32(self.low)


@dataclass(frozen=True)
class SliceCache:
    """The volumes kept in one folder; safe to use from threads and processes at once."""

    folder: Path
    _open: dict[str, CachedSlices] = field(default_factory=dict, init=False, repr=False, compare=False)
    _locks: dict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), init=False, repr=False, compare=False
    )

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
            if key not in self._open:
                self._open[key] = self._load(key) or self._make(key, make)
            return self._open[key]

    def _make(self, key, make):
        slices, counts = make()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store(key, slices, counts)
        except OSError as error:
            raise BadInput(
                f"cannot write the slice cache, {error.strerror}, {self.folder}; make room, or set data.cache_dir"
            ) from error
        return self._load(key)

    def _load(self, key):
        """What is kept, None where it is not there or not whole."""
        path = self.folder / f"{key}.npy"
        try:
            meta = json.loads(path.with_suffix(".json").read_text())
            counts = {int(label): pixels for label, pixels in meta["counts"].items()}
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            return CachedSlices(stored, meta["low"], meta["step"], counts)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def _store(self, key, slices, counts):
        kind, low, step = _encoding(slices)
        _write(self.folder / f"{key}.json", lambda file: file.write(json.dumps(
            {"low": low, "step": step, "counts": counts}).encode()))  # fmt: skip

        def write_slices(file):
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": slices.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for one in slices:  # by slice, so that no second volume stands in memory
                file.write(np.ascontiguousarray(((one - one.dtype.type(low)) / step).astype(kind)))

        _write(self.folder / f"{key}.npy", write_slices)  # last: its presence says that both are whole


def _encoding(slices) -> tuple[np.dtype, float, float]:
    """(stored type, low, step): value = low + step * stored."""
    low, high = slices.min(), slices.max()
    span = float(high) - float(low)
    if slices.dtype.kind in "iu" and span < 2**16:
        return np.dtype(np.uint8 if span < 2**8 else np.uint16), int(low), 1
    return np.dtype(np.float16), float(low), span or 1.0


def _count(slices, path) -> dict[int, list[int]]:
    values = np.unique(slices)
    if len(values) > MOST_LABELS:
        raise BadInput(f"more than {MOST_LABELS} labels, {len(values)}, {path}; is this an image in place of a mask?")
    return {int(value): [int(np.count_nonzero(one == value)) for one in slices] for value in values if value}


def _key(files, kind) -> str:
    facts = [VERSION, kind]
    for file in files:
        status = os.stat(file)
        facts.append((str(Path(file).resolve()), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


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
