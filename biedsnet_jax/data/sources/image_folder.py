"""Reads a folder of PNG, JPEG and TIFF images with masks as a source of slices."""

# `hidden` is `dataclasses.field`, which this rule allows by that name alone.
# ruff: noqa: RUF009

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from biedsnet_jax.data import case_names, walk
from biedsnet_jax.data.formats.pictures import EXTENSIONS, read_picture_turned
from biedsnet_jax.data.sources import picture_masks
from biedsnet_jax.data.sources.source import (
    Example,
    Facts,
    LabelledScan,
    check_foreground,
    each_class,
    hidden,
    scans_of_pictures,
)
from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import composed, natural


@dataclass(frozen=True)
class ImageFolder:
    """Source of images and masks with the same name below `images/` and `masks/`.

    The case of `images/<case>/<slice>.png` is the first folder, or the next one where
    the first is called `train`, `val` or `test`, which is then the side of the split. In
    a flat folder `case` finds it in the file's name (see `case_names.find`). An image
    and its mask may have different extensions. Files are in natural order (slice 2
    before 10). Names are compared in Unicode's composed form (NFC).

    For `channels`, 1 or 3, see `pictures.read_picture_turned`, for `classes`
    `picture_masks.read_mask`, and for `ignore`, a value or colour, `read_truth` there.

    Raises BadInput when made, if a file has no partner, and on `[i]`, if it does not
    fit. `verify` finds the latter before work starts, and masks that are all empty.
    """

    root: str | Path
    classes: int = 1
    channels: int = 1
    case: str = case_names.AUTO
    ignore: str = ""
    # Name, image and mask of each slice.
    _pairs: list[tuple[str, Path, Path]] = hidden()
    _cases: case_names.Cases = hidden()
    _passed: list[PassedOver] = hidden()

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise BadInput(
                f"data.channels is {self.channels} for the images of {self.root}. "
                "Give 1 (grey) or 3 (colour)."
            )
        if self.classes < 1:
            raise BadInput(f"data.classes is {self.classes}. Give 1 or more.")
        pairs, passed = _pair(Path(self.root))
        found = case_names.find(
            [name for name, _, _ in pairs],
            self.case,
            where=str(Path(self.root) / "images"),
        )
        if self.case != case_names.EACH:
            # Slices of a case follow one another.
            pairs.sort(key=lambda pair: natural(found.of[pair[0]]))
        # The fields of a frozen dataclass are set through object.
        object.__setattr__(self, "_pairs", pairs)
        object.__setattr__(self, "_cases", found)
        object.__setattr__(self, "_passed", passed)

    @property
    def cases(self) -> list[str]:
        return [self._cases.of[name] for name, _, _ in self._pairs]

    @property
    def facts(self) -> Facts:
        files = defaultdict(list)
        for case, (_, image, mask) in zip(self.cases, self._pairs):
            files[case] += [image, mask]
        return Facts(files, self._cases.sides, self._passed, self._cases.notes)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        name, image_path, mask_path = self._pairs[index]
        image, turn = read_picture_turned(image_path, self.channels)
        truth = self._truth(mask_path)
        mask = truth["mask"]
        height, width = image.shape[:2]
        if mask.shape[:2] != (height, width):
            upright = f", turned upright by EXIF orientation {turn}" if turn > 1 else ""
            raise BadInput(
                f"The mask {mask_path} has {mask.shape[0]}x{mask.shape[1]} pixels, its image "
                f"{height}x{width}{upright}. Make the mask as large as its image."
            )
        return {
            "image": image,
            **truth,
            "case": self._cases.of[name],
            "slice": self._cases.slices[name] or self._cases.of[name],
            "spacing": None,
            "path": str(image_path),
        }

    def _truth(self, path: Path) -> Example:
        if not self.ignore:
            return {"mask": picture_masks.read_mask(path, self.classes)}
        mask, known = picture_masks.read_truth(path, self.classes, self.ignore)
        return {"mask": mask, "known": each_class(known, self.classes)}

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Yields every picture of a case, since mode predict takes each by itself."""
        return scans_of_pictures(self, case)

    def verify(self) -> None:
        """Reads every file once.

        Raises the BadInput of the first that does not fit, and one for empty masks.
        """
        with ThreadPoolExecutor() as pool:
            with_foreground = sum(pool.map(self._has_foreground, range(len(self))))
        check_foreground(with_foreground, len(self), str(Path(self.root) / "masks"))

    def _has_foreground(self, index: int) -> bool:
        return bool(self[index]["mask"].any())


def _pair(root: Path) -> tuple[list[tuple[str, Path, Path]], list[PassedOver]]:
    """Pairs images with masks by name without extension, and lists other files."""
    images, passed = _files(root / "images")
    masks, passed_masks = _files(root / "masks")
    if not images:
        there = walk.summary(passed)
        note = f" ({there})" if there else ""
        raise BadInput(
            f"{root / 'images'} holds no images{note}. "
            f"Put {', '.join(EXTENSIONS)} files there, a folder for each case."
        )
    passed += passed_masks
    _check_partners("images", images, "masks", masks, root, passed)
    _check_partners("masks", masks, "images", images, root, passed)
    names = sorted(images, key=natural)
    return [(name, images[name], masks[name]) for name in names], passed


def _check_partners(
    kind: str,
    found: Mapping[str, Path],
    partner_kind: str,
    partners: Mapping[str, Path],
    root: Path,
    passed: Sequence[PassedOver],
) -> None:
    """Raises BadInput for images without masks, or masks without images."""
    unpaired = [path for name, path in found.items() if name not in partners]
    if not unpaired:
        return
    first = unpaired[0]
    place = root / partner_kind
    wanted = (place / first.relative_to(root / kind)).with_suffix("")
    for one in passed:
        # The partner may be there in a format that is not read.
        if one.path.with_suffix("") == wanted and one.path != wanted:
            raise BadInput(
                f"{one.path} belongs to {first}, but is {one.why}. Save {partner_kind} as PNG "
                f"or TIFF: {len(unpaired)} {kind} have none that can be read."
            )
    raise BadInput(
        f"{len(unpaired)} of {len(found)} {kind} have no {partner_kind}, the first {first}. "
        f"Put a file of the same name under {place}, or take these away."
    )


def _files(folder: Path) -> tuple[dict[str, Path], list[PassedOver]]:
    """Finds image files by their relative name without extension, and other files."""
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is no folder. Make it, or set data.root to the folder above it."
        )
    found, passed = walk.below(folder, lambda path: path.suffix.lower() in EXTENSIONS)
    files: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: natural(path.as_posix())):
        name = composed(path.relative_to(folder).with_suffix("").as_posix())
        if name in files:
            raise _two_of_one_name(files[name], path)
        files[name] = path
    return files, passed


def _two_of_one_name(first: Path, second: Path) -> BadInput:
    if composed(first.name) == composed(second.name):
        return BadInput(
            f"{first.parent} holds two files that look alike, {first.name}: one name is in "
            "Unicode's composed form (NFC), one in the decomposed (NFD). Keep one, or rename it."
        )
    return BadInput(
        f"{first.parent} holds two files of one name, {first.name} and {second.name}. "
        "Keep one."
    )
