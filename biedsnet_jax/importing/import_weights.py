"""Mode import: a workdir from PyTorch weights of a network, or an ImageNet start.

Evaluate and predict read it like a trained one; training with the same config goes on
from it.
"""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.importing import imagenet, torch_weights, weight_files
from biedsnet_jax.runtime import devices, files


def run(cfg, workdir: str, source: str | None) -> None:
    """Writes a workdir with the weights in the file `source`.

    Raises BadInput for a workdir in use and for a file that cannot be read or does not
    fit, naming each tensor.
    """
    check_config(cfg)
    folder = pathlib.Path(workdir)
    if not source:
        raise BadInput(
            "--input is missing. Give the .npz, .safetensors or .pth file of the weights."
        )
    if (folder / "config.json").exists():
        raise BadInput(f"--workdir is {workdir}, which holds a run. Give a new folder.")
    with files.writing(folder):
        files.check_writable(folder)
    tensors = weight_files.read_state(source)
    variables, kind = make_variables(cfg, tensors)
    optimizer, _ = make_optimizer(cfg.train)
    state = train_state.create(variables, optimizer)
    _write(cfg, folder, jax.device_put(state, devices.replicated(devices.make_mesh())))
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{cfg.network}: {len(tensors)} tensors, {parameters:,} parameters, {kind}, in "
        f"{workdir}"
    )


def _write(cfg, folder, state):
    """Writes the workdir; the config comes last, since it makes one of a folder."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # `wait` raises all there is to say about a full disk.
    with checkpoint.Checkpoints(folder, warn=lambda text: None) as checkpoints:
        if checkpoints.latest_step() is not None:
            raise BadInput(
                f"{folder} holds the checkpoint of an import that ended before it was done. "
                "Remove that folder, or give another --workdir."
            )
        checkpoints.save(state, config=cfg.to_dict())
        checkpoints.wait(saved=0)
        with files.writing(folder):
            run_config.save(cfg, folder / "config.json")


def make_variables(
    cfg: ConfigDict, tensors: Mapping[str, np.ndarray]
) -> tuple[dict, str]:
    """Variables of the config's segmenter from the tensors of a file, and their kind.

    An ImageNet start leaves the decoder as it is drawn. Raises BadInput for tensors that
    do not fit.
    """
    model = build_model.build(cfg)

    def draw():
        return build_model.init_variables(model, cfg)

    load = imagenet.find_loader(cfg.network, tensors)
    if load is None:
        target = jax.eval_shape(draw)
        variables = torch_weights.to_variables(cfg.network, tensors, target)
        return variables, "the network's own"
    drawn = jax.jit(draw).lower().compile(compiler_options=devices.RUN_ONCE)()
    return load(tensors, jax.tree.map(np.asarray, drawn)), "an ImageNet start"
