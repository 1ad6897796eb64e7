"""Damaged checkpoints and weights are refused in one line, or give the right numbers."""

import dataclasses
import io
import json
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import damaged, tried
from hypothesis import given
from hypothesis import strategies as st

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.importing import weight_files
from biedsnet_jax.runtime import devices

STEPS = (1, 2)


def state(step: int) -> train_state.TrainState:
    values = np.random.default_rng(step).normal(size=(3, 5, 64)).astype(np.float32)
    made = train_state.create(
        {"params": {"kernel": jnp.asarray(values)}, "batch_stats": {}}, optax.adam(1e-3)
    )
    return dataclasses.replace(made, step=jnp.int32(step))


def numbers(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the checkpoints of two steps, and their files."""
    workdir, mesh = tmp_path_factory.mktemp("saved") / "run", devices.make_mesh()
    with checkpoint.Checkpoints(workdir, keep_latest=2) as checkpoints:
        for step in STEPS:
            checkpoints.save(
                jax.device_put(state(step), devices.replicated(mesh)),
                config={},
                val_dice=0.1 * step,
            )
    files = sorted(
        path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file()
    )
    return workdir, mesh, files


@st.composite
def damages(draw, workdir: Path, files: list[Path]):
    """Draws what becomes of up to three files: other bytes, or None for no file."""
    chosen = draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True))
    return {
        path: draw(st.none() | damaged((workdir / path).read_bytes()))
        for path in chosen
    }


def test_damaged_checkpoints(saved, place):
    whole, mesh, files = saved
    like = jax.eval_shape(lambda: state(0))
    expected = {step: numbers(state(step).ema_params) for step in STEPS}

    @given(damages(whole, files))
    def check(changes):
        shutil.rmtree(place / "run", ignore_errors=True)
        shutil.copytree(whole, place / "run")
        for path, data in changes.items():
            if data is None:
                (place / "run" / path).unlink()
            else:
                (place / "run" / path).write_bytes(data)
        found = tried(
            lambda: checkpoint.restore_variables(place / "run", like, mesh),
            inside=place,
        )
        if found is not None:
            variables, step = found
            assert numbers(variables) == expected[step]

    check()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    header, body = {}, b""
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.ones(2, np.float32),
}
WEIGHTS = {"w.npz": npz(**TENSORS), "w.safetensors": safetensors(TENSORS)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(place, name):
    within = None if name.endswith("npz") else 200

    @given(damaged(WEIGHTS[name]) | damaged(WEIGHTS[name], within=within))
    def check(data):
        (place / name).write_bytes(data)
        read = tried(lambda: weight_files.read_state(place / name), inside=place)
        assert read is None or all(
            isinstance(array, np.ndarray) for array in read.values()
        )

    check()
