"""The prediction of a scan: maps, and the mask and label map that follow from them.

Maps go back to the slice's own size as its image came to the network (`data.fit`). The
mask is where the probability exceeds the threshold there, changed by the rules that were
decided on the validation cases (`postprocess`). All masks come from here, so every mode
applies the same rules.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from biedsnet_jax.data.fit import Way
from biedsnet_jax.prediction.fields_text import counted, fields_text, labelled
from biedsnet_jax.prediction.postprocess import Postprocess

# Maps of how unsure samples are, see segmenters/fusion.py.
OF_SAMPLES = ("entropy", "mutual_information", "variance")
# The mutual information of an ensemble in its two parts.
OF_MODELS = ("within_models", "between_models")
UNCERTAINTIES = (*OF_SAMPLES, *OF_MODELS)


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """The prediction of one scan of d slices, each h by w, for k classes.

    The maps keep the network's size, H by W, and are resized when asked for: four maps
    of a whole CT and their samples would not fit in memory.
    """

    # The way of its slices to the network, and of the maps back.
    way: Way
    # "probability", where there are samples OF_SAMPLES, of an ensemble OF_MODELS.
    maps: dict[str, Float[np.ndarray, "d H W k"]]
    # None where they were not asked for.
    samples_kept: Float[np.ndarray, "n d H W k"] | None
    threshold: float
    # Label values of each class.
    labels: tuple[tuple[int, ...], ...]
    # Time for all slices, without compilation.
    seconds: float
    # What is done to the masks.
    postprocess: Postprocess = dataclasses.field(default=Postprocess(), kw_only=True)
    # mm between slices, rows and columns of a volume, rows and columns of a picture;
    # None without a geometry.
    spacing: tuple[float, ...] | None = dataclasses.field(default=None, kw_only=True)
    # Names of the classes; empty where they have none.
    class_names: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __repr__(self) -> str:
        return fields_text("Prediction", self.summary())

    def summary(self) -> dict[str, str]:
        """Returns sizes and settings by name, in words and without any array."""
        height, width = self.way.size
        depth, *grid, _ = self.maps["probability"].shape
        kept = f"{self.sample_count} kept" if self.sample_count else "none kept"
        classes = labelled(self.labels, self.class_names)
        return {
            "size": f"{counted(depth, 'slice')} of {height} x {width} pixels",
            "grid": f"{grid[0]} x {grid[1]}, as the network predicts",
            "classes": f"{classes}, above {self._above()}",
            "maps": ", ".join(self.maps),
            "samples": kept,
            "seconds": f"{self.seconds:.3g}",
        }

    @property
    def probability(self) -> Float[np.ndarray, "d h w k"]:
        """Probability of each class."""
        return self.map("probability")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold of each class."""
        return self.postprocess.thresholds or (self.threshold,) * len(self.labels)

    @property
    def mask(self) -> Bool[np.ndarray, "d h w k"]:
        """Pixels whose probability exceeds the threshold; classes may overlap."""
        masks = self._masks(above)
        return self.postprocess.apply(masks, self.spacing, exclusive=False)

    @property
    def label_map(self) -> Integer[np.ndarray, "d h w"]:
        """One whole number a voxel, 0 for no class; see `decided` and `painted`."""
        masks = self.postprocess.apply(
            self._masks(decided),
            self.spacing,
            exclusive=exclusive(self.labels),
        )
        return painted(masks, self.labels)

    def _masks(self, find) -> Bool[np.ndarray, "d h w k"]:
        # Slice by slice, to take little memory.
        slices = [
            find(probability, thresholds=self.thresholds, labels=self.labels)
            for probability in self.each_slice("probability")
        ]
        return np.stack(slices)

    def _above(self) -> str:
        """The thresholds in words, and whether more is done to the masks."""
        values = dict.fromkeys(f"{value:g}" for value in self.thresholds)
        if len(values) > 1:
            values = [f"{value:g}" for value in self.thresholds]
        more = ", post-processed" if self.postprocess.changes_objects else ""
        return ", ".join(values) + more

    @property
    def uncertainty(self) -> dict[str, Float[np.ndarray, "d h w k"]]:
        """Entropy and mutual information (bits) and variance of the samples, by name.

        An ensemble also has the mutual information's two parts. Empty for one model
        that draws no samples.
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

    def each_slice(self, name: str) -> Iterator[Float[np.ndarray, "h w k"]]:
        """Resizes one of `maps` slice by slice, which takes less memory."""
        return self._each_resized(self.maps[name])

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

    def mask_at(self, z: int) -> Bool[np.ndarray, "h w k"]:
        """Returns `mask` of one slice."""
        if self.postprocess.changes_objects:
            return self.mask[z]
        probability = self.way.back(self.maps["probability"][z])
        return above(probability, thresholds=self.thresholds, labels=self.labels)

    def mean_entropy(
        self, likely: float, where: Bool[np.ndarray, "d h w"] | None = None
    ) -> Float[np.ndarray, " k"]:
        """Averages the entropy (bits) of each class over its likely pixels.

        These are the pixels of `where`, or all, whose probability is at least `likely`;
        0 where there are none.
        """
        classes = self.maps["probability"].shape[-1]
        total = np.zeros(classes)
        count = np.zeros(classes)
        probabilities = self.each_slice("probability")
        entropies = self.each_slice("entropy")
        for z, (p, entropy) in enumerate(zip(probabilities, entropies)):
            chosen = p >= likely
            if where is not None:
                chosen &= where[z, ..., None]
            bits = np.where(chosen, entropy, 0)
            total += bits.sum(axis=(0, 1), dtype=np.float64)
            count += chosen.sum(axis=(0, 1))
        return total / np.maximum(count, 1)

    def _resized(self, maps):
        # Filled slice by slice: a stack would hold everything twice.
        depth, *_, channels = maps.shape
        resized = np.empty((depth, *self.way.size, channels), np.float32)
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
    """Writes the classes above a threshold as one whole number a voxel."""
    thresholds = (threshold,) * len(labels)
    masks = decided(probability, thresholds=thresholds, labels=labels)
    return painted(masks, labels)


def above(
    probability: Float[np.ndarray, "*space k"],
    *,
    thresholds: Sequence[float],
    labels: Sequence[Sequence[int]],
) -> Bool[np.ndarray, "*space k"]:
    """Finds the classes whose probability exceeds their threshold."""
    # Of the probability's own type, so that 0.3 is not above 0.3.
    return probability > np.asarray(thresholds, probability.dtype)


def decided(
    probability: Float[np.ndarray, "*space k"],
    *,
    thresholds: Sequence[float],
    labels: Sequence[Sequence[int]],
) -> Bool[np.ndarray, "*space k"]:
    """Finds the classes of each voxel.

    Where the classes' sets of labels are disjoint, it is the likeliest of those above
    their thresholds. So a lower threshold wins ground from the background, and from
    other classes only where its class is the likelier one. Where the sets overlap they
    are regions, and all above their thresholds count.
    """
    found = above(probability, thresholds=thresholds, labels=labels)
    if len(labels) == 1 or not exclusive(labels):
        return found
    winner = np.where(found, probability, 0).argmax(axis=-1)
    return found & (winner[..., None] == np.arange(len(labels)))


def painted(
    masks: Bool[np.ndarray, "*space k"], labels: Sequence[Sequence[int]]
) -> Integer[np.ndarray, "*space"]:
    """Writes masks as one whole number a voxel, in the values of the training labels.

    Larger sets of labels are painted first and smaller ones over them, each with its
    first label that no later one has.
    """
    values = written_values(labels)
    kind = np.uint8 if max(values) < 256 else np.uint16
    label_map = np.zeros(masks.shape[:-1], kind)
    for k in _painting_order(labels):
        label_map[masks[..., k]] = values[k]
    return label_map


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
