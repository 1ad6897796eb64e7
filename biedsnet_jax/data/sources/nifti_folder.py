"""Reads a folder of NIfTI volumes with label maps as a source of axial slices.

See `nifti_layouts` for the layouts of such folders.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
    """Source of the axial slices of every volume, in canonical orientation.

    See `volumes` for the orientation. A volume is a case, unless names tell by `case`
    that several are of one patient (see `case_names.find`).

    `labels` lists the label values of each class, such as ((1,), (2, 3)); classes may
    overlap, as regions do. Without it the labels 1 to k are the k classes, and every
    label but 0 is the one class. The `channels` are the fourth axis of a file, or the
    files `_0000`, `_0001`, ... in that order. `context` adds so many neighbouring slices
    on each side as further channels. `min_foreground` leaves out slices with fewer
    pixels of any class. Volumes are read once and then come from `cache_folder`.

    Raises BadInput when made, if a file has no partner or lies on another grid, and on
    `[i]`, if its voxels do not fit. `verify` finds the latter before work starts, and
    fills the cache.
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
    # Numbers of case and slice.
    _slices: list[tuple[int, int]] = field(init=False, repr=False, compare=False)
    # Spacing (row, column) of each case, in mm.
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
        # The fields of a frozen dataclass are set through object.
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
                    f"No slice in {self.root} has {self.min_foreground} pixels of foreground. "
                    "Lower data.min_foreground."
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
        label = self._label(n)[z][..., 0].astype(np.uint16)
        return {
            "image": neighbours(self._image(n), z, self.context),
            "mask": class_masks(label, self.classes, self.labels),
            "case": self._names.of[case.name],
            "slice": f"{volume}_{z:03d}" if volume else f"{z:03d}",
            "spacing": self._spacing[n],
            "path": str(case.images[0]),
        }

    def verify(self) -> None:
        """Reads every volume that the cache lacks.

        Raises the BadInput of the first that does not fit, and one for empty masks.
        """
        pixels = []
        # One after another, since two large volumes at once may not fit in memory.
        for n in range(len(self._cases)):
            self._image(n)
            pixels.append(self._foreground(n))
        with_foreground = sum(pixels[n][z] > 0 for n, z in self._slices)
        check_foreground(with_foreground, len(self), str(self.root))

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

        def read():
            # The image's affine chooses the slices: near 45 degrees rounding in the
            # label map's own could choose others.
            affine = nifti.affine(nifti.open_header(image).header)
            return Volume(nifti.labels(nifti.read(path)), affine, str(path)).slices

        kept = self._cache.labels([path], read)
        check_labels(dict.fromkeys(kept.counts, path), self.classes, self.labels)
        return kept

    def _foreground(self, n: int) -> list[int]:
        """Counts the pixels of any class in each slice."""
        kept = self._label(n)
        of_classes = set().union(*self.labels) if self.labels else kept.counts.keys()
        rows = [kept.counts[label] for label in of_classes & kept.counts.keys()]
        return np.sum(rows, axis=0).tolist() if rows else [0] * len(kept)


def check_labels(
    found: Mapping[int, object], classes: int, labels: Sequence[Sequence[int]]
) -> None:
    """Raises BadInput for label values of no class; `found` maps values to files.

    Without `labels`, every value but 0 is of the one class.
    """
    if not labels and classes == 1:
        return
    known = set().union(*labels) if labels else set(range(1, classes + 1))
    unknown = sorted(found.keys() - known - {0})
    if unknown:
        raise BadInput(
            f"{found[unknown[0]]} holds the labels {', '.join(map(str, unknown[:8]))}, and known "
            f"are 0, {', '.join(map(str, sorted(known)))}. "
            "Add them to data.labels, or raise data.classes."
        )


def class_masks(
    label: np.ndarray, classes: int, labels: Sequence[Sequence[int]]
) -> UInt8[np.ndarray, "h w k"]:
    """Splits a label map "h w" into one map of 0 and 1 for each class."""
    if not labels and classes == 1:
        return (label > 0)[..., None].astype(np.uint8)
    groups = labels or [(k,) for k in range(1, classes + 1)]
    masks = [np.isin(label, group) for group in groups]
    return np.stack(masks, axis=-1).astype(np.uint8)


def _check_headers(case: Case, channels: int) -> Volume:
    """Makes a volume without content that has the case's grid.

    Raises BadInput where channels or mask do not fit it.
    """
    images = [nifti.open_header(path) for path in case.images]
    shapes = [nifti.volume_shape(image) for image in images]
    stored = sum(shape[3] if len(shape) == 4 else 1 for shape in shapes)
    if stored != channels:
        raise BadInput(
            f"{case.images[0]} has {stored} image channels where data.channels is {channels}. "
            f"Set data.channels to {stored}, or give {channels} channels."
        )
    label = nifti.open_header(case.label)
    unit = nifti.unit_mm(images[0].header) or 1.0
    affine = nifti.affine(images[0].header)
    for path, image in [*zip(case.images[1:], images[1:]), (case.label, label)]:
        shape = nifti.volume_shape(image)[:3]
        check_same_grid(
            shape, nifti.affine(image.header, unit=unit), shapes[0][:3], affine, path
        )
    # A view of one voxel, so that no memory is used.
    voxels = np.broadcast_to(np.uint8(0), shapes[0][:3])
    return Volume(voxels, affine, str(case.images[0]), images[0].header)


def _notes_of_headers(headers: Sequence[Volume]) -> list[str]:
    """Warns of units and of planes, in a line each.

    Raises BadInput for a stack that cannot be cut axially.
    """
    units = [nifti.unit_note(header) for header in headers]
    planes = [plane_note(header) for header in headers]
    return _first_and_count(units) + _first_and_count(planes)


def _first_and_count(notes: list[str]) -> list[str]:
    notes = [note for note in notes if note]
    if len(notes) < 2:
        return notes
    noun = "volume" if len(notes) == 2 else "volumes"
    return [f"{notes[0]} The same holds for {len(notes) - 1} more {noun}."]
