"""Writes a prediction: masks and maps on the scan's own grid, an overlay, and rows of
summary.csv, one a class.
"""

import csv
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from biedsnet_jax.data.formats import nifti, pictures
from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.data.sources.nifti_folder import class_masks
from biedsnet_jax.prediction.overlay import overlay
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.prediction.scans import Item, Scan
from biedsnet_jax.runtime import csv_text, files
from biedsnet_jax.scoring.calibration import LIKELY
from biedsnet_jax.scoring.class_names import COLUMN, with_names

COLUMNS = (
    "name", "class", "labels", "slices", "height", "width", "pixels", "volume_ml",
    "largest_area_mm2", "largest_area_pixels", "mean_uncertainty", "seconds", "file",
)  # fmt: skip
# Limit of most file systems, in bytes.
LONGEST_NAME = 255


class Summary:
    """`summary.csv`: a row for each scan and class. A later run keeps the rows.

    Each of several processes writes a `part` of its own, `summary.part_0.csv`;
    `merge_parts` joins them. A file with damaged rows, or with rows of another kind, is
    renamed to `replaced`. With `named`, rows have a column with the name of the class.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: int,
        part: int | None = None,
        named: bool = False,
    ):
        self.named = named
        name = "summary.csv" if part is None else f"summary.part_{part}.csv"
        self.path = folder / name
        self.replaced: Path | None = None
        rows, has_others = self._read()
        count = Counter(row["name"] for row in rows)
        # Scan -> its file. A scan with fewer rows than classes was cut short.
        self.done = {
            row["name"]: row["file"] for row in rows if count[row["name"]] == classes
        }
        kept = [row for row in rows if row["name"] in self.done]
        text = text_of(kept, named=named)
        if not self.path.exists() or self.path.read_bytes() != text.encode():
            if has_others and part is None:
                self.replaced = set_aside(self.path)
            files.write_text(self.path, text)

    def forget(self, names: Iterable[str]) -> None:
        """Removes the rows of scans, before their files change."""
        known = {name for name in names if self.done.pop(name, None) is not None}
        if known:
            rows, _ = self._read()
            kept = [row for row in rows if row["name"] not in known]
            files.write_text(self.path, text_of(kept, named=self.named))

    def add(self, rows: list[dict]) -> None:
        """Appends the rows of one scan in one write."""
        text = text_of(rows, header=False, named=self.named)
        files.append_text(self.path, text)
        self.done[rows[0]["name"]] = rows[0]["file"]

    def merge_parts(self, classes: int) -> None:
        """Takes over the finished scans of all parts, and removes the parts."""
        for path in sorted(self.path.parent.glob("summary.part_*.csv")):
            number = int(path.stem.rpartition("_")[2])
            part = Summary(
                self.path.parent, classes=classes, part=number, named=self.named
            )
            rows = [row for row in part._read()[0] if row["name"] not in self.done]
            if rows:
                text = text_of(rows, header=False, named=self.named)
                files.append_text(self.path, text)
                self.done |= {row["name"]: row["file"] for row in rows}
            path.unlink()

    def _read(self) -> tuple[list[dict[str, str]], bool]:
        """Returns the sound rows, and whether there are other rows.

        A last line that was cut short is ignored.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], False
        # Spreadsheets put a byte order mark first. Bytes that are no text become
        # surrogates, which make their row unsound.
        text = content.decode("utf-8-sig", errors="surrogateescape")
        whole, end, _ = text.rpartition("\n")
        try:
            rows = csv_text.read(whole + end)
        except csv.Error:
            return [], True
        sound = [row for row in rows if _is_sound(row)]
        return sound, len(sound) < len(rows)


def _is_sound(row) -> bool:
    """Checks that a row has the columns of this program, and text in all of them."""
    if set(row) - {COLUMN} != set(COLUMNS) or None in row.values():
        return False
    text = "".join(row.values())
    has_surrogates = any("\ud800" <= character <= "\udfff" for character in text)
    # A power cut leaves zero bytes.
    return "\0" not in text and not has_surrogates


