"""A run's line on TensorBoard's page HPARAMS: what it was set to and how it scored, to
compare runs by.

A file of its own that each evaluation replaces, so that scores and the sampling they
were made with belong together. It comes after training: TensorBoard reads on in the
file of the latest name.
"""

import pathlib
from typing import Any

from biedsnet_jax.checkpoints import checkpoint_folder
from biedsnet_jax.config import build_model
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.runtime import tensorboard

SUFFIX = ".test"
FIELDS = (
    "network",
    "data.name",
    "data.size",
    "train.learning_rate",
    "train.steps",
    "train.batch_size",
    "seed",
)
# of `standard` in results.json
SCORES = ("dice", "iou", "nsd", "hd95", "assd", "recall", "precision")
# of the checkpoint that was tested
VAL_DICE = "best_val_dice"


def record(cfg, workdir: pathlib.Path, results: dict) -> None:
    """Write the line of a workdir that was evaluated, with `results`."""
    folder, step = workdir / tensorboard.FOLDER, results["checkpoint_step"]
    fields, present = _fields(cfg)
    file = tensorboard.Board(folder, SUFFIX)
    file.add(step, tensorboard.hparams(fields, present, [VAL_DICE, *map(_tag, SCORES)]))
    file.add(step, tensorboard.scalars(_scores(workdir, results)))
    file.close()
    # by the second
    *earlier, _ = sorted(tensorboard.files_of(folder, SUFFIX))
    for path in earlier:
        path.unlink()


def _fields(cfg) -> tuple[dict[str, Any], list[str]]:
    """(every field that any run has, the names of those that this one reads)."""
    diffusion = build_model.draws_samples(cfg)
    fields = {
        "row": cfg.row or cfg.network,
        "method": "diffusion" if diffusion else "direct",
    }
    fields |= {name: get_field(cfg, name) for name in FIELDS}
    sampler = {f"sampler.{name}": value for name, value in cfg.sampler.items()} | {
        "fusion": cfg.fusion
    }
    read = [f"sampler.{name}" for name in cfg.sampler] + ["fusion"] if diffusion else []
    return fields | sampler, [*fields, *read]


def _scores(workdir, results):
    means = {_tag(name): results["standard"][name]["mean"] for name in SCORES}
    means |= {
        VAL_DICE: checkpoint_folder.val_dice(
            workdir / "checkpoints", results["checkpoint_step"]
        )
    }
    return {name: value for name, value in means.items() if value is not None}


def _tag(name):
    return f"test/{name}"
