"""The prediction of a scan together with the scan: to save on its grid, and to plot."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from biedsnet_jax.data.formats import nifti
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import outputs, plots
from biedsnet_jax.prediction.fields_text import fields_text
from biedsnet_jax.prediction.result import UNCERTAINTIES, Prediction
from biedsnet_jax.prediction.scans import Item, Scan
from biedsnet_jax.runtime import files
from biedsnet_jax.scoring.class_names import titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# A part of its own, and no field of Prediction, since mode predict and the server hold
# predictions of many scans whose slices they have let go.
@dataclasses.dataclass(frozen=True, repr=False)
class ScanPrediction(Prediction):
    """A prediction that knows its scan: the image and, of a volume, the geometry.

    Slices are canonical: from the feet up, rows from front to back, columns from the
    patient's right to left.
    """

    scan: Scan

    def __repr__(self) -> str:
        fields = {"scan": str(self.scan.item.files[0]), **self.summary()}
        if self.spacing:
            lengths = " x ".join(f"{length:.3g}" for length in self.spacing)
            fields["spacing"] = f"{lengths} mm (slice, row, column)"
        return fields_text("Prediction", fields)

    @property
    def image(self) -> Shaped[np.ndarray, "d h w c"]:
        """The slices that were segmented."""
        return self.scan.slices

    @property
    def affine(self) -> Float[np.ndarray, "4 4"] | None:
        """Affine of the file, for maps in its order; None for a picture or an array."""
        return None if self.scan.volume is None else self.scan.volume.affine

    def in_file_order(
        self, maps: Shaped[np.ndarray, "d h w *n"]
    ) -> Shaped[np.ndarray, "i j k *n"]:
        """Brings maps or a mask of this prediction into the order of a volume's file.

        There `affine` gives the place of each voxel. Raises BadInput for a picture and
        an array.
        """
        if self.scan.volume is None:
            name = self.scan.item.files[0]
            raise BadInput(
                f"{name} has no geometry, so its slices have no other order. "
                "Use them as they are."
            )
        return self.scan.volume.restore(maps)

    def save(self, path: str | Path) -> Path:
        """Writes the mask as mode predict does, and returns its path.

        That is a NIfTI file on the grid of a volume, and a PNG file for a single slice.
        Raises BadInput for another ending, for an array of several slices, which has no
        geometry, and where the file cannot be written.
        """
        path = self._checked(path)
        with files.writing(path, another="path"):
            path.parent.mkdir(parents=True, exist_ok=True)
            outputs.write_mask(self.scan, self, path)
        return path

    def save_all(self, folder: str | Path) -> dict[str, Path]:
        """Writes every file of mode predict: mask, maps, kept samples and the overlay.

        Returns the files by what they hold. They are named after the scan. Raises
        BadInput as `save` does.
        """
        folder = Path(files.expanded(str(folder)))
        where = outputs.paths(
            folder,
            self.scan.item,
            classes=len(self.labels),
            uncertainties=[name for name in UNCERTAINTIES if name in self.maps],
            samples=self.sample_count,
        )
        self._checked(where["mask"])
        with files.writing(folder, another="folder"):
            outputs.write(self.scan, self, where)
        return where

    def plot(self, z: int | None = None) -> "Figure":
        """Draws slice `z`: image, mask outline, probability and entropy of each class.

        Without `z` it is the slice with the largest mask. Returns a matplotlib Figure,
        which a notebook shows. Raises BadInput for a slice that there is not, and
        without matplotlib.
        """
        depth = len(self.image)
        if z is None:
            z = self._fullest_slice()
        if not -depth <= z < depth:
            raise BadInput(
                f"z is {z}, and the scan has {depth} slices. Give 0 to {depth - 1}."
            )
        maps, _ = self.at(z)
        return plots.plot_slice(
            self.image[z],
            maps,
            mask=self.mask_at(z),
            above=self._above(),
            names=self._panel_names(z % depth),
            aspect=self.spacing[1] / self.spacing[2] if self.spacing else 1.0,
        )

    def _panel_names(self, z) -> list[str]:
        where = f"slice {z}" if len(self.image) > 1 else "image"
        if len(self.labels) == 1:
            return [where]
        names = self.class_names
        return [
            f"{where}, class {titled(k + 1, names)}" for k in range(len(self.labels))
        ]

    def _fullest_slice(self) -> int:
        mask = self.maps["probability"] > np.array(self.thresholds, np.float32)
        return int(mask.any(axis=-1).sum(axis=(1, 2)).argmax())

    def _checked(self, path) -> Path:
        """The path of a mask, once its ending is found to fit the scan."""
        path = Path(files.expanded(str(path)))
        if self.scan.volume is None and len(self.image) > 1:
            raise BadInput(
                f"The array has {len(self.image)} slices and no geometry, so no mask of it "
                "can be saved. Segment the file, or keep label_map with numpy.save."
            )
        endings = nifti.EXTENSIONS if self.scan.volume else (".png",)
        if not path.name.lower().endswith(tuple(endings)):
            raise BadInput(
                f"The mask of {self.scan.item.files[0]} cannot be saved as {path}. "
                f"Give a name that ends in {' or '.join(endings)}."
            )
        return path


def of_scan(scan: Scan, prediction: Prediction) -> ScanPrediction:
    """Joins a prediction with the scan that it is of."""
    return ScanPrediction(
        way=prediction.way,
        maps=prediction.maps,
        samples_kept=prediction.samples_kept,
        threshold=prediction.threshold,
        labels=prediction.labels,
        seconds=prediction.seconds,
        class_names=prediction.class_names,
        scan=scan,
        postprocess=prediction.postprocess,
        spacing=prediction.spacing,
    )


def array_scan(slices: Shaped[np.ndarray, "d h w c"]) -> Scan:
    """Takes an array in memory for a scan without a file or a geometry."""
    return Scan(Item("array", "picture", (Path("array"),), len(slices)), slices)
