"""What is done to masks after the network: thresholds, holes, small and largest objects.

The rules are decided on the validation cases (`evaluation.choose_postprocess`) and kept in
`postprocess.json` of a workdir. An object is a connected component of one class, as in
`scoring.lesions`: pixels that touch by an edge or a corner (8), of a volume voxels that
touch by a face too (26). A hole is background that one class encloses: it reaches the
border by no face (4, 6).
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from biedsnet_jax.config.rules import is_number
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files, processes
from biedsnet_jax.scoring import lesions
from biedsnet_jax.scoring.distances import bounding_box

NAME = "postprocess.json"
# In what sizes of objects are given. In volumes an object is one body of all slices.
UNITS = ("pixels", "mm2", "mm3")
# What the thresholds of the file are meant for.
_OF_THRESHOLDS = ("threshold", "fusion")
# Of the numbers in the file; a float holds no more.
_LARGEST = 1e300


@dataclasses.dataclass(frozen=True)
class Postprocess:
    """The rules, each with an entry a class; an empty one does nothing.

    They are applied in the order of their fields. Nothing is taken from another class:
    a hole is filled where no class is, and what is removed becomes background.
    """

    # A class is where its probability exceeds this, in place of the config's threshold.
    thresholds: tuple[float, ...] = ()
    # Whether the holes of a class are filled.
    holes: tuple[bool, ...] = ()
    # Objects smaller than this, in `unit`, are removed; 0 keeps all.
    smallest: tuple[float, ...] = ()
    # Whether only the largest object stays.
    largest: tuple[bool, ...] = ()
    # One of UNITS. "mm3": objects of whole volumes; else those of single slices.
    unit: str = "pixels"
    # mm2 of a pixel whose scan does not tell, for the unit "mm2".
    pixel_mm2: float | None = None
    # Number of validation cases that decided; None where nothing was decided.
    cases: int | None = None
    # Mean Dice of these cases without the rules, and with them; None where unknown.
    before: float | None = None
    after: float | None = None
    # Why there are no rules, where something was decided.
    reason: str = ""

    @property
    def changes_masks(self) -> bool:
        """Whether any mask may differ from that without rules."""
        return bool(self.thresholds) or self.changes_objects

    @property
    def changes_objects(self) -> bool:
        """Whether `apply` may change a mask."""
        return any((*self.holes, *self.smallest, *self.largest))

    def apply(
        self,
        masks: Bool[np.ndarray, "d h w k"],
        spacing: tuple[float, ...] | None,
        *,
        exclusive: bool,
    ) -> Bool[np.ndarray, "d h w k"]:
        """Fills holes and removes objects; thresholds were applied before.

        `spacing` is in mm: between slices, rows and columns of a volume, rows and columns
        of a picture, None where unknown. Rules of volumes leave what is none as it is.
        `exclusive`: no pixel is of two classes.
        """
        if not self.changes_objects:
            return masks
        if self.unit == "mm3":
            if len(spacing or ()) < 3:
                return masks
            return self._apply(masks, math.prod(spacing), exclusive)
        size = self._pixel_size(spacing)
        return np.stack([self._apply(one, size, exclusive) for one in masks])

    def _pixel_size(self, spacing) -> float:
        if self.unit == "pixels":
            return 1.0
        return self.pixel_mm2 if spacing is None else math.prod(spacing[-2:])

    def _apply(self, masks, size, exclusive):
        """Changes the masks "*space k" of one body, whose pixels have a `size`."""
        masks = masks.copy()
        for k, fill in enumerate(self.holes):
            if fill:
                taken = masks.any(axis=-1) if exclusive else masks[..., k]
                masks[..., k] |= holes(masks[..., k]) & ~taken
        for k in range(masks.shape[-1]):
            smallest = self.smallest[k] if self.smallest else 0.0
            only_one = bool(self.largest) and self.largest[k]
            if smallest or only_one:
                masks[..., k] = _objects(masks[..., k], smallest / size, only_one)
        return masks

    def alone(self) -> "Postprocess":
        """The rules without what they gave on the cases of one model."""
        if not self.changes_masks:
            return Postprocess()
        return dataclasses.replace(self, before=None, after=None, reason="", cases=0)

    def to_json(self) -> dict[str, Any] | None:
        """Returns the fields in JSON's types; None where nothing was decided."""
        if self.cases is None:
            return None
        return json.loads(json.dumps(dataclasses.asdict(self)))


