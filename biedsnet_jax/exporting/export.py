"""Mode export: a trained model as a folder that runs without this package and without
Flax.

`predict.stablehlo` is the program (jax.export), `weights.npz` what it was trained to,
`export.json` how it is called, `load.py` an example of that, `MODEL_CARD.md` what the
model is and how good.
"""

import hashlib
import importlib.metadata
import io
import pathlib

import jax
import numpy as np
from jax import export

from biedsnet_jax.config import build_data
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.exporting import loader, model_card, program
from biedsnet_jax.prediction import trained
from biedsnet_jax.runtime import files, processes

PROGRAM, WEIGHTS, ABOUT, LOADER, CARD = (
    "predict.stablehlo",
    "weights.npz",
    "export.json",
    "load.py",
    "MODEL_CARD.md",
)
_MEANS = {
    "image": "slices in the units of the training files, at this size; window and normalisation are in the program",
    "number": "of each slice in its scan, from 0; with the seed it chooses the noise, so that batches decide nothing",
    "seed": "of the noise",
    "probability": "of each class; the mask is where it exceeds the threshold",
    "entropy": "of the samples' mean, in bits",
    "mutual_information": "what of the entropy the samples' disagreement explains, in bits",
    "variance": "of the samples",
    "samples": "probability of each sample",
}


def run(cfg, workdir: str, output: str | None, *, keep_samples: bool = False) -> None:
    """Write the best checkpoint of `workdir`, and how `cfg` samples with it, to the
    folder `output`.

    Raises BadInput where the workdir holds no run, or not this config's, and where the
    folder holds anything else.
    """
    if not output:
        raise BadInput(
            "no folder, nothing, in --output; give the folder that the program goes to"
        )
    check_config(cfg)
    if processes.several():
        raise BadInput(
            f"several processes, {jax.process_count()}, in --num_processes; export with one"
        )
    folder = pathlib.Path(output)
    _check_folder(folder)
    with files.writing(folder, another="--output"):
        files.check_writable(folder)
    results = model_card.read_results(pathlib.Path(workdir))
    model = trained.load(pathlib.Path(workdir), cfg)
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
        f"{sizes}, for {', '.join(exported.platforms)}; {folder / LOADER} shows how to call it"
    )


def describe(
    model: trained.Trained, exported: export.Exported, weights: dict[str, np.ndarray]
) -> dict:
    """What export.json holds: all that a caller has to know, and what the model is."""
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    (_, *inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    cfg = model.config
    data, diffusion = cfg.data, model.segmenter.draws_samples
    return {
        "row": cfg.row or cfg.network,
        "network": cfg.network,
        "parameters": sum(
            x.size for name, x in weights.items() if name.startswith("params/")
        ),
        "dtype": cfg.dtype,
        "checkpoint_step": model.step,
        "train_steps": cfg.train.steps,
        "inputs": dict(
            zip(
                ("image", "number", "seed"),
                map(_field, inputs, ("image", "number", "seed")),
            )
        ),
        "outputs": {name: _field(aval, name) for name, aval in outputs.items()},
        "threshold": cfg.threshold,
        "classes": data.classes,
        # values in the training masks
        "labels": [list(labels) for labels in build_data.class_labels(cfg)],
        "seed": cfg.seed,
        "sampler": dict(cfg.sampler) if diffusion else None,
        "fusion": cfg.fusion if diffusion else None,
        "data": {
            name: data[name]
            for name in ("name", "size", "channels", "context", "normalise")
        }
        | {"window": list(data.window)},
        "split": cfg.split.to_dict(),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib")
        },
    }


def _field(aval, name) -> dict:
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return {"shape": shape, "dtype": str(aval.dtype), "means": _MEANS[name]}


def _npz(weights) -> bytes:
    file = io.BytesIO()
    np.savez(file, **weights)
    return file.getvalue()


def _check_folder(folder):
    """None yet, one of an earlier export, or what a killed one left."""
    if not folder.exists():
        return
    names = (
        {path.name.removeprefix(".partial_") for path in folder.iterdir()}
        if folder.is_dir()
        else {"a file"}
    )
    if ABOUT not in names and not names <= {PROGRAM, WEIGHTS, LOADER, CARD}:
        raise BadInput(
            f"folder of something else, {folder}, in --output; give a new one, or that of an earlier export"
        )


def _write(folder, about, binaries, card):
    """What a killed export leaves has no export.json, and is not loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    for name, data in binaries.items():
        files.write_bytes(folder / name, data)
    files.write_text(
        folder / LOADER, pathlib.Path(loader.__file__).read_text(encoding="utf-8")
    )
    files.write_text(folder / CARD, card)
    files.write_json(folder / ABOUT, about)
