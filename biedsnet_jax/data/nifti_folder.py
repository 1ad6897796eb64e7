"""A folder of NIfTI volumes with label maps as a source of axial slices. Three layouts, told apart by what is there:

images/<case>.nii.gz              labels/<case>.nii.gz       (folders below are mirrored)
imagesTr/<case>.nii.gz            labelsTr/<case>.nii.gz     Medical Decathlon; dataset.json's list, if it has one
imagesTr/<case>_0000.nii.gz ...   labelsTr/<case>.nii.gz     nnU-Net: a file a channel
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from biedsnet_jax.data import case_names, nifti
from biedsnet_jax.data.slice_cache import SliceCache
from biedsnet_jax.data.sources import Example, Facts, check_foreground, natural
from biedsnet_jax.data.volumes import Volume, check_same_grid, neighbours
from biedsnet_jax.types import BadInput

LAYOUTS = (("images", "labels"), ("images", "masks"), ("imagesTr", "labelsTr"))
_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """Files of one case: an image for each channel, or one with all of them, and the label map."""

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class NiftiFolder:
    """Axial slices of every volume, in canonical orientation (see `volumes`).

    A volume is a case, but where names tell by `case` that several are one patient's (see `case_names.find`).

    `labels` says which label values make each class, such as ((1,), (2, 3)); sets may overlap, as regions do. Without
    it labels 1 to k are the k classes, and of one class every label but 0. `channels`: of one file with a fourth axis,
    or files `_0000`, `_0001`, ... in that order. `context` adds that many neighbouring slices on each side as further
    channels. `min_foreground`: only slices with so many pixels of any class. Volumes are read once and then come from
    `cache_folder`.

    Raises BadInput when made, if files lack their partner or lie on another grid, and on `[i]`, if voxels do not fit;
    `verify` finds the latter, and fills the cache, before work starts.
    """

    root: str | Path
    cache_folder: str | Path
    classes: int = 1
    channels: int = 1
    labels: tuple[tuple[int, ...], ...] = ()
    context: int = 0
    min_foreground: int = 0
    case: str = case_names.AUTO
    _cases: list[Case] = field(init=False, repr=False, compare=False)
    _slices: list[tuple[int, int]] = field(init=False, repr=False, compare=False)  # case, slice
    _spacing: list[tuple[float, float]] = field(init=False, repr=False, compare=False)  # of each case
    _cache: SliceCache = field(init=False, repr=False, compare=False)
    _names: case_names.Cases = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        found = find_cases(Path(self.root))
        names = case_names.find([case.name for case in found], self.case, where=str(self.root), volumes=True)
        object.__setattr__(self, "_names", names)
        headers = [_check_headers(case, self.channels) for case in found]
        object.__setattr__(self, "_cases", found)  # the dataclass is frozen from here on
        object.__setattr__(self, "_cache", SliceCache(Path(self.cache_folder)))
        object.__setattr__(self, "_spacing", [header.spacing[1:] for header in headers])
        slices = [(n, z) for n, header in enumerate(headers) for z in range(len(header.slices))]
        object.__setattr__(self, "_slices", slices)
        if self.min_foreground:
            pixels = [self._foreground(n) for n in range(len(found))]
            chosen = [(n, z) for n, z in slices if pixels[n][z] >= self.min_foreground]
            object.__setattr__(self, "_slices", chosen)
            if not chosen:
                raise BadInput(
                    f"no slice has {self.min_foreground} pixels of foreground, {self.root}; lower data.min_foreground"
                )

    @property
    def cases(self) -> list[str]:
        return [self._names.of[self._cases[n].name] for n, _ in self._slices]

    @property
    def facts(self) -> Facts:
        files = defaultdict(list)
        for case in self._cases:
            files[self._names.of[case.name]] += [*case.images, case.label]
        return Facts(files=files, sides=self._names.sides, notes=self._names.notes)

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> Example:
        n, z = self._slices[index]
        case = self._cases[n]
        volume = self._names.slices[case.name]
        return {
            "image": neighbours(self._image(n), z, self.context),
            "mask": class_masks(self._label(n)[z][..., 0].astype(np.uint16), self.classes, self.labels),
            "case": self._names.of[case.name],
            "slice": f"{volume}_{z:03d}" if volume else f"{z:03d}",
            "spacing": self._spacing[n],
            "path": str(case.images[0]),
        }

    def verify(self) -> None:
        """Read every volume that the cache has not got; raises the BadInput of the first that does not fit."""
        pixels = []
        for n in range(len(self._cases)):  # one after another: two large volumes at once may not fit in memory
            self._image(n)
            pixels.append(self._foreground(n))
        check_foreground(sum(pixels[n][z] > 0 for n, z in self._slices), len(self), str(self.root))

    def _image(self, n: int):
        case = self._cases[n]

        def read():
            volumes = [nifti.read(path) for path in case.images]
            for volume in volumes:
                nifti.check_content(volume)
            volumes = [Volume(v.voxels, volumes[0].affine, v.path) for v in volumes]
            parts = [v.slices if v.voxels.ndim == 4 else v.slices[..., None] for v in volumes]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

        return self._cache.images(case.images, read)

    def _label(self, n: int):
        path, image = self._cases[n].label, self._cases[n].images[0]

        def read():  # by the image's affine: near 45 degrees the label map's rounding could choose other slices
            return Volume(nifti.labels(nifti.read(path)), nifti.open_header(image).affine, str(path)).slices

        kept, known = self._cache.labels([path], read), known_labels(self.classes, self.labels)
        strange = sorted(kept.counts.keys() - known) if known else []
        if strange:
            raise BadInput(
                f"label outside the map, {', '.join(map(str, strange[:8]))}, {path}; "
                f"known are 0, {', '.join(map(str, sorted(known)))}: add it to data.labels, or raise data.classes"
            )
        return kept

    def _foreground(self, n: int) -> list[int]:
        """Pixels of any class in each slice."""
        kept = self._label(n)
        of_classes = set().union(*self.labels) if self.labels else kept.counts.keys()
        rows = [kept.counts[label] for label in of_classes & kept.counts.keys()]
        return np.sum(rows, axis=0).tolist() if rows else [0] * len(kept)


def known_labels(classes: int, labels: Sequence[Sequence[int]]) -> set[int]:
    """Label values that a map may hold beside 0; empty where any may, since all are the one class."""
    if labels:
        return {label for group in labels for label in group}
    return set(range(1, classes + 1)) if classes > 1 else set()


def class_masks(label: np.ndarray, classes: int, labels: Sequence[Sequence[int]]) -> UInt8[np.ndarray, "h w k"]:
    """A label map "h w" as one map of 0 and 1 for each class."""
    if not labels and classes == 1:
        return (label > 0)[..., None].astype(np.uint8)
    groups = labels or [(k,) for k in range(1, classes + 1)]
    return np.stack([np.isin(label, group) for group in groups], axis=-1).astype(np.uint8)


def find_cases(root: Path) -> list[Case]:
    """Every case in natural order. Raises BadInput for a folder of no known layout and for files without partner."""
    for images, labels in LAYOUTS:
        if (root / images).is_dir() and (root / labels).is_dir():
            listed = _listed(root) if images == "imagesTr" else None
            return listed or _mirrored(root / images, root / labels)
    pairs = " or ".join(f"{images}/ and {labels}/" for images, labels in LAYOUTS)
    raise BadInput(f"no volumes, none of the known layouts, {root}; give a folder with {pairs}")


def group_channels(names: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    """case -> names of its images: `a` for the case `a`, or `a_0000`, `a_0001`, ... where `a` itself is not there.

    Such names are channels where `known`, the names of label maps, has the case; any such name where it is empty.
    """
    groups = defaultdict(list)
    for name in sorted(names, key=natural):
        match = _CHANNEL.fullmatch(name)
        channel = match and name not in known and (match.group(1) in known or not known)
        groups[match.group(1) if channel else name].append(name)
    return groups


def _mirrored(images: Path, labels: Path) -> list[Case]:
    image_files, label_files = _files(images), _files(labels)
    groups = group_channels(list(image_files), set(label_files))
    for found, partners, what, place in (
        (groups, label_files, "images without labels", labels),
        (label_files, groups, "labels without images", images),
    ):
        lonely = [name for name in found if name not in partners]
        if lonely:
            raise BadInput(
                f"{what}, {len(lonely)} of {len(found)}, first {lonely[0]}; put a file of that name under {place}, or "
                "take these away"
            )
    if not groups:
        raise BadInput(f"no volumes, 0 files, {images}; put {' or '.join(nifti.EXTENSIONS)} files there")
    return [
        Case(name, tuple(image_files[image] for image in of_case), label_files[name])
        for name, of_case in groups.items()
    ]


def _files(folder: Path) -> dict[str, Path]:
    """NIfTI files below `folder` by relative name without extension; hidden ones are passed over."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = (path.relative_to(folder).parent / nifti.stem(path)).as_posix() if nifti.is_nifti(path) else "."
        if name.startswith(".") or "/." in name:
            continue
        if name in files:
            raise BadInput(f"two files of one name, {files[name].name} and {path.name}, {path.parent}; keep one")
        files[name] = path
    return files


