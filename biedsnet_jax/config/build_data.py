"""What a checked config says of data: the source, its split by case, the preparation."""

import dataclasses
import os
import pathlib
import sys

from biedsnet_jax.data import fit, foreground, splits, transforms
from biedsnet_jax.data.foreground import Foreground
from biedsnet_jax.data.sources import dataset_json
from biedsnet_jax.data.sources.image_folder import ImageFolder
from biedsnet_jax.data.sources.nifti_folder import NiftiFolder
from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Cached, Source
from biedsnet_jax.data.sources.unannotated import Unannotated
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import console, extras, files, processes

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Data:
    """A random-access source, and the indices of each split."""

    source: Source
    train: list[int]
    val: list[int]
    test: list[int]
    # The folder that is read, absolute; empty where none is.
    root: str = ""

    def cases(self, split: str) -> list[str]:
        """Cases of a split, sorted."""
        cases = self.source.cases
        return sorted({cases[i] for i in getattr(self, split)})


def open_data(config) -> Data:
    """Opens the source that a config names, and splits its cases anew.

    `run_split` opens the data of a workdir, on the split that its run started with.
    """
    return deal(config, open_source(config), data_root(config))


def open_source(config) -> Source:
    """Opens the source that a config names, and prints its warnings.

    With `data.verify` every file is read once.
    """
    source = SOURCES[config.data.source](config)
    if config.data.verify:
        source.verify()
    for note in source.facts.notes:
        warn(note)
    _advise_window(config, source.facts)
    if config.data.unannotated:
        source = Unannotated(source, config.data.unannotated)
    return Cached(source) if config.data.cache else source


def has_unknown(config) -> bool:
    """Whether some of the truth may not be known, so that batches say where it is."""
    return bool(config.data.ignore or config.data.unannotated)


def check_unannotated(config, source: Source) -> None:
    """Raises BadInput where a name in data.unannotated fits no case."""
    known = set(source.cases)
    for name, _ in config.data.unannotated:
        splits.fitting(name, known, "data.unannotated")


def _advise_window(config, facts):
    """Warns where a channel of CT has no window."""
    ct = [name for name in facts.channel_names if name.lower() == dataset_json.CT]
    if ct and not config.data.window:
        warn(
            f"{dataset_json.NAME} calls a channel {ct[0]}, and data.window is empty. For CT set "
            'one, such as --config.data.window="(-1250.,250.)" '
            "--config.data.normalise=none for lungs."
        )


def deal(config, source: Source, root: str) -> Data:
    """Splits the cases of a source, read from `root`, as the config asks."""
    sides = _split(source.cases, config.split, source.facts.sides)
    return Data(
        source, train=sides["train"], val=sides["val"], test=sides["test"], root=root
    )


def data_root(config) -> str:
    """Folder that a config's data are read from, absolute; empty where none is."""
    if config.data.source == "phantom":
        return ""
    folder = config.data.root
    if config.data.source == "tfds":
        folder = folder or config.data.tfds.data_dir
    return os.path.abspath(files.expanded(folder)) if folder else ""


def warn(text: str) -> None:
    """Prints a warning on stderr, from the first process alone."""
    if processes.is_first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def plane(config) -> str:
    """The plane in which a trained model is given the slices of volumes."""
    # A run of other data than volumes never chose one.
    return "axial" if config.data.plane == "auto" else config.data.plane


def class_labels(config) -> tuple[tuple[int, ...], ...]:
    """Label values of each class."""
    return class_labels_of(config.data)


def class_labels_of(data) -> tuple[tuple[int, ...], ...]:
    """Label values of each class, from the section `data`."""
    if data.labels:
        return tuple(map(tuple, data.labels))
    return tuple((k,) for k in range(1, data.classes + 1))


def image_shape(config) -> tuple[int, int, int]:
    """Height, width and channels of the network's input."""
    data = config.data
    return data.size, data.size, data.channels * (2 * data.context + 1)


def make_fit(config) -> fit.Fit:
    """Way of every slice to the network's canvas and back that a config asks for."""
    spacing = config.data.spacing
    # No run has settled it where it is "auto" still.
    known = None if spacing == "auto" else fit.read_spacing(spacing)
    return fit.Fit(config.data.size, config.data.fit, known)


def tile(config) -> int:
    """Side of the tiles that a slice is cut into; 0 where it goes to the network whole."""
    return config.data.size if config.data.fit == "tile" else 0


def make_prepare(config) -> transforms.Prepare:
    """Preparation of every slice that a config asks for."""
    window = tuple(map(float, config.data.window))
    return transforms.Prepare(make_fit(config), config.data.normalise, window or None)


def make_train_prepare(config) -> transforms.Prepare:
    """Preparation of the slices that a network trains on, whose masks may be shares."""
    return dataclasses.replace(make_prepare(config), target=config.data.target)


def find_foreground(config, data: Data) -> Foreground:
    """Training slices with a lesion, for the share of them that a config asks for."""
    return foreground.find_foreground(
        data.source, data.train, share=config.data.foreground, seed=config.seed
    )


def cache_folder(config) -> pathlib.Path:
    """Folder that keeps slices of volumes."""
    return _cache(config, "slices")


def _phantom(config):
    data = config.data
    return Phantom(size=data.size, classes=data.classes, **data.phantom)


def _folder(config):
    data = config.data
    return ImageFolder(
        _root(config),
        classes=data.classes,
        channels=data.channels,
        case=data.case,
        ignore=data.ignore,
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
        plane=data.plane,
        ignore=_ignored(data),
    )


def _ignored(data) -> int | None:
    return int(data.ignore) if data.ignore else None


def _tfds(config):
    extras.need("tfds", "data.source=tfds")
    # Imported here, since TFDS takes as long to import as jax.
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
        ignore=_ignored(data),
    )


SOURCES = {"folder": _folder, "nifti": _nifti, "tfds": _tfds, "phantom": _phantom}


def _cache(config, name):
    if config.data.cache_dir == "auto":
        return files.user_cache() / name
    return pathlib.Path(files.expanded(config.data.cache_dir))


def _root(config):
    hint = config.data.hint or "Give the folder that holds images/ and masks/."
    if not config.data.root:
        raise BadInput(f"data.root is empty. {hint}")
    root = files.expanded(config.data.root)
    if not os.path.isdir(root):
        raise BadInput(f"data.root is {root}, which is no folder. {hint}")
    return root


def _split(cases, fields, sides):
    if fields.train or fields.val or fields.test:
        # As text, since flags read a case called 7 as a number.
        return splits.named(
            cases,
            train=list(map(str, fields.train)),
            val=list(map(str, fields.val)),
            test=list(map(str, fields.test)),
        )
    if sides:
        if fields.folds:
            raise BadInput(
                f"split.folds is {fields.folds}, but the folders train, val and test "
                "already say who is tested. Set split.folds=0, or put the cases into one "
                "folder."
            )
        return splits.by_folder(
            cases, sides, fractions=fields.fractions, seed=fields.seed
        )
    if fields.folds:
        return splits.k_fold(
            cases, folds=fields.folds, fold=fields.fold, seed=fields.seed
        )
    return splits.by_case(cases, fractions=fields.fractions, seed=fields.seed)
