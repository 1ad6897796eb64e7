"""A prepared TFDS data set as a source of slices, read through ArrayRecord without
TensorFlow.

Which feature is the image, the label map, the case and so on is said by name; "" stands
for a feature the set lacks. Only these are decoded.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Shaped

from biedsnet_jax.data.sources.nifti_folder import class_masks, known_labels
from biedsnet_jax.data.sources.source import Example, Facts, check_foreground
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import files
from biedsnet_jax.runtime.files import natural

ROLES = ("image", "mask", "case", "slice", "spacing")
_INFO = "dataset_info.json"


@dataclass(frozen=True)
class Tfds:
    """Examples of one split (or "all", or such as "train[:80%]") of the set prepared in
    `folder`.

    `features` names the feature of each of ROLES: image "h w c" of `channels`, mask "h
    w" or "h w 1" of label values, case and slice (text or whole number), spacing (row,
    column) in mm. Without a case each example is its own. `classes` and `labels` make
    class masks as in `NiftiFolder`. `units` (low, high): what 0 and 255 of a uint8
    image stand for, as Hounsfield units; the image is then in these. What takes a pass
    over the set to know, its cases and label values, is kept in `cache_folder`.

    Raises BadInput when made, if the set, the split or a feature is not there or does
    not fit, and on `[i]`; `verify` finds the latter before work starts.
    """

    folder: str | Path
    cache_folder: str | Path
    features: Mapping[str, str]
    split: str = "train"
    classes: int = 1
    channels: int = 1
    labels: tuple[tuple[int, ...], ...] = ()
    units: tuple[float, ...] = ()
    _examples: Sequence[Mapping[str, Any]] = field(
        init=False, repr=False, compare=False
    )
    # image and mask not decoded
    _names: Sequence[Mapping[str, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        builder = _open_builder(Path(self.folder))
        _check_features(
            builder.info.features, self.features, self.channels, self.folder
        )
        wanted = {self.features[role] for role in ROLES if self.features[role]}
        names = wanted - {self.features["image"], self.features["mask"]}
        # the dataclass is frozen from here on
        object.__setattr__(
            self, "_examples", _open_split(builder, self.split, wanted, self.folder)
        )
        object.__setattr__(
            self, "_names", _open_split(builder, self.split, names, self.folder)
        )

    @functools.cached_property
    def cases(self) -> list[str]:
        """The case of every index."""
        name = self.features["case"]
        if not name:
            return [_numbered(i) for i in range(len(self))]
        return self._kept(
            f"cases by {name}",
            lambda: self._each(lambda i: _text(self._raw(self._names, i)[name])),
        )

    @property
    def facts(self) -> Facts:
        return Facts()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        raw, image, label = self._read(index)
        self._check_labels(dict.fromkeys(_values(label), index))
        spacing, case, slice_ = (
            raw.get(self.features[role]) for role in ("spacing", "case", "slice")
        )
        return {
            "image": image,
            "mask": class_masks(label, self.classes, self.labels),
            "case": _numbered(index) if case is None else _text(case),
            "slice": _numbered(index) if slice_ is None else _text(slice_),
            "spacing": None
            if spacing is None
            else (float(spacing[0]), float(spacing[1])),
            "path": self._path(index),
        }

    def verify(self) -> None:
        """Read every example, once as long as the set stays; raises the BadInput of the
        first that does not fit.
        """

        def values() -> list[tuple[list[int], int, int]]:
            """Every set of label values that an example has, the first such example,
            and how many there are.
            """
            first: dict[tuple[int, ...], int] = {}
            count: Counter[tuple[int, ...]] = Counter()
            for index, labels in enumerate(
                self._each(lambda i: _values(self._read(i)[2]))
            ):
                first.setdefault(tuple(labels), index)
                count[tuple(labels)] += 1
            return [(list(labels), first[labels], count[labels]) for labels in first]

        what = f"label sets of {self.features['mask']} on {self.features['image']} {self.channels}"
        found = self._kept(what, values)
        self._check_labels(
            {label: index for labels, index, _ in reversed(found) for label in labels}
        )
        of_classes = (
            set().union(*self.labels)
            if self.labels
            else {label for labels, *_ in found for label in labels}
        )
        with_foreground = sum(
            count for labels, _, count in found if of_classes.intersection(labels) - {0}
        )
        check_foreground(
            with_foreground, len(self), f"{self.folder}, split {self.split},"
        )

    def _read(self, index):
        """(features, image "h w c", label map "h w") of an example whose arrays are as
        they should be.
        """
        raw = self._raw(self._examples, index)
        image, label = self._image(raw, index), self._label(raw, index)
        if image.shape[:2] != label.shape:
            sizes = " against ".join(
                f"{h}x{w}" for h, w in (image.shape[:2], label.shape)
            )
            raise BadInput(
                f"image and mask differ in size, {sizes}, {self._path(index)}; prepare the set again"
            )
        return raw, image, label

    def _check_labels(self, first: Mapping[int, int]) -> None:
        known = known_labels(self.classes, self.labels)
        strange = sorted(first.keys() - known - {0}) if known else []
        if strange:
            raise BadInput(
                f"label outside the map, {', '.join(map(str, strange[:8]))}, {self._path(first[strange[0]])}; known "
                f"are 0, {', '.join(map(str, sorted(known)))}: add it to data.labels, or raise data.classes"
            )

    def _image(self, raw, index) -> Shaped[np.ndarray, "h w c"]:
        image = raw[self.features["image"]]
        if image.ndim != 3 or image.shape[-1] != self.channels:
            raise BadInput(
                f"shape of an image, {image.shape}, {self._path(index)}; set data.channels, 1 or 3, to fit"
            )
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise BadInput(
                f"pixels that are not numbers, NaN or infinite, {self._path(index)}; prepare the set again"
            )
        if not self.units:
            return image
        if image.dtype != np.uint8:
            raise BadInput(
                f"units of 0 to 255 for {image.dtype}, {self._path(index)}; set data.tfds.units to ()"
            )
        low, high = self.units
        return image * np.float32((high - low) / 255) + np.float32(low)

    def _label(self, raw, index) -> Shaped[np.ndarray, "h w"]:
        label = raw[self.features["mask"]]
        label = label[..., 0] if label.ndim == 3 and label.shape[-1] == 1 else label
        if label.dtype == np.uint8 and label.ndim == 2:
            return label
        whole = label.astype(np.uint16)
        if label.ndim != 2 or not np.array_equal(whole, label):
            raise BadInput(
                f"no label map, {label.dtype} of shape {label.shape}, {self._path(index)}; name a feature of whole "
                "numbers from 0, (h, w) or (h, w, 1), in data.tfds.mask"
            )
        return whole

    def _raw(self, examples, index: int) -> Mapping[str, Any]:
        try:
            return examples[index]
        except IndexError:
            raise
        # readers and decoders fail in ways of their own, a missing TensorFlow among
        # them
        except Exception as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadInput(
                f"unreadable example, {text}, {self._path(index)}; prepare the set again"
            ) from error

    def _path(self, index: int) -> str:
        return f"{self.folder}/{self.split}[{index}]"

    def _each(self, read: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(read, range(len(self))))

    def _kept(self, what: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, JSON, from the cache folder where it is there for the
        set as it is now.
        """
        info = Path(self.folder) / _INFO
        status = info.stat()
        facts = (
            str(info.resolve()),
            status.st_size,
            status.st_mtime_ns,
            self.split,
            what,
        )
        path = (
            Path(self.cache_folder)
            / f"tfds_{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
        )
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            value = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole_file(path, shared=True) as partial:
                partial.write_text(json.dumps(value))
        except OSError as error:
            raise BadInput(
                f"cannot write, {error.strerror}, {path}; make room, or set data.cache_dir"
            ) from error
        return value


