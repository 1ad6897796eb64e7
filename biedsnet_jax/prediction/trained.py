"""A trained model and how it predicts, as every mode that uses one gets it."""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.data import pipeline
from biedsnet_jax.prediction import postprocess
from biedsnet_jax.prediction.fields_text import counted, fields_text, labelled
from biedsnet_jax.prediction.postprocess import Postprocess
from biedsnet_jax.prediction.result import OF_MODELS, OF_SAMPLES
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import fusion, segmenter, tiling
from biedsnet_jax.types import Image

# Probability of a batch without its padding, its image, mask and known, and its examples.
Predicted = tuple[np.ndarray, dict[str, np.ndarray], list[dict]]


@dataclasses.dataclass(frozen=True)
class Member:
    """Identity of one model of an ensemble."""

    # An absolute path.
    workdir: str
    # Training step of the checkpoint.
    step: int
    # Digest of its arrays.
    weights: str


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """A segmenter, its weights, their mesh, and the config by which it predicts.

    `dataclasses.replace(trained, variables=...)` keeps the compiled programs. A change
    of the config or the mesh also needs `predict_batch=None`, which makes a new program.
    """

    config: ConfigDict
    segmenter: segmenter.Segmenter
    variables: dict
    # Training step of the checkpoint, of an ensemble that of the first member.
    step: int
    mesh: Mesh
    # Jitted (variables, image, index) -> probability "b h w k", the samples fused.
    predict_batch: Callable[[dict, jax.Array, jax.Array], jax.Array] | None = None
    # What is done to its masks.
    postprocess: Postprocess = dataclasses.field(default=Postprocess())
    # Models of an ensemble; none where it is one model. See `ensembles`.
    members: tuple[Member, ...] = ()

    def __post_init__(self):
        if self.predict_batch is None:
            program = make_predict(self.config, self.segmenter, self.mesh)
            object.__setattr__(self, "predict_batch", program)

    def __repr__(self) -> str:
        return fields_text("Trained", self.summary())

    def summary(self) -> dict[str, str]:
        """Returns network, data and sampling by name, in words and without any array."""
        config = self.config
        parameters = sum(x.size for x in jax.tree.leaves(self.variables["params"]))
        device = self.mesh.devices.flat[0].device_kind
        name, size = self.name, config.data.size
        channels = counted(build_data.image_shape(config)[-1], "channel")
        return {
            "network": f"{name}, {counted(parameters, 'parameter')}",
            "data": config.data.name or config.data.root or config.data.source,
            "step": f"{self.step:,} of {config.train.steps:,}",
            "grid": f"{size} x {size} pixels, {channels}",
            "classes": labelled(
                build_data.class_labels(config), config.data.class_names
            ),
            "sampler": self._sampler(),
            "threshold": f"{config.threshold:g}",
            "devices": f"{self.mesh.size} x {device}",
        }

    @property
    def name(self) -> str:
        """Name in tables, with the number of models of an ensemble."""
        name = self.config.row or self.config.network
        return f"{name} ({len(self.members)} models)" if self.members else name

    @property
    def sample_count(self) -> int:
        """Samples of an image, of all models; 0 where one model predicts in one pass."""
        drawn = self.config.sampler.ensemble if self.segmenter.draws_samples else 1
        if self.members:
            return drawn * len(self.members)
        return drawn if self.segmenter.draws_samples else 0

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Names of the maps of how unsure the samples are, as `maps` makes them."""
        names = OF_SAMPLES if self.sample_count else ()
        return (*names, *OF_MODELS) if self.members else names

    def _sampler(self) -> str:
        sampler = self.config.sampler
        mirrored = f", mirrored {sampler.mirror}" if sampler.mirror else ""
        fused = f"fused by {self.config.fusion}"
        if not self.segmenter.draws_samples:
            of_each = f" of each model, {fused}" if self.members else ""
            return f"none, one pass an image{of_each}{mirrored}"
        steps = counted(sampler.steps, "step")
        drawn = counted(self.sample_count, "sample")
        return f"{sampler.method}, {steps}, {drawn}, {fused}{mirrored}"

    def predict_split(
        self, data: build_data.Data, indices: list[int], clock: "Clock | None" = None
    ) -> Iterator[Predicted]:
        """Yields the probability of each batch of the slices `indices`, and its data.

        `clock` counts the time of the predictions, without compilation. Every process
        yields the same: each reads whole batches, and its devices predict their rows.
        """
        prepare = build_data.make_prepare(self.config)
        compiled = set()
        running = None
        for batch, examples in pipeline.eval_batches(
            data.source, indices, prepare=prepare, batch_size=self.most_slices
        ):
            number = np.zeros(len(batch["image"]), np.int32)
            number[: len(examples)] = [example["index"] for example in examples]
            inputs = devices.put_whole_batch(
                {"image": batch["image"], "index": number}, self.mesh
            )
            arguments = self.variables, inputs["image"], inputs["index"]
            if clock and batch["image"].shape not in compiled:
                # Compiled outside the clock; the call below finds the program.
                self.predict_batch.lower(*arguments).compile()
                compiled.add(batch["image"].shape)
            start = time.perf_counter()
            probability = self.predict_batch(*arguments)
            if clock:
                jax.block_until_ready(probability)
                clock.add(time.perf_counter() - start, len(examples))
            # Fetched a batch later, so that the device has work while that one is used.
            if running:
                yield _fetched(*running)
            running = probability, batch, examples
        if running:
            yield _fetched(*running)

    def most_slices(self, canvas: tuple[int, int]) -> int:
        """Most slices of a canvas (H, W) that are predicted at once.

        These are eval.batch_size, raised to the next number that divides over the
        devices. Where a canvas is cut into tiles, eval.batch_size counts tiles.
        """
        tiles = tiling.count(canvas, self.config.data.size)
        most = max(1, self.config.eval.batch_size // tiles)
        return devices.divisible(most, self.mesh)

    def maps(
        self, variables: dict, image: Image, keys: segmenter.Keys
    ) -> dict[str, jax.Array]:
        """Predicts the maps "b h w k" of prepared images.

        These are "probability", "samples" ("n b h w k") and `uncertainties`.
        """
        samples = self.segmenter.predict(
            variables, image, keys, ensemble=self.config.sampler.ensemble
        )
        fuse = fusion.FUSIONS[self.config.fusion]
        maps = {"probability": fuse(samples), "samples": samples}
        if self.sample_count:
            maps |= fusion.uncertainty(samples)
        if self.members:
            maps |= fusion.uncertainty_by_model(samples, len(self.members))
        return maps

    def weights_digest(self) -> str:
        """Hashes every array with its name.

        The same weights give the same digest, whatever checkpoint held them. Rules that
        change masks count too: with others, masks are made again.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            name = jax.tree_util.keystr(path)
            array = devices.whole_array(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
        if self.postprocess.changes_masks:
            digest.update(repr(self.postprocess).encode())
        return digest.hexdigest()[:32]


def load(
    workdir: pathlib.Path, config: ConfigDict, *, free: tuple[str, ...] = ()
) -> Trained:
    """Loads the EMA variables of the best checkpoint of `workdir`.

    The model predicts as `config` says. `free` are fields that may differ from the
    run's, beside those that always may. Raises BadInput for an invalid config, and where
    the workdir holds no run, or not one of this config.
    """
    check_config(config)
    run_config.check_trained(config, workdir, free=free)
    mesh = devices.make_mesh(fsdp=config.parallel.fsdp)
    model = build_model.build(config)
    like = jax.eval_shape(
        lambda: train_state.create(build_model.init_variables(model, config))
    )
    variables, step = checkpoint.restore_variables(workdir, like, mesh)
    rules = postprocess.load(workdir, config, step)
    return Trained(config, model, variables, step, mesh, postprocess=rules)


def sampling(model: Trained) -> tuple[dict | None, str | None]:
    """Fields of the sampler, and the fusion, as results and exports record them.

    None where they are not read. The mirror stands apart, see `together`, since results
    of earlier versions have none.
    """
    fields = {name: value for name, value in model.config.sampler.items()}
    del fields["mirror"]
    draws = model.segmenter.draws_samples
    return (
        fields if draws else None,
        model.config.fusion if model.sample_count else None,
    )


def together(model: Trained) -> dict[str, Any]:
    """What results and exports record of an ensemble and of mirrored passes.

    Nothing for one model without a mirror.
    """
    found = {}
    if model.config.sampler.mirror:
        found["mirror"] = model.config.sampler.mirror
    if model.members:
        found["members"] = [dataclasses.asdict(member) for member in model.members]
    return found


def noise_keys(seed: int | jax.Array, number: jax.Array) -> jax.Array:
    """Returns a key for each image, from the seed and its number alone.

    So neither the batch size nor the devices change a mask.
    """
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(number)


def make_predict(
    config: ConfigDict, model: segmenter.Segmenter, mesh: Mesh
) -> Callable:
    """Jits `(variables, image, index) -> probability "b h w k"`, the samples fused.

    The noise of an image follows from the seed and its index in the source; see
    `noise_keys`.
    """
    fuse = fusion.FUSIONS[config.fusion]
    ensemble = config.sampler.ensemble

    def predict(variables, image, index):
        keys = noise_keys(config.seed, index)
        return fuse(model.predict(variables, image, keys, ensemble=ensemble))

    return devices.jit_batches(predict, mesh)


class Clock:
    """Seconds spent on predictions, and number of images predicted."""

    def __init__(self):
        self.seconds = 0.0
        self.images = 0

    def add(self, seconds: float, images: int) -> None:
        """Adds the time of a batch and its number of images."""
        self.seconds += seconds
        self.images += images


def _fetched(probability, batch, examples) -> Predicted:
    """Waits for a batch's probability; all without the padding."""
    count = len(examples)
    parts = {
        name: batch[name][:count]
        for name in ("image", "mask", "known")
        if name in batch
    }
    return np.asarray(probability)[:count], parts, examples
