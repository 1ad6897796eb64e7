"""The dataset.json of Medical Decathlon and of nnU-Net: its cases, its channels and its
labels.
"""

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
    """It is no dataset.json, or is broken."""


@dataclass(frozen=True)
class DatasetJson:
    """What such a file says that training must know."""

    path: Path
    # image and label of each case that is listed, as written
    training: list[tuple[str, str]]
    channels: tuple[str, ...]  # their names; empty where it has none

    def check_channels(self, count: int) -> None:
        """Raises BadInput where the images hold another number of channels than are
        named.
        """
        if self.channels and len(self.channels) != count:
            names = shown(", ".join(self.channels))
            raise BadInput(
                f"{self.path} names {_channels(len(self.channels))} ({names}), but the images hold "
                f"{count}. Add the missing files, or correct the names."
            )


def read(root: Path) -> DatasetJson | None:
    """The file in `root`, in UTF-8 (with a byte order mark or without), UTF-16 or
    UTF-32, or None.

    Raises Damaged for a damaged file, BadInput for channels that are not numbered from
    0 and for a label called "ignore".
    """
    path = root / NAME
    if not path.exists():
        return None
    check_regular(path)
    try:
        # From bytes, since json tells the encoding by itself.
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


def _damaged(path, what) -> Damaged:
    return Damaged(f"{path} is damaged: {what}. Restore or remove it.")


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"


def _channel_names(names: Any, path: Path) -> tuple[str, ...]:
    """By number as a dict, in order as a list, or the one name."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict):
        numbers = sorted(int(key) for key in names if str(key).isdecimal())
        if len(numbers) == len(names) and numbers != list(range(len(numbers))):
            listed = ", ".join(map(str, numbers))
            raise BadInput(
                f"{path} numbers its channels {listed}. Number them from 0, no gap."
            )
        return tuple(map(str, names.values()))
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _check_labels(labels: Any, path: Path) -> None:
    """Raises BadInput for a label called "ignore", which would be trained as if it were
    a class.
    """
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    for key, value in labels.items() if isinstance(labels, dict) else ():
        name = next(
            (text for text in _texts([key, value]) if _IGNORE.match(text)), None
        )
        if name is not None:
            number = (
                key if isinstance(value, str | list) and str(key).isdecimal() else value
            )
            raise BadInput(
                f"{path} calls label {shown(number)} {shown(name)!r}, which is not supported yet: "
                "it would be trained like any other. Give these voxels another label or leave such "
                "cases out, and take the name away."
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