def set_aside(path: Path) -> Path:
    """Renames a file that somebody changed to a free name in its folder.

    Returns the new path, such as "a_mask_replaced_1.png".
    """
    extension = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    stem = path.name.removesuffix(extension)
    for number in itertools.count(1):
        end = f"_replaced_{number}{extension}"
        other = path.with_name(_short(stem, len(end)) + end)
        if not other.exists():
            path.rename(other)
            return other


def write_overlay(path: Path, scan: Scan, mask: Bool[np.ndarray, "d h w k"]) -> None:
    """Writes a picture of the scan with its mask tinted."""
    spacing = scan.volume.spacing[1:] if scan.volume else None
    picture = overlay(scan.slices, mask, spacing)
    with files.whole_file(path) as partial:
        picture.save(partial)


class Output(NamedTuple):
    """A file written beside a mask, from the scan and the mask of each class."""

    # End of the file's name, after that of the scan.
    ending: str
    write: Callable[[Path, Scan, np.ndarray], None]


OUTPUTS = {
    "overlay": Output("_overlay.png", write_overlay),
}


def paths(
    folder: Path,
    item: Item,
    *,
    classes: int,
    uncertainties: Sequence[str],
    samples: int,
) -> dict[str, Path]:
    """Returns every file of one scan by what it holds.

    The keys are those of OUTPUTS, "mask", and the maps by name, which several classes
    number. Where the scan's name is too long for them, the files have it cut, with a
    hash of the whole name at its end.
    """
    extension = ".png" if item.kind == "picture" else ".nii.gz"
    maps = ["probability", *uncertainties]
    number = f"_{classes}" if classes > 1 else ""
    longest_map = max(map(len, maps))
    endings = [len(output.ending) for output in OUTPUTS.values()]
    room = max(len(f"_{number}{extension}") + longest_map, *endings)
    # Samples take no part in `room`: whether they are kept must not rename a mask.
    below, slash, name = item.name.rpartition("/")
    stem = f"{below}{slash}{_short(name, room)}"
    maps += [f"sample_{n + 1}" for n in range(samples)]
    if classes > 1:
        maps = [f"{name}_{k + 1}" for name in maps for k in range(classes)]
    found = {name: folder / f"{stem}{out.ending}" for name, out in OUTPUTS.items()}
    for name in [*maps, "mask"]:
        found[name] = folder / f"{stem}_{name}{extension}"
    return found


def is_shortened(item: Item, where: dict[str, Path]) -> bool:
    """Checks whether the outputs of a scan have a shorter name than the scan."""
    return not where["mask"].name.startswith(f"{item.name.rpartition('/')[2]}_mask")


def _short(name: str, room: int) -> str:
    """Cuts a name so that `room` bytes of LONGEST_NAME are left.

    The same name is always cut to the same one.
    """
    content = os.fsencode(name)
    if len(content) + room <= LONGEST_NAME:
        return name
    end = f"_{hashlib.sha256(content).hexdigest()[:12]}"
    return content[: LONGEST_NAME - room - len(end)].decode(errors="ignore") + end


def write(scan: Scan, prediction: Prediction, where: dict[str, Path]) -> list[dict]:
    """Writes the files of `paths`, the mask last, each complete under its name.

    Returns the rows of the summary. Their areas and volumes are those of the mask as
    written: what its labels give each class.
    """
    where["mask"].parent.mkdir(parents=True, exist_ok=True)
    labels, mask = _masks(scan, prediction)
    for name, output in OUTPUTS.items():
        output.write(where[name], scan, mask)
    # One map after another, since all of them at full size may not fit in memory.
    for name in prediction.maps:
        _write_maps(where, name, prediction.map(name), scan)
    for number in range(prediction.sample_count):
        _write_maps(where, f"sample_{number + 1}", prediction.sample(number), scan)
    _write_mask(where["mask"], labels, scan, prediction)
    return _rows(scan, prediction, mask)


