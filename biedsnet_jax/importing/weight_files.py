"""Readers of weights files: `.npz`, `.safetensors`, and `.pth` where PyTorch is there.

Reading never runs code that a file brings: only PyTorch's own reader of plain tensors
unpickles.
"""

import pathlib

import numpy as np
import safetensors.numpy

from biedsnet_jax.errors import BadInput, reason


def read_state(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a weights file as arrays by name.

    Wrapping that training scripts add is taken off: an entry "state_dict" or "model",
    and the prefix "module." of DataParallel. Raises BadInput for a file that cannot be
    read.
    """
    path = pathlib.Path(path)
    readers = {
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".pth": _read_torch,
        ".pt": _read_torch,
    }
    if path.suffix not in readers:
        raise BadInput(
            f"{path} is no weights file. Give one that ends in {', '.join(readers)}."
        )
    if not path.is_file():
        raise BadInput(f"{path} is no file. Check the path.")
    state = readers[path.suffix](path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # numpy and zipfile raise anything at a broken archive, even NotImplementedError.
    except Exception as error:
        raise BadInput(
            f"{path} is not an npz of plain arrays. Save it with numpy.savez."
        ) from error


def _read_safetensors(path):
    try:
        return safetensors.numpy.load_file(path)
    # The library raises errors of its own, and numpy's for the values.
    except Exception as error:
        raise BadInput(
            f"{path} is no valid safetensors file: {reason(error)}. Export it again."
        ) from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise BadInput(
            f"{path} needs PyTorch to be read. Run pip install torch, or save it as .npz."
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # PyTorch raises pickle, zip and runtime errors of its own.
    except Exception as error:
        raise BadInput(
            f"{path} is not a plain state_dict. Save model.state_dict() alone."
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise BadInput(
            f"{path} holds more than named tensors. Save model.state_dict() alone."
        )
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}
