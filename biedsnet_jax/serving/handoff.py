"""Hands a scan from the process that read it to the one that segments it.

The files are arrays and JSON. Loading them runs no code: there are no pickles, and a
NIfTI header is handed over as its bytes.
"""

import base64
import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction.scans import Item, Scan
from biedsnet_jax.runtime import files

OUTCOME = "outcome.json"
# Folder below that of the job.
FOLDER = "read"
# Bytes of OUTCOME.
_MOST = 2**22
_MOST_NOTES = 20
_HEADERS = {"Nifti1Header": nib.Nifti1Header, "Nifti2Header": nib.Nifti2Header}


class Failed(Exception):
    """A fault of the program, as the error's type and line, without its message."""


def refuse(folder: Path, text: str) -> None:
    """Writes the reason for which there is no scan."""
    _write(folder, {"refused": text})


def fail(folder: Path, text: str) -> None:
    """Writes where the program is wrong."""
    _write(folder, {"failed": text})


def write(folder: Path, scan: Scan) -> None:
    """Writes a scan to FOLDER in the folder of its job."""
    place = folder / FOLDER
    np.save(place / "slices.npy", scan.slices, allow_pickle=False)
    if scan.scanned is not None:
        scanned = np.ascontiguousarray(scan.scanned)
        np.save(place / "scanned.npy", scanned, allow_pickle=False)
    item = dataclasses.asdict(scan.item)
    fields = {
        "item": item | {"files": [str(path) for path in scan.item.files]},
        "volume": None if scan.volume is None else _volume_fields(scan.volume),
        "notes": scan.notes[:_MOST_NOTES],
        "turn": scan.turn,
    }
    _write(folder, {"scan": fields})


def load(folder: Path) -> Scan | None:
    """Loads the scan of a job, its slices on the disk; None where nothing was written.

    Raises BadInput where the scan was refused, and Failed where the program is wrong.
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


def _write(folder, outcome):
    files.write_json(folder / FOLDER / OUTCOME, outcome)


def _volume_fields(volume):
    header = volume.header
    return {
        "affine": np.asarray(volume.affine, float).tolist(),
        "axes": volume.voxels.ndim,
        "shape": list(volume.shape),
        "path": volume.path,
        "plane": volume.plane,
        "header": None if header is None else _header_fields(header),
    }


def _header_fields(header):
    return {
        "kind": type(header).__name__,
        "order": header.endianness,
        "bytes": base64.b64encode(header.binaryblock).decode(),
    }


def _scan(place, fields) -> Scan:
    # Mapped, not read: a large scan need not fit in memory twice.
    slices = np.load(place / "slices.npy", mmap_mode="r", allow_pickle=False)
    scanned = place / "scanned.npy"
    item = fields["item"]
    return Scan(
        item=Item(
            name=item["name"],
            kind=item["kind"],
            files=tuple(map(Path, item["files"])),
            depth=item["depth"],
            notes=tuple(item["notes"]),
        ),
        slices=slices,
        volume=_volume(fields["volume"], slices),
        notes=fields["notes"],
        turn=fields["turn"],
        scanned=np.load(scanned, allow_pickle=False) if scanned.exists() else None,
    )


def _volume(fields, slices) -> Volume | None:
    """Restores a volume, whose voxels are the slices in the file's own order."""
    if fields is None:
        return None
    affine = np.array(fields["affine"])
    path = fields["path"]
    empty = np.broadcast_to(np.uint8(0), tuple(fields["shape"]))
    grid = Volume(empty, affine, path, _header(fields["header"]), fields["plane"])
    voxels = grid.restore(slices if fields["axes"] == 4 else slices[..., 0])
    return dataclasses.replace(grid, voxels=voxels)


def _header(fields) -> nib.Nifti1Header | None:
    if fields is None:
        return None
    content = base64.b64decode(fields["bytes"])
    return _HEADERS[fields["kind"]](content, fields["order"], check=False)
