"""The prediction of a scan: maps, and the mask and label map that follow from them.

Maps go back to the slice's own size as its image came to the network (`data.fit`). The
mask is where the probability exceeds the threshold there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from biedsnet_jax.data.fit import Way
from biedsnet_jax.prediction.fields_text import counted, fields_text, labelled

UNCERTAINTIES = ("entropy", "mutual_information", "variance")


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """The prediction of one scan of d slices, each h by w, for k classes.

    The maps keep the network's size, H by W, and are resized when asked for: four maps
    of a whole CT and their samples would not fit in memory.
    """

    # The way of its slices to the network, and of the maps back.
    way: Way
    # "probability", and UNCERTAINTIES where the method draws samples.
    maps: dict[str, Float[np.ndarray, "d H W k"]]
    # None where they were not asked for.
    samples_kept: Float[np.ndarray, "n d H W k"] | None
    threshold: float
    # Label values of each class.
    labels: tuple[tuple[int, ...], ...]
    # Time for all slices, without compilation.
    seconds: float
    # Names of the classes; empty where they have none.
    class_names: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __repr__(self) -> str:
        return fields_text("Prediction", self.summary())

    def summary(self) -> dict[str, str]:
        """Returns sizes and settings by name, in words and without any array."""
        height, width = self.way.size
        depth, *grid, _ = self.maps["probability"].shape
        kept = f"{self.sample_count} kept" if self.sample_count else "none kept"
        return {
            "size": f"{counted(depth, 'slice')} of {height} x {width} pixels",
            "grid": f"{grid[0]} x {grid[1]}, as the network predicts",
            "classes": (
                f"{labelled(self.labels, self.class_names)}, above {self.threshold:g}"
            ),
            "maps": ", ".join(self.maps),
            "samples": kept,
            "seconds": f"{self.seconds:.3g}",
        }

    @property
    def probability(self) -> Float[np.ndarray, "d h w k"]:
        """Probability of each class."""
        return self.map("probability")

    @property
    def mask(self) -> Bool[np.ndarray, "d h w k"]:
        """Pixels whose probability exceeds the threshold; classes may overlap."""
        return self.probability > self.threshold

    @property
    def label_map(self) -> Integer[np.ndarray, "d h w"]:
        """One whole number a voxel, 0 for no class; see the function `label_map`."""
        # Slice by slice, to take little memory.
        slices = [
            label_map(probability, threshold=self.threshold, labels=self.labels)
            for probability in self._each_resized(self.maps["probability"])
        ]
        return np.stack(slices)

    @property
    def uncertainty(self) -> dict[str, Float[np.ndarray, "d h w k"]]:
        """Entropy and mutual information (bits) and variance of the samples, by name.

        Empty for a method that draws no samples.
        """
        return {name: self.map(name) for name in UNCERTAINTIES if name in self.maps}

    @property
    def samples(self) -> list[Float[np.ndarray, "d h w k"]]:
        """Probability of each sample; empty where samples were not asked for."""
        return [self.sample(number) for number in range(self.sample_count)]

    @property
    def sample_count(self) -> int:
        """Number of `samples`."""
        return 0 if self.samples_kept is None else len(self.samples_kept)

    def map(self, name: str) -> Float[np.ndarray, "d h w k"]:
        """Resizes one of `maps` to the scan's size."""
        return self._resized(self.maps[name])

    def sample(self, number: int) -> Float[np.ndarray, "d h w k"]:
        """Returns one of `samples`."""
        return self._resized(self.samples_kept[number])

    def at(
        self, z: int
    ) -> tuple[dict[str, Float[np.ndarray, "h w k"]], list[Float[np.ndarray, "h w k"]]]:
        """Returns the maps by name and the samples of one slice, at the scan's size."""
        maps = {name: self.way.back(values[z]) for name, values in self.maps.items()}
        samples = () if self.samples_kept is None else self.samples_kept[:, z]
        return maps, list(self._each_resized(samples))

    def mean_entropy(
        self, likely: float, where: Bool[np.ndarray, "d h w"] | None = None
    ) -> Float[np.ndarray, " k"]:
        """Averages the entropy (bits) of each class over its likely pixels.

        These are the pixels of `where`, or all, whose probability is at least `likely`;
        0 where there are none.
        """
        total, count = np.zeros((2, self.maps["probability"].shape[-1]))
        probabilities = self._each_resized(self.maps["probability"])
        entropies = self._each_resized(self.maps["entropy"])
        for z, (p, entropy) in enumerate(zip(probabilities, entropies)):
            chosen = p >= likely
            if where is not None:
                chosen &= where[z, ..., None]
            total += np.where(chosen, entropy, 0).sum(axis=(0, 1), dtype=np.float64)
            count += chosen.sum(axis=(0, 1))
        return total / np.maximum(count, 1)

    def _resized(self, maps):
        # Filled slice by slice: a stack would hold everything twice.
        resized = np.empty((len(maps), *self.way.size, maps.shape[-1]), np.float32)
        for z, image in enumerate(self._each_resized(maps)):
            resized[z] = image
        return resized

    def _each_resized(self, images):
        return map(self.way.back, images)


def label_map(
    probability: Float[np.ndarray, "*space k"],
    *,
    threshold: float,
    labels: Sequence[Sequence[int]],
) -> Integer[np.ndarray, "*space"]:
    """Writes classes as one whole number a voxel, in the values of the training labels.

    Where the classes' sets of labels are disjoint, the likeliest class above the
    threshold wins. Where they overlap they are regions: larger sets are painted first
    and smaller ones over them, each with its first label that no later one has.
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
    """Checks that no label value belongs to two classes."""
    return len(set().union(*labels)) == sum(map(len, labels))


def written_values(labels: Sequence[Sequence[int]]) -> list[int]:
    """Returns the number that stands for each class in a label map."""
    values = [0] * len(labels)
    later = set()
    for k in reversed(_painting_order(labels)):
        own = [label for label in labels[k] if label not in later]
        values[k] = own[0] if own else labels[k][0]
        later.update(labels[k])
    return values


def _painting_order(labels) -> list[int]:
    """Sorts classes by falling number of labels: a region lies within larger ones."""
    return sorted(range(len(labels)), key=lambda k: -len(labels[k]))
