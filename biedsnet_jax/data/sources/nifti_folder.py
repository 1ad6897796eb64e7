"""Reads a folder of NIfTI volumes with label maps as a source of slices.

See `nifti_layouts` for the layouts of such folders.
"""

# `hidden` is `dataclasses.field`, which this rule allows by that name alone.
# ruff: noqa: RUF009

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped, UInt8

from biedsnet_jax.data import case_names
from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.formats.volumes import (
    PLANES,
    Volume,
    check_same_grid,
    is_lost,
    neighbours,
    own_plane,
    plane_note,
)
from biedsnet_jax.data.sources.nifti_layouts import Case, Folder, search
from biedsnet_jax.data.sources.slice_cache import SliceCache
from biedsnet_jax.data.sources.source import (
    Example,
    Facts,
    LabelledScan,
    check_foreground,
    each_class,
    hidden,
    stacked_known,
)
from biedsnet_jax.errors import BadInput


@dataclass(frozen=True)
class NiftiFolder:
    """Source of the slices of every volume, in canonical orientation.

    See `volumes` for the orientation. `plane` is one of `volumes.PLANES`, or "auto": the
    plane in which most volumes were taken, where axial slices would cut across them. A
    volume is a case, unless names tell by `case`
    that several are of one patient (see `case_names.find`).

    `labels` lists the label values of each class, such as ((1,), (2, 3)); classes may
    overlap, as regions do. Without it the labels 1 to k are the k classes, and every
    label but 0 is the one class. The `channels` are the fourth axis of a file, or the
    files `_0000`, `_0001`, ... in that order. `context` adds so many neighbouring slices
    on each side as further channels. `min_foreground` leaves out slices with fewer
    pixels of any class. Voxels of the label `ignore`, or of the one that dataset.json
    calls so, are known of no class. Volumes are read once and then come from
    `cache_folder`.

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
    plane: str = "axial"
    ignore: int | None = None
    _folder: Folder = hidden()
    _notes: list[str] = hidden()
    # Numbers of case and slice.
    _slices: list[tuple[int, int]] = hidden()
    # Spacing (slice, row, column) of each volume, in mm.
    _spacing: list[tuple[float, float, float]] = hidden()
    _cache: SliceCache = hidden()
    _names: case_names.Cases = hidden()
    _ignore: int | None = hidden()

    def __post_init__(self):
        folder = search(Path(self.root))
        cases = [case.name for case in folder.cases]
        where = str(self.root)
        names = case_names.find(cases, self.case, where=where, volumes=True)
        headers = [_check_headers(case, self.channels) for case in folder.cases]
        plane, plane_notes = _choose_plane(headers, self.plane)
        headers = [replace(header, plane=plane) for header in headers]
        if folder.about:
            folder.about.check_channels(self.channels)
            folder.about.check_labels(self.classes, self.labels)
        notes = [*names.notes, *folder.notes, *plane_notes]
        notes += _notes_of_headers(headers)
        # The fields of a frozen dataclass are set through object.
        object.__setattr__(self, "_folder", folder)
        object.__setattr__(self, "_ignore", _find_ignore(folder.about, self))
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_notes", notes)
        cache = SliceCache(Path(self.cache_folder), plane)
        object.__setattr__(self, "_cache", cache)
        object.__setattr__(self, "_spacing", [header.spacing for header in headers])
        slices = []
        for n, header in enumerate(headers):
            least = self.min_foreground
            pixels = self._foreground(n) if least else [0] * len(header.slices)
            slices += [(n, z) for z, count in enumerate(pixels) if count >= least]
        if self.min_foreground and not slices:
            raise BadInput(
                f"No slice in {self.root} has {self.min_foreground} pixels of foreground. "
                "Lower data.min_foreground."
            )
        object.__setattr__(self, "_slices", slices)

    @property
    def cases(self) -> list[str]:
        of = [self._names.of[case.name] for case in self._folder.cases]
        return [of[n] for n, _ in self._slices]

    @property
    def facts(self) -> Facts:
        files = defaultdict(list)
        for case in self._folder.cases:
            files[self._names.of[case.name]] += [*case.images, case.label]
        facts = Facts(
            files,
            self._names.sides,
            self._folder.passed,
            self._notes,
            self._cache.plane,
        )
        about = self._folder.about
        if about is None:
            return facts
        return replace(
            facts,
            class_names=about.class_names(self.classes, self.labels),
            channel_names=about.channels,
            ignore="" if about.ignore is None else str(about.ignore),
        )

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> Example:
        n, z = self._slices[index]
        case = self._folder.cases[n]
        return {
            "image": neighbours(self._image(n), z, self.context),
            **self._truth(n, z),
            "case": self._names.of[case.name],
            "slice": self._slice_name(n, z),
            "spacing": self._spacing[n][1:],
            "path": str(case.images[0]),
        }

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Yields every volume of a case, with the slices that `min_foreground` omits."""
        for n, files in enumerate(self._folder.cases):
            if self._names.of[files.name] == case:
                yield self._scan(n)

    def _scan(self, n: int) -> LabelledScan:
        files = self._folder.cases[n]
        # From the file, as mode predict reads it: the cache holds float32.
        slices = _read_slices(files.images, self._cache.plane)
        truths = [self._truth(n, z) for z in range(len(slices))]
        indices = {place: i for i, place in enumerate(self._slices)}
        return LabelledScan(
            case=self._names.of[files.name],
            name=self._names.slices[files.name],
            slices=slices,
            truth=np.stack([truth["mask"] for truth in truths]),
            known=stacked_known(truths),
            slice_names=[self._slice_name(n, z) for z in range(len(slices))],
            indices=[indices.get((n, z)) for z in range(len(slices))],
            is_volume=True,
            spacing=self._spacing[n],
        )

    def _slice_name(self, n: int, z: int) -> str:
        volume = self._names.slices[self._folder.cases[n].name]
        return f"{volume}_{z:03d}" if volume else f"{z:03d}"

    def _truth(self, n: int, z: int) -> Example:
        label = self._label(n)[z][..., 0].astype(np.uint16)
        return truth(label, self.classes, self.labels, self._ignore)

    def verify(self) -> None:
        """Reads every volume that the cache lacks.

        Raises the BadInput of the first that does not fit, and one for empty masks.
        """
        pixels = []
        # One after another, since two large volumes at once may not fit in memory.
        for n in range(len(self._folder.cases)):
            self._image(n)
            pixels.append(self._foreground(n))
        with_foreground = sum(pixels[n][z] > 0 for n, z in self._slices)
        check_foreground(with_foreground, len(self), str(self.root))

    def _image(self, n: int):
        images = self._folder.cases[n].images
        return self._cache.images(
            images, lambda: _read_slices(images, self._cache.plane)
        )

    def _label(self, n: int):
        case = self._folder.cases[n]
        path, image = case.label, case.images[0]

        def read():
            # The image's affine chooses the slices: near 45 degrees rounding in the
            # label map's own could choose others.
            affine = nifti.affine(nifti.open_header(image).header)
            voxels = nifti.labels(nifti.read(path))
            return Volume(voxels, affine, str(path), plane=self._cache.plane).slices

        kept = self._cache.labels([path], read)
        found = dict.fromkeys(kept.counts.keys() - {self._ignore}, path)
        check_labels(found, self.classes, self.labels)
        return kept

    def _foreground(self, n: int) -> list[int]:
        """Counts the pixels of any class in each slice."""
        kept = self._label(n)
        of_classes = set().union(*self.labels) if self.labels else kept.counts.keys()
        there = (of_classes & kept.counts.keys()) - {self._ignore}
        rows = [kept.counts[label] for label in there]
        return np.sum(rows, axis=0).tolist() if rows else [0] * len(kept)