def holes(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """Finds the background that a mask encloses."""
    found = np.zeros_like(mask)
    box = bounding_box(mask)
    outside = ~mask[box]
    if not outside.any():
        return found
    # Faces only, the default of scipy, since objects touch by corners.
    parts, count = ndimage.label(outside)
    enclosed = np.ones(count + 1, bool)
    for axis in range(parts.ndim):
        enclosed[np.take(parts, (0, -1), axis)] = False
    # Part 0 is the mask itself.
    enclosed[0] = False
    found[box] = enclosed[parts]
    return found


def _objects(mask, smallest: float, only_one: bool):
    """Keeps the objects of at least `smallest` pixels, or of these the largest."""
    found = np.zeros_like(mask)
    box = bounding_box(mask)
    inside = mask[box]
    # The number of each pixel's object; there are few pixels in a large box.
    parts = lesions.components(inside)[inside]
    sizes = np.bincount(parts)
    kept = sizes >= smallest
    if only_one and len(parts):
        kept &= np.arange(len(sizes)) == sizes.argmax()
    found[box][inside] = kept[parts]
    return found


def load(workdir: Path, config, step: int) -> Postprocess:
    """Loads the rules of a workdir for its checkpoint of `step`.

    There are none where `config.postprocess` is False, no file is there, or the file is
    of another checkpoint, which a line says. A threshold or a fusion that is not the
    file's takes the place of its thresholds. Raises BadInput for a damaged file.
    """
    if not config.postprocess or not (workdir / NAME).exists():
        return Postprocess()
    fields, rules = _read(workdir / NAME, config.data.classes)
    if fields["checkpoint_step"] != step:
        if processes.is_first():
            processes.say(
                f"{workdir / NAME} was decided for step {fields['checkpoint_step']}, and the "
                f"best checkpoint is now step {step}, so it is not applied. The command of "
                "the training decides anew when it ends."
            )
        return Postprocess()
    if any(fields[name] != config[name] for name in _OF_THRESHOLDS):
        return dataclasses.replace(rules, thresholds=(), before=None, after=None)
    return rules


def decided_step(workdir: Path, classes: int) -> int | None:
    """Step of the checkpoint that a workdir's rules are for; None without any.

    Raises BadInput for a damaged file.
    """
    if not (workdir / NAME).exists():
        return None
    return _read(workdir / NAME, classes)[0]["checkpoint_step"]


def write(workdir: Path, decision: dict[str, Any]) -> None:
    """Writes a decision as `load` reads it. Raises BadInput where that is impossible."""
    with files.writing(workdir):
        files.write_json(workdir / NAME, decision)


def from_json(fields: Any, classes: int) -> Postprocess:
    """Makes the rules of what `to_json` returned.

    Raises ValueError for anything else, with a text that says what is wrong.
    """
    _check_fields(fields, [field.name for field in dataclasses.fields(Postprocess)])
    if fields["unit"] not in UNITS:
        raise _wrong(fields, "unit", f"one of {', '.join(UNITS)}")
    rules = Postprocess(
        thresholds=_entries(fields, "thresholds", classes, most=1.0),
        holes=_flags(fields, "holes", classes),
        smallest=_entries(fields, "smallest", classes),
        largest=_flags(fields, "largest", classes),
        unit=fields["unit"],
        pixel_mm2=_number(fields, "pixel_mm2"),
        cases=_count(fields, "cases"),
        before=_number(fields, "before"),
        after=_number(fields, "after"),
        reason=str(fields["reason"]),
    )
    if rules.unit == "mm2" and not (rules.pixel_mm2 or 0) > 0:
        raise _wrong(fields, "pixel_mm2", "a number above 0")
    return rules


def _check_fields(fields, names):
    """Raises ValueError where `fields` are none, or one of the names is missing."""
    if not isinstance(fields, dict):
        raise ValueError(f"it has {_shown(fields)} where fields belong")
    for name in names:
        if name not in fields:
            raise ValueError(f"it has no {name}")


def _entries(fields, name, classes, most=math.inf) -> tuple[float, ...]:
    """The numbers from 0 to `most` of the classes; none of a rule that is not there."""
    values = _of_classes(fields, name, classes)
    if not all(_is_finite(value) and 0 <= value <= most for value in values):
        numbers = (
            "numbers from 0" if most == math.inf else f"numbers from 0 to {most:g}"
        )
        raise _wrong(fields, name, numbers)
    return tuple(map(float, values))


def _flags(fields, name, classes) -> tuple[bool, ...]:
    values = _of_classes(fields, name, classes)
    if not all(isinstance(value, bool) for value in values):
        raise _wrong(fields, name, "true and false alone")
    return tuple(values)


def _of_classes(fields, name, classes) -> list:
    values = fields[name]
    if not isinstance(values, list) or len(values) not in (0, classes):
        raise _wrong(fields, name, f"a list of {classes}, one a class, or none")
    return values


def _number(fields, name) -> float | None:
    value = fields[name]
    if value is None:
        return None
    if not _is_finite(value):
        raise _wrong(fields, name, "a number or null")
    return float(value)


def _count(fields, name) -> int:
    value = fields[name]
    if not _is_finite(value) or value != int(value):
        raise _wrong(fields, name, "a whole number")
    return int(value)


def _is_finite(value) -> bool:
    """Whether a value is a finite number, such as a float holds."""
    return is_number(value) and abs(value) < _LARGEST


def _wrong(fields, name, expected) -> ValueError:
    return ValueError(f"{name} is {_shown(fields[name])}, not {expected}")


def _shown(value) -> str:
    return shown(json.dumps(value))


def _read(path, classes) -> tuple[dict[str, Any], Postprocess]:
    """Reads a file: its fields, and the rules in it."""
    try:
        fields = json.loads(path.read_text())
        _check_fields(fields, ("checkpoint_step", "rules", *_OF_THRESHOLDS))
        fields["checkpoint_step"] = _count(fields, "checkpoint_step")
        rules = from_json(fields["rules"], classes)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"line {error.lineno} is no JSON") from None
    except UnicodeDecodeError:
        raise _damaged(path, "it is no text") from None
    except RecursionError:
        raise _damaged(path, "its brackets are nested too deep") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, reason(error)) from None
    return fields, rules


def _damaged(path, what) -> BadInput:
    return BadInput(
        f"{path} is damaged: {what}. Delete it and give the command of the training "
        "again, which decides anew, or use --config.postprocess=False."
    )
