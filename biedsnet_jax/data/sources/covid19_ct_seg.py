"""Prepares COVID-19-CT-Seg as the TFDS data set `covid19_ct_seg`, without TensorFlow.

The set (Ma et al. 2021, doi:10.1002/mp.14676) has four archives, zipped or unpacked, of
`<case>.nii.gz` with 20 CT volumes of 19 patients. coronacases_* are in Hounsfield units,
and are cut to [-1250, 250] HU and stored as 0 to 255 here; radiopaedia_* come so. An
example is a canonical axial slice (see `volumes`). Each case is a TFDS split, so that
only one is in memory at a time; the split "all" has all cases.
"""

import fcntl
import gzip
import hashlib
import io
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.formats.volumes import Volume, check_same_grid
from biedsnet_jax.data.sources.source import stamp
from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import natural, sync, sync_folder

NAME, VERSION = "covid19_ct_seg", "1.0.0"
ORIGIN = "zenodo.org/records/3757476"
# Hounsfield units that 0 and 255 stand for.
WINDOW = (-1250.0, 250.0)
FOLDERS = {
    "image": "COVID-19-CT-Seg_20cases",
    "infection": "Infection_Mask",
    "lung": "Lung_Mask",
    "lung_and_infection": "Lung_and_Infection_Mask",
}
# The highest label of each map. Lungs are 1 and 2, infection is 1 or, beside lungs, 3.
LABELS = {"infection": 1, "lung": 2, "lung_and_infection": 3}
# The authors say that these two volumes are of one patient.
SAME_PATIENT = {f"radiopaedia_10_85902_{n}": "radiopaedia_10_85902" for n in (1, 3)}
_CASE = re.compile(r"(coronacases|radiopaedia)_\w+")
# Every CT in Hounsfield units has voxels below this one, since air is at -1000.
_AIR = -500
# A set that is not complete is in this folder.
_MAKING = "making"
# Bytes of a packed volume, many times those of this set.
_MOST = 2**31


class Covid19CtSeg(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the set: image uint8 "h w 1" and three label maps alike.

    infection has the labels 0 and 1, lung 0 to 2, lung_and_infection 0 to 3.
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {'.zip, '.join(FOLDERS.values())}.zip of {ORIGIN} there."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            name: tfds.features.Tensor(
                shape=(None, None, 1), dtype=np.uint8, encoding="zlib"
            )
            for name in FOLDERS
        }
        features |= {name: tfds.features.Text() for name in ("case", "patient", "name")}
        features["slice"] = np.int32
        # Millimetres between rows and between columns.
        features["spacing"] = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage=f"https://{ORIGIN}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        archives = open_archives(Path(dl_manager.manual_dir))
        cases = sorted(archives["image"].members, key=natural)
        return {case: self._generate_examples(archives, case) for case in cases}

    def _generate_examples(self, archives, case: str):
        slices, spacing = read_case(archives, case)
        for z in range(len(slices["image"])):
            example: dict[str, Any] = {
                name: one[z][..., None] for name, one in slices.items()
            }
            example["case"] = case
            example["patient"] = SAME_PATIENT.get(case, case)
            example["name"] = f"{case}/{z:03d}"
            example["slice"] = z
            example["spacing"] = np.array(spacing, np.float32)
            yield z, example


def prepare(root: Path, cache_folder: Path, *, quiet: bool = False) -> Path:
    """Prepares the set below `cache_folder` unless it is there, and returns its folder.

    The set belongs to the archives in `root` with their present size and time: changed
    archives are read anew, others only looked at. Of several processes one prepares and
    the rest wait. The remains of a killed one are cleared.

    Raises BadInput for archives that are missing, damaged or not what they should be,
    and where nothing can be written.
    """
    data_dir = cache_folder / f"{NAME}-{_fingerprint(root)}"
    # The set gets this name when it is complete and on the disk.
    prepared = data_dir / NAME / VERSION
    if prepared.exists():
        return prepared
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _locked(data_dir / ".lock"):
            if not prepared.exists():
                for name in ("downloads", NAME, _MAKING):
                    rmtree(data_dir / name, ignore_errors=True)
                _build(root, data_dir / _MAKING, quiet)
                _finish(data_dir)
    except OSError as error:
        raise BadInput(
            f"The data set cannot be written to {cache_folder}: {error.strerror or error}. "
            "Make room, or set data.cache_dir to another folder."
        ) from error
    return prepared


