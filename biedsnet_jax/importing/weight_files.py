"""Readers of weights files: `.npz`, `.safetensors`, and `.pth` where PyTorch is there.

Reading never runs code that a file brings: only PyTorch's own reader of plain tensors
unpickles.
"""

import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np

from biedsnet_jax.errors import BadInput

SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


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
    """Reads eight bytes of header length, a JSON header, and the raw tensors."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    try:
        if start > len(raw):
            raise ValueError(f"a header of {start - 8} bytes in a file of {len(raw)}")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        data = memoryview(raw)[start:]
        return {name: _safetensor(entry, data) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise BadInput(
            f"{path} is no valid safetensors file: {why}. Export it again."
        ) from error


def _safetensor(entry, data):
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(
            f"dtype {entry['dtype']}, not one of {', '.join(SAFETENSORS_DTYPES)}"
        )
    dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
    shape = entry["shape"]
    begin, end = entry["data_offsets"]
    inside = 0 <= begin <= end <= len(data)
    if not inside or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"bytes {begin} to {end} of {len(data)} for {entry['dtype']} {shape}"
        )
    return np.frombuffer(data[begin:end], dtype).reshape(shape)


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
