"""What a prediction leaves on disk: masks and maps on the scan's own grid, an overlay, a row a class in summary.csv."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from biedsnet_jax import files
from biedsnet_jax.data import nifti, pictures
from biedsnet_jax.data.nifti_folder import class_masks
from biedsnet_jax.data.scans import RECORD, Item, Scan
from biedsnet_jax.data.volumes import Volume
from biedsnet_jax.overlay import overlay
from biedsnet_jax.prediction import UNCERTAINTIES, Prediction
from biedsnet_jax.report_data import LIKELY
from biedsnet_jax.types import BadInput

COLUMNS = (
    "name", "class", "labels", "slices", "height", "width", "pixels", "volume_ml", "largest_area_mm2",
    "largest_area_pixels", "mean_uncertainty", "seconds", "file",
)  # fmt: skip


class Summary:
    """`summary.csv`, a row a scan and class; a run that goes on keeps what is there.

    Of several processes each writes a `part` of its own, `summary.part_0.csv`; `merge_parts` puts them together.
    """

    def __init__(self, folder: Path, *, classes: int, part: int | None = None):
        self.path = folder / ("summary.csv" if part is None else f"summary.part_{part}.csv")
        rows = self._read()
        names = Counter(row["name"] for row in rows)
        # scan -> its file, where no write was cut short
        self.done = {row["name"]: row["file"] for row in rows if names[row["name"]] == classes}
        text = csv_text(row for row in rows if row["name"] in self.done)
        if not self.path.exists() or self.path.read_bytes() != text.encode():
            files.write_text(self.path, text)

    def has(self, item: Item) -> bool:
        """Whether this scan is finished; one of its name from another place is not it."""
        return item.name in self.done and Path(self.done[item.name]).absolute() == item.files[0].absolute()

    def forget(self, item: Item) -> None:
        """Take out the rows of a scan that is done again, before its files change."""
        if self.done.pop(item.name, None) is not None:
            self._rewrite(row for row in self._read() if row["name"] != item.name)

    def add(self, rows: list[dict]) -> None:
        """Append the rows of one scan in one write."""
        files.append_text(self.path, _csv(rows))
        self.done[rows[0]["name"]] = rows[0]["file"]

    def merge_parts(self, classes: int) -> None:
        """Take over the finished scans of the parts, and remove these."""
        for path in sorted(self.path.parent.glob("summary.part_*.csv")):
            part = Summary(self.path.parent, classes=classes, part=int(path.stem.rpartition("_")[2]))
            rows = [row for row in part._read() if row["name"] not in self.done]
            if rows:
                files.append_text(self.path, _csv(rows))
                self.done |= {row["name"]: row["file"] for row in rows}
            path.unlink()

    def _rewrite(self, rows):
        files.write_text(self.path, csv_text(rows))

    def _read(self):
        """Whole rows; the last line has no end where a write was cut short."""
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                whole, _, _ = file.read().rpartition("\n")
            rows = list(csv.DictReader(io.StringIO(whole)))
        except FileNotFoundError:
            return []
        except (UnicodeDecodeError, csv.Error):
            raise BadInput(f"damaged summary, no text, {self.path}; remove it, its scans are then done again") from None
        return [row for row in rows if set(row) == set(COLUMNS) and None not in row.values()]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system says against writing becomes a BadInput that names `path`."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"cannot write, {error.strerror or error}, {path}; make room or give another --output, what is finished "
            "stays"
        ) from error


def check_folder(folder: Path, made_by: dict) -> None:
    """Make the folder, or raise BadInput where it holds the masks of another model or setting."""
    path = folder / RECORD
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = path.read_text(errors="replace") if path.exists() else json.dumps(made_by)
    try:
        there = dict(json.loads(text))
    except (ValueError, TypeError):
        raise BadInput(
            f"damaged record, no fields, {path}; remove it if the masks beside it are from the same model"
        ) from None
    for name, value in made_by.items():
        old = there.get(name)
        if old != value:
            raise BadInput(
                f"masks of another run, {name} was {old!r} and is {value!r}, {folder}; give another --output"
            )
    with writing(path):
        files.write_json(path, made_by)


def paths(folder: Path, item: Item, *, classes: int, diffusion: bool, samples: int) -> dict[str, Path]:
    """Every file of one scan: "mask", "overlay", and maps by name, of several classes with the class's number."""
    extension = ".png" if item.kind == "picture" else ".nii.gz"
    maps = ["probability", *(UNCERTAINTIES if diffusion else ()), *(f"sample_{n + 1}" for n in range(samples))]
    if classes > 1:
        maps = [f"{name}_{k + 1}" for name in maps for k in range(classes)]
    named = {name: folder / f"{item.name}_{name}{extension}" for name in [*maps, "mask"]}
    return {"overlay": folder / f"{item.name}_overlay.png", **named}


