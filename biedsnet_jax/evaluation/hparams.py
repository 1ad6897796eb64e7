"""Writes a run's line on TensorBoard's page HPARAMS: its settings and its test scores.

Each evaluation replaces the file, so that scores and the sampling behind them belong
together. It is a file of its own, because TensorBoard reads on in the file of the
latest name, which would otherwise be that of the training.
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
# Keys of "standard" in results.json.
SCORES = ("dice", "iou", "nsd", "hd95", "assd", "recall", "precision")
# The validation Dice of the checkpoint that was tested.
VAL_DICE = "best_val_dice"


def record(cfg, workdir: pathlib.Path, results: dict) -> None:
    """Writes the line of a workdir from its config and the content of results.json."""
    folder = workdir / tensorboard.FOLDER
    step = results["checkpoint_step"]
    fields, present = _fields(cfg)
    file = tensorboard.Board(folder, SUFFIX)
    scores = [VAL_DICE, *map(_tag, SCORES)]
    file.add(step, tensorboard.hparams(fields, present, scores))
    file.add(step, tensorboard.scalars(_scores(workdir, results)))
    file.close()
    # Names hold the second of their making, so the newest comes last.
    *earlier, _ = sorted(tensorboard.files_of(folder, SUFFIX))
    for path in earlier:
        path.unlink()


def _fields(cfg) -> tuple[dict[str, Any], list[str]]:
    """(every field that any run has, the names of the fields that this run reads)."""
    diffusion = build_model.draws_samples(cfg)
    fields = {
        "row": cfg.row or cfg.network,
        "method": "diffusion" if diffusion else "direct",
    }
    fields |= {name: get_field(cfg, name) for name in FIELDS}
    sampling = {f"sampler.{name}": value for name, value in cfg.sampler.items()}
    sampling["fusion"] = cfg.fusion
    # One pass draws no samples.
    read = fields | sampling if diffusion else fields
    return fields | sampling, list(read)


def _scores(workdir, results):
    means = {_tag(name): results["standard"][name]["mean"] for name in SCORES}
    means[VAL_DICE] = checkpoint_folder.val_dice(
        workdir / "checkpoints", results["checkpoint_step"]
    )
    return {name: value for name, value in means.items() if value is not None}


def _tag(name):
    return f"test/{name}"
