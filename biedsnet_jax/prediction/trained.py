"""A trained model and how it predicts, as every mode that uses one gets it."""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.data import pipeline
from biedsnet_jax.prediction.fields_text import counted, fields_text, labelled
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import fusion, segmenter
from biedsnet_jax.types import Image

# Probability of a batch without its padding, its image, mask and known, and its examples.
Predicted = tuple[np.ndarray, dict[str, np.ndarray], list[dict]]


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """A segmenter, its weights, their mesh, and the config by which it predicts.

    `dataclasses.replace(trained, variables=...)` keeps the compiled programs. A change
    of the config or the mesh also needs `predict_batch=None`, which makes a new program.
    """

    config: ConfigDict
    segmenter: segmenter.Segmenter
    variables: dict
    # Training step of the checkpoint.
    step: int
    mesh: Mesh
    # Jitted (variables, image, index) -> probability "b h w k", the samples fused.
    predict_batch: Callable[[dict, jax.Array, jax.Array], jax.Array] | None = None

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
        name, size = config.row or config.network, config.data.size
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

    def _sampler(self) -> str:
        if not self.segmenter.draws_samples:
            return "none, one pass an image"
        sampler = self.config.sampler
        steps, samples = counted(sampler.steps, "step"), sampler.ensemble
        drawn = counted(samples, "sample")
        return f"{sampler.method}, {steps}, {drawn}, fused by {self.config.fusion}"

    def predict_split(
        self, data: build_data.Data, indices: list[int], clock: "Clock | None" = None
    ) -> Iterator[Predicted]:
        """Yields the probability of each batch of the slices `indices`, and its data.

        `clock` counts the time of the predictions, without compilation. Every process
        yields the same: each reads whole batches, and its devices predict their rows.
        """
        size = devices.divisible(self.config.eval.batch_size, self.mesh)
        prepare = build_data.make_prepare(self.config)
        for batch, examples in pipeline.eval_batches(
            data.source, indices, prepare=prepare, batch_size=size
        ):
            number = np.zeros(size, np.int32)
            number[: len(examples)] = [example["index"] for example in examples]
            inputs = devices.put_whole_batch(
                {"image": batch["image"], "index": number}, self.mesh
            )
            arguments = self.variables, inputs["image"], inputs["index"]
            if clock and not clock.images:
                # Compiled outside the clock; the call below finds the program.
                self.predict_batch.lower(*arguments).compile()
            start = time.perf_counter()
            probability = np.asarray(self.predict_batch(*arguments))
            if clock:
                clock.add(time.perf_counter() - start, len(examples))
            parts = {
                name: batch[name][: len(examples)]
                for name in ("image", "mask", "known")
                if name in batch
            }
            yield probability[: len(examples)], parts, examples

    def maps(
        self, variables: dict, image: Image, keys: segmenter.Keys
    ) -> dict[str, jax.Array]:
        """Predicts the maps "b h w k" of prepared images.

        These are "probability", "samples" ("n b h w k") and, where the method draws
        samples, UNCERTAINTIES.
        """
        samples = self.segmenter.predict(
            variables, image, keys, ensemble=self.config.sampler.ensemble
        )
        fuse = fusion.FUSIONS[self.config.fusion]
        maps = {"probability": fuse(samples), "samples": samples}
        if self.segmenter.draws_samples:
            maps |= fusion.uncertainty(samples)
        return maps

    def weights_digest(self) -> str:
        """Hashes every array with its name.

        The same weights give the same digest, whatever checkpoint held them.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            name = jax.tree_util.keystr(path)
            array = np.asarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
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
    return Trained(config, model, variables, step, mesh)


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
