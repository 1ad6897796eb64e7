"""Random-access sources of slices: `len`, `.cases` (the case of every index) and `[i]` -> one example, in numpy.

An example is a dict: image "h w c" as stored, mask uint8 "h w k" of 0 and 1, case, slice, spacing (row, column) in mm
or None, path. `ImageFolder` reads PNG, JPEG and TIFF files, `Cached` keeps any source's examples in memory.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from biedsnet_jax.data.walk import PassedOver
from biedsnet_jax.types import BadInput

Example = dict[str, Any]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LOSSY = (".jpg", ".jpeg")
GREY_SPREAD = 32  # of 255: channels of a grey JPEG saved as colour differ by a few
JPEG_MOST = 1000  # pixels a byte: a bit a block of 64 gives 512; what a damaged file lacks libjpeg would paint grey
PLAIN_MODES = ("1", "L", "LA", "I;16", "I", "F", "RGB", "RGBA")  # of Pillow: what an image may stay in


@dataclass(frozen=True)
class Facts:
    """What a source knows of its data beside the slices."""

    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)  # of each case; none where nothing is read
    sides: Mapping[str, str] = field(default_factory=dict)  # case -> "train", "val" or "test", where folders say so
    passed: Sequence[PassedOver] = ()  # files that are not read
    notes: Sequence[str] = ()  # warnings, a line each


@runtime_checkable
class Source(Protocol):
    """What splits and the pipeline need of a source; `data.phantom.Phantom` is one too."""

    @property
    def cases(self) -> Sequence[str]: ...

    @property
    def facts(self) -> Facts: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Cached:
    """`source` with every example kept in memory after its first reading, read-only since all readers share it."""

    source: Source
    _kept: dict[int, Example] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def cases(self) -> Sequence[str]:
        return self.source.cases

    @property
    def facts(self) -> Facts:
        return self.source.facts

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        if index not in self._kept:  # two threads may both read it: they store the same
            example = self.source[index]
            example["image"].flags.writeable = example["mask"].flags.writeable = False
            self._kept[index] = example
        return dict(self._kept[index])


@dataclass(frozen=True)
class ImageFolder:
    """Images and masks of the same name: `images/<case>/<slice>.png` with `masks/<case>/<slice>.png`.

    The case is the first folder under `images/`; in a flat folder every file is a case of its own. The extensions of
    an image and its mask may differ. Files are in natural order (slice 2 before 10).

    `channels` 1 or 3: grey saved as colour becomes grey again by the luma 0.299 R + 0.587 G + 0.114 B, grey is
    repeated, an alpha channel is dropped; real colour needs 3. Depth is kept (uint8, uint16, else float32), but 16-bit
    colour arrives as 8 bits, as Pillow reads it. `classes` 1: a mask holds 0 and one other value, whichever; a JPEG
    mask is cut at half. `classes` k > 1: a mask holds the labels 0 to k, exclusive.

    Raises BadInput when made, if files lack their partner, and on `[i]`, if a file does not fit; `verify` finds the
    latter before work starts. Nothing is unpickled.
    """

    root: str | Path
    classes: int = 1
    channels: int = 1
    _pairs: list[tuple[str, Path, Path]] = field(init=False, repr=False, compare=False)  # name, image, mask

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise BadInput(f"image channels, {self.channels}, {self.root}; give 1 (grey) or 3 (colour)")
        if self.classes < 1:
            raise BadInput(f"classes, {self.classes}, {self.root}; give 1 or more")
        object.__setattr__(self, "_pairs", _pair(Path(self.root)))  # the dataclass is frozen from here on

    @property
    def cases(self) -> list[str]:
        return [name.split("/")[0] for name, _, _ in self._pairs]

    @property
    def facts(self) -> Facts:
        files = defaultdict(list)
        for case, (_, image, mask) in zip(self.cases, self._pairs):
            files[case] += [image, mask]
        return Facts(files=files)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        name, image_path, mask_path = self._pairs[index]
        image = read_picture(image_path, self.channels)
        mask = _classes(_read_mask(mask_path), self.classes, mask_path)
        if image.shape[:2] != mask.shape[:2]:
            sizes = " against ".join(f"{h}x{w}" for h, w in (image.shape[:2], mask.shape[:2]))
            raise BadInput(f"image and mask differ in size, {sizes}, {mask_path}; make the mask as large as its image")
        case, _, slice_ = name.partition("/")
        return {
            "image": image,
            "mask": mask,
            "case": case,
            "slice": slice_ or case,
            "spacing": None,
            "path": str(image_path),
        }

    def verify(self) -> None:
        """Read every file once; raises the BadInput of the first that does not fit."""
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self._check, range(len(self))):
                pass

    def _check(self, index: int) -> None:
        self[index]


def read_picture(path: Path, channels: int) -> Shaped[np.ndarray, "h w c"]:
    """A PNG, JPEG or TIFF with 1 or 3 channels, as `ImageFolder` reads its images."""
    return _channels(_read_image(path), channels, path)


def _pair(root: Path) -> list[tuple[str, Path, Path]]:
    """(name, image, mask) of every slice, by the name without extension below `images/` and `masks/`."""
    images, masks = _files(root / "images"), _files(root / "masks")
    if not images:
        kinds = ", ".join(EXTENSIONS)
        raise BadInput(f"no images, 0 files, {root / 'images'}; put {kinds} files there, a folder for each case")
    for found, partners, what, partner in (
        (images, masks, "images without masks", "masks"),
        (masks, images, "masks without images", "images"),
    ):
        lonely = [path for name, path in found.items() if name not in partners]
        if lonely:
            raise BadInput(
                f"{what}, {len(lonely)} of {len(found)}, first {lonely[0]}; "
                f"put a file of the same name under {root / partner}, or take these away"
            )
    return [(name, images[name], masks[name]) for name in sorted(images, key=natural)]


def _files(folder: Path) -> dict[str, Path]:
    """Image files below `folder` by their relative name without extension; hidden files are passed over."""
    if not folder.is_dir():
        raise BadInput(f"no such folder, {folder.name}, {folder}; make it, or point data.root at the folder above it")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: natural(path.as_posix())):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() not in EXTENSIONS or name.startswith(".") or "/." in name:
            continue
        if name in files:
            raise BadInput(f"two files of one name, {files[name].name} and {path.name}, {path.parent}; keep one")
        files[name] = path
    return files


def natural(name: str) -> tuple:
    """Sort key that takes digits as numbers."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)), name


