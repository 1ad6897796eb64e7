"""COVID-19-CT-Seg (Ma et al. 2021, doi:10.1002/mp.14676) as the TFDS data set
`covid19_ct_seg`, without TensorFlow.

Its four archives, zipped or unpacked, hold `<case>.nii.gz` of 20 CT volumes of 19
patients. coronacases_* are in Hounsfield units and are cut to [-1250, 250] HU here,
stored as 0 to 255; radiopaedia_* come so already. An example is a canonical axial slice
(see `volumes`). Each case is a TFDS split, so that no more than one is in memory; "all"
is all.
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
from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import natural, sync, sync_folder

NAME, VERSION = "covid19_ct_seg", "1.0.0"
ORIGIN = "zenodo.org/records/3757476"
# HU, what 0 and 255 stand for
WINDOW = (-1250.0, 250.0)
FOLDERS = {
    "image": "COVID-19-CT-Seg_20cases",
    "infection": "Infection_Mask",
    "lung": "Lung_Mask",
    "lung_and_infection": "Lung_and_Infection_Mask",
}
# the highest: 1, 2 the lungs, in the last 3 infection
LABELS = {"infection": 1, "lung": 2, "lung_and_infection": 3}
# as the authors say
SAME_PATIENT = {f"radiopaedia_10_85902_{n}": "radiopaedia_10_85902" for n in (1, 3)}
_CASE = re.compile(r"(coronacases|radiopaedia)_\w+")
# HU: every CT in Hounsfield units has voxels below
_AIR = -500
# a folder for what is not complete
_MAKING = "making"
# bytes of a packed volume, many times those of this set
_MOST = 2**31


class Covid19CtSeg(tfds.core.GeneratorBasedBuilder):
    """image uint8 "h w 1", and label maps alike: infection 0, 1; lung 0 to 2;
    lung_and_infection 0 to 3.
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(f'{folder}.zip' for folder in FOLDERS.values())} of {ORIGIN} there."

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            name: tfds.features.Tensor(
                shape=(None, None, 1), dtype=np.uint8, encoding="zlib"
            )
            for name in FOLDERS
        }
        features |= {name: tfds.features.Text() for name in ("case", "patient", "name")}
        # row, column
        features |= {
            "slice": np.int32,
            "spacing": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
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
            arrays = {name: one[z][..., None] for name, one in slices.items()}
            names = {
                "case": case,
                "patient": SAME_PATIENT.get(case, case),
                "name": f"{case}/{z:03d}",
            }
            yield (
                z,
                arrays | names | {"slice": z, "spacing": np.array(spacing, np.float32)},
            )


def prepare(root: Path, cache_folder: Path, *, quiet: bool = False) -> Path:
    """The folder of the prepared set, made below `cache_folder` unless it is there.

    It belongs to the archives in `root` with their present size and time: changed
    archives are read anew, others only looked at. Of several processes one prepares and
    the rest wait; what a killed one left is cleared. The set gets its name when it is
    on the disk.

    Raises BadInput for archives that are missing, damaged or not what they should be,
    and where nothing can be written.
    """
    data_dir = cache_folder / f"{NAME}-{_fingerprint(root)}"
    # gets this name when it is complete
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
            f"cannot write the data set, {error.strerror or error}, {cache_folder}; make room, or set data.cache_dir"
        ) from error
    return prepared


