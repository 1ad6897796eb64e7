"""Reads the cases, channels and labels of Medical Decathlon's and nnU-Net's lists."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.errors import BadInput, reason, shown

NAME = "dataset.json"
_IGNORE = re.compile(r"\s*ignored?(?![a-z])", re.IGNORECASE)


class Damaged(BadInput):
    """The file is no dataset.json, or is broken."""


@dataclass(frozen=True)
class DatasetJson:
    """Content of a dataset.json that training must know."""

    path: Path
    # Image and label of each case in the list, as written.
    training: list[tuple[str, str]]
    # Names of the channels; empty where the file has none.
    channels: tuple[str, ...]

    def check_channels(self, count: int) -> None:
        """Raises BadInput where images have another number of channels than named."""
        if self.channels and len(self.channels) != count:
            names = shown(", ".join(self.channels))
            noun = "channel" if len(self.channels) == 1 else "channels"
            raise BadInput(
                f"{self.path} names {len(self.channels)} {noun} ({names}), but the images hold "
                f"{count}. Add the missing files, or correct the names."
            )


def read(root: Path) -> DatasetJson | None:
    """Reads the file in a folder; None where there is none.

    It may be in UTF-8 (with a byte order mark or without), UTF-16 or UTF-32. Raises
    Damaged for a damaged file, and BadInput for channels that are not numbered from 0
    and for a label called "ignore".
    """
    path = root / NAME
    if not path.exists():
        return None
    check_regular(path)
    try:
        # Bytes, since json finds out the encoding by itself.
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} where fields were expected")
        entries = content.get("training") or []
        training = [(str(one["image"]), str(one["label"])) for one in entries]
    except UnicodeDecodeError as error:
        raise Damaged(
            f"{path} is not UTF-8: {reason(error)}. Save it as UTF-8."
        ) from error
    except KeyError as error:
        raise _damaged(path, f"an entry of its list lacks {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, reason(error)) from error
    _check_labels(content.get("labels"), path)
    names = content.get("channel_names") or content.get("modality") or ()
    return DatasetJson(path, training, _channel_names(names, path))


def _damaged(path: Path, what: str) -> Damaged:
    return Damaged(f"{path} is damaged: {what}. Restore or remove it.")


def _channel_names(names: Any, path: Path) -> tuple[str, ...]:
    """Reads names given by number in a dict, in order in a list, or as the one name."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict):
        numbers = sorted(int(key) for key in names if str(key).isdecimal())
        if len(numbers) == len(names) and numbers != list(range(len(numbers))):
            listed = ", ".join(map(str, numbers))
            raise BadInput(
                f"{path} numbers its channels {listed}. Number them from 0, without a gap."
            )
        return tuple(map(str, names.values()))
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _check_labels(labels: Any, path: Path) -> None:
    """Raises BadInput for a label called "ignore", which would become a class."""
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if not isinstance(labels, dict):
        return
    # Medical Decathlon maps numbers to names, nnU-Net names to numbers.
    for key, value in labels.items():
        for name in _texts([key, value]):
            if not _IGNORE.match(name):
                continue
            by_number = isinstance(value, str | list) and str(key).isdecimal()
            number = key if by_number else value
            raise BadInput(
                f"{path} calls label {shown(number)} {shown(name)!r}, which is not supported yet: "
                "it would be trained like any other. Give these voxels another label or leave such "
                "cases out, and take the name away."
            )


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a nested list."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