def write_mask(scan: Scan, prediction: Prediction, path: Path) -> list[dict]:
    """Writes the mask that `write` would, and returns the same rows."""
    labels, mask = _masks(scan, prediction)
    _write_mask(path, labels, scan, prediction)
    return _rows(scan, prediction, mask)


def text_of(rows: Iterable[dict], *, header: bool = True, named: bool = False) -> str:
    """Returns the text of a summary or, without `header`, of rows to append to one.

    With `named` it has the column of the classes' names, which a row may lack.
    """
    columns = (*COLUMNS[:2], COLUMN, *COLUMNS[2:]) if named else COLUMNS
    cells = [{name: row.get(name, "") for name in columns} for row in rows]
    return csv_text.write(cells, columns, header=header)


def _masks(scan, prediction):
    """Returns the label map "d h w" and the mask of each class "d h w k".

    Both are empty where nothing was scanned.
    """
    label_map = scan.only_scanned(prediction.label_map)
    return label_map, masks_of(label_map, prediction.labels)


def masks_of(
    label_map: Integer[np.ndarray, "d h w"], labels: Sequence[Sequence[int]]
) -> Bool[np.ndarray, "d h w k"]:
    """Splits a label map as it is written into the mask of each class."""
    return class_masks(label_map, len(labels), labels).view(bool)


def _write_mask(path, labels, scan, prediction):
    if scan.volume is None and len(prediction.labels) == 1:
        # White, so that a picture viewer shows the mask.
        labels = (labels > 0) * np.uint8(255)
    _write_grid(path, labels, scan)


def _write_maps(where, name, values, scan):
    values = scan.only_scanned(values)
    classes = values.shape[-1]
    for k in range(classes):
        numbered = name if classes == 1 else f"{name}_{k + 1}"
        _write_grid(where[numbered], values[..., k], scan)


def _write_grid(path, values, scan: Scan):
    """Writes canonical slices "d h w" in the grid of the scan.

    A picture holds a map of [0, 1] in steps of 1/65535. Where EXIF turns the scan, the
    pixels are written as the scan stores them, with the same EXIF turn.
    """
    if scan.volume is not None:
        nifti.write(path, scan.volume.restore(values), scan.volume)
        return
    picture = values[0]
    if picture.dtype.kind == "f":
        picture = np.rint(picture.clip(0, 1) * 65535).astype(np.uint16)
    with files.whole_file(path) as partial:
        pictures.save_turned(partial, picture, scan.turn)


def _rows(scan, prediction, mask) -> list[dict]:
    uncertainty = [""] * len(prediction.labels)
    if "entropy" in prediction.maps:
        entropy = prediction.mean_entropy(LIKELY, scan.scanned)
        uncertainty = [f"{value:.4f}" for value in entropy]
    rows = [
        {
            "name": scan.item.name,
            "class": k + 1,
            "labels": "+".join(map(str, labels)),
            **_sizes(mask[..., k], scan.volume),
            "mean_uncertainty": uncertainty[k],
            "seconds": f"{prediction.seconds:.3f}",
            "file": str(scan.item.files[0]),
        }
        for k, labels in enumerate(prediction.labels)
    ]
    return with_names(rows, prediction.class_names)


def _sizes(mask, volume: Volume | None) -> dict:
    slices, height, width = mask.shape
    pixels = int(mask.sum())
    largest = int(mask.sum(axis=(1, 2)).max())
    volume_ml = largest_area = ""
    # A picture has no spacing, so neither of these.
    if volume is not None:
        volume_ml = f"{pixels * volume.voxel_ml:.6g}"
        area = volume.spacing[1] * volume.spacing[2]
        largest_area = f"{largest * area:.6g}"
    return {
        "slices": slices,
        "height": height,
        "width": width,
        "pixels": pixels,
        "volume_ml": volume_ml,
        "largest_area_mm2": largest_area,
        "largest_area_pixels": largest,
    }
