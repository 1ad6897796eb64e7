"""Mode import: PyTorch weights of a network, or an ImageNet start, as a workdir like
any other.

Evaluate and predict read it as they read a trained one; training with the same config
goes on from it.
"""

import pathlib

import jax
import numpy as np

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.importing import imagenet, torch_weights, weight_files
from biedsnet_jax.runtime import devices, files
from biedsnet_jax.training.optimizer import make_optimizer


def run(cfg, workdir: str, source: str | None) -> None:
    """Write a workdir with the weights in the file `source`.

    Raises BadInput for a file that cannot be read or does not fit, each tensor by name,
    and for a workdir in use.
    """
    check_config(cfg)
    folder = pathlib.Path(workdir)
    if not source:
        raise BadInput(
            "no weights, nothing, in --input; give a .npz, .safetensors or .pth file"
        )
    if (folder / "config.json").exists():
        raise BadInput(f"workdir in use, {workdir}, in --workdir; give a new folder")
    with files.writing(folder):
        files.check_writable(folder)
    tensors, mesh = weight_files.read_state(source), devices.make_mesh()
    variables, start = _variables(cfg, tensors)
    state = jax.device_put(
        train_state.create(variables, make_optimizer(cfg.train)[0]),
        devices.replicated(mesh),
    )
    _write(cfg, folder, state)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{cfg.network}: {len(tensors)} tensors, {parameters:,} parameters, {start}, in {workdir}"
    )


def _write(cfg, folder, state):
    """The workdir; the config comes last, since it makes one of a folder."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Of a full disk `wait` says all there is to say.
    with checkpoint.Checkpoints(folder, warn=lambda text: None) as checkpoints:
        if checkpoints.latest_step() is not None:
            raise BadInput(
                f"{folder} holds the checkpoint of an import that was ended before it was done. "
                "Remove that folder, or give another --workdir."
            )
        checkpoints.save(state, config=cfg.to_dict())
        checkpoints.wait(saved=0)
        with files.writing(folder):
            run_config.save(cfg, folder / "config.json")


def _variables(cfg, tensors):
    """(variables, what they are)."""
    model = build_model.build(cfg)

    def fresh():
        return build_model.init_variables(model, cfg)

    load = _imagenet_start(cfg.network, tensors)
    if load is None:
        return torch_weights.to_variables(
            cfg.network, tensors, jax.eval_shape(fresh)
        ), "the network's own"
    drawn = jax.jit(fresh).lower().compile(compiler_options=devices.RUN_ONCE)()
    return load(tensors, jax.tree.map(np.asarray, drawn)), "an ImageNet start"


def _imagenet_start(network, tensors):
    """The loader of an ImageNet classifier's layout, None where the tensors are the
    network's own.
    """
    if network == "trans_unet" and any(
        name.startswith("Transformer/") for name in tensors
    ):
        return imagenet.load_pretrained_vit_r50
    if network == "swin_unet" and "head.weight" in tensors:
        return imagenet.load_pretrained_swin_t
    return None
