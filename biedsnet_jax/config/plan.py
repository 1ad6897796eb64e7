"""What a run takes from its own data where the config leaves it open.

Where it says "auto": the plane that volumes are cut in, and the spacing that slices are
resampled to. Where it is empty: names of classes and channels, and the label to ignore.
All are settled when the training starts, and its workdir's config.json has what was
chosen. So every later mode and a resumed run follow it, whatever data they see.
"""

import sys
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from biedsnet_jax.config import build_data
from biedsnet_jax.config.fields import get_field, set_field
from biedsnet_jax.runtime import console, processes

AUTO = "auto"
FIELDS = ("data.plane", "data.spacing")
# Of the section data, and of the facts of a source.
_FACTS = ("class_names", "channel_names", "ignore")


def adopt(config: ConfigDict, saved: ConfigDict) -> None:
    """Takes over what the run of `saved` chose, where `config` says "auto"."""
    for name in FIELDS:
        if get_field(config, name) == AUTO:
            set_field(config, name, get_field(saved, name))


def adopt_facts(config: ConfigDict, saved: ConfigDict) -> None:
    """Takes over what the data of the run of `saved` said, where `config` is silent."""
    for name in _FACTS:
        config.data[name] = config.data[name] or saved.data[name]


def settle(config: ConfigDict, data: build_data.Data) -> None:
    """Chooses, from the data of a run that starts, what `config` leaves open.

    The first process prints a spacing that it chose; a plane the source has printed.
    """
    facts = data.source.facts
    _take_facts(config, facts)
    if config.data.plane == AUTO and facts.plane:
        config.data.plane = facts.plane
    if config.data.spacing != AUTO or config.data.fit == "squash":
        return
    config.data.spacing = _choose_spacing(config, data)
    if config.data.spacing and processes.is_first():
        height, width = config.data.spacing.split(",")
        console.tell(f"slices in pixels of {height} x {width} mm", sys.stdout)


def _choose_spacing(config, data) -> str:
    """The spacing of the median training case, or one at which it fits the canvas.

    data.fit=tile takes the median as it is. data.fit=pad takes the same for rows and
    columns, such that the larger side of the median slice fills the canvas; so slices of
    the same scanner are magnified alike. Empty where no spacing is known.
    """
    sizes, spacings = _grids(data.source, data.train)
    if not len(spacings):
        return ""
    row, column = np.median(spacings, axis=0)
    if config.data.fit == "pad":
        sides = np.median(np.multiply(sizes, spacings), axis=0)
        row = column = sides.max() / config.data.size
    return f"{row:.4g},{column:.4g}"


def _take_facts(config, facts):
    """Sets names and the label to ignore, where `config` is silent, as the data say."""
    for name in _FACTS:
        config.data[name] = config.data[name] or getattr(facts, name)


def _grids(source, indices: Sequence[int]):
    """Size (h, w) and spacing of one slice of each case, where it has a spacing."""
    first = {source.cases[i]: i for i in reversed(indices)}
    sizes, spacings = [], []
    for index in first.values():
        example = source[int(index)]
        if example["spacing"] is not None:
            sizes.append(example["mask"].shape[:2])
            spacings.append(example["spacing"])
    return sizes, spacings
