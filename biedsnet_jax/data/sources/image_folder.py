"""Random-access sources of slices: `len`, `.cases` (the case of every index) and `[i]`
-> one example, in numpy.

An example is a dict: image "h w c" in the file's own values, upright, mask uint8 "h w
k" of 0 and 1, case, slice, spacing (row, column) in mm or None, path. `ImageFolder`
reads PNG, JPEG and TIFF files, `Cached` keeps any source's examples in memory.
"""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from biedsnet_jax.data import case_names, walk
from biedsnet_jax.data.formats.pictures import EXTENSIONS, read_picture_turned
from biedsnet_jax.data.sources import picture_masks
from biedsnet_jax.data.sources.source import Example, Facts, check_foreground
from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.files import composed, natural


@dataclass(frozen=True)
class ImageFolder:
    """Images and masks of the same name: `images/<case>/<slice>.png` with
    `masks/<case>/<slice>.png`.

    The case is the first folder under `images/`, or below `train`, `val` and `test`
    there, which are then sides of the split; in a flat folder `case` tells it from the
    file's name (see `case_names.find`). The extensions of an image and its mask may
    differ. Files are in natural order (slice 2 before 10). Names are compared in
    Unicode's composed form (NFC).

    `channels` 1 or 3: see `pictures.read_picture_turned`. `classes`: see
    `picture_masks.read_mask`.

    Raises BadInput when made, if files lack their partner, and on `[i]`, if a file does
    not fit; `verify` finds the latter before work starts, and a data set whose masks
    are empty. Nothing is unpickled.
    """

    root: str | Path
    classes: int = 1
    channels: int = 1
    case: str = case_names.AUTO
    # name, image, mask
    _pairs: list[tuple[str, Path, Path]] = field(init=False, repr=False, compare=False)
    _cases: case_names.Cases = field(init=False, repr=False, compare=False)
    _passed: list[PassedOver] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise BadInput(
                f"image channels, {self.channels}, {self.root}; give 1 (grey) or 3 (colour)"
            )
        if self.classes < 1:
            raise BadInput(f"classes, {self.classes}, {self.root}; give 1 or more")
        pairs, passed = _pair(Path(self.root))
        found = case_names.find(
            [name for name, _, _ in pairs],
            self.case,
            where=str(Path(self.root) / "images"),
        )
        if self.case != case_names.EACH:
            # a case's slices follow one another
            pairs.sort(key=lambda pair: natural(found.of[pair[0]]))
        # the dataclass is frozen from here on
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
        return Facts(
            files=files,
            sides=self._cases.sides,
            passed=self._passed,
            notes=self._cases.notes,
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        name, image_path, mask_path = self._pairs[index]
        image, turn = read_picture_turned(image_path, self.channels)
        mask = picture_masks.read_mask(mask_path, self.classes)
        if image.shape[:2] != mask.shape[:2]:
            sizes = " against ".join(
                f"{h}x{w}" for h, w in (image.shape[:2], mask.shape[:2])
            )
            turned = (
                f" The image is turned upright first, as its EXIF orientation {turn} says."
                if turn > 1
                else ""
            )
            raise BadInput(
                f"image and mask differ in size, {sizes}, {mask_path}; make the mask as large as its image.{turned}"
            )
        return {
            "image": image,
            "mask": mask,
            "case": self._cases.of[name],
            "slice": self._cases.slices[name] or self._cases.of[name],
            "spacing": None,
            "path": str(image_path),
        }

    def verify(self) -> None:
        """Read every file once; raises the BadInput of the first that does not fit, and
        of masks without foreground.
        """
        with ThreadPoolExecutor() as pool:
            with_foreground = sum(pool.map(self._has_foreground, range(len(self))))
        check_foreground(with_foreground, len(self), str(Path(self.root) / "masks"))

    def _has_foreground(self, index: int) -> bool:
        return bool(self[index]["mask"].any())


def _pair(root: Path) -> tuple[list[tuple[str, Path, Path]], list[PassedOver]]:
    """(name, image, mask) of every slice, by the name without extension below `images/`
    and `masks/`; what else is.
    """
    (images, passed), (masks, passed_masks) = (
        _files(root / "images"),
        _files(root / "masks"),
    )
    if not images:
        kinds, there = ", ".join(EXTENSIONS), walk.summary(passed)
        said = f" ({there})" if there else ""
        raise BadInput(
            f"no images, 0 files, {root / 'images'}; put {kinds} files there, a folder for each case{said}"
        )
    for found, partners, what, partner in (
        (images, masks, "images without masks", "masks"),
        (masks, images, "masks without images", "images"),
    ):
        lonely = [path for name, path in found.items() if name not in partners]
        if lonely:
            _check_formats(lonely, partner, root, passed + passed_masks)
            raise BadInput(
                f"{what}, {len(lonely)} of {len(found)}, first {lonely[0]}; "
                f"put a file of the same name under {root / partner}, or take these away"
            )
    pairs = [(name, images[name], masks[name]) for name in sorted(images, key=natural)]
    return pairs, passed + passed_masks


def _check_formats(
    lonely: Sequence[Path], partner: str, root: Path, passed: Sequence[PassedOver]
) -> None:
    """Raises BadInput where the partner of the first is there, in a format that is not
    read.
    """
    other = "images" if partner == "masks" else "masks"
    name = (root / partner / lonely[0].relative_to(root / other)).with_suffix("")
    for one in passed:
        if one.path.with_suffix("") == name and one.path != name:
            raise BadInput(
                f"{one.path} belongs to {lonely[0]}, but is {one.why}. Save {partner} as PNG or TIFF: "
                f"{len(lonely)} {other} have none that can be read."
            )


def _files(folder: Path) -> tuple[dict[str, Path], list[PassedOver]]:
    """Image files below `folder` by their relative name without extension, and what is
    passed over there.
    """
    if not folder.is_dir():
        raise BadInput(
            f"no such folder, {folder.name}, {folder}; make it, or point data.root at the folder above it"
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
            f"{first.parent} holds two files that look alike, {first.name}: one name is spelt in Unicode's composed "
            "form (NFC) and one in the decomposed (NFD). Keep one, or rename it."
        )
    return BadInput(
        f"two files of one name, {first.name} and {second.name}, {first.parent}; keep one"
    )
