"""Finds and reads the scans to segment: pictures, NIfTI volumes and DICOM series.

A scan is canonical slices and, for a volume, the grid to which its mask goes back.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from biedsnet_jax.data import walk
from biedsnet_jax.data.formats import dicom, nifti
from biedsnet_jax.data.formats.pictures import EXTENSIONS, read_picture_turned
from biedsnet_jax.data.formats.volumes import Volume, check_same_grid, plane_note
from biedsnet_jax.data.sources.nifti_layouts import check_channels, group_channels
from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import composed, natural

# File of settings, which also marks a folder of masks.
RECORD = "predict.json"


@dataclass(frozen=True)
class Item:
    """A scan that was found but not read yet."""

    # Name of its outputs, with the folders below the input.
    name: str
    kind: str  # "picture", "nifti" or "dicom"
    files: tuple[Path, ...]
    # Number of slices, as far as the header tells.
    depth: int = 1
    # Warnings that are known before it is read.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """A scan in memory."""

    item: Item
    slices: Shaped[np.ndarray, "d h w c"]
    # None for a picture.
    volume: Volume | None = None
    # Warnings.
    notes: list[str] = field(default_factory=list)
    # False where slices of a DICOM series are missing; None for a scan without a gap.
    scanned: Bool[np.ndarray, "d h w"] | None = None
    # EXIF orientation in which a picture is stored; its slice is upright.
    turn: int = 1

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Millimetres between slices, rows and columns; None without a geometry."""
        return None if self.volume is None else self.volume.spacing

    def only_scanned(
        self, maps: Shaped[np.ndarray, "d h w *k"]
    ) -> Shaped[np.ndarray, "d h w *k"]:
        """Sets `maps` to 0 where nothing was scanned."""
        if self.scanned is None:
            return maps
        return maps * self.scanned.reshape(self.scanned.shape + (1,) * (maps.ndim - 3))


class Found(NamedTuple):
    """Scans to segment, and files that are not read."""

    items: list[Item]
    passed: list[PassedOver]


def search(source: Path, *, channels: int, leave_out: Path | None = None) -> Found:
    """Finds every scan in a file or below a folder, in natural order.

    Hidden files are passed over, and so is `leave_out`. Folders that hold RECORD have
    masks, not scans, and are left out too. Linked folders are followed, each once.

    For several `channels`, the NIfTI files `a_0000`, `a_0001`, ... are one scan. A DICOM
    series is the files of one SeriesInstanceUID in a folder, and has the folder's name;
    several in one folder are numbered by SeriesNumber. A series that is spread over
    folders is one scan with the name of the folder above them, where its slices make
    one even stack. Otherwise each folder is a scan, with a note.

    Raises BadInput where nothing is found, for two scans whose outputs would share a
    name, and for DICOM without pydicom.
    """
    if not source.exists():
        raise BadInput(
            f"{source} in --input does not exist. Give an image, a volume or a folder."
        )
    if source.is_dir() and leave_out and _is_inside(source, leave_out):
        raise BadInput(
            f"{source} in --input lies inside {leave_out}, the folder for masks. "
            "Give another --output."
        )
    root = source if source.is_dir() else source.parent
    paths, passed = _files(source, leave_out)
    volumes = [path for path in paths if nifti.is_nifti(path)]
    pictures = [path for path in paths if path.suffix.lower() in EXTENSIONS]
    items = [
        Item(_name(path.with_suffix(""), root), "picture", (path,)) for path in pictures
    ]
    items += _nifti_items(volumes, root, channels)
    rest = set(paths) - set(volumes) - set(pictures)
    dicoms = [path for path in paths if path in rest and dicom.is_dicom(path)]
    passed += [walk.unread(path) for path in rest - set(dicoms)]
    found = _dicom_items(dicoms, root, source)
    items += found.items
    passed = sorted(passed + found.passed)
    if not items:
        beside = f" ({walk.summary(passed)})" if passed else ""
        extensions = ", ".join((*EXTENSIONS, *nifti.EXTENSIONS))
        raise BadInput(
            f"{source} in --input holds nothing to segment{beside}. "
            f"Give {extensions} or DICOM files."
        )
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(item.name, item)
        if other is not item:
            raise _two_of_one_name(item.name, other.files[0], item.files[0])
    return Found(sorted(items, key=lambda item: natural(item.name)), passed)


def read(item: Item, *, channels: int, plane: str = "axial") -> Scan:
    """Reads a scan as slices of `channels` channels, a volume's in a plane.

    `plane` is one of `volumes.PLANES`. Raises BadInput where it cannot.
    """
    source = item.files[0]
    try:
        str(source).encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"The name {str(source)!a} in --input is not UTF-8. Rename the file."
        ) from None
    for path in item.files:
        walk.check_regular(path)
    if item.kind == "picture":
        return _read_picture(item, channels)
    missing, notes = [], []
    if item.kind == "dicom":
        volume, missing, notes = dicom.read_series(item.files)
        volumes = [volume]
    else:
        if channels > 1:
            names = [composed(nifti.stem(path)) for path in item.files]
            check_channels(Path(item.name).name, names, source.parent)
        volumes = nifti.read_channels(item.files)
    volumes = [replace(volume, plane=plane) for volume in volumes]
    grid = volumes[0]
    for volume in volumes:
        nifti.check_content(volume)
        check_same_grid(
            volume.shape, volume.affine, grid.shape, grid.affine, volume.path
        )
    parts = [
        volume.slices if volume.voxels.ndim == 4 else volume.slices[..., None]
        for volume in volumes
    ]
    # A single volume is taken as it is, since joining would copy it.
    slices = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if slices.shape[-1] != channels:
        raise BadInput(
            f"The number of channels of {source} is {slices.shape[-1]}, and this model "
            f"takes {channels}. Give as many."
        )
    notes = [*item.notes, *notes, nifti.unit_note(grid), plane_note(grid)]
    scanned = _scanned(grid, missing) if missing else None
    return Scan(item, slices, grid, [note for note in notes if note], scanned)


