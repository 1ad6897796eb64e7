"""Mode export: a trained model as a folder that runs without this package and Flax.

`predict.stablehlo` is the program (jax.export), `weights.npz` its weights, `export.json`
its inputs and outputs, `load.py` an example of a call, and `MODEL_CARD.md` says what the
model is and how good.
"""

import hashlib
import io
import pathlib

import jax
import jaxlib
import numpy as np
from jax import export

from biedsnet_jax.config import build_data, members
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.exporting import loader, model_card, preparation, program
from biedsnet_jax.prediction import ensembles, trained
from biedsnet_jax.runtime import files, processes
from biedsnet_jax.scoring import postprocess_text

PROGRAM = "predict.stablehlo"
WEIGHTS = "weights.npz"
ABOUT = "export.json"
LOADER = "load.py"
CARD = "MODEL_CARD.md"
_MEANS = {
    "image": (
        "slices of this size, in the units of the training files, as data.prepare says; the "
        "program applies window and normalisation"
    ),
    "number": (
        "number of each slice in its scan, from 0; it chooses the noise together with the "
        "seed, so that batches do not"
    ),
    "seed": "seed of the noise",
    "probability": "probability of each class; the mask is where it exceeds its threshold",
    "entropy": "entropy of the samples' mean, in bits",
    "mutual_information": "part of the entropy that the samples' disagreement explains, in bits",
    "variance": "variance of the samples",
    "within_models": "mutual information among a model's samples, the mean over models, in bits",
    "between_models": "part of the mutual information that is between the models, in bits",
    "samples": "probability of each class in each sample",
}


def run(
    cfg,
    workdir: members.Workdirs,
    output: str | None,
    *,
    keep_samples: bool = False,
) -> None:
    """Exports the best checkpoint of `workdir`, sampled as `cfg` says, to `output`.

    `workdir` may name several, with commas or as a list, whose models predict together.
    Raises BadInput where the workdir holds no run of this config, and where the folder
    holds anything but an export.
    """
    if not output:
        raise BadInput(
            "--output is missing. Give the folder that the program is written to."
        )
    check_config(cfg)
    if processes.several():
        raise BadInput(
            f"--num_processes is {jax.process_count()}. Export with one process."
        )
    if cfg.data.fit != "squash" and cfg.data.normalise != "none":
        raise BadInput(
            f"data.fit is {cfg.data.fit} and data.normalise is {cfg.data.normalise}, and the "
            "exported program would normalise the padding too. Export a model that was "
            "trained with data.fit=squash or data.normalise=none."
        )
    folder = pathlib.Path(output)
    _check_folder(folder)
    with files.writing(folder, another="--output"):
        files.check_writable(folder)
    # Read first, so that damaged results stop the export before anything compiles.
    workdirs = members.folders(workdir)
    results = model_card.read_results(workdirs[0])
    model = ensembles.load(workdirs, cfg)
    if model.members:
        weights = [member.weights for member in model.members]
        results = model_card.read_results_of(workdirs[0], weights)
    # Lowering needs their shapes alone; the values go into a file of their own.
    weights = program.flatten(jax.device_get(model.variables))
    exported = program.lower(model, weights, keep_samples=keep_samples)
    binaries = {PROGRAM: bytes(exported.serialize()), WEIGHTS: _npz(weights)}
    about = describe(model, exported, weights)
    about["sha256"] = {
        name: hashlib.sha256(data).hexdigest() for name, data in binaries.items()
    }
    with files.writing(folder, another="--output"):
        _write(folder, about, binaries, model_card.card(about, results))
    sizes = ", ".join(
        f"{name} {len(data) / 1e6:.1f} MB" for name, data in binaries.items()
    )
    print(
        f"{sizes}, for {', '.join(exported.platforms)}. {folder / LOADER} shows how to "
        "call it."
    )


def describe(
    model: trained.Trained, exported: export.Exported, weights: dict[str, np.ndarray]
) -> dict:
    """Contents of export.json: what a caller has to know, and what the model is."""
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    # The first input is the weights, which weights.npz holds.
    (_, image, number, seed), _ = jax.tree.unflatten(
        exported.in_tree, exported.in_avals
    )
    cfg = model.config
    data = cfg.data
    sampler, fusion = trained.sampling(model)
    about = {
        "row": model.name,
        "network": cfg.network,
        "parameters": sum(
            x.size for name, x in weights.items() if name.startswith("params/")
        ),
        "dtype": cfg.dtype,
        "checkpoint_step": model.step,
        "train_steps": cfg.train.steps,
        "inputs": {
            "image": _field(image, "image"),
            "number": _field(number, "number"),
            "seed": _field(seed, "seed"),
        },
        "outputs": {name: _field(aval, name) for name, aval in outputs.items()},
        **_masks(model),
        "seed": cfg.seed,
        "sampler": sampler,
        "fusion": fusion,
        "data": {
            "name": data.name,
            "size": data.size,
            "channels": data.channels,
            "channel_names": list(data.channel_names),
            "context": data.context,
            "normalise": data.normalise,
            "window": list(data.window),
            **preparation.describe(cfg),
        },
        "split": cfg.split.to_dict(),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }
    about |= trained.together(model)
    for member in about.get("members", ()):
        # A path of this machine says nothing to those who get the export.
        member["workdir"] = pathlib.Path(member["workdir"]).name
    return about


def _masks(model) -> dict:
    """What a caller has to know to make masks of probabilities."""
    cfg = model.config
    rules = model.postprocess
    return {
        "threshold": cfg.threshold,
        # Of each class; they may have been decided on the validation cases.
        "thresholds": list(rules.thresholds or (cfg.threshold,) * cfg.data.classes),
        "postprocess": rules.to_json(),
        # What mode predict also does to masks, and the program and load.py do not.
        "not_applied": postprocess_text.of_objects(rules.to_json()),
        "classes": cfg.data.classes,
        # Empty where neither data nor config name them.
        "class_names": list(cfg.data.class_names),
        # Values in the training masks.
        "labels": [list(labels) for labels in build_data.class_labels(cfg)],
    }


def _field(aval, name):
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return {"shape": shape, "dtype": str(aval.dtype), "means": _MEANS[name]}


def _npz(weights):
    file = io.BytesIO()
    np.savez(file, **weights)
    return file.getvalue()


def _check_folder(folder):
    """Raises BadInput unless a folder is new or of an export, also of a killed one."""
    if not folder.exists():
        return
    if folder.is_dir():
        names = {path.name.removeprefix(".partial_") for path in folder.iterdir()}
        if ABOUT in names or names <= {PROGRAM, WEIGHTS, LOADER, CARD}:
            return
    raise BadInput(
        f"--output is {folder}, which is no export. Give a new folder, or that of an "
        "earlier export."
    )


def _write(folder, about, binaries, card):
    """Writes the files of an export."""
    folder.mkdir(parents=True, exist_ok=True)
    # export.json comes last, so that what a killed export leaves is not loaded.
    (folder / ABOUT).unlink(missing_ok=True)
    for name, data in binaries.items():
        files.write_bytes(folder / name, data)
    files.write_text(
        folder / LOADER, pathlib.Path(loader.__file__).read_text(encoding="utf-8")
    )
    files.write_text(folder / CARD, card)
    files.write_json(folder / ABOUT, about)
