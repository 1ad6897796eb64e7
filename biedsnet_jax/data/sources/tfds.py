"""Reads a prepared TFDS data set as a source of slices, without TensorFlow.

Features for image, label map, case and so on are given by name; "" stands for a feature
that the set lacks. Only these are decoded.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Shaped

from biedsnet_jax.data.sources.nifti_folder import check_labels, truth
from biedsnet_jax.data.sources.source import (
    Example,
    Facts,
    LabelledScan,
    check_foreground,
    hidden,
    scans_of_pictures,
    stamp,
)
from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.runtime import files
from biedsnet_jax.runtime.files import natural

ROLES = ("image", "mask", "case", "slice", "spacing")
_INFO = "dataset_info.json"


@dataclass(frozen=True)
class Tfds:
    """Source of the examples of one split of the set prepared in `folder`.

    `split` may be "all", or a part such as "train[:80%]". `features` names the feature
    of each of ROLES: image "h w c" of `channels`, mask "h w" or "h w 1" of label values,
    case and slice (text or whole number), spacing (row, column) in mm. Without a case,
    each example is one. `classes` and `labels` make class masks as in `NiftiFolder`.
    `units` (low, high) are what 0 and 255 of a uint8 image stand for, such as Hounsfield
    units; the image then has these. Pixels of the label `ignore` are known of no class.
    Cases and label values take a pass over the set, and are kept in `cache_folder`.

    Raises BadInput when made, if the set, the split or a feature is missing or does not
    fit, and on `[i]`, if an example does not. `verify` finds the latter before work
    starts.
    """

    folder: str | Path
    cache_folder: str | Path
    features: Mapping[str, str]
    split: str = "train"
    classes: int = 1
    channels: int = 1
    labels: tuple[tuple[int, ...], ...] = ()
    units: tuple[float, ...] = ()
    ignore: int | None = None
    _examples: Sequence[Mapping[str, Any]] = hidden()
    # The examples with image and mask not decoded, for a quick pass over names.
    _names: Sequence[Mapping[str, Any]] = hidden()

    def __post_init__(self):
        builder = _open_builder(Path(self.folder))
        features = builder.info.features
        _check_features(features, self.features, self.channels, self.folder)
        wanted = {self.features[role] for role in ROLES if self.features[role]}
        examples = _open_split(builder, self.split, wanted, self.folder)
        wanted -= {self.features["image"], self.features["mask"]}
        names = _open_split(builder, self.split, wanted, self.folder)
        # The fields of a frozen dataclass are set through object.
        object.__setattr__(self, "_examples", examples)
        object.__setattr__(self, "_names", names)

    @functools.cached_property
    def cases(self) -> list[str]:
        """Case of every index."""
        name = self.features["case"]
        if not name:
            return [_numbered(i) for i in range(len(self))]

        def read(index):
            return _text(self._raw(self._names, index)[name])

        return self._kept(f"cases by {name}", lambda: self._each(read))

    @property
    def facts(self) -> Facts:
        """Returns no facts: a prepared set has no files or sides of its own."""
        return Facts()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        raw, image, label = self._read(index)
        path = self._path(index)
        labels = dict.fromkeys({*_values(label)} - {self.ignore}, path)
        check_labels(labels, self.classes, self.labels)
        case, slice_ = (self._name(raw, role, index) for role in ("case", "slice"))
        spacing = raw.get(self.features["spacing"])
        if spacing is not None:
            spacing = (float(spacing[0]), float(spacing[1]))
        return {
            "image": image,
            **truth(label, self.classes, self.labels, self.ignore),
            "case": case,
            "slice": slice_,
            "spacing": spacing,
            "path": path,
        }

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Yields every example of a case, which is a picture by itself."""
        return scans_of_pictures(self, case)

    def verify(self) -> None:
        """Reads every example, once as long as the set stays as it is.

        Raises the BadInput of the first that does not fit, and one for empty masks.
        """

        def label_sets() -> list[tuple[list[int], int, int]]:
            """Lists each set of label values, its first example and how many have it."""
            all_values = self._each(lambda i: tuple(_values(self._read(i)[2])))
            return [
                (list(values), all_values.index(values), count)
                for values, count in Counter(all_values).items()
            ]

        what = f"label sets of {self.features['mask']} on {self.features['image']} {self.channels}"
        found = self._kept(what, label_sets)
        paths: dict[int, str] = {}
        for labels, index, _ in found:
            for label in labels:
                paths.setdefault(label, self._path(index))
        paths.pop(self.ignore, None)
        check_labels(paths, self.classes, self.labels)
        foreground = set().union(*self.labels) if self.labels else set(paths)
        foreground -= {0}
        with_foreground = sum(
            count for labels, _, count in found if foreground.intersection(labels)
        )
        where = f"{self.folder}, split {self.split},"
        check_foreground(with_foreground, len(self), where)

    def _read(self, index):
        """Reads the features, image "h w c" and label map "h w" of an example."""
        raw = self._raw(self._examples, index)
        image = self._image(raw, index)
        label = self._label(raw, index)
        if image.shape[:2] != label.shape:
            (h, w), (mask_h, mask_w) = image.shape[:2], label.shape
            raise BadInput(
                f"{self._path(index)} has an image of {h}x{w} pixels and a mask of "
                f"{mask_h}x{mask_w}. Prepare the set again."
            )
        return raw, image, label

    def _name(self, raw, role: str, index: int) -> str:
        value = raw.get(self.features[role])
        return _numbered(index) if value is None else _text(value)

    def _image(self, raw, index) -> Shaped[np.ndarray, "h w c"]:
        image = raw[self.features["image"]]
        if image.ndim != 3 or image.shape[-1] != self.channels:
            raise BadInput(
                f"The image of {self._path(index)} has the shape {image.shape} where "
                f"data.channels is {self.channels}. Set it, 1 or 3, to fit."
            )
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise BadInput(
                f"The image of {self._path(index)} has pixels that are NaN or infinite. "
                "Prepare the set again."
            )
        if not self.units:
            return image
        if image.dtype != np.uint8:
            raise BadInput(
                f"The image of {self._path(index)} is {image.dtype}, and data.tfds.units is for "
                "uint8. Set data.tfds.units to ()."
            )
        low, high = self.units
        return image * np.float32((high - low) / 255) + np.float32(low)

    def _label(self, raw, index) -> Shaped[np.ndarray, "h w"]:
        label = raw[self.features["mask"]]
        if label.ndim == 3 and label.shape[-1] == 1:
            label = label[..., 0]
        if label.dtype == np.uint8 and label.ndim == 2:
            return label
        whole = label.astype(np.uint16)
        if label.ndim != 2 or not np.array_equal(whole, label):
            raise BadInput(
                f"The mask of {self._path(index)} is no label map: {label.dtype} of shape "
                f"{label.shape}. Name a feature of whole numbers from 0, (h, w) or (h, w, 1), in "
                "data.tfds.mask."
            )
        return whole

    def _raw(self, examples, index: int) -> Mapping[str, Any]:
        try:
            return examples[index]
        except IndexError:
            raise
        # Readers and decoders fail in ways of their own, as without TensorFlow.
        except Exception as error:
            raise BadInput(
                f"{self._path(index)} cannot be read: {_said(error)}. Prepare the set again."
            ) from error

    def _path(self, index: int) -> str:
        return f"{self.folder}/{self.split}[{index}]"

    def _each(self, read: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(read, range(len(self))))

    def _kept(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` makes, kept as JSON as long as the set stays as it is."""
        facts = (*stamp(Path(self.folder) / _INFO), self.split, what)
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        path = Path(self.cache_folder) / f"tfds_{key}.json"
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
                f"{path} cannot be written: {error.strerror}. Make room, or set data.cache_dir."
            ) from error
        return value


def find(name: str, data_dir: str) -> Path:
    """Finds the newest prepared version of a set below TFDS's folder `data_dir`.

    `name` is of the form `name`, `name/config` or `name/config/version`; `data_dir` ""
    is TFDS's own folder. Raises BadInput, listing what is there, for a set that is not.
    """
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or _usual_folder()
    root = Path(files.expanded(data_dir))
    found = _prepared(root / name.replace(":", "/"))
    if not found:
        sets = {
            path.relative_to(root).parts[0] for path in _prepared(root) if path != root
        }
        there = ", ".join(sorted(sets)) or "no set"
        raise BadInput(
            f"data.tfds.name is {name!r}, and {root} holds {there}. "
            "Prepare it with file_format='array_record', or set data.tfds.data_dir."
        )
    configs = sorted({path.parent.relative_to(root).as_posix() for path in found})
    if len(configs) > 1:
        raise BadInput(
            f"data.tfds.name is {name!r}, which has several configs. "
            f"Give one of {', '.join(configs)}."
        )
    return found[-1]


def _usual_folder():
    """Finds TFDS's own folder, in the home folder."""
    usual = os.path.expanduser("~/tensorflow_datasets")
    if usual.startswith("~"):
        raise BadInput(
            "data.tfds.data_dir is empty, and no home folder is known. "
            "Set it to the folder of the sets."
        )
    return usual


def _prepared(folder: Path) -> list[Path]:
    """Lists folders of prepared sets that are complete, newest version last."""
    found = []
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        found += [path.parent for path in folder.glob(depth + _INFO)]
    complete = [path for path in found if "incomplete" not in path.name]
    return sorted(complete, key=lambda path: natural(path.as_posix()))


def _open_builder(folder: Path):
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:
        raise BadInput(
            f"{folder} holds no prepared data set: {_said(error)}. "
            "Prepare it again with TFDS 4 or later."
        ) from error


def _said(error: Exception) -> str:
    """What another library says went wrong, on one line, all lines joined."""
    return shown(error, most=200).rstrip(".") or type(error).__name__


def _check_features(there, features: Mapping[str, str], channels: int, folder) -> None:
    """Raises BadInput for a feature that is missing or does not fit its role."""
    fits = {
        "image": lambda shape: len(shape) == 3,
        "mask": lambda shape: len(shape) == 2 or shape[2:] in ((1,), (None,)),
        "case": lambda shape: shape == (),
        "slice": lambda shape: shape == (),
        "spacing": lambda shape: shape == (2,),
    }
    for role in ROLES:
        name = features[role]
        if not name and role not in ("image", "mask"):
            continue
        if name not in there:
            raise BadInput(
                f"data.tfds.{role} is {name!r}, which {folder} has not. "
                f"Give one of {', '.join(sorted(there))}."
            )
        shape = there[name].shape
        if not isinstance(shape, tuple) or not fits[role](shape):
            raise BadInput(
                f"data.tfds.{role} is {name!r}, whose shape {shape} does not fit. "
                "Name another feature."
            )
    stored = there[features["image"]].shape[-1]
    if stored not in (None, channels):
        raise BadInput(
            f"The images of {folder} have {stored} channels where data.channels is {channels}. "
            f"Set data.channels to {stored}."
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
            f"{folder} is prepared as {kind}, which has no random access. "
            "Prepare it with file_format='array_record'."
        ) from error
    # TFDS raises errors of many kinds for an unknown split and for missing shards.
    except Exception as error:
        there = ", ".join(builder.info.splits) or "no split"
        raise BadInput(
            f"data.tfds.split is {split!r}, which cannot be read from {folder}: {_said(error)}. "
            f"There is {there}."
        ) from error


def _values(label: Shaped[np.ndarray, "h w"]) -> list[int]:
    """Lists the label values that occur."""
    return np.flatnonzero(np.bincount(label.ravel())).tolist()


def _text(value: Any) -> str:
    """Formats a name: text as it is, a number with leading zeros."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{int(value):03d}" if isinstance(value, int | np.integer) else str(value)


def _numbered(index: int) -> str:
    return f"{index:05d}"
