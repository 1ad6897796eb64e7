"""Finds the files of a DICOM series by their headers, and reads them as a volume.

This needs the extra `dicom` (pydicom). A pixel lies where ImagePositionPatient and
ImageOrientationPatient say, whatever the file's name or number:

    [x, y, z] mm = position + column * (mm between columns) * along_row
                            + row * (mm between rows) * along_column

DICOM's x grows to the patient's left and y to the back, a Volume's affine (RAS+) the
other way. Voxels are "i j k": column, row, and slice along the normal along_row x
along_column. The step between slices comes from their positions; where it is not along
the normal (a tilted gantry), the affine is sheared as the scan was.

Where slices are missing, the grid keeps all others at their true place, so it has voxels
that nobody scanned. They repeat the nearest slice, so that a network sees nothing
strange, and are reported: a mask must be left empty there.

The files of a series may lie in several folders: they are one scan if together they make
one even stack.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from biedsnet_jax.data.formats import dicom_slice
from biedsnet_jax.data.formats.dicom_slice import Slice
from biedsnet_jax.data.formats.volumes import Volume, check_affine
from biedsnet_jax.data.walk import PassedOver, unread
from biedsnet_jax.errors import BadInput

EXTENSIONS = (".dcm", ".dicom")
# The series of files whose header cannot be read.
BROKEN = ""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Voxels by which a slice or a step may miss the grid, since positions are rounded.
_OFF = 0.2
# Gaps that a warning lists one by one.
_MOST_GAPS = 4
# The thickness of a single slice whose file does not say it.
_UNKNOWN_MM = 1.0
# Files of one series have these in common.
_EXAM = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")


class Series(NamedTuple):
    """Scans among some files, and the files that are none."""

    files: dict[str, list[Path]]  # SeriesInstanceUID -> its files by position
    passed: list[PassedOver]


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes or its name.

    A file that has the name alone is refused when it is read.
    """
    return path.suffix.lower() in EXTENSIONS or dicom_slice.looks_like_dicom(path)


def search(paths: Sequence[Path]) -> Series:
    """Sorts files into series by their headers, in the order of SeriesNumber.

    Reports, segmentations and the like are passed over. Files that cannot be read are
    together under BROKEN, for `read_series` to refuse. Raises BadInput without pydicom.
    """
    found = defaultdict(list)
    numbers = {}
    passed = []
    for path in paths:
        try:
            with dicom_slice.opened(path) as header:
                if not dicom_slice.is_scan(header, path):
                    passed.append(PassedOver(path, dicom_slice.why_no_scan(header)))
                    continue
                series = str(header.get("SeriesInstanceUID") or path.parent)
                number = int(header.get("SeriesNumber") or 0)
                height = dicom_slice.height(header, path)
        except dicom_slice.BadFile as error:
            no_dicom = isinstance(error, dicom_slice.NotDicom)
            if no_dicom and path.suffix.lower() not in EXTENSIONS:
                # A few of its first bytes alone looked like DICOM.
                passed.append(unread(path))
                continue
            series, number, height = BROKEN, 0, 0.0
        found[series].append((height, path))
        numbers[series] = number
    files = {}
    for series in sorted(found, key=lambda series: (numbers[series], series)):
        by_position = sorted(found[series], key=lambda one: one[0])
        files[series] = [path for _, path in by_position]
    return Series(files, passed)


def are_one_exam(parts: Sequence[Sequence[Path]]) -> bool:
    """Whether folders of one series are of one patient, study and position."""
    exams = set()
    for files in parts:
        with dicom_slice.opened(files[0]) as header:
            exams.add(tuple(str(header.get(name, "")) for name in _EXAM))
    return len(exams) == 1


def join(parts: Sequence[Sequence[Path]]) -> list[Path] | None:
    """Sorts files of several folders by position; None if they make no even stack."""
    try:
        slices = _read_headers([path for files in parts for path in files])
        _grid(slices)
    except BadInput:
        return None
    return list(dict.fromkeys(one.path for one in slices))


def count_slices(files: Sequence[Path]) -> int:
    """Counts the slices of a series by its first header, without reading the others."""
    if len(files) > 1:
        return len(files)
    try:
        with dicom_slice.opened(files[0]) as header:
            return max(1, int(header.get("NumberOfFrames") or 1))
    except dicom_slice.BadFile:
        return 1


def read_series(files: Sequence[Path]) -> tuple[Volume, list[int], list[str]]:
    """Reads a series: the volume, the k of slices that nobody scanned, and warnings.

    Voxels are in the units of RescaleSlope and RescaleIntercept: int16 where all are
    whole and fit, else float32. MONOCHROME1 is inverted. Raises BadInput for files that
    are not slices of one even stack, for colour, and for pixels that are cut short or
    packed in a way that pydicom cannot unpack.
    """
    slices = _read_headers(files)
    places, affine = _grid(slices)
    voxels = _read_voxels(slices, places)
    missing = sorted(set(range(places[-1] + 1)) - set(places.tolist()))
    for k in missing:
        voxels[..., k] = voxels[..., places[np.abs(places - k).argmin()]]
    volume = Volume(voxels, affine, str(files[0].parent))
    return volume, missing, _notes(slices, places, affine)


