"""The cases of a folder of NIfTI volumes with label maps. Three layouts, by what is
there:

images/<case>.nii.gz              labels/<case>.nii.gz       (folders below are mirrored)
imagesTr/<case>.nii.gz            labelsTr/<case>.nii.gz     Medical Decathlon, by its dataset.json
imagesTr/<case>_0000.nii.gz ...   labelsTr/<case>.nii.gz     nnU-Net: a file a channel

Linked files and folders are followed, and what is not read is told. Names are compared
in Unicode's composed form (NFC), since an umlaut may be stored as one character or as
two.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from biedsnet_jax.data import walk
from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.sources import dataset_json
from biedsnet_jax.data.sources.dataset_json import DatasetJson
from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import composed, natural

LAYOUTS = (("images", "labels"), ("images", "masks"), ("imagesTr", "labelsTr"))
_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """Files of one case: an image for each channel, or one with all of them, and the
    label map.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Folder:
    """What a folder of a known layout holds."""

    cases: list[Case]
    passed: list[PassedOver]  # files that are not read
    notes: list[str]  # warnings, a line each
    about: DatasetJson | None = None  # of Medical Decathlon or nnU-Net


def search(root: Path) -> Folder:
    """Every case in natural order, and what is not read; linked files and folders are
    followed.

    Raises BadInput for a folder of no known layout, files without partner, and channels
    that are not complete.
    """
    for images, labels in LAYOUTS:
        if (root / images).is_dir() and (root / labels).is_dir():
            return _read_layout(root, root / images, root / labels)
    pairs = " or ".join(f"{images}/ and {labels}/" for images, labels in LAYOUTS)
    raise BadInput(
        f"no volumes, none of the known layouts, {root}; give a folder with {pairs}"
    )


def _read_layout(root: Path, images: Path, labels: Path) -> Folder:
    about = _about(root, public=images.name == "imagesTr")
    image_files, passed_images = _files(images)
    label_files, passed_labels = _files(labels)
    passed, notes = passed_images + passed_labels, []
    if about and about.training:
        cases, gone = _listed(about, root)
        if cases and not gone:
            used = {
                path.resolve() for case in cases for path in (*case.images, case.label)
            }
            for path in (*image_files.values(), *label_files.values()):
                if path.resolve() not in used:
                    passed.append(
                        PassedOver(path, f"not in the list of {dataset_json.NAME}")
                    )
            return Folder(cases, passed, notes, about)
        notes += _note_of_gone(gone, image_files, about)
    return Folder(
        _mirrored(images, labels, image_files, label_files, passed),
        passed,
        notes,
        about,
    )


def _about(root: Path, *, public: bool) -> DatasetJson | None:
    """What dataset.json says; beside images/ it may be about something else but for its
    labels.
    """
    if public:
        return dataset_json.read(root)
    with contextlib.suppress(dataset_json.Damaged):
        dataset_json.read(root)
    return None


