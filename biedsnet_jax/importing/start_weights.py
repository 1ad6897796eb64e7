"""The weights that a training starts from, `init.source`: a workdir or a weights file.

A workdir gives the EMA weights of its best checkpoint. A file holds PyTorch weights of
the network, those of an ImageNet classifier, or arrays by this package's own paths, such
as the `weights.npz` of mode export.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.config.fields import flat
from biedsnet_jax.errors import BadInput
from biedsnet_jax.importing import fitting, imagenet, torch_weights, weight_files
from biedsnet_jax.importing.fitting import Inputs
from biedsnet_jax.runtime import devices, files


@dataclasses.dataclass(frozen=True)
class StartWeights:
    """Arrays by path that replace those of fresh variables, and what is said of them."""

    arrays: dict[str, np.ndarray]
    lines: list[str]

    def put_into(self, variables: Any) -> Any:
        """`variables` with each array in its place."""

        def replaced(path, leaf):
            return self.arrays.get(_path(path), leaf)

        return jax.tree_util.tree_map_with_path(replaced, variables)


def read(cfg: ConfigDict, variables: Any) -> StartWeights:
    """Reads `init.source` of a config for variables of these shapes.

    Raises BadInput where there is nothing to read or none of it fits.
    """
    source = pathlib.Path(files.expanded(cfg.init.source))
    if not source.exists():
        raise BadInput(
            f"init.source is {source}, which is not there. Give the workdir of a run, or "
            "a weights file."
        )
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    shapes = {_path(path): leaf.shape for path, leaf in leaves}
    if source.is_dir():
        arrays, there, lines = _read_workdir(source, cfg)
    else:
        arrays, there, lines = _read_file(source, cfg, variables, shapes), None, []
    fitted = fitting.fit(
        arrays,
        shapes,
        there=there,
        here=_inputs(cfg),
        spread_heads=not build_model.draws_samples(cfg),
    )
    if not fitted.arrays:
        raise BadInput(
            f"init.source is {source}, none of whose {len(arrays)} tensors fits network "
            f"{cfg.network}. Give weights of this network, and its widths in "
            f"networks.{cfg.network}."
        )
    count = f"{len(fitted.arrays)} of {len(shapes)} tensors"
    first = f"starting from {source}: {count}"
    return StartWeights(fitted.arrays, [first, *lines, *fitted.lines])


def _read_workdir(workdir, cfg):
    """EMA weights by path, the inputs of their network, and lines on other settings."""
    config = run_config.load(workdir)
    model = build_model.build(config)
    like = jax.eval_shape(
        lambda: train_state.create(build_model.init_variables(model, config))
    )
    # Whole on every device, so that each process can read them all.
    variables, _ = checkpoint.restore_variables(workdir, like, devices.make_mesh())
    arrays = {
        _path(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    return arrays, _inputs(config), _other_settings(config, cfg)


def _other_settings(there, here):
    """A line on each setting of the network or the diffusion that differs."""
    theirs, ours = flat(there), flat(here)
    sections = (f"networks.{here.network}.", "diffusion.")
    read = [name for name in ours if name.startswith(sections)]
    return [
        f"{name} is {theirs[name]!r} there, {ours[name]!r} here"
        for name in ("network", "method", *sorted(read))
        if name in theirs and theirs[name] != ours[name]
    ]


def _read_file(path, cfg, variables, shapes):
    tensors = weight_files.read_state(path)
    if any(name.startswith("params/") for name in tensors):
        return tensors
    params = imagenet.lay_out(cfg.network, tensors, variables["params"])
    if params is not None:
        return {f"params/{name}": value for name, value in params.items()}
    arrays = torch_weights.lay_out(cfg.network, tensors)
    return {
        name: torch_weights.drop_leading_ones(value, len(shapes.get(name, value.shape)))
        for name, value in arrays.items()
    }


def _inputs(config) -> Inputs:
    return Inputs(build_data.image_shape(config)[-1], config.data.classes)


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
