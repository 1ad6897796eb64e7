"""What a user hands over to be segmented: pictures, NIfTI volumes and DICOM series,
found in a folder and read.

A scan is canonical slices and, for a volume, the grid that its mask goes back to.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
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

# marks a folder of masks
RECORD = "predict.json"


@dataclass(frozen=True)
class Item:
    """One scan, not read yet. Outputs are called `name`, which has the folders below
    the input.
    """

    name: str
    kind: str  # "picture", "nifti", "dicom"
    files: tuple[Path, ...]
    depth: int = 1  # slices, as far as a header tells
    notes: tuple[str, ...] = ()  # warnings, known before it is read


@dataclass(frozen=True)
class Scan:
    """One scan in memory."""

    item: Item
    slices: Shaped[np.ndarray, "d h w c"]
    volume: Volume | None = None  # None: a picture
    notes: list[str] = field(default_factory=list)  # warnings
    # not where slices of a DICOM series are missing; None: everywhere
    scanned: Bool[np.ndarray, "d h w"] | None = None

    # EXIF orientation that a picture is stored in, while its slice is upright
    turn: int = 1

    def only_scanned(
        self, maps: Shaped[np.ndarray, "d h w *k"]
    ) -> Shaped[np.ndarray, "d h w *k"]:
        """`maps` with 0 where nothing was scanned."""
        if self.scanned is None:
            return maps
        return maps * self.scanned.reshape(self.scanned.shape + (1,) * (maps.ndim - 3))


class Found(NamedTuple):
    """What there is to segment, and what there is beside it."""

    items: list[Item]
    passed: list[PassedOver]  # files that are not read


def search(source: Path, *, channels: int, leave_out: Path | None = None) -> Found:
    """Every scan in a file or below a folder, in natural order, but for hidden ones and
    those below `leave_out`.

    Folders below that hold RECORD have masks, not scans, and are left out too. Linked
    folders are followed, each once. With several `channels`, NIfTI files `_0000`,
    `_0001`, ... are the channels of one. A DICOM series is the files of one
    SeriesInstanceUID in a folder, called by the folder; of several in a folder each has
    a number, in the order of SeriesNumber. One that is spread over folders is one scan,
    called by the folder above them, where its slices make one even stack; else each
    folder is a scan, and their notes say so.

    Raises BadInput where there is nothing, for two scans whose outputs would have one
    name, and for DICOM without pydicom.
    """
    if not source.exists():
        raise BadInput(
            f"no such file or folder, {source}, in --input; give an image, a volume or a folder of them"
        )
    if (
        source.is_dir()
        and leave_out is not None
        and source.resolve().is_relative_to(leave_out.resolve())
    ):
        raise BadInput(
            f"scans inside the folder for masks, {source}, in --output; give another --output"
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
    passed += [walk.unread(path) for path in paths if path in rest - set(dicoms)]
    found = _dicom_items(dicoms, root, source)
    items, passed = items + found.items, sorted(passed + found.passed)
    if not items:
        beside = walk.summary(passed)
        raise BadInput(
            f"nothing to segment, {source}, in --input; give {', '.join((*EXTENSIONS, *nifti.EXTENSIONS))} or DICOM"
            + (f" ({beside})" if beside else "")
        )
    twice = [
        name
        for name, count in Counter(item.name for item in items).items()
        if count > 1
    ]
    if twice:
        raise _two_of_one_name(
            twice[0], *(item.files[0] for item in items if item.name == twice[0])
        )
    return Found(sorted(items, key=lambda item: natural(item.name)), passed)


def read(item: Item, *, channels: int) -> Scan:
    """The scan's slices with `channels` channels. Raises BadInput for whatever does not
    fit.
    """
    try:
        str(item.files[0]).encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"name that is not UTF-8, {str(item.files[0])!a}, in --input; rename it"
        ) from None
    for path in item.files:
        walk.check_regular(path)
    if item.kind == "picture":
        if channels not in (1, 3):
            raise BadInput(
                f"a picture for {channels} channels, 1 or 3, {item.files[0]}; give volumes to this model"
            )
        pixels, turn = read_picture_turned(item.files[0], channels)
        return Scan(item, pixels[None], turn=turn)
    missing, notes = [], []
    if item.kind == "dicom":
        volume, missing, notes = dicom.read_series(item.files)
        volumes = [volume]
    else:
        if channels > 1:
            names = [composed(nifti.stem(path)) for path in item.files]
            check_channels(Path(item.name).name, names, item.files[0].parent)
        volumes = nifti.read_channels(item.files)
    for volume in volumes:
        nifti.check_content(volume)
        check_same_grid(
            volume.shape,
            volume.affine,
            volumes[0].shape,
            volumes[0].affine,
            volume.path,
        )
    parts = [
        volume.slices if volume.voxels.ndim == 4 else volume.slices[..., None]
        for volume in volumes
    ]
    slices = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if slices.shape[-1] != channels:
        raise BadInput(
            f"image channels, {slices.shape[-1]}, {item.files[0]}; this model was trained on {channels}, give as many"
        )
    of_volume = [nifti.unit_note(volumes[0]), plane_note(volumes[0])]
    notes = [note for note in (*item.notes, *notes, *of_volume) if note]
    return Scan(
        item,
        slices,
        volumes[0],
        notes,
        _scanned(volumes[0], missing) if missing else None,
    )


def _files(source: Path, leave_out: Path | None) -> tuple[list[Path], list[PassedOver]]:
    """Every visible file in natural order, and what is passed over without a look at
    what it is.
    """
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


def _two_of_one_name(name: str, *files: Path) -> BadInput:
    where = " and ".join(map(str, files))
    return BadInput(
        f"two scans of one name, {name}, {where}; rename one, since their masks would be one file"
    )


def _nifti_items(paths: Sequence[Path], root: Path, channels: int) -> list[Item]:
    by_name: dict[str, Path] = {}
    items = []
    for path in paths:
        name = _name(path.parent / nifti.stem(path), root)
        name = composed(name) if channels > 1 else name
        # a.nii beside a.nii.gz
        if name in by_name:
            raise _two_of_one_name(name, by_name[name], path)
        by_name[name] = path
    groups = (
        group_channels(list(by_name), set())
        if channels > 1
        else {name: [name] for name in by_name}
    )
    for name, images in groups.items():
        files = tuple(by_name[image] for image in images)
        # a number at its end is no channel's
        if len(files) == 1 and _holds(files[0], channels):
            name = name if images[0].endswith("_0000") else images[0]
        items.append(Item(name, "nifti", files, _depth(files[0])))
    return items


def _holds(path: Path, channels: int) -> bool:
    """Whether one file has all channels, by its header."""
    try:
        shape = nifti.volume_shape(nifti.open_header(path))
    except BadInput:
        return False
    return channels > 1 and shape[3:] == (channels,)


def _depth(path: Path) -> int:
    """Slices by the header; 1 for a file that will be refused when it is read."""
    try:
        image = nifti.open_header(path)
    except BadInput:
        return 1
    shape = nifti.volume_shape(image)[:3]
    return len(
        Volume(np.broadcast_to(np.uint8(0), shape), image.affine, str(path)).slices
    )


def _dicom_items(paths: Sequence[Path], root: Path, source: Path) -> Found:
    passed, series = [], {}
    for folder in dict.fromkeys(path.parent for path in paths):
        series[folder], others = dicom.search(
            [path for path in paths if path.parent == folder]
        )
        passed += others
    # Each by itself, so that it is named and the others are segmented.
    broken = [path for its in series.values() for path in its.pop(dicom.BROKEN, [])]
    items = [Item(_name(path, root), "dicom", (path,)) for path in broken]
    notes = _join_folders(series)
    for folder, its in series.items():
        name = (
            source.stem
            if source.is_file()
            else _name(folder, root)
            if folder != root
            else folder.resolve().name
        )
        for number, (uid, files) in enumerate(its.items(), start=1):
            one = name if len(its) == 1 else f"{name}_series_{number}"
            said = tuple(notes.get(uid, ()))
            items.append(
                Item(one, "dicom", tuple(files), dicom.count_slices(files), said)
            )
    return Found(items, passed)


def _join_folders(series: dict[Path, dict[str, list[Path]]]) -> dict[str, list[str]]:
    """Make a series of several folders one of the folder above them.

    Returns a note on each that cannot be one.
    `series` is folder -> SeriesInstanceUID -> files, and is changed.
    """
    places, notes = defaultdict(list), {}
    for folder, its in series.items():
        for uid in its:
            places[uid].append(folder)
    for uid, folders in places.items():
        parts = [series[folder][uid] for folder in folders]
        if len(folders) == 1 or not dicom.are_one_exam(parts):
            continue
        files = dicom.join(parts)
        if files is None:
            listed = " and ".join(map(str, folders[:4]))
            notes[uid] = [
                f"{listed} hold files of one series, which make no even stack together. "
                "Each folder is segmented by itself."
            ]
            continue
        for folder in folders:
            del series[folder][uid]
        series.setdefault(Path(os.path.commonpath(folders)), {})[uid] = files
    return notes


def _scanned(volume: Volume, missing: Sequence[int]) -> Bool[np.ndarray, "d h w"]:
    """False where the file's slices k are missing."""
    there = ~np.isin(np.arange(volume.shape[2]), missing)
    return Volume(
        np.broadcast_to(there, volume.shape), volume.affine, volume.path
    ).slices