def _listed(root: Path) -> list[Case] | None:
    """The "training" list of a Decathlon dataset.json; None where there is none, as in nnU-Net's."""
    path = root / "dataset.json"
    if not path.exists():
        return None
    try:
        entries = json.loads(path.read_text()).get("training")
        if not entries:
            return None
        pairs = [(root / one["image"], root / one["label"]) for one in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"damaged list, {type(error).__name__} {error}, {path}; restore or remove it") from error
    strange = [str(file) for pair in pairs for file in pair if not nifti.is_nifti(file)]
    if strange:
        raise BadInput(f"no NIfTI name, {strange[0]}, {path}; list {' or '.join(nifti.EXTENSIONS)} files")
    cases = [Case(nifti.stem(label), (image,), label) for image, label in pairs]
    if all(case.images[0].exists() for case in cases):
        return sorted(cases, key=lambda case: natural(case.name))
    return None  # a list of cases whose images are named by channel, or moved: what is there counts


def _check_headers(case: Case, channels: int) -> Volume:
    """A volume without content that has the case's grid. Raises BadInput where channels or mask do not fit it."""
    images = [nifti.open_header(path) for path in case.images]
    shapes = [nifti.volume_shape(image) for image in images]
    stored = sum(shape[3] if len(shape) == 4 else 1 for shape in shapes)
    if stored != channels:
        raise BadInput(f"image channels, {stored}, {case.images[0]}; set data.channels to {stored}, or give {channels}")
    label = nifti.open_header(case.label)
    for path, image in [*zip(case.images[1:], images[1:]), (case.label, label)]:
        shape = nifti.volume_shape(image)[:3]
        check_same_grid(shape, image.affine, shapes[0][:3], images[0].affine, path)
    return Volume(np.broadcast_to(np.uint8(0), shapes[0][:3]), images[0].affine, str(case.images[0]))