def group_channels(names: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    """case -> names of its images: `a`, or `a_0000`, `a_0001`, ... where `a` itself is
    not there.

    Such names are channels where `known`, the names of label maps, has the case; any
    such name where it is empty.
    """
    groups = defaultdict(list)
    for name in sorted(names, key=natural):
        match = _CHANNEL.fullmatch(name)
        channel = match and name not in known and (match.group(1) in known or not known)
        groups[match.group(1) if channel else name].append(name)
    return groups


def check_channels(case: str, names: Sequence[str], where: object) -> None:
    """Raises BadInput unless a case is one image, or its channels from _0000 without a
    gap.
    """
    matches = map(_CHANNEL.fullmatch, names)
    numbered = [match for match in matches if match and match.group(1) == case]
    if not numbered:
        return
    if len(numbered) < len(names):
        raise BadInput(
            f"{where} holds {case} and {numbered[0].group()}, an image and a channel of one case. "
            "Keep one of the two."
        )
    there = sorted(int(match.group(2)) for match in numbered)
    missing = sorted(set(range(there[-1] + 1)) - set(there))
    if missing:
        raise BadInput(
            f"Case {case} in {where} has the channels {_numbers(there)}, but not "
            f"{_numbers(missing)}. Add what is missing, or number the files from _0000, no gap."
        )


def _numbers(channels: Sequence[int], most: int = 4) -> str:
    listed = [f"_{number:04d}" for number in channels[:most]]
    return ", ".join(listed + ["..."] * (len(channels) > most))


def _check_same_channels(groups: dict[str, list[str]], where: Path) -> None:
    """Raises BadInput for the first case that has fewer or more channels than most."""
    usual, _ = Counter(len(names) for names in groups.values()).most_common(1)[0]
    for case, names in groups.items():
        check_channels(case, names, where)
        if len(names) != usual:
            example = next(name for name, its in groups.items() if len(its) == usual)
            raise BadInput(
                f"Case {case} in {where} has {len(names)} channel files where {example} has "
                f"{usual}. Give every case the same channels, or take this one away."
            )


def _mirrored(
    images: Path,
    labels: Path,
    image_files: dict[str, Path],
    label_files: dict[str, Path],
    passed: list[PassedOver],
) -> list[Case]:
    groups = group_channels(list(image_files), set(label_files))
    for found, partners, what, place in (
        (groups, label_files, "images without labels", labels),
        (label_files, groups, "labels without images", images),
    ):
        lonely = [name for name in found if name not in partners]
        if lonely:
            raise BadInput(
                f"{what}, {len(lonely)} of {len(found)}, first {lonely[0]}; put a file of that "
                f"name under {place}, or take these away{_others(place, passed)}"
            )
    if not groups:
        kinds = " or ".join(nifti.EXTENSIONS)
        beside = _others(images, passed)
        raise BadInput(
            f"no volumes, 0 files, {images}; put {kinds} files there{beside}"
        )
    _check_same_channels(groups, images)
    return [
        Case(name, tuple(image_files[image] for image in of_case), label_files[name])
        for name, of_case in groups.items()
    ]


def _others(folder: Path, passed: list[PassedOver]) -> str:
    """What lies there that is not read, for the end of a message."""
    there = walk.summary([one for one in passed if one.path.is_relative_to(folder)])
    return f" ({there})" if there else ""


def _files(folder: Path) -> tuple[dict[str, Path], list[PassedOver]]:
    """NIfTI files below `folder` by relative name without extension, and what else is
    there.
    """
    files: dict[str, Path] = {}
    paths, passed = walk.below(folder, nifti.is_nifti)
    for path in paths:
        name = composed((path.relative_to(folder).parent / nifti.stem(path)).as_posix())
        if name in files:
            both = f"{files[name].name} and {path.name}"
            raise BadInput(f"two files of one name, {both}, {path.parent}; keep one")
        files[name] = path
    return files, passed


def _listed(about: DatasetJson, root: Path) -> tuple[list[Case], list[str]]:
    """The cases of a list in natural order, and the images of it that are not there."""
    strange = [
        name
        for pair in about.training
        for name in pair
        if not nifti.is_nifti(Path(name))
    ]
    if strange:
        kinds = " or ".join(nifti.EXTENSIONS)
        raise BadInput(f"no NIfTI name, {strange[0]}, {about.path}; list {kinds} files")
    pairs = [tuple(_as_stored(root / name) for name in pair) for pair in about.training]
    cases = [
        Case(composed(nifti.stem(label)), (image,), label) for image, label in pairs
    ]
    twice = [
        name
        for name, count in Counter(case.name for case in cases).items()
        if count > 1
    ]
    if twice:
        raise BadInput(
            f"{about.path} lists the case {twice[0]} more than once. Keep one entry."
        )
    gone = [
        name
        for (name, _), (image, _) in zip(about.training, pairs)
        if not image.exists()
    ]
    return sorted(cases, key=lambda case: natural(case.name)), gone


def _as_stored(path: Path) -> Path:
    """The file of this name, whichever way its umlauts are stored."""
    if path.exists() or not path.parent.is_dir():
        return path
    return next(
        (
            one
            for one in path.parent.iterdir()
            if composed(one.name) == composed(path.name)
        ),
        path,
    )


def _note_of_gone(
    gone: list[str], image_files: dict[str, Path], about: DatasetJson
) -> list[str]:
    """What to tell of images that are listed and not there.

    Nothing where nnU-Net's list names cases, whose images are called by their channels.
    """
    channels = [
        match.group(1) for match in map(_CHANNEL.fullmatch, image_files) if match
    ]
    there = {Path(name).name for name in (*image_files, *channels)}
    lost = [name for name in gone if composed(nifti.stem(Path(name))) not in there]
    if not lost:
        return []
    images = f"{len(lost)} images that are" if len(lost) > 1 else "1 image that is"
    return [
        f"{about.path} lists {images} not there, the first {lost[0]}. "
        "Its list is not used: every volume in the folder is taken."
    ]
