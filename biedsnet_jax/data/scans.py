"""What a user hands over to be segmented: pictures, NIfTI volumes and DICOM series, found in a folder and read.

A scan is canonical slices and, for a volume, the grid that its mask goes back to.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from biedsnet_jax.data import dicom, nifti
from biedsnet_jax.data.nifti_folder import group_channels
from biedsnet_jax.data.pictures import EXTENSIONS, read_picture_turned
from biedsnet_jax.data.sources import natural
from biedsnet_jax.data.volumes import Volume, check_same_grid
from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.types import BadInput

RECORD = "predict.json"  # marks a folder of masks


@dataclass(frozen=True)
class Item:
    """One scan, not read yet. Outputs are called `name`, which has the folders below the input."""

    name: str
    kind: str  # "picture", "nifti", "dicom"
    files: tuple[Path, ...]
    depth: int = 1  # slices, as far as a header tells


@dataclass(frozen=True)
class Scan:
    """One scan in memory."""

    item: Item
    slices: Shaped[np.ndarray, "d h w c"]
    volume: Volume | None = None  # None: a picture
    notes: list[str] = field(default_factory=list)  # warnings
    scanned: Bool[np.ndarray, "d h w"] | None = None  # not where slices of a DICOM series are missing; None: everywhere

    turn: int = 1  # EXIF orientation that a picture is stored in, while its slice is upright

    def only_scanned(self, maps: Shaped[np.ndarray, "d h w *k"]) -> Shaped[np.ndarray, "d h w *k"]:
        """`maps` with 0 where nothing was scanned."""
        if self.scanned is None:
            return maps
        return maps * self.scanned.reshape(self.scanned.shape + (1,) * (maps.ndim - 3))


class Found(NamedTuple):
    """What there is to segment, and what there is beside it."""

    items: list[Item]
    passed: list[PassedOver]  # files that are not read


def find(source: Path, *, channels: int, leave_out: Path | None = None) -> list[Item]:
    """The items of `search`."""
    return search(source, channels=channels, leave_out=leave_out).items


def search(source: Path, *, channels: int, leave_out: Path | None = None) -> Found:
    """Every scan in a file or below a folder, in natural order, but for hidden ones and those below `leave_out`.

    Folders below that hold RECORD have masks, not scans, and are left out too; links to folders are not followed.
    With several `channels`, NIfTI files `_0000`, `_0001`, ... are the channels of one. A DICOM series is a folder's
    files of one SeriesInstanceUID, called by the folder; of several in a folder each has a number, in the order of
    SeriesNumber. Raises BadInput where there is nothing, for two scans whose outputs would have one name, and for
    DICOM without pydicom.
    """
    if not source.exists():
        raise BadInput(f"no such file or folder, {source}, in --input; give an image, a volume or a folder of them")
    if source.is_dir() and leave_out is not None and source.resolve().is_relative_to(leave_out.resolve()):
        raise BadInput(f"scans inside the folder for masks, {source}, in --output; give another --output")
    root = source if source.is_dir() else source.parent
    paths = sorted(_files(source, leave_out), key=lambda path: natural(path.as_posix()))
    volumes = [path for path in paths if nifti.is_nifti(path)]
    pictures = [path for path in paths if path.suffix.lower() in EXTENSIONS]
    items = [Item(_name(path.with_suffix(""), root), "picture", (path,)) for path in pictures]
    items += _nifti_items(volumes, root, channels)
    rest = set(paths) - set(volumes) - set(pictures)
    items += _dicom_items([path for path in paths if path in rest and dicom.is_dicom(path)], root, source)
    if not items:
        raise BadInput(
            f"nothing to segment, {source}, in --input; give {', '.join((*EXTENSIONS, *nifti.EXTENSIONS))} or DICOM"
        )
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise _two_of_one_name(twice[0], *(item.files[0] for item in items if item.name == twice[0]))
    return Found(sorted(items, key=lambda item: natural(item.name)), [])


def read(item: Item, *, channels: int) -> Scan:
    """The scan's slices with `channels` channels. Raises BadInput for whatever does not fit."""
    try:
        str(item.files[0]).encode()
    except UnicodeEncodeError:
        raise BadInput(f"name that is not UTF-8, {str(item.files[0])!a}, in --input; rename it") from None
    if item.kind == "picture":
        if channels not in (1, 3):
            raise BadInput(f"a picture for {channels} channels, 1 or 3, {item.files[0]}; give volumes to this model")
        pixels, turn = read_picture_turned(item.files[0], channels)
        return Scan(item, pixels[None], turn=turn)
    missing, notes = [], []
    if item.kind == "dicom":
        volume, missing, notes = dicom.read_series(item.files)
        volumes = [volume]
    else:
        volumes = [nifti.read(path) for path in item.files]
    for volume in volumes:
        nifti.check_content(volume)
        check_same_grid(volume.shape, volume.affine, volumes[0].shape, volumes[0].affine, volume.path)
    parts = [volume.slices if volume.voxels.ndim == 4 else volume.slices[..., None] for volume in volumes]
    slices = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if slices.shape[-1] != channels:
        raise BadInput(
            f"image channels, {slices.shape[-1]}, {item.files[0]}; this model was trained on {channels}, give as many"
        )
    return Scan(item, slices, volumes[0], notes, _scanned(volumes[0], missing) if missing else None)