def _build(root, data_dir, quiet):
    if quiet or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if not quiet:
        print(f"preparing {NAME}, once, in {data_dir}", file=sys.stderr)
    builder = Covid19CtSeg(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=root, try_download_gcs=False)
    # TFDS says that it downloads, which it does not
    with redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def _finish(data_dir: Path) -> None:
    """Give what is made its name, once the disk has it."""
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
    """Held by one process at a time, and let go when it ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the archives


@dataclass(frozen=True)
class Archive:
    """A zip file, or the folder of its content: `members` says what holds each case."""

    path: Path
    members: Mapping[str, str]

    def read(self, case: str) -> Volume:
        """Raises BadInput, naming the archive, for a volume that is damaged."""
        where = self.path / self.members[case]
        if self.path.is_dir():
            check_regular(where)
        try:
            data = self._bytes(case)
            stream = (
                gzip.GzipFile(fileobj=io.BytesIO(data))
                if data[:2] == b"\x1f\x8b"
                else io.BytesIO(data)
            )
            volume = nifti.read(where, stream, len(data))
            # to the end, where gzip compares its checksum
            while stream.read(2**20):
                pass
        except BadInput as error:
            raise BadInput(
                f"{str(error).rpartition('; ')[0]}; {_again(self.path)}"
            ) from error
        except _DAMAGE as error:
            raise BadInput(
                f"damaged archive, {error}, {where}; {_again(self.path)}"
            ) from error
        return volume

    def _bytes(self, case):
        name = self.members[case]
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        with zipfile.ZipFile(self.path) as file:
            if file.getinfo(name).file_size > _MOST:
                raise zipfile.BadZipFile(
                    f"{file.getinfo(name).file_size} bytes declared"
                )
            # compares its checksum
            return file.read(name)


# What zipfile and gzip raise: broken structure, wrong checksum, cut off, encrypted,
# packed in an unknown way.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def open_archives(root: Path) -> dict[str, Archive]:
    """The four by feature. Raises BadInput where one is missing or damaged, and where
    they disagree on the cases.
    """
    archives = {name: _open_archive(path) for name, path in _find(root).items()}
    known = set().union(*(archive.members for archive in archives.values()))
    lacking = [
        f"{', '.join(sorted(known - archive.members.keys()))} in {archive.path.name}"
        for archive in archives.values()
        if known - archive.members.keys()
    ]
    if lacking:
        raise BadInput(
            f"missing cases, {' and '.join(lacking)}, {root}; download them again from {ORIGIN}"
        )
    if not known:
        raise BadInput(
            f"no volumes, 0 files, {archives['image'].path}; {_again(archives['image'].path)}"
        )
    return archives


def _again(path) -> str:
    return f"download {path.name} again from {ORIGIN}"


def _find(root: Path) -> dict[str, Path]:
    """The zip of each feature, else its folder. Raises BadInput, listing what is
    missing.
    """
    found = {}
    for name, folder in FOLDERS.items():
        zipped, unpacked = root / f"{folder}.zip", root / folder
        if zipped.exists() or unpacked.is_dir():
            found[name] = zipped if zipped.exists() else unpacked
    missing = [f"{FOLDERS[name]}.zip" for name in FOLDERS if name not in found]
    if missing:
        raise BadInput(
            f"missing archives, {', '.join(missing)}, {root}; download them from {ORIGIN}, unpacked or as they are"
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
                f"no case of this set, {member}, {path}; take it away, or {_again(path)}"
            )
        if case in members:
            raise BadInput(
                f"two files of one case, {members[case]} and {member}, {path}; keep one"
            )
        members[case] = member
    return Archive(path, members)


def _volumes(path: Path) -> list[str]:
    """Names of the NIfTI files in a zip or folder, there or one folder down; hidden
    ones are passed over.
    """
    if path.is_dir():
        names = [
            file.relative_to(path).as_posix()
            for pattern in ("*", "*/*")
            for file in path.glob(pattern)
        ]
    else:
        try:
            with zipfile.ZipFile(path) as file:
                names = file.namelist()
        except _DAMAGE as error:
            raise BadInput(
                f"damaged archive, {error}, {path}; {_again(path)}"
            ) from error
        for name in names:
            if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|[A-Za-z]:", name):
                raise BadInput(
                    f"path that leaves its folder, {name!r}, {path}; {_again(path)}"
                )
    visible = [name for name in names if not re.search(r"(^|/)(\.|__MACOSX/)", name)]
    return [
        name
        for name in visible
        if nifti.is_nifti(Path(name)) and len(PurePosixPath(name).parts) <= 2
    ]


def _fingerprint(root: Path) -> str:
    """Of the archives' places, sizes and times, without opening them."""
    facts: list[Any] = [VERSION]
    for path in _find(root).values():
        files = (
            [path / name for name in sorted(_volumes(path))]
            if path.is_dir()
            else [path]
        )
        facts += [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
        ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


# --- one case


def read_case(
    archives: Mapping[str, Archive], case: str
) -> tuple[dict[str, UInt8[np.ndarray, "d h w"]], tuple]:
    """Slices of the image and the three label maps, and their spacing (row, column) in
    mm.

    Raises BadInput for grey values that are not what the case's name says, masks on
    another grid and unknown labels.
    """
    volume = archives["image"].read(case)
    slices = {"image": grey_values(volume, case)}
    shape, affine, spacing = volume.shape, volume.affine, volume.spacing[1:]
    # the scan, before its masks are read
    del volume
    for name, highest in LABELS.items():
        mask = archives[name].read(case)
        check_same_grid(mask.shape, mask.affine, shape, affine, mask.path)
        label = nifti.labels(mask)
        if label.max() > highest:
            raise BadInput(
                f"unknown label, {label.max()}, {mask.path}; {name} has 0 to {highest}, {_again(archives[name].path)}"
            )
        slices[name] = Volume(label, affine, mask.path).slices
    if not in_hounsfield(case):
        # Their headers have the rows the wrong way round, so that patients lay on their
        # face; public readers of the set turn them too.
        slices = {name: one[:, ::-1] for name, one in slices.items()}
    return slices, spacing


def in_hounsfield(case: str) -> bool:
    """By its name; `grey_values` compares that with the voxels."""
    return case.startswith("coronacases")


def grey_values(volume: Volume, case: str) -> UInt8[np.ndarray, "d h w"]:
    """Slices with [-1250, 250] HU as 0 to 255; of a case that is stored so, as it is.

    Raises BadInput where the range of the voxels is not that of the case.
    """
    if volume.voxels.ndim > 3:
        raise BadInput(
            f"image channels, {volume.voxels.shape[3]}, {volume.path}; download it again from {ORIGIN}"
        )
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    expected = (
        low < _AIR and high > WINDOW[0]
        if in_hounsfield(case)
        else -0.5 <= low < high < 255.5
    )
    if not expected:
        kind = (
            "Hounsfield units, from about -1000" if in_hounsfield(case) else "0 to 255"
        )
        raise BadInput(
            f"grey values, {low:g} to {high:g}, {volume.path}; {case} has {kind}: download it from {ORIGIN}"
        )
    slices = volume.slices
    grey = np.empty(slices.shape, np.uint8)
    # by slice, so that no second volume in float stands in memory
    for z, one in enumerate(slices):
        if in_hounsfield(case):
            one = (np.clip(one.astype(np.float32), *WINDOW) - WINDOW[0]) * (
                255 / (WINDOW[1] - WINDOW[0])
            )
        grey[z] = np.rint(one)
    return grey
