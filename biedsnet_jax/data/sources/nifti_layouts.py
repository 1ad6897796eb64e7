"""Finds the cases of a folder of NIfTI volumes and label maps, in three layouts.

images/<case>.nii.gz             labels/<case>.nii.gz    folders below are mirrored
imagesTr/<case>.nii.gz           labelsTr/<case>.nii.gz  Medical Decathlon's dataset.json
imagesTr/<case>_0000.nii.gz ...  labelsTr/<case>.nii.gz  nnU-Net, a file a channel

Linked files and folders are followed, and what is not read is recorded. Names are
compared in Unicode's composed form (NFC), since an umlaut may be stored as one character
or as two.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Files of one case."""

    name: str
    # One for each channel, or one with all channels.
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Folder:
    """Cases and other content of a folder."""

    cases: list[Case]
    # Files that are not read.
    passed: list[PassedOver]
    # Warnings for the user, a line each.
    notes: list[str]
    about: DatasetJson | None = None


def search(root: Path) -> Folder:
    """Finds every case in natural order, and what is not read.

    Raises BadInput for a folder of no known layout, files without partner, and channels
    that are not complete.
    """
    for images, labels in LAYOUTS:
        if (root / images).is_dir() and (root / labels).is_dir():
            return _read_layout(root, root / images, root / labels)
    pairs = " or ".join(f"{images}/ and {labels}/" for images, labels in LAYOUTS)
    raise BadInput(f"{root} has none of the known layouts. Give a folder with {pairs}.")


def _read_layout(root: Path, images: Path, labels: Path) -> Folder:
    about = _about(root, public=images.name == "imagesTr")
    image_files, passed_images = _files(images)
    label_files, passed_labels = _files(labels)
    passed = passed_images + passed_labels
    notes = []
    if about and about.training:
        cases, gone = _listed(about, root)
        if not gone:
            used = set()
            for case in cases:
                used |= {path.resolve() for path in (*case.images, case.label)}
            why = f"not in the list of {dataset_json.NAME}"
            for path in (*image_files.values(), *label_files.values()):
                if path.resolve() not in used:
                    passed.append(PassedOver(path, why))
            return Folder(cases, passed, notes, about)
        notes += _note_of_gone(gone, image_files, about)
    cases = _mirrored(images, labels, image_files, label_files, passed)
    return Folder(cases, passed, notes, about)


def _about(root: Path, *, public: bool) -> DatasetJson | None:
    """Reads dataset.json; beside images/ only for a label called "ignore".

    There the file may be about something else.
    """
    if public:
        return dataset_json.read(root)
    with contextlib.suppress(dataset_json.Damaged):
        about = dataset_json.read(root)
        if about and about.ignore is not None:
            return replace(about, training=[], channels=(), labels=())
    return None