def _build(root, data_dir, quiet):
    if quiet or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if not quiet:
        print(f"preparing {NAME}, once, in {data_dir}", file=sys.stderr)
    builder = Covid19CtSeg(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=root, try_download_gcs=False)
    # TFDS prints that it downloads the set, which it does not.
    with redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def _finish(data_dir: Path) -> None:
    """Flushes the set to the disk, then gives it its name."""
    for path in (data_dir / _MAKING / NAME).rglob("*"):
        if path.is_file():
            sync(path)
        else:
            sync_folder(path)
    (data_dir / _MAKING / NAME).replace(data_dir / NAME)
    sync_folder(data_dir)
    rmtree(data_dir / _MAKING, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that one process has at a time, until it ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the archives


@dataclass(frozen=True)
class Archive:
    """A zip file, or the folder of its content."""

    path: Path
    # Case -> name of its file within.
    members: Mapping[str, str]

    def read(self, case: str) -> Volume:
        """Reads a volume. Raises BadInput, naming the archive, for a damaged one."""
        where = self.path / self.members[case]
        if self.path.is_dir():
            check_regular(where)
        try:
            data = self._bytes(case)
            stream = io.BytesIO(data)
            if data[:2] == b"\x1f\x8b":
                stream = gzip.GzipFile(fileobj=stream)
            volume = nifti.read(where, stream, len(data))
            # Gzip compares its checksum at the end.
            while stream.read(2**20):
                pass
        except BadInput as error:
            # The archive is to be replaced, not the file within that the error names.
            what = str(error).rpartition(". ")[0]
            raise BadInput(f"{what}. {_download(self.path)}") from error
        except _DAMAGE as error:
            raise BadInput(
                f"{where} is damaged: {error}. {_download(self.path)}"
            ) from error
        return volume

    def _bytes(self, case):
        name = self.members[case]
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        with zipfile.ZipFile(self.path) as file:
            size = file.getinfo(name).file_size
            if size > _MOST:
                raise zipfile.BadZipFile(f"{size} bytes declared")
            # Zipfile compares its checksum.
            return file.read(name)


# Zipfile and gzip raise these for a broken structure, a wrong checksum, a file that is
# cut off, encrypted or packed in an unknown way.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def open_archives(root: Path) -> dict[str, Archive]:
    """Opens the four archives, by feature.

    Raises BadInput where one is missing or damaged, and where they differ in cases.
    """
    archives = {name: _open_archive(path) for name, path in _find(root).items()}
    known = set().union(*(archive.members for archive in archives.values()))
    if not known:
        path = archives["image"].path
        raise BadInput(f"{path} holds no volumes. {_download(path)}")
    lacking = []
    for archive in archives.values():
        missing = sorted(known - archive.members.keys())
        if missing:
            lacking.append(f"{archive.path.name} lacks {', '.join(missing)}")
    if lacking:
        raise BadInput(
            f"Cases are missing in {root}: {' and '.join(lacking)}. "
            f"Download these archives again from {ORIGIN}."
        )
    return archives


def _download(path: Path) -> str:
    return f"Download {path.name} again from {ORIGIN}."


def _find(root: Path) -> dict[str, Path]:
    """Finds the zip of each feature, else its folder. Raises BadInput for none."""
    found, missing = {}, []
    for name, folder in FOLDERS.items():
        zipped = root / f"{folder}.zip"
        unpacked = root / folder
        if zipped.exists():
            found[name] = zipped
        elif unpacked.is_dir():
            found[name] = unpacked
        else:
            missing.append(zipped.name)
    if missing:
        raise BadInput(
            f"{root} lacks the archives {', '.join(missing)}. "
            f"Download them from {ORIGIN}, and unpack them or leave them as they are."
        )
    return found


def _open_archive(path: Path) -> Archive:
    if not path.is_dir():
        check_regular(path)
    members: dict[str, str] = {}
    for member in _volumes(path):
        case = nifti.stem(Path(member))
        if not _CASE.fullmatch(case):
            raise BadInput(
                f"{path} holds {member}, which is no case of this set. Take it away, or "
                f"download {path.name} again from {ORIGIN}."
            )
        if case in members:
            raise BadInput(
                f"{path} holds two files of one case, {members[case]} and {member}. Keep one."
            )
        members[case] = member
    return Archive(path, members)


def _volumes(path: Path) -> list[str]:
    """Lists NIfTI files in a zip or folder, or one folder down, but hidden ones."""
    if path.is_dir():
        found = [*path.glob("*"), *path.glob("*/*")]
        names = [file.relative_to(path).as_posix() for file in found]
    else:
        try:
            with zipfile.ZipFile(path) as file:
                names = file.namelist()
        except _DAMAGE as error:
            raise BadInput(f"{path} is damaged: {error}. {_download(path)}") from error
        for name in names:
            if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|[A-Za-z]:", name):
                raise BadInput(
                    f"{path} holds {name!r}, a path that leaves its folder. {_download(path)}"
                )
    visible = [name for name in names if not re.search(r"(^|/)(\.|__MACOSX/)", name)]
    return [
        name
        for name in visible
        if nifti.is_nifti(Path(name)) and len(PurePosixPath(name).parts) <= 2
    ]


def _fingerprint(root: Path) -> str:
    """Hashes the archives' places, sizes and times, without opening them."""
    facts: list[Any] = [VERSION]
    for path in _find(root).values():
        files = [path]
        if path.is_dir():
            files = [path / name for name in sorted(_volumes(path))]
        facts += [stamp(file) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


# --- one case


def read_case(
    archives: Mapping[str, Archive], case: str
) -> tuple[dict[str, UInt8[np.ndarray, "d h w"]], tuple]:
    """Reads slices of image and label maps, and their spacing (row, column) in mm.

    Raises BadInput for grey values that do not fit the case's name, masks on another
    grid and unknown labels.
    """
    volume = archives["image"].read(case)
    slices = {"image": grey_values(volume, case)}
    shape = volume.shape
    affine = volume.affine
    spacing = volume.spacing[1:]
    # Frees the scan before its masks are read.
    del volume
    for name, highest in LABELS.items():
        mask = archives[name].read(case)
        check_same_grid(mask.shape, mask.affine, shape, affine, mask.path)
        label = nifti.labels(mask)
        if label.max() > highest:
            raise BadInput(
                f"{mask.path} holds the label {label.max()} where {name} has 0 to {highest}. "
                f"{_download(archives[name].path)}"
            )
        slices[name] = Volume(label, affine, mask.path).slices
    if not in_hounsfield(case):
        # Their headers have the rows the wrong way round, so that patients lay on their
        # face; public readers of the set turn them too.
        slices = {name: one[:, ::-1] for name, one in slices.items()}
    return slices, spacing


def in_hounsfield(case: str) -> bool:
    """Whether a case is in Hounsfield units, by its name; `grey_values` checks that."""
    return case.startswith("coronacases")


def grey_values(volume: Volume, case: str) -> UInt8[np.ndarray, "d h w"]:
    """Cuts slices to [-1250, 250] HU as 0 to 255; those stored so stay as they are.

    Raises BadInput where the range of the voxels is not that of the case.
    """
    if volume.voxels.ndim > 3:
        raise BadInput(
            f"{volume.path} has {volume.voxels.shape[3]} channels where one was expected. "
            f"Download it again from {ORIGIN}."
        )
    low = float(volume.voxels.min())
    high = float(volume.voxels.max())
    hounsfield = in_hounsfield(case)
    if hounsfield:
        fits = low < _AIR and high > WINDOW[0]
        kind = "Hounsfield units, from about -1000"
    else:
        fits = -0.5 <= low < high < 255.5
        kind = "0 to 255"
    if not fits:
        raise BadInput(
            f"{volume.path} has grey values from {low:g} to {high:g} where {case} has {kind}. "
            f"Download it again from {ORIGIN}."
        )
    slices = volume.slices
    grey = np.empty(slices.shape, np.uint8)
    scale = 255 / (WINDOW[1] - WINDOW[0])
    # Slice by slice, so that no second volume in float stands in memory.
    for z, one in enumerate(slices):
        if hounsfield:
            one = (np.clip(one.astype(np.float32), *WINDOW) - WINDOW[0]) * scale
        grey[z] = np.rint(one)
    return grey
