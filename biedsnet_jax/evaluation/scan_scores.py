"""Scores scans: the masks that mode predict would write, on the grid of their files.

What the network itself gave, at `data.size` and cut at the threshold, is scored beside
it on its own grid. A volume is also scored as one body, in three dimensions.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from biedsnet_jax.data.sources.source import LabelledScan
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.prediction import outputs
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.scoring import lesions, metrics


@dataclasses.dataclass
class Scores:
    """What the scans of a split have scored so far, slice by slice in order."""

    config: ConfigDict
    tally: Tally
    # Of slices.csv, on the grid of the files.
    rows: list[dict] = dataclasses.field(default_factory=list)
    # The same slices on the network's grid.
    network_rows: list[dict] = dataclasses.field(default_factory=list)
    # Of volumes.csv; none where the scans are pictures.
    volume_rows: list[dict] = dataclasses.field(default_factory=list)
    lesion_rows: list[dict] = dataclasses.field(default_factory=list)
    # Area of a pixel by (case, slice), where its spacing is known.
    pixel_mm2: dict[tuple, float] = dataclasses.field(default_factory=dict)
    # Of each slice: its index in the source, or None, and its number in its scan.
    places: list[tuple[int | None, int]] = dataclasses.field(default_factory=list)

    def add(self, scan: LabelledScan, prediction: Prediction) -> None:
        """Scores a scan and adds it to the others."""
        masks = outputs.masks_of(prediction.label_map, prediction.labels)
        for z in range(len(masks)):
            self._add_slice(scan, prediction, masks[z], z)
        fields = self.config.eval
        if scan.is_volume:
            self.volume_rows += volume_rows(masks, scan, fields)
        if fields.lesions:
            self.lesion_rows += _lesion_rows(masks, scan, fields)

    def _add_slice(self, scan, prediction, mask, z):
        fields = self.config.eval
        spacing = scan.spacing[-2:] if scan.spacing else None
        example = {
            "case": scan.case,
            "slice": scan.slice_names[z],
            "mask": scan.truth[z],
            "spacing": spacing,
        }
        if scan.known is not None:
            example["known"] = scan.known[z]
        rows = slice_rows(mask, scan.truth[z].view(bool), example, fields)
        on_canvas = prediction.way.mask(example)
        probability = prediction.maps["probability"][z]
        above = probability > self.config.threshold
        truth = on_canvas["mask"].view(bool)
        known = _known(on_canvas)
        self.network_rows += slice_rows(above, truth, on_canvas, fields)
        if fields.paper:
            for k, row in enumerate(rows):
                row |= metrics.paper_columns(
                    pred=above[..., k], truth=truth[..., k], known=_of_class(known, k)
                )
        self.rows += rows
        self.tally.add(probability, truth, [row["dice"] for row in rows], known)
        self.places.append((scan.indices[z], z))
        if spacing is not None:
            self.pixel_mm2[scan.case, scan.slice_names[z]] = math.prod(spacing)


def slice_rows(
    mask: Bool[np.ndarray, "h w k"],
    truth: Bool[np.ndarray, "h w k"],
    example: dict,
    fields: ConfigDict,
) -> list[dict]:
    """Scores each class of one slice, a row a class; `fields` are those of eval.

    What known of the example leaves out, counts nowhere.
    """
    known = _known(example)
    return [
        metrics.slice_row(
            pred=_of_class(mask, k),
            truth=_of_class(truth, k),
            case=example["case"],
            slice=example["slice"],
            label=k + 1,
            spacing=example["spacing"],
            nsd_tolerance=fields.nsd_tolerance,
            nsd_tolerance_mm=fields.nsd_tolerance_mm,
            known=_of_class(known, k),
        )
        for k in range(truth.shape[-1])
    ]


def volume_rows(
    masks: Bool[np.ndarray, "d h w k"], scan: LabelledScan, fields: ConfigDict
) -> list[dict]:
    """Scores each class of one volume in three dimensions, a row a class.

    A class of which nothing is known has none.
    """
    truth = scan.truth.view(bool)
    known = None if scan.known is None else scan.known.view(bool)
    return [
        metrics.volume_row(
            pred=_of_class(masks, k),
            truth=_of_class(truth, k),
            case=scan.case,
            volume=scan.name,
            label=k + 1,
            spacing=scan.spacing,
            nsd_tolerance=fields.nsd_tolerance,
            nsd_tolerance_mm=fields.nsd_tolerance_mm,
            known=_of_class(known, k),
        )
        for k in range(truth.shape[-1])
        if known is None or known[..., k].any()
    ]


def _known(example) -> Bool[np.ndarray, "h w k"] | None:
    """What of an example's truth is known; None where all is."""
    return example["known"].view(bool) if "known" in example else None


def _of_class(masks, k):
    """The mask of a class in one piece, which is read several times faster, or None."""
    return None if masks is None else np.ascontiguousarray(masks[..., k])


def _lesion_rows(masks, scan, fields):
    """Lists the lesions of each class: of a volume as one body, else slice by slice."""
    truth = scan.truth.view(bool)
    if scan.known is not None:
        # The truth has nothing there.
        masks = masks & scan.known.view(bool)
    parts = [(masks, truth, scan.name, scan.spacing)]
    if not scan.is_volume:
        parts = list(zip(masks, truth, scan.slice_names, [scan.spacing] * len(masks)))
    rows = []
    for mask, true, name, spacing in parts:
        for k in range(true.shape[-1]):
            rows += lesions.rows(
                pred=_of_class(mask, k),
                truth=_of_class(true, k),
                case=scan.case,
                slice=name,
                label=k + 1,
                spacing=spacing,
                least_overlap=fields.lesion_overlap,
            )
    return rows