def group_channels(names: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    """Maps cases to the names of their images, one or a channel each.

    `a_0000`, `a_0001`, ... are channels of `a` where `known`, the names of label maps,
    has `a` and not them. Where `known` is empty, all such names are channels.
    """
    groups = defaultdict(list)
    for name in sorted(names, key=natural):
        case = name
        match = _CHANNEL.fullmatch(name)
        if match and name not in known and (not known or match.group(1) in known):
            case = match.group(1)
        groups[case].append(name)
    return groups


def check_channels(case: str, names: Sequence[str], where: object) -> None:
    """Raises BadInput unless a case is one image, or all channels from _0000 on."""
    matches = map(_CHANNEL.fullmatch, names)
    numbered = [match for match in matches if match and match.group(1) == case]
    if not numbered:
        return
    if len(numbered) < len(names):
        raise BadInput(
            f"{where} holds {case} and {numbered[0].group()}, an image and a channel of one "
            "case. Keep one of the two."
        )
    there = sorted(int(match.group(2)) for match in numbered)
    missing = sorted(set(range(there[-1] + 1)) - set(there))
    if missing:
        raise BadInput(
            f"Case {case} in {where} has the channels {_numbers(there)}, but not "
            f"{_numbers(missing)}. Add what is missing, or number the files from _0000 on."
        )


def _numbers(channels: Sequence[int]) -> str:
    """Lists the first four numbers as file names have them."""
    listed = [f"_{number:04d}" for number in channels[:4]]
    if len(channels) > 4:
        listed.append("...")
    return ", ".join(listed)


def _check_same_channels(groups: dict[str, list[str]], where: Path) -> None:
    """Raises BadInput for the first case that has fewer or more channels than most."""
    usual, _ = Counter(len(names) for names in groups.values()).most_common(1)[0]
    for case, names in groups.items():
        check_channels(case, names, where)
        if len(names) != usual:
            example = next(name for name, its in groups.items() if len(its) == usual)
            raise BadInput(
                f"Case {case} in {where} has {len(names)} channel files, and {example} {usual}. "
                "Give every case the same channels, or take this one away."
            )


def _mirrored(
    images: Path,
    labels: Path,
    image_files: dict[str, Path],
    label_files: dict[str, Path],
    passed: list[PassedOver],
) -> list[Case]:
    """Pairs images with label maps of the same name. Raises BadInput for one alone."""
    groups = group_channels(list(image_files), set(label_files))
    for place, found, partner_place, partners in (
        (images, groups, labels, label_files),
        (labels, label_files, images, groups),
    ):
        unpaired = [name for name in found if name not in partners]
        if unpaired:
            raise BadInput(
                f"{len(unpaired)} of {len(found)} files in {place} have no partner in "
                f"{partner_place}{_others(partner_place, passed)}, the first {unpaired[0]}. "
                "Put a file of that name there, or take these away."
            )
    if not groups:
        kinds = " or ".join(nifti.EXTENSIONS)
        raise BadInput(
            f"{images} holds no volumes{_others(images, passed)}. Put {kinds} files there."
        )
    _check_same_channels(groups, images)
    return [
        Case(name, tuple(image_files[image] for image in of_case), label_files[name])
        for name, of_case in groups.items()
    ]


def _others(folder: Path, passed: list[PassedOver]) -> str:
    """Counts what lies in a folder and is not read, in brackets for a message."""
    there = walk.summary([one for one in passed if one.path.is_relative_to(folder)])
    return f" ({there})" if there else ""


def _files(folder: Path) -> tuple[dict[str, Path], list[PassedOver]]:
    """Finds NIfTI files by their relative name without extension, and other files."""
    files: dict[str, Path] = {}
    paths, passed = walk.below(folder, nifti.is_nifti)
    for path in paths:
        name = composed((path.relative_to(folder).parent / nifti.stem(path)).as_posix())
        if name in files:
            raise BadInput(
                f"{path.parent} holds two files of one name, {files[name].name} and {path.name}. "
                "Keep one."
            )
        files[name] = path
    return files, passed


def _listed(about: DatasetJson, root: Path) -> tuple[list[Case], list[str]]:
    """Lists the cases of dataset.json in natural order, and its missing images."""
    cases: dict[str, Case] = {}
    gone = []
    for pair in about.training:
        for name in pair:
            if not nifti.is_nifti(Path(name)):
                kinds = " or ".join(nifti.EXTENSIONS)
                raise BadInput(
                    f"{about.path} lists {name}, which is no NIfTI name. List {kinds} files."
                )
        image, label = (_as_stored(root / name) for name in pair)
        case = composed(nifti.stem(label))
        if case in cases:
            raise BadInput(
                f"{about.path} lists the case {case} more than once. Keep one entry."
            )
        cases[case] = Case(case, (image,), label)
        if not image.exists():
            gone.append(pair[0])
    return sorted(cases.values(), key=lambda case: natural(case.name)), gone


def _as_stored(path: Path) -> Path:
    """Finds the file of this name, whichever way its umlauts are stored."""
    if path.exists() or not path.parent.is_dir():
        return path
    name = composed(path.name)
    return next(
        (one for one in path.parent.iterdir() if composed(one.name) == name), path
    )


def _note_of_gone(
    gone: list[str], image_files: dict[str, Path], about: DatasetJson
) -> list[str]:
    """Warns of images that are listed and missing.

    nnU-Net's list names cases, whose images are called by their channels: these are
    not missing.
    """
    there = set()
    for name in image_files:
        match = _CHANNEL.fullmatch(name)
        there.add(Path(name).name)
        there.add(Path(match.group(1) if match else name).name)
    missing = [name for name in gone if composed(nifti.stem(Path(name))) not in there]
    if not missing:
        return []
    images = (
        "1 image that is" if len(missing) == 1 else f"{len(missing)} images that are"
    )
    return [
        f"{about.path} lists {images} not there, the first {missing[0]}. "
        "Its list is not used: every volume in the folder is taken."
    ]