def write(scan: Scan, prediction: Prediction, where: dict[str, Path]) -> list[dict]:
    """Write the files of `paths`, each complete under its name, the mask last; returns the rows of the summary.

    Areas and volumes are those of the written mask: what its labels give each class.
    """
    where["mask"].parent.mkdir(parents=True, exist_ok=True)
    labels, mask = _masks(scan, prediction)
    _write_picture(where["overlay"], overlay(scan.slices, mask, scan.volume.spacing[1:] if scan.volume else None))
    for name in prediction.maps:  # one map after another: all of them at full size may not fit in memory
        _write_maps(where, name, scan.only_scanned(prediction.map(name)), scan)
    for number in range(0 if prediction.samples_kept is None else len(prediction.samples_kept)):
        _write_maps(where, f"sample_{number + 1}", scan.only_scanned(prediction.sample(number)), scan)
    _write_mask(where["mask"], labels, scan, prediction)
    return _rows(scan, prediction, mask)


def write_mask(scan: Scan, prediction: Prediction, path: Path) -> list[dict]:
    """The mask of `write` alone, and the same rows."""
    labels, mask = _masks(scan, prediction)
    _write_mask(path, labels, scan, prediction)
    return _rows(scan, prediction, mask)


def csv_text(rows: Iterable[dict]) -> str:
    """A whole summary."""
    return _csv([dict(zip(COLUMNS, COLUMNS)), *rows])


def _masks(scan, prediction):
    """(label map "d h w", mask of each class "d h w k"), empty where nothing was scanned."""
    labels = scan.only_scanned(prediction.label_map)
    masks = [class_masks(one, len(prediction.labels), prediction.labels) for one in labels]
    return labels, np.stack(masks).view(bool)


def _write_mask(path, labels, scan, prediction):
    if scan.volume is None and len(prediction.labels) == 1:
        labels = (labels > 0) * np.uint8(255)  # to be seen
    _write_grid(path, labels, scan)


def _write_maps(where, name, values, scan):
    for k in range(values.shape[-1]):
        path = where[name if values.shape[-1] == 1 else f"{name}_{k + 1}"]
        _write_grid(path, values[..., k], scan)


def _write_grid(path, values, scan: Scan):
    """Canonical slices "d h w" in the grid of the scan; a map of [0, 1] in steps of 1/65535.

    On a picture that EXIF turns, the map lies on the pixels as stored, and says the same turn.
    """
    if scan.volume is not None:
        nifti.write(path, scan.volume.restore(values), scan.volume)
        return
    picture = values[0]
    if picture.dtype.kind == "f":
        picture = np.rint(picture.clip(0, 1) * 65535).astype(np.uint16)
    with files.whole_file(path) as partial:
        pictures.save_turned(partial, picture, scan.turn)


def _write_picture(path, picture):
    with files.whole_file(path) as partial:
        picture.save(partial)


def _rows(scan, prediction, mask) -> list[dict]:
    entropy = prediction.mean_entropy(LIKELY, scan.scanned) if "entropy" in prediction.maps else None
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


def _csv(rows) -> str:
    text = io.StringIO()
    csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n").writerows(rows)
    return text.getvalue()