def _files(source: Path, leave_out: Path | None) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    masks = {record.parent.resolve() for record in source.rglob(RECORD)} - {source.resolve()}
    masks |= {leave_out.resolve()} if leave_out else set()
    for path in source.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        broken_link = path.is_symlink() and not path.exists()  # told when it is read
        if (path.is_file() or broken_link) and not hidden and masks.isdisjoint(path.resolve().parents):
            yield path


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _two_of_one_name(name: str, *files: Path) -> BadInput:
    where = " and ".join(map(str, files))
    return BadInput(f"two scans of one name, {name}, {where}; rename one, since their masks would be one file")


def _nifti_items(paths: Sequence[Path], root: Path, channels: int) -> list[Item]:
    by_name: dict[str, Path] = {}
    items = []
    for path in paths:
        name = _name(path.parent / nifti.stem(path), root)
        if name in by_name:  # a.nii beside a.nii.gz
            raise _two_of_one_name(name, by_name[name], path)
        by_name[name] = path
    groups = group_channels(list(by_name), set()) if channels > 1 else {name: [name] for name in by_name}
    for name, images in groups.items():
        files = tuple(by_name[image] for image in images)
        items.append(Item(name, "nifti", files, _depth(files[0])))
    return items


def _depth(path: Path) -> int:
    """Slices by the header; 1 for a file that will be refused when it is read."""
    try:
        image = nifti.open_header(path)
    except BadInput:
        return 1
    shape = nifti.volume_shape(image)[:3]
    return len(Volume(np.broadcast_to(np.uint8(0), shape), image.affine, str(path)).slices)


def _dicom_items(paths: Sequence[Path], root: Path, source: Path) -> list[Item]:
    items = []
    for folder in dict.fromkeys(path.parent for path in paths):
        series = dicom.find_series([path for path in paths if path.parent == folder])
        broken = series.pop(dicom.BROKEN, [])  # each by itself, so that it is named and the others are segmented
        items += [Item(_name(path, root), "dicom", (path,)) for path in broken]
        name = source.stem if source.is_file() else _name(folder, root) if folder != root else folder.resolve().name
        for number, files in enumerate(series.values(), start=1):
            one = name if len(series) == 1 else f"{name}_series_{number}"
            items.append(Item(one, "dicom", tuple(files), dicom.count_slices(files)))
    return items


def _scanned(volume: Volume, missing: Sequence[int]) -> Bool[np.ndarray, "d h w"]:
    """False where the file's slices k are missing."""
    there = ~np.isin(np.arange(volume.shape[2]), missing)
    return Volume(np.broadcast_to(there, volume.shape), volume.affine, volume.path).slices
