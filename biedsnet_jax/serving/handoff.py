"""A scan on its way from the process that read it to the one that segments it: arrays
and JSON.

Nothing in these files is code when it is loaded: no pickles, and of a NIfTI header its
bytes.
"""

import base64
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction.scans import Item, Scan
from biedsnet_jax.runtime import files

OUTCOME = "outcome.json"
# below that of the job
FOLDER = "read"
# bytes of OUTCOME
_MOST = 2**22
_MOST_NOTES = 20
_HEADERS = {"Nifti1Header": nib.Nifti1Header, "Nifti2Header": nib.Nifti2Header}


class Failed(Exception):
    """A fault of the program; the text names the error and the line, not what it said."""


def refuse(folder: Path, text: str) -> None:
    """Say why there is no scan."""
    _write(folder, {"refused": text})


def fail(folder: Path, text: str) -> None:
    """Say where the program is wrong."""
    _write(folder, {"failed": text})


def write(folder: Path, scan: Scan) -> None:
    """Hand over a scan, in FOLDER of the folder of its job."""
    place = folder / FOLDER
    np.save(place / "slices.npy", scan.slices, allow_pickle=False)
    if scan.scanned is not None:
        np.save(
            place / "scanned.npy",
            np.ascontiguousarray(scan.scanned),
            allow_pickle=False,
        )
    item = scan.item
    named = {
        "name": item.name,
        "kind": item.kind,
        "depth": item.depth,
        "notes": list(item.notes),
    }
    fields = {
        "item": named | {"files": [str(path) for path in item.files]},
        "volume": None if scan.volume is None else _volume_fields(scan.volume),
        "notes": scan.notes[:_MOST_NOTES],
        "turn": scan.turn,
    }
    _write(folder, {"scan": fields})


def load(folder: Path) -> Scan | None:
    """The scan of a job, its slices on the disk; None where nothing was handed over.

    Raises BadInput where it was refused, and Failed where the program is wrong.
    """
    path = folder / FOLDER / OUTCOME
    try:
        with path.open("rb") as file:
            outcome = json.loads(file.read(_MOST))
    except (OSError, ValueError):
        return None
    if "refused" in outcome:
        raise BadInput(outcome["refused"])
    if "failed" in outcome:
        raise Failed(outcome["failed"])
    return _scan(folder / FOLDER, outcome["scan"])


def _write(folder: Path, outcome: dict[str, Any]) -> None:
    files.write_json(folder / FOLDER / OUTCOME, outcome)


def _volume_fields(volume: Volume) -> dict[str, Any]:
    header = volume.header
    return {
        "affine": np.asarray(volume.affine, float).tolist(),
        "axes": volume.voxels.ndim,
        "shape": list(volume.shape),
        "path": volume.path,
        "header": None if header is None else _header_fields(header),
    }


def _header_fields(header) -> dict[str, str]:
    return {
        "kind": type(header).__name__,
        "order": header.endianness,
        "bytes": base64.b64encode(header.binaryblock).decode(),
    }


def _scan(place: Path, fields: dict[str, Any]) -> Scan:
    slices = np.load(place / "slices.npy", mmap_mode="r", allow_pickle=False)
    scanned = place / "scanned.npy"
    item = fields["item"]
    paths = tuple(Path(path) for path in item["files"])
    return Scan(
        item=Item(
            item["name"], item["kind"], paths, item["depth"], tuple(item["notes"])
        ),
        slices=slices,
        volume=_volume(fields["volume"], slices),
        notes=fields["notes"],
        turn=fields["turn"],
        scanned=np.load(scanned, allow_pickle=False) if scanned.exists() else None,
    )


def _volume(fields: dict[str, Any] | None, slices: np.ndarray) -> Volume | None:
    """The voxels are those of the slices, in the file's own order."""
    if fields is None:
        return None
    affine, path = np.array(fields["affine"]), fields["path"]
    grid = Volume(np.broadcast_to(np.uint8(0), tuple(fields["shape"])), affine, path)
    voxels = grid.restore(slices if fields["axes"] == 4 else slices[..., 0])
    return Volume(voxels, affine, path, _header(fields["header"]))


def _header(fields: dict[str, str] | None) -> nib.Nifti1Header | None:
    if fields is None:
        return None
    content = base64.b64decode(fields["bytes"])
    return _HEADERS[fields["kind"]](content, fields["order"], check=False)