def _read_headers(files: Sequence[Path]) -> list[Slice]:
    """Reads the slices of all files by their height along the normal.

    Raises BadInput for the first slice that differs from most in size, spacing or
    direction.
    """
    slices = [one for path in files for one in dicom_slice.read(path)]
    geometry = [
        np.concatenate([one.size, one.spacing, one.directions.ravel()])
        for one in slices
    ]
    usual = Counter(tuple(one.round(3)) for one in geometry).most_common(1)[0][0]
    names = ["size"] * 2 + ["spacing"] * 2 + ["direction"] * 6
    for one, own in zip(slices, geometry):
        off = np.abs(own - usual)
        if off.max() > 2e-3:
            # A different size comes first, since it is what a user sees.
            n = int(off[:2].argmax() if off[:2].max() >= 1 else off.argmax())
            raise BadInput(
                f"{one.path} has another {names[n]} than most slices of its series, {own[n]:.4g} "
                f"for {usual[n]:.4g}. Put slices that belong together in a folder of their own."
            )
    return sorted(slices, key=lambda one: one.height)


def _grid(
    slices: Sequence[Slice],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "4 4"]]:
    """Computes the k of each slice, and the affine.

    Raises BadInput for two slices at one place and for uneven steps.
    """
    first = slices[0]
    positions = np.stack([one.position for one in slices])
    if len(slices) == 1:
        places = np.zeros(1, int)
        step = first.normal * (first.thickness or _UNKNOWN_MM)
    else:
        places = np.concatenate([[0], np.cumsum(_steps(slices))])
        step = (positions[-1] - positions[0]) / places[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    check_affine(affine, first.path)
    errors = (positions - positions[0] - places[:, None] * step).T
    off = np.abs(np.linalg.solve(affine[:3, :3], errors)).max(axis=0)
    if off.max() > _OFF:
        raise BadInput(
            f"{slices[off.argmax()].path} lies {off.max():.2g} voxels off the grid of its series. "
            "Put slices that belong together in a folder of their own."
        )
    return places, _LPS_TO_RAS @ affine


def _steps(slices: Sequence[Slice]) -> Int[np.ndarray, " n"]:
    """Counts the steps from each slice to the next: 1, or more over a gap."""
    gaps = np.diff([one.height for one in slices])
    n = int(gaps.argmin())
    if gaps[n] < 1e-3:
        raise BadInput(
            f"{slices[n].path} and {slices[n + 1].path} are two slices at one place, "
            f"{_place(slices[n])} mm. Keep one phase, time point or copy in the folder."
        )
    usual = np.median(gaps)
    steps = np.maximum(1, np.rint(gaps / usual).astype(int))
    off = np.abs(gaps / usual - steps)
    n = int(off.argmax())
    if off[n] > _OFF * steps[n]:
        raise BadInput(
            f"{slices[n + 1].path} is {gaps[n]:.4g} mm from the slice before it, where most are "
            f"{usual:.4g} mm apart. Put each even part in a folder of its own."
        )
    if steps.sum() > 2 * len(slices):
        raise BadInput(
            f"{slices[0].path.parent} holds only {len(slices)} slices, and lacks "
            f"{steps.sum() - len(gaps)} between them. Put each part in a folder of its own."
        )
    return steps


def _place(one: Slice) -> str:
    """Place of a slice's first pixel along the stack, in DICOM's axes and mm."""
    axis = int(np.abs(one.normal).argmax())
    return f"{'xyz'[axis]}={one.position[axis]:.1f}"


def _notes(slices, places, affine) -> list[str]:
    """Warns of an unknown thickness, of gaps and of a tilted gantry."""
    notes, folder = [], slices[0].path.parent
    if len(slices) == 1 and not slices[0].thickness:
        notes.append(
            f"{slices[0].path} does not say how thick its slice is (SliceThickness). "
            f"It is taken to be {_UNKNOWN_MM:g} mm: volumes in ml hold for that, areas are right."
        )
    gaps = []
    for n in np.flatnonzero(np.diff(places) > 1):
        count = places[n + 1] - places[n] - 1
        gaps.append(
            f"{count} between {_place(slices[n])} and {_place(slices[n + 1])} mm"
        )
    if len(gaps) > _MOST_GAPS:
        gaps[_MOST_GAPS:] = [f"and in {len(gaps) - _MOST_GAPS} more gaps"]
    if gaps:
        notes.append(
            f"Slices are missing in {folder}: {', '.join(gaps)}. "
            "The masks are empty there; export all slices."
        )
    along = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    # The part of a step that lies in the plane of a slice, in mm.
    sideways = np.linalg.norm(affine[:3, 2] @ along)
    if sideways > 0.01 * np.linalg.norm(affine[:3, 2]):
        notes.append(
            f"The gantry of {folder} was tilted, each slice {sideways:.2g} mm aside of the last. "
            "The masks' sform keeps that; viewers that read the qform alone show them straight."
        )
    return notes


def _read_voxels(
    slices: Sequence[Slice], places: Int[np.ndarray, " n"]
) -> Num[np.ndarray, "i j k"]:
    """Reads every slice to its place; slices between stay 0."""
    rows, columns = slices[0].size
    # In this order a slice lies in one piece of memory.
    voxels = np.zeros((columns, rows, places[-1] + 1), np.int16, order="F")
    for k, values in _values_by_file(slices, places):
        is_float = values.dtype.kind == "f"
        if is_float or values.min() < -(2**15) or values.max() >= 2**15:
            voxels = voxels.astype(np.float32, copy=False)
        voxels[..., k] = values.T
    return voxels


def _values_by_file(slices, places) -> Iterator[tuple[int, Num[np.ndarray, "h w"]]]:
    """Yields k and values of every slice; a file of many frames is opened once."""
    by_file = defaultdict(list)
    for one, k in zip(slices, places):
        by_file[one.path].append((one, k))
    for of_file in by_file.values():
        values = dicom_slice.values([one for one, _ in of_file])
        yield from zip([k for _, k in of_file], values)