def find(name: str, data_dir: str) -> Path:
    """The folder of the prepared set `name`, `name/config` or `name/config/version`
    below TFDS's folder `data_dir`.

    "" is TFDS's own. Of several versions the newest. Raises BadInput, listing what
    there is, where it is not there.
    """
    root = Path(
        files.expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or _usual_folder())
    )
    found = _prepared(root / name.replace(":", "/"))
    if not found:
        there = sorted(
            {
                path.relative_to(root).parts[0]
                for path in _prepared(root)
                if path != root
            }
        )
        raise BadInput(
            f"no prepared data set, {name!r} in data.tfds.name, {root}; there is {', '.join(there) or 'none'}: "
            "prepare it with file_format='array_record', or set data.tfds.data_dir"
        )
    configs = sorted({path.parent.relative_to(root).as_posix() for path in found})
    if len(configs) > 1:
        raise BadInput(
            f"several configs, {', '.join(configs)}, in data.tfds.name; give one of them"
        )
    return found[-1]


def _usual_folder():
    """TFDS's own, in the home folder."""
    usual = os.path.expanduser("~/tensorflow_datasets")
    if usual.startswith("~"):
        raise BadInput(
            "data.tfds.data_dir is empty, and no home folder is known. Set it to the folder of the sets."
        )
    return usual


