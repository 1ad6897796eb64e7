"""Refuses a training of whose train, validation or test side no truth is known."""

from ml_collections import ConfigDict

from biedsnet_jax.config import build_data
from biedsnet_jax.errors import BadInput, shown

_NAMES = {"train": "training", "val": "validation", "test": "test"}
# Fields that say what is not known.
_FIELDS = ("ignore", "unannotated")


def check(cfg: ConfigDict, data: build_data.Data) -> None:
    """Raises BadInput where a side of the split knows nothing of any class.

    Slices of a side are read up to the first with a pixel that is known.
    """
    if not build_data.has_unknown(cfg):
        return
    for side in build_data.SPLITS:
        indices = getattr(data, side)
        if not any(_is_known(data.source[index]) for index in indices):
            raise BadInput(
                f"No pixel of the {len(indices)} {_NAMES[side]} slices is known of any class, "
                f"since {_reasons(cfg.data)}. Correct that, or name other cases in "
                f"split.{side}."
            )


def _is_known(example) -> bool:
    return "known" not in example or bool(example["known"].any())


def _reasons(fields) -> str:
    """Names the fields that are set, with their values."""
    named = [
        f"data.{name} is {shown(fields[name])}" for name in _FIELDS if fields[name]
    ]
    return " and ".join(named)
