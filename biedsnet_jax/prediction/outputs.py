"""What a prediction leaves on disk: masks and maps on the scan's own grid, an overlay,
a row a class in summary.csv.
"""

import csv
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from biedsnet_jax.data.formats import nifti, pictures
from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.data.sources.nifti_folder import class_masks
from biedsnet_jax.prediction.overlay import overlay
from biedsnet_jax.prediction.result import UNCERTAINTIES, Prediction
from biedsnet_jax.prediction.scans import Item, Scan
from biedsnet_jax.runtime import csv_text, files
from biedsnet_jax.scoring.calibration import LIKELY

COLUMNS = (
    "name", "class", "labels", "slices", "height", "width", "pixels", "volume_ml", "largest_area_mm2",
    "largest_area_pixels", "mean_uncertainty", "seconds", "file",
)  # fmt: skip
# bytes, of most file systems
LONGEST_NAME = 255


class Summary:
    """`summary.csv`, a row a scan and class; a run that goes on keeps what is there.

    Of several processes each writes a `part` of its own, `summary.part_0.csv`;
    `merge_parts` puts them together. `replaced` is where a file went that had rows of
    another kind, or damaged ones.
    """

    def __init__(self, folder: Path, *, classes: int, part: int | None = None):
        self.path = folder / (
            "summary.csv" if part is None else f"summary.part_{part}.csv"
        )
        self.replaced: Path | None = None
        rows, strange = self._read()
        names = Counter(row["name"] for row in rows)
        # scan -> its file, where no write was cut short
        self.done = {
            row["name"]: row["file"] for row in rows if names[row["name"]] == classes
        }
        text = text_of(row for row in rows if row["name"] in self.done)
        if not self.path.exists() or self.path.read_bytes() != text.encode():
            if strange and part is None:
                self.replaced = set_aside(self.path)
            files.write_text(self.path, text)

    def forget(self, names: Iterable[str]) -> None:
        """Take out the rows of scans that are done again, before their files change."""
        known = {name for name in names if self.done.pop(name, None) is not None}
        if known:
            rows, _ = self._read()
            files.write_text(
                self.path, text_of(row for row in rows if row["name"] not in known)
            )

    def add(self, rows: list[dict]) -> None:
        """Append the rows of one scan in one write."""
        files.append_text(self.path, text_of(rows, header=False))
        self.done[rows[0]["name"]] = rows[0]["file"]

    def merge_parts(self, classes: int) -> None:
        """Take over the finished scans of the parts, and remove these."""
        for path in sorted(self.path.parent.glob("summary.part_*.csv")):
            number = int(path.stem.rpartition("_")[2])
            part = Summary(self.path.parent, classes=classes, part=number)
            rows = [row for row in part._read()[0] if row["name"] not in self.done]
            if rows:
                files.append_text(self.path, text_of(rows, header=False))
                self.done |= {row["name"]: row["file"] for row in rows}
            path.unlink()

    def _read(self) -> tuple[list[dict[str, str]], bool]:
        """(whole rows, whether there are others beside); a last line that was cut short
        is neither.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], False
        # A spreadsheet puts a mark before the first name. What is no text makes its row
        # a strange one.
        text = content.decode("utf-8-sig", errors="surrogateescape")
        whole, end, _ = text.rpartition("\n")
        try:
            rows = csv_text.read(whole + end)
        except csv.Error:
            return [], True
        sound = [row for row in rows if _is_sound(row)]
        return sound, len(sound) < len(rows)


def _is_sound(row) -> bool:
    """Whether a row has the columns of this program, and text in all of them."""
    if set(row) != set(COLUMNS) or None in row.values():
        return False
    text = "".join(row.values())
    # A power cut leaves zeros; surrogates stand for bytes that are no text.
    return "\0" not in text and not any(
        "\ud800" <= character <= "\udfff" for character in text
    )


def set_aside(path: Path) -> Path:
    """Give a file that somebody changed another name in its folder; returns it."""
    extension = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    stem = path.name.removesuffix(extension)
    for number in itertools.count(1):
        other = path.with_name(_fitting(stem, f"_replaced_{number}{extension}"))
        if not other.exists():
            path.rename(other)
            return other


def write_overlay(path: Path, scan: Scan, mask: Bool[np.ndarray, "d h w k"]) -> None:
    """A picture of the scan with its mask tinted."""
    picture = overlay(
        scan.slices, mask, scan.volume.spacing[1:] if scan.volume else None
    )
    with files.whole_file(path) as partial:
        picture.save(partial)


class Output(NamedTuple):
    """A file beside a mask, which is made of the scan and the mask of each class."""

    ending: str  # of its name, after the scan's
    write: Callable[[Path, Scan, np.ndarray], None]


OUTPUTS = {
    "overlay": Output("_overlay.png", write_overlay),
}


def paths(
    folder: Path, item: Item, *, classes: int, diffusion: bool, samples: int
) -> dict[str, Path]:
    """Every file of one scan: OUTPUTS, "mask", and maps by name, of several classes
    numbered.

    A name that is too long for them is cut, and ends in a hash of the whole.
    """
    extension = ".png" if item.kind == "picture" else ".nii.gz"
    maps = ["probability", *(UNCERTAINTIES if diffusion else ())]
    longest = max(map(len, maps)) + (len(f"_{classes}") if classes > 1 else 0)
    room = max(
        len("_" + extension) + longest, *(len(one.ending) for one in OUTPUTS.values())
    )
    # Whatever is kept of the samples, since the name of a mask must not depend on it.
    below, slash, name = item.name.rpartition("/")
    stem = f"{below}{slash}{_short(name, room)}"
    maps += [f"sample_{n + 1}" for n in range(samples)]
    if classes > 1:
        maps = [f"{name}_{k + 1}" for name in maps for k in range(classes)]
    named = {name: folder / f"{stem}_{name}{extension}" for name in [*maps, "mask"]}
    return {
        name: folder / f"{stem}{one.ending}" for name, one in OUTPUTS.items()
    } | named


def is_shortened(item: Item, where: dict[str, Path]) -> bool:
    """Whether the outputs of a scan have a shorter name than it."""
    return not where["mask"].name.startswith(f"{item.name.rpartition('/')[2]}_mask")


def _fitting(stem: str, end: str) -> str:
    return _short(stem, len(os.fsencode(end))) + end


def _short(name: str, room: int) -> str:
    """A name that leaves `room` bytes of what a file system takes, always the same for
    the same one.
    """
    content = os.fsencode(name)
    if len(content) + room <= LONGEST_NAME:
        return name
    end = f"_{hashlib.sha256(content).hexdigest()[:12]}"
    return content[: LONGEST_NAME - room - len(end)].decode(errors="ignore") + end


def write(scan: Scan, prediction: Prediction, where: dict[str, Path]) -> list[dict]:
    """Write the files of `paths`, each complete under its name, the mask last; returns
    the rows of the summary.

    Areas and volumes are those of the written mask: what its labels give each class.
    """
    where["mask"].parent.mkdir(parents=True, exist_ok=True)
    labels, mask = _masks(scan, prediction)
    for name, output in OUTPUTS.items():
        output.write(where[name], scan, mask)
    # one map after another: all of them at full size may not fit in memory
    for name in prediction.maps:
        _write_maps(where, name, scan.only_scanned(prediction.map(name)), scan)
    for number in range(
        0 if prediction.samples_kept is None else len(prediction.samples_kept)
    ):
        _write_maps(
            where,
            f"sample_{number + 1}",
            scan.only_scanned(prediction.sample(number)),
            scan,
        )
    _write_mask(where["mask"], labels, scan, prediction)
    return _rows(scan, prediction, mask)


def write_mask(scan: Scan, prediction: Prediction, path: Path) -> list[dict]:
    """The mask of `write` alone, and the same rows."""
    labels, mask = _masks(scan, prediction)
    _write_mask(path, labels, scan, prediction)
    return _rows(scan, prediction, mask)


def text_of(rows: Iterable[dict], *, header: bool = True) -> str:
    """A whole summary, or rows to append to one."""
    return csv_text.write(rows, COLUMNS, header=header)


def _masks(scan, prediction):
    """(label map "d h w", mask of each class "d h w k"), empty where nothing was
    scanned.
    """
    labels = scan.only_scanned(prediction.label_map)
    masks = [
        class_masks(one, len(prediction.labels), prediction.labels) for one in labels
    ]
    return labels, np.stack(masks).view(bool)


def _write_mask(path, labels, scan, prediction):
    if scan.volume is None and len(prediction.labels) == 1:
        # to be seen
        labels = (labels > 0) * np.uint8(255)
    _write_grid(path, labels, scan)


def _write_maps(where, name, values, scan):
    for k in range(values.shape[-1]):
        path = where[name if values.shape[-1] == 1 else f"{name}_{k + 1}"]
        _write_grid(path, values[..., k], scan)


def _write_grid(path, values, scan: Scan):
    """Canonical slices "d h w" in the grid of the scan; a map of [0, 1] in steps of
    1/65535.

    On a picture that EXIF turns, the map lies on the pixels as stored, and says the
    same turn.
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
    entropy = (
        prediction.mean_entropy(LIKELY, scan.scanned)
        if "entropy" in prediction.maps
        else None
    )
    return [
        {
            "name": scan.item.name,
            "class": k + 1,
            "labels": "+".join(map(str, labels)),
            **_sizes(mask[..., k], scan.volume),
            "mean_uncertainty": "" if entropy is None else f"{entropy[k]:.4f}",
            "seconds": f"{prediction.seconds:.3f}",
            "file": str(scan.item.files[0]),
        }
        for k, labels in enumerate(prediction.labels)
    ]


def _sizes(mask, volume: Volume | None) -> dict:
    pixels, largest = int(mask.sum()), int(mask.sum(axis=(1, 2)).max())
    area = volume and volume.spacing[1] * volume.spacing[2]
    return {
        **dict(zip(("slices", "height", "width"), mask.shape)),
        "pixels": pixels,
        "volume_ml": f"{pixels * volume.voxel_ml:.6g}" if volume else "",
        "largest_area_mm2": f"{largest * area:.6g}" if volume else "",
        "largest_area_pixels": largest,
    }
