"""From a checked config to its data, split by case, and what is done to every slice."""

import dataclasses
import os
import pathlib
import sys

from biedsnet_jax.data import splits, transforms
from biedsnet_jax.data.sources.image_folder import ImageFolder
from biedsnet_jax.data.sources.nifti_folder import NiftiFolder
from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Cached, Source
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import console, files, processes

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Data:
    """A random-access source, and the indices of each split."""

    source: Source
    train: list[int]
    val: list[int]
    test: list[int]
    root: str = ""  # the folder that is read, absolute; empty where none is

    def cases(self, split: str) -> list[str]:
        """The cases of a split, sorted."""
        of_slices = self.source.cases
        return sorted({of_slices[i] for i in getattr(self, split)})


def open_data(config) -> Data:
    """The source a config names, its cases dealt to the sides of a new split.

    Data of a workdir are opened by `run_split`, on the split that its run was started
    with.
    """
    return deal(config, open_source(config), data_root(config))


def open_source(config) -> Source:
    """The source a config names; with `data.verify`, every file has been read once.

    What the source warns of is printed by the first process.
    """
    source = SOURCES[config.data.source](config)
    if config.data.verify:
        source.verify()
    for note in source.facts.notes:
        warn(note)
    return Cached(source) if config.data.cache else source


def deal(config, source: Source, root: str) -> Data:
    """The cases of a source, read from `root`, on the sides that the config asks for."""
    return Data(
        source, **_split(source.cases, config.split, source.facts.sides), root=root
    )


def data_root(config) -> str:
    """The folder that a config's data are read from, absolute; empty where none is."""
    folder = config.data.root
    if config.data.source == "phantom":
        folder = None
    elif config.data.source == "tfds":
        folder = folder or config.data.tfds.data_dir
    return os.path.abspath(files.expanded(folder)) if folder else ""


def warn(text: str) -> None:
    """A line about the data on stderr, of the first process alone."""
    if processes.is_first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def class_labels(config) -> tuple[tuple[int, ...], ...]:
    """Label values of each class."""
    return tuple(map(tuple, config.data.labels)) or tuple(
        (k,) for k in range(1, config.data.classes + 1)
    )


def image_shape(config) -> tuple[int, int, int]:
    """(height, width, channels) of what the network sees."""
    return (
        config.data.size,
        config.data.size,
        config.data.channels * (2 * config.data.context + 1),
    )


def make_prepare(config) -> transforms.Prepare:
    """What a config does to every slice."""
    return transforms.Prepare(
        config.data.size,
        config.data.normalise,
        tuple(map(float, config.data.window)) or None,
    )


def cache_folder(config) -> pathlib.Path:
    """Where slices of volumes are kept."""
    return _cache(config, "slices")


def _phantom(config):
    fields = dict(config.data.phantom)
    return Phantom(size=config.data.size, classes=config.data.classes, **fields)


def _folder(config):
    data = config.data
    return ImageFolder(
        _root(config), classes=data.classes, channels=data.channels, case=data.case
    )


def _nifti(config):
    data = config.data
    return NiftiFolder(
        _root(config),
        cache_folder(config),
        classes=data.classes,
        channels=data.channels,
        labels=tuple(data.labels),
        context=data.context,
        min_foreground=data.min_foreground,
        case=data.case,
    )


def _tfds(config):
    # TFDS takes as long to import as jax.
    from biedsnet_jax.data.sources import covid19_ct_seg, tfds

    data, fields = config.data, config.data.tfds
    cache = _cache(config, "tfds")
    if fields.name == covid19_ct_seg.NAME and not fields.data_dir:
        prepared = covid19_ct_seg.prepare(
            pathlib.Path(_root(config)), cache, quiet=console.is_quiet()
        )
    else:
        prepared = tfds.find(fields.name, fields.data_dir)
    return tfds.Tfds(
        prepared,
        cache,
        {role: fields[role] for role in tfds.ROLES},
        split=fields.split,
        classes=data.classes,
        channels=data.channels,
        labels=tuple(data.labels),
        units=tuple(map(float, fields.units)),
    )


SOURCES = {"folder": _folder, "nifti": _nifti, "tfds": _tfds, "phantom": _phantom}


def _cache(config, name):
    """The folder data.cache_dir, or one of the user's cache."""
    if config.data.cache_dir == "auto":
        return files.user_cache() / name
    return pathlib.Path(files.expanded(config.data.cache_dir))


def _root(config):
    root = config.data.root and files.expanded(config.data.root)
    if not root or not pathlib.Path(root).is_dir():
        what = f"no such folder, {root}" if root else "no data folder, nothing"
        hint = config.data.hint or "give the folder that holds images/ and masks/"
        raise BadInput(f"{what}, in data.root; {hint}")
    return root


def _split(cases, fields, sides):
    if fields.train or fields.val or fields.test:
        # Flags read a case called 7 as a number.
        train, val, test = (
            [str(name) for name in names]
            for names in (fields.train, fields.val, fields.test)
        )
        return splits.named(cases, train=train, val=val, test=test)
    if sides and fields.folds:
        raise BadInput(
            f"split.folds is {fields.folds}, but the folders train, val and test already say who is tested. "
            "Set split.folds=0, or put the cases into one folder."
        )
    if sides:
        return splits.by_folder(
            cases, sides, fractions=fields.fractions, seed=fields.seed
        )
    if fields.folds:
        return splits.k_fold(
            cases, folds=fields.folds, fold=fields.fold, seed=fields.seed
        )
    return splits.by_case(cases, fractions=fields.fractions, seed=fields.seed)