def _read_slices(images: Sequence[Path], plane: str) -> Shaped[np.ndarray, "d h w c"]:
    """Reads the files of a volume's channels as canonical slices."""
    volumes = nifti.read_channels(images)
    parts = []
    for volume in volumes:
        nifti.check_content(volume)
        # All channels are cut as the first, since affines differ by rounding.
        slices = replace(volume, affine=volumes[0].affine, plane=plane).slices
        parts.append(slices if slices.ndim == 4 else slices[..., None])
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


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
    label: Integer[np.ndarray, "*space"], classes: int, labels: Sequence[Sequence[int]]
) -> UInt8[np.ndarray, "*space k"]:
    """Splits a label map into one map of 0 and 1 for each class."""
    if not labels and classes == 1:
        return (label > 0)[..., None].view(np.uint8)
    groups = labels or [(k,) for k in range(1, classes + 1)]
    masks = [_is_any(label, group) for group in groups]
    return np.stack(masks, axis=-1).view(np.uint8)


def _is_any(label, group):
    # Ten times as fast as np.isin for the few labels of a class.
    found = label == group[0]
    for other in group[1:]:
        found |= label == other
    return found


def truth(
    label: np.ndarray,
    classes: int,
    labels: Sequence[Sequence[int]],
    ignore: int | None,
) -> Example:
    """Makes mask "h w k" of a label map "h w" and, where a label is to ignore, known.

    known is 1 but for pixels of that label, which are of no class.
    """
    if ignore is None:
        return {"mask": class_masks(label, classes, labels)}
    known = label != ignore
    mask = class_masks(label, classes, labels)
    # One class takes all labels but 0, and a class may have 0.
    mask &= known[..., None]
    return {"mask": mask, "known": each_class(known, classes)}