def _read_image(path: Path) -> Shaped[np.ndarray, "h w n"]:
    """Grey or colour as stored; palettes, CMYK and the like become RGB."""
    with _opened(path) as file:
        plain = file if file.mode in PLAIN_MODES else file.convert("RGB")
        return np.atleast_3d(np.asarray(plain))


def _read_mask(path: Path) -> Shaped[np.ndarray, "h w n"]:
    """Labels as stored; of a palette its indices, not its colours."""
    with _opened(path) as file:
        return np.atleast_3d(np.asarray(file))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, decoded; whatever goes wrong is a BadInput that names it."""
    try:
        with Image.open(path) as file:
            pages, size = getattr(file, "n_frames", 1), path.stat().st_size
            if file.format == "JPEG" and file.width * file.height > JPEG_MOST * size:
                raise ValueError(f"{file.width}x{file.height} pixels in {size} bytes")
            yield file
    except Exception as error:  # a decoder meets a broken file with anything from SyntaxError to OverflowError
        said = "not an image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None)
        reason = " ".join((said or str(error)).split()) or type(error).__name__
        raise BadInput(f"unreadable or truncated file, {reason}, {path}; replace or remove it") from error
    if pages > 1:
        raise BadInput(f"more than one page, {pages}, {path}; save each slice as a file of its own")


def _channels(pixels: Shaped[np.ndarray, "h w n"], channels: int, path: Path) -> Shaped[np.ndarray, "h w c"]:
    """Grey (1) or colour (3), in uint8, uint16 or float32."""
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise BadInput(f"pixels that are not numbers, NaN or infinite, {path}; write finite values")
    stored = pixels.shape[-1]
    if stored in (2, 4):  # the last is alpha
        pixels = pixels[..., : stored - 1]
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    spread = np.ptp(pixels.astype(np.float32), axis=-1).max()
    if spread > GREY_SPREAD:
        raise BadInput(
            f"a colour image for 1 channel, its channels differ by up to {spread:.0f} of 255, {path}; save it as grey, "
            "or train with data.channels=3"
        )
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    return (grey.round() if pixels.dtype.kind == "u" else grey).astype(pixels.dtype)[..., None]


def _classes(pixels: Shaped[np.ndarray, "h w n"], classes: int, path: Path) -> UInt8[np.ndarray, "h w k"]:
    """One map of 0 and 1 per foreground class."""
    label = pixels[..., 0]
    if pixels.shape[-1] >= 3 and (pixels[..., 1:3] != label[..., None]).any():
        raise BadInput(f"a mask in colour, {pixels.shape[-1]} channels, {path}; save labels as one grey channel")
    lossy = path.suffix.lower() in LOSSY
    if lossy and classes > 1:
        raise BadInput(f"labels in a lossy file, {classes} classes, {path}; save the mask as PNG")
    if lossy:
        return (label > 127)[..., None].astype(np.uint8)
    expected = [0, label.max()] if classes == 1 else list(range(classes + 1))
    if not np.isin(label, expected).all():
        values = np.unique(label)
        shown = ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
        raise BadInput(
            f"mask values, {shown}, {path}; for {classes} class{'es' * (classes > 1)} give "
            f"{'0 and one other value' if classes == 1 else f'the labels 0 to {classes}'}, or raise data.classes"
        )
    if classes == 1:
        return (label > 0)[..., None].astype(np.uint8)
    return (label[..., None] == np.arange(1, classes + 1)).astype(np.uint8)