def _prepared(folder: Path) -> list[Path]:
    """Folders of prepared sets, newest version last; one that is being made is no such."""
    infos = (
        path
        for depth in ("", "*/", "*/*/", "*/*/*/")
        for path in folder.glob(depth + _INFO)
    )
    complete = (path.parent for path in infos if "incomplete" not in path.parent.name)
    return sorted(complete, key=lambda path: natural(path.as_posix()))


def _open_builder(folder: Path):
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise BadInput(
            f"no prepared data set, {text}, {folder}; prepare it again with TFDS 4 or later"
        ) from error


def _check_features(there, features: Mapping[str, str], channels: int, folder) -> None:
    """Raises BadInput for a name that the set lacks, and for an image of other
    channels.
    """
    for role in ROLES:
        name = features[role]
        if name not in there and (name or role in ("image", "mask")):
            names = ", ".join(sorted(there))
            raise BadInput(
                f"no such feature, {name!r} in data.tfds.{role}, {folder}; there is {names}"
            )
    fits = {
        "image": lambda shape: len(shape) == 3,
        "mask": lambda shape: len(shape) == 2 or shape[2:] in ((1,), (None,)),
        "case": lambda shape: shape == (),
        "slice": lambda shape: shape == (),
        "spacing": lambda shape: shape == (2,),
    }
    for role in filter(lambda role: features[role], ROLES):
        shape = there[features[role]].shape
        if not isinstance(shape, tuple) or not fits[role](shape):
            raise BadInput(
                f"no {role}, {features[role]!r} of shape {shape}, in data.tfds.{role}; name another feature"
            )
    stored = there[features["image"]].shape[-1]
    if stored not in (None, channels):
        raise BadInput(
            f"image channels, {stored}, {folder}; set data.channels to {stored}"
        )


def _open_split(builder, split: str, wanted: set[str], folder):
    skip = {
        name: tfds.decode.SkipDecoding()
        for name in builder.info.features
        if name not in wanted
    }
    try:
        return builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        kind = builder.info.file_format.value
        raise BadInput(
            f"no random access, prepared as {kind}, {folder}; prepare it with file_format='array_record'"
        ) from error
    # a split by a wrong name, or shards that are gone
    except Exception as error:
        there = ", ".join(builder.info.splits) or "none"
        text = " ".join(str(error).split())[:200]
        raise BadInput(
            f"no such split, {split!r} in data.tfds.split, {folder}; there is {there} ({text})"
        ) from error


def _values(label: Shaped[np.ndarray, "h w"]) -> list[int]:
    """The label values that occur."""
    return np.flatnonzero(np.bincount(label.ravel())).tolist()


def _text(value: Any) -> str:
    """Text as it is, a number with leading zeros."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{int(value):03d}" if isinstance(value, int | np.integer) else str(value)


def _numbered(index: int) -> str:
    return f"{index:05d}"