def _find_ignore(about, source) -> int | None:
    """Value of the label to ignore. Raises BadInput where dataset.json has another."""
    if about is None or about.ignore is None:
        return source.ignore
    of_classes = set().union(*source.labels) if source.labels else set()
    if not source.labels and source.classes > 1:
        of_classes = set(range(1, source.classes + 1))
    if source.ignore not in (None, about.ignore):
        raise BadInput(
            f"data.ignore is {source.ignore}, but {about.path} calls label {about.ignore} so. "
            f"Set data.ignore={about.ignore}, or correct the file."
        )
    if about.ignore in of_classes:
        raise BadInput(
            f'{about.path} calls label {about.ignore} "ignore", which data.classes or '
            "data.labels have for a class. Take it out of them, or correct the file."
        )
    return about.ignore


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


def _choose_plane(headers: Sequence[Volume], plane: str) -> tuple[str, list[str]]:
    """The plane to cut volumes in, and a line that says so where "auto" chose another."""
    if plane != "auto":
        return plane, []
    own = Counter(map(own_plane, headers))
    # Of equals the axial plane, so that data of several kinds stay as they were.
    plane = max(own, key=lambda name: (own[name], name == "axial"))
    if plane == "axial":
        return plane, []
    return plane, [
        f"{own[plane]} of {len(headers)} volumes are stacks of {plane} slices, so all are cut in "
        f"{plane} slices. Set data.plane=axial for axial ones."
    ]


def _notes_of_headers(headers: Sequence[Volume]) -> list[str]:
    """Warns of units and of planes, in a line each.

    Raises BadInput for a stack that cannot be cut in its volume's plane.
    """
    notes = _joined([nifti.unit_note(header) for header in headers])
    fix = _fix_of_planes(headers) if any(map(is_lost, headers)) else ""
    return notes + _joined([plane_note(header, fix) for header in headers])


def _joined(notes: Sequence[str]) -> list[str]:
    """The first of some notes, and how many more there are; none where all are empty."""
    found = [note for note in notes if note]
    if len(found) > 1:
        noun = "volume" if len(found) == 2 else "volumes"
        found = [f"{found[0]} The same holds for {len(found) - 1} more {noun}."]
    return found


def _fix_of_planes(headers: Sequence[Volume]) -> str:
    """What to do where a volume cannot be cut in the plane of all."""
    own = Counter(map(own_plane, headers))
    counts = ", ".join(f"{own[plane]} {plane}" for plane in PLANES if own[plane])
    text = f"The {len(headers)} volumes are of these planes: {counts}."
    for plane in PLANES:
        if not any(is_lost(replace(header, plane=plane)) for header in headers):
            return f"{text} Set data.plane={plane}, in which all of them can be cut."
    return (
        f"{text} Put those of one plane into a folder of their own, or resample all to "
        "even voxels."
    )
