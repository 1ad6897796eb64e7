"""A folder of NIfTI volumes with label maps (see `nifti_layouts`) as a source of axial
slices.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from biedsnet_jax.data import case_names
from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.formats.volumes import (
    Volume,
    check_same_grid,
    neighbours,
    plane_note,
)
from biedsnet_jax.data.sources.nifti_layouts import Case, search
from biedsnet_jax.data.sources.slice_cache import SliceCache
from biedsnet_jax.data.sources.source import Example, Facts, check_foreground
from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput


@dataclass(frozen=True)
class NiftiFolder:
    """Axial slices of every volume, in canonical orientation (see `volumes`).

    A volume is a case, but where names tell by `case` that several are one patient's
    (see `case_names.find`).

    `labels` says which label values make each class, such as ((1,), (2, 3)); sets may
    overlap, as regions do. Without it labels 1 to k are the k classes, and of one class
    every label but 0. `channels`: of one file with a fourth axis, or files `_0000`,
    `_0001`, ... in that order. `context` adds that many neighbouring slices on each
    side as further channels. `min_foreground`: only slices with so many pixels of any
    class. Volumes are read once and then come from `cache_folder`.

    Raises BadInput when made, if files lack their partner or lie on another grid, and
    on `[i]`, if voxels do not fit; `verify` finds the latter, and fills the cache,
    before work starts.
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
    _passed: list[PassedOver] = field(init=False, repr=False, compare=False)
    _notes: list[str] = field(init=False, repr=False, compare=False)
    # case, slice
    _slices: list[tuple[int, int]] = field(init=False, repr=False, compare=False)
    # of each case
    _spacing: list[tuple[float, float]] = field(init=False, repr=False, compare=False)
    _cache: SliceCache = field(init=False, repr=False, compare=False)
    _names: case_names.Cases = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        folder = search(Path(self.root))
        found = folder.cases
        names = case_names.find(
            [case.name for case in found], self.case, where=str(self.root), volumes=True
        )
        object.__setattr__(self, "_names", names)
        headers = [_check_headers(case, self.channels) for case in found]
        if folder.about:
            folder.about.check_channels(self.channels)
        # the dataclass is frozen from here on
        object.__setattr__(self, "_cases", found)
        object.__setattr__(self, "_passed", folder.passed)
        object.__setattr__(self, "_notes", folder.notes + _notes_of_headers(headers))
        object.__setattr__(self, "_cache", SliceCache(Path(self.cache_folder)))
        object.__setattr__(self, "_spacing", [header.spacing[1:] for header in headers])
        slices = [
            (n, z)
            for n, header in enumerate(headers)
            for z in range(len(header.slices))
        ]
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
        return Facts(
            files=files,
            sides=self._names.sides,
            passed=self._passed,
            notes=[*self._names.notes, *self._notes],
        )

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> Example:
        n, z = self._slices[index]
        case = self._cases[n]
        volume = self._names.slices[case.name]
        return {
            "image": neighbours(self._image(n), z, self.context),
            "mask": class_masks(
                self._label(n)[z][..., 0].astype(np.uint16), self.classes, self.labels
            ),
            "case": self._names.of[case.name],
            "slice": f"{volume}_{z:03d}" if volume else f"{z:03d}",
            "spacing": self._spacing[n],
            "path": str(case.images[0]),
        }

    def verify(self) -> None:
        """Read every volume that the cache has not got; raises the BadInput of the
        first that does not fit.
        """
        pixels = []
        # one after another: two large volumes at once may not fit in memory
        for n in range(len(self._cases)):
            self._image(n)
            pixels.append(self._foreground(n))
        check_foreground(
            sum(pixels[n][z] > 0 for n, z in self._slices), len(self), str(self.root)
        )

    def _image(self, n: int):
        case = self._cases[n]

        def read():
            volumes = nifti.read_channels(case.images)
            for volume in volumes:
                nifti.check_content(volume)
            volumes = [Volume(v.voxels, volumes[0].affine, v.path) for v in volumes]
            parts = [
                v.slices if v.voxels.ndim == 4 else v.slices[..., None] for v in volumes
            ]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

        return self._cache.images(case.images, read)

    def _label(self, n: int):
        path, image = self._cases[n].label, self._cases[n].images[0]

        # by the image's affine: near 45 degrees the label map's rounding could choose
        # other slices
        def read():
            affine = nifti.affine(nifti.open_header(image).header)
            return Volume(nifti.labels(nifti.read(path)), affine, str(path)).slices

        kept, known = (
            self._cache.labels([path], read),
            known_labels(self.classes, self.labels),
        )
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
    """Label values that a map may hold beside 0; empty where any may, since all are the
    one class.
    """
    if labels:
        return {label for group in labels for label in group}
    return set(range(1, classes + 1)) if classes > 1 else set()


def class_masks(
    label: np.ndarray, classes: int, labels: Sequence[Sequence[int]]
) -> UInt8[np.ndarray, "h w k"]:
    """A label map "h w" as one map of 0 and 1 for each class."""
    if not labels and classes == 1:
        return (label > 0)[..., None].astype(np.uint8)
    groups = labels or [(k,) for k in range(1, classes + 1)]
    return np.stack([np.isin(label, group) for group in groups], axis=-1).astype(
        np.uint8
    )


def _check_headers(case: Case, channels: int) -> Volume:
    """A volume without content that has the case's grid. Raises BadInput where channels
    or mask do not fit it.
    """
    images = [nifti.open_header(path) for path in case.images]
    shapes = [nifti.volume_shape(image) for image in images]
    stored = sum(shape[3] if len(shape) == 4 else 1 for shape in shapes)
    if stored != channels:
        raise BadInput(
            f"image channels, {stored}, {case.images[0]}; set data.channels to {stored}, or give {channels}"
        )
    label = nifti.open_header(case.label)
    unit = nifti.unit_mm(images[0].header) or 1.0
    affine = nifti.affine(images[0].header)
    for path, image in [*zip(case.images[1:], images[1:]), (case.label, label)]:
        shape = nifti.volume_shape(image)[:3]
        check_same_grid(
            shape, nifti.affine(image.header, unit=unit), shapes[0][:3], affine, path
        )
    voxels = np.broadcast_to(np.uint8(0), shapes[0][:3])
    return Volume(voxels, affine, str(case.images[0]), images[0].header)


def _notes_of_headers(headers: Sequence[Volume]) -> list[str]:
    """What to tell of units and planes, a line each.

    Raises BadInput for a stack that cannot be cut axially.
    """
    units = [nifti.unit_note(header) for header in headers]
    planes = [plane_note(header) for header in headers]
    return _first_and_count(units) + _first_and_count(planes)


def _first_and_count(notes: list[str]) -> list[str]:
    notes = [note for note in notes if note]
    if len(notes) < 2:
        return notes
    more = f"{len(notes) - 1} more volume{'s' * (len(notes) > 2)}"
    return [f"{notes[0]} The same holds for {more}."]
