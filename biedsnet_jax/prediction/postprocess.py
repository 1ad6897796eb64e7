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

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import files, processes
from biedsnet_jax.scoring import lesions
from biedsnet_jax.scoring.distances import bounding_box

NAME = "postprocess.json"
# In what sizes of objects are given. In volumes an object is one body of all slices.
UNITS = ("pixels", "mm2", "mm3")
# What the thresholds of the file are meant for.
_OF_THRESHOLDS = ("threshold", "fusion")


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


def from_json(fields: dict[str, Any], classes: int) -> Postprocess:
    """Makes the rules of what `to_json` returned.

    Raises ValueError, TypeError or KeyError for anything else.
    """
    rules = Postprocess(
        thresholds=_entries(fields["thresholds"], classes, 0.0, 1.0),
        holes=_flags(fields["holes"], classes),
        smallest=_entries(fields["smallest"], classes, 0.0, math.inf),
        largest=_flags(fields["largest"], classes),
        unit=fields["unit"],
        pixel_mm2=_number(fields["pixel_mm2"]),
        cases=int(fields["cases"]),
        before=_number(fields["before"]),
        after=_number(fields["after"]),
        reason=str(fields["reason"]),
    )
    if rules.unit not in UNITS or (rules.unit == "mm2" and not rules.pixel_mm2):
        raise ValueError(f"unit is {rules.unit!r}")
    return rules


def _entries(values, classes, low, high) -> tuple[float, ...]:
    entries = tuple(float(value) for value in values)
    if len(entries) not in (0, classes):
        raise ValueError(f"{len(entries)} entries for {classes} classes")
    if not all(low <= value <= high for value in entries):
        raise ValueError(f"{list(entries)} leaves {low:g} to {high:g}")
    return entries


def _flags(values, classes) -> tuple[bool, ...]:
    if not all(isinstance(value, bool) for value in values):
        raise ValueError(f"{values} are not all true or false")
    return tuple(value > 0 for value in _entries(values, classes, 0, 1))


def _number(value) -> float | None:
    return None if value is None else float(value)


def _read(path, classes) -> tuple[dict[str, Any], Postprocess]:
    """Reads a file: its fields, and the rules in it."""
    try:
        fields = json.loads(path.read_text())
        rules = from_json(fields["rules"], classes)
        fields["checkpoint_step"] = int(fields["checkpoint_step"])
        missing = [name for name in _OF_THRESHOLDS if name not in fields]
        if missing:
            raise ValueError(f"it has no {missing[0]}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(
            f"{path} is damaged: {type(error).__name__}, {reason(error)}. Remove it and give "
            "the command of the training again, which decides anew, or use "
            "--config.postprocess=False."
        ) from None
    return fields, rules
