"""Reads the next scan while one is segmented."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.prediction import made_from, scans

T = TypeVar("T")


class Read(NamedTuple):
    """A scan as it was read, or what is wrong with it."""

    item: scans.Item
    scan: scans.Scan | BadInput
    # The files of the scan as they were read; empty where they cannot be.
    inputs: list[made_from.File]


def groups(items: Iterable[scans.Item], batch_size: int) -> list[list[scans.Item]]:
    """Groups pictures to fill a batch; each volume is a group of its own."""
    return list(grouped(items, lambda item: item.kind == "picture", batch_size))


def grouped(
    scans: Iterable[T], is_picture: Callable[[T], bool], batch_size: int
) -> Iterator[list[T]]:
    """Groups pictures to fill a batch; each volume is a group of its own."""
    pictures = []
    for scan in scans:
        if not is_picture(scan):
            yield [scan]
            continue
        pictures.append(scan)
        if len(pictures) == batch_size:
            yield pictures
            pictures = []
    if pictures:
        yield pictures


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields what an iterator yields, and meanwhile makes one more and no more."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, items, end)
        while (ready := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield ready


def read_groups(
    groups: Sequence[Sequence[scans.Item]], channels: int, plane: str = "axial"
) -> Iterator[list[Read]]:
    """Yields each group once it is read, and reads the next one meanwhile.

    `plane` is that of the slices of volumes.
    """

    def read(group):
        return [_read(item, channels, plane) for item in group]

    # One group ahead and no more: volumes are large.
    yield from ahead(map(read, groups))


def _read(item, channels, plane) -> Read:
    source = item.files[0]
    try:
        # Before the scan is read, so that a change meanwhile is noticed.
        inputs = made_from.describe(item.files)
    except BadInput as error:
        return Read(item, error, [])
    except OSError as error:
        what = f"Cannot read {source}: {reason(error)}. Replace or remove it."
        return Read(item, BadInput(what), [])
    try:
        scan = scans.read(item, channels=channels, plane=plane)
    except BadInput as error:
        return Read(item, error, inputs)
    except MemoryError:
        what = f"{source} of {item.depth} slices is too large for the memory."
        return Read(item, BadInput(f"{what} Cut it into parts."), inputs)
    if not all(map(made_from.File.is_same, inputs, item.files)):
        what = f"{source} changed while it was read. Give the command again."
        return Read(item, BadInput(what), inputs)
    return Read(item, scan, inputs)