def _read_picture(item, channels) -> Scan:
    if channels not in (1, 3):
        raise BadInput(
            f"{item.files[0]} is a picture, and this model takes {channels} channels. "
            "Give it volumes."
        )
    pixels, turn = read_picture_turned(item.files[0], channels)
    return Scan(item, pixels[None], turn=turn)


def _is_inside(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())


def _files(source: Path, leave_out: Path | None) -> tuple[list[Path], list[PassedOver]]:
    """Lists the visible files in natural order, and those passed over by name alone."""
    if not source.is_dir():
        walk.check_regular(source)
        return [source], []

    def has_masks(folder: Path) -> bool:
        if leave_out is not None and folder.resolve() == leave_out.resolve():
            return True
        return (folder / RECORD).exists()

    paths, passed = walk.below(source, lambda path: True, leave_out=has_masks)
    return sorted(paths, key=lambda path: natural(path.as_posix())), passed


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _two_of_one_name(name: str, first: Path, second: Path) -> BadInput:
    return BadInput(
        f"{first} and {second} would share the name {name}, and one file for their masks. "
        "Rename one of them."
    )


def _nifti_items(paths: Sequence[Path], root: Path, channels: int) -> list[Item]:
    by_name: dict[str, Path] = {}
    items = []
    for path in paths:
        name = _name(path.parent / nifti.stem(path), root)
        if channels > 1:
            name = composed(name)
        # Such as a.nii beside a.nii.gz.
        if name in by_name:
            raise _two_of_one_name(name, by_name[name], path)
        by_name[name] = path
    groups = {name: [name] for name in by_name}
    if channels > 1:
        groups = group_channels(list(by_name), set())
    for name, images in groups.items():
        files = tuple(by_name[image] for image in images)
        # A file with all channels is no channel, whatever number its name ends in.
        if len(files) == 1 and _holds(files[0], channels):
            name = name if images[0].endswith("_0000") else images[0]
        items.append(Item(name, "nifti", files, _depth(files[0])))
    return items


def _holds(path: Path, channels: int) -> bool:
    """Checks by its header whether one file has all channels."""
    try:
        shape = nifti.volume_shape(nifti.open_header(path))
    except BadInput:
        return False
    return channels > 1 and shape[3:] == (channels,)


def _depth(path: Path) -> int:
    """Returns the number of slices by the header; 1 where it cannot be read."""
    try:
        image = nifti.open_header(path)
    except BadInput:
        return 1
    voxels = np.broadcast_to(np.uint8(0), nifti.volume_shape(image)[:3])
    return len(Volume(voxels, image.affine, str(path)).slices)


def _dicom_items(paths: Sequence[Path], root: Path, source: Path) -> Found:
    passed, series = [], {}
    for folder in dict.fromkeys(path.parent for path in paths):
        inside = [path for path in paths if path.parent == folder]
        series[folder], others = dicom.search(inside)
        passed += others
    items = []
    for found in series.values():
        # Each broken file is a scan that fails by itself, and stops no other.
        for path in found.pop(dicom.BROKEN, []):
            items.append(Item(_name(path, root), "dicom", (path,)))
    notes = _join_folders(series)
    for folder, found in series.items():
        if source.is_file():
            name = source.stem
        elif folder == root:
            name = folder.resolve().name
        else:
            name = _name(folder, root)
        for number, (uid, files) in enumerate(found.items(), start=1):
            own = name if len(found) == 1 else f"{name}_series_{number}"
            depth = dicom.count_slices(files)
            items.append(Item(own, "dicom", tuple(files), depth, notes.get(uid, ())))
    return Found(items, passed)


def _join_folders(series: dict[Path, dict[str, list[Path]]]) -> dict[str, tuple[str]]:
    """Joins a series that is spread over folders into one of the folder above them.

    `series` is folder -> SeriesInstanceUID -> files, and is changed. Returns a note on
    each series that cannot be joined.
    """
    places, notes = defaultdict(list), {}
    for folder, found in series.items():
        for uid in found:
            places[uid].append(folder)
    for uid, folders in places.items():
        parts = [series[folder][uid] for folder in folders]
        if len(folders) == 1 or not dicom.are_one_exam(parts):
            continue
        files = dicom.join(parts)
        if files is None:
            listed = " and ".join(map(str, folders[:4]))
            notes[uid] = (
                f"{listed} hold files of one series, which make no even stack together. "
                "Each folder is segmented by itself.",
            )
            continue
        for folder in folders:
            del series[folder][uid]
        series.setdefault(Path(os.path.commonpath(folders)), {})[uid] = files
    return notes


def _scanned(volume: Volume, missing: Sequence[int]) -> Bool[np.ndarray, "d h w"]:
    """Marks the slices of a volume that are not `missing`, in canonical order."""
    found = ~np.isin(np.arange(volume.shape[2]), missing)
    marks = np.broadcast_to(found, volume.shape)
    return replace(volume, voxels=marks).slices
