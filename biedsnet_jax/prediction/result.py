"""What a model says of a scan: maps, the mask and the label map that follow from them.

Maps come back at the slice's own size, resized bilinearly; the mask is where the
resized probability exceeds the threshold.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from biedsnet_jax.data import transforms

UNCERTAINTIES = ("entropy", "mutual_information", "variance")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one scan of d slices, each h by w, for k classes.

    The maps are kept as the network gives them, H by W, and resized when asked for:
    four maps of a whole CT would not fit in memory with their samples.
    """

    size: tuple[int, int]  # h, w
    # probability, and of diffusion methods UNCERTAINTIES
    maps: dict[str, Float[np.ndarray, "d H W k"]]
    samples_kept: Float[np.ndarray, "n d H W k"] | None
    threshold: float
    labels: tuple[tuple[int, ...], ...]  # label values of each class
    seconds: float  # for all slices, without compiling

    @property
    def probability(self) -> Float[np.ndarray, "d h w k"]:
        """Of each class."""
        return self.map("probability")

    @property
    def mask(self) -> Bool[np.ndarray, "d h w k"]:
        """Where the probability exceeds the threshold; classes may overlap."""
        return self.probability > self.threshold

    @property
    def label_map(self) -> Integer[np.ndarray, "d h w"]:
        """One whole number a voxel, 0 for none; see `label_map`."""
        # one by one, in little memory
        slices = self._each_resized(self.maps["probability"])
        return np.stack(
            [
                label_map(one, threshold=self.threshold, labels=self.labels)
                for one in slices
            ]
        )

    @property
    def uncertainty(self) -> dict[str, Float[np.ndarray, "d h w k"]]:
        """entropy (bits) and mutual_information of the samples, and their variance;
        empty for direct methods.
        """
        return {name: self.map(name) for name in UNCERTAINTIES if name in self.maps}

    @property
    def samples(self) -> list[Float[np.ndarray, "d h w k"]]:
        """Each sample's probability, where they were asked for."""
        return [
            self.sample(n)
            for n in range(0 if self.samples_kept is None else len(self.samples_kept))
        ]

    def map(self, name: str) -> Float[np.ndarray, "d h w k"]:
        """One of `maps` at the scan's size."""
        return self._resized(self.maps[name])

    def sample(self, number: int) -> Float[np.ndarray, "d h w k"]:
        """One of `samples`."""
        return self._resized(self.samples_kept[number])

    def at(
        self, z: int
    ) -> tuple[dict[str, Float[np.ndarray, "h w k"]], list[Float[np.ndarray, "h w k"]]]:
        """Maps by name and the samples kept, of one slice, at the scan's size."""
        maps = {
            name: transforms.resize_image(values[z], self.size)
            for name, values in self.maps.items()
        }
        samples = () if self.samples_kept is None else self.samples_kept[:, z]
        return maps, [transforms.resize_image(one, self.size) for one in samples]

    def mean_entropy(
        self, likely: float, where: Bool[np.ndarray, "d h w"] | None = None
    ) -> Float[np.ndarray, " k"]:
        """Of each class, over pixels (of `where`) whose probability is `likely` at
        least; 0 where none is.
        """
        total, count = np.zeros((2, self.maps["probability"].shape[-1]))
        pairs = zip(
            *(
                self._each_resized(self.maps[name])
                for name in ("probability", "entropy")
            )
        )
        for z, (p, entropy) in enumerate(pairs):
            chosen = (
                (p >= likely) if where is None else (p >= likely) & where[z, ..., None]
            )
            total += np.where(chosen, entropy, 0).sum(axis=(0, 1), dtype=np.float64)
            count += chosen.sum(axis=(0, 1))
        return total / np.maximum(count, 1)

    def _resized(self, maps):
        resized = np.empty((len(maps), *self.size, maps.shape[-1]), np.float32)
        for z, one in enumerate(self._each_resized(maps)):
            resized[z] = one
        return resized

    def _each_resized(self, maps):
        return (transforms.resize_image(one, self.size) for one in maps)


def label_map(
    probability: Float[np.ndarray, "*space k"],
    *,
    threshold: float,
    labels: Sequence[Sequence[int]],
) -> Integer[np.ndarray, "*space"]:
    """Classes as one whole number a voxel, in the values that the training labels had.

    Where sets of labels are disjoint, the likeliest class above the threshold. Where
    they overlap they are regions: the larger sets are painted first, the smaller over
    them, each with its first label that none painted later has.
    """
    values = written_values(labels)
    kind = np.uint8 if max(values) < 256 else np.uint16
    above = probability > threshold
    if exclusive(labels):
        winner = np.where(above, probability, 0).argmax(axis=-1)
        return np.where(above.any(axis=-1), np.array(values, kind)[winner], kind(0))
    painted = np.zeros(probability.shape[:-1], kind)
    for k in _painting_order(labels):
        painted[above[..., k]] = values[k]
    return painted


def exclusive(labels: Sequence[Sequence[int]]) -> bool:
    """Whether no label value belongs to two classes."""
    return len(set().union(*labels)) == sum(map(len, labels))


def written_values(labels: Sequence[Sequence[int]]) -> list[int]:
    """The number that stands for each class in a label map."""
    order = _painting_order(labels)
    values = [0] * len(labels)
    for place, k in enumerate(order):
        later = set().union(*(labels[other] for other in order[place + 1 :]))
        values[k] = next(
            (label for label in labels[k] if label not in later), labels[k][0]
        )
    return values


def _painting_order(labels) -> list[int]:
    """Classes from the one of most labels to that of fewest: a region lies in the
    larger ones.
    """
    return sorted(range(len(labels)), key=lambda k: -len(labels[k]))
