"""A trained model, and how it predicts: what every mode that uses one is handed."""

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
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import fusion, segmenter
from biedsnet_jax.types import Image

# Probability and truth of a batch without its padding, and the examples they come from.
Predicted = tuple[np.ndarray, dict[str, np.ndarray], list[dict]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A segmenter with its weights, on the mesh they lie on, and the config that says
    how it predicts.

    `dataclasses.replace(trained, variables=...)` keeps the compiled programs. Another
    config or mesh needs `predict_batch=None` beside it, which makes the program anew.
    """

    config: ConfigDict
    segmenter: segmenter.Segmenter
    variables: dict
    step: int  # of the checkpoint
    mesh: Mesh
    # Jitted (variables, image, index) -> probability "b h w k", the samples fused.
    predict_batch: Callable[[dict, jax.Array, jax.Array], jax.Array] | None = None

    def __post_init__(self):
        if self.predict_batch is None:
            object.__setattr__(
                self,
                "predict_batch",
                make_predict(self.config, self.segmenter, self.mesh),
            )

    def predict_split(
        self, data: build_data.Data, indices: list[int], clock: "Clock | None" = None
    ) -> Iterator[Predicted]:
        """The probability of each batch of the slices `indices`, with its image, mask
        and examples.

        On every process the same: each reads the whole batch, and its devices predict
        their rows.
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
            if clock and not clock.images:
                # Compiled outside the clock; the call below finds the program.
                self.predict_batch.lower(
                    self.variables, inputs["image"], inputs["index"]
                ).compile()
            start = time.perf_counter()
            probability = np.asarray(
                self.predict_batch(self.variables, inputs["image"], inputs["index"])
            )
            if clock:
                clock.add(time.perf_counter() - start, len(examples))
            parts = {name: batch[name][: len(examples)] for name in ("image", "mask")}
            yield probability[: len(examples)], parts, examples

    def maps(
        self, variables: dict, image: Image, keys: segmenter.Keys
    ) -> dict[str, jax.Array]:
        """Maps "b h w k" of prepared images: probability, UNCERTAINTIES where samples
        are drawn, and the samples.
        """
        samples = self.segmenter.predict(
            variables, image, keys, ensemble=self.config.sampler.ensemble
        )
        found = {
            "probability": fusion.FUSIONS[self.config.fusion](samples),
            "samples": samples,
        }
        return found | (
            fusion.uncertainty(samples) if self.segmenter.draws_samples else {}
        )

    def weights_digest(self) -> str:
        """A hash of every array by its name: the same for the same weights, whatever
        checkpoint held them.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            array = np.asarray(leaf)
            digest.update(
                f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode()
            )
            digest.update(array.tobytes())
        return digest.hexdigest()[:32]


def load(
    workdir: pathlib.Path, config: ConfigDict, *, free: tuple[str, ...] = ()
) -> Trained:
    """What `workdir` has learnt: the EMA variables of its best checkpoint, to predict
    as `config` says.

    `free` are fields that may differ from the run's, beside those that always may.

    Raises BadInput where the config cannot be, or the workdir holds no run, or not this
    config's.
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
    """A key for each image, by its number alone: neither batch size nor devices change
    its mask.
    """
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(number)


def make_predict(
    config: ConfigDict, model: segmenter.Segmenter, mesh: Mesh
) -> Callable:
    """Jitted `(variables, image, index) -> probability "b h w k"`, the samples fused.

    An image's noise follows from the seed and its index in the source, see
    `noise_keys`.
    """
    fuse = fusion.FUSIONS[config.fusion]

    def predict(variables, image, index):
        keys = noise_keys(config.seed, index)
        return fuse(
            model.predict(variables, image, keys, ensemble=config.sampler.ensemble)
        )

    return devices.jit_batches(predict, mesh)


class Clock:
    """Seconds spent predicting, and images predicted."""

    def __init__(self):
        self.seconds, self.images = 0.0, 0

    def add(self, seconds: float, images: int) -> None:
        self.seconds, self.images = self.seconds + seconds, self.images + images
