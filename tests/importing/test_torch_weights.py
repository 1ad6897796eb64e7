"""PyTorch weights give PyTorch's outputs; misfits and malformed files are refused.

Golden vectors are random weights, and what the published PyTorch code computes from
them. The small ones lie in tests/golden, the others in ../shared/golden beside the
project; their tests are skipped where that is absent.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN, SHARED
from refusals import refused
from torch_state import load_torch_state

from biedsnet_jax.importing.torch_weights import to_variables
from biedsnet_jax.importing.weight_files import read_state
from biedsnet_jax.networks import NETWORKS

FOLDERS = (GOLDEN, SHARED / "golden")
WIDTHS = {"channels": (8, 16, 32, 64, 128)}


def golden(name: str) -> tuple[dict, jax.Array, list[np.ndarray]]:
    """State, input and outputs, images channels last."""
    paths = [folder / f"{name}.npz" for folder in FOLDERS]
    there = [path for path in paths if path.is_file()]
    if not there:
        pytest.skip(f"{name}.npz is in none of {FOLDERS}")
    arrays = read_state(there[0])
    state = {key[2:]: value for key, value in arrays.items() if key.startswith("w:")}
    names = sorted(key for key in arrays if key.startswith("out:"))
    outputs = [arrays[key].transpose(0, 2, 3, 1) for key in names]
    return state, jnp.asarray(arrays["in:x"].transpose(0, 2, 3, 1)), outputs


@pytest.mark.parametrize(
    ("name", "network", "constructor"),
    [
        ("unet_4uiiurz1_w8", "unet", WIDTHS),
        (
            "unetpp_ds_4uiiurz1_w8_in3",
            "unetpp",
            {**WIDTHS, "classes": 2, "deep_supervision": True},
        ),
        ("attunet_leejunhyun_w8", "attention_unet", WIDTHS),
        ("unext_s_full_in1", "unext", WIDTHS),
    ],
)
def test_imported_weights_give_the_published_outputs(name, network, constructor):
    state, image, expected = golden(name)
    variables = load_torch_state(network, state, inputs=(image,), **constructor)
    module = NETWORKS[network](**constructor)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda variables: module.apply(variables, image, train=False))
        logits, out = forward(variables)
    outputs = [*out.get("supervision", []), logits]
    for found, wanted in zip(outputs, expected, strict=True):
        tolerance = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance)


def test_every_misfit_is_listed_at_once_on_one_line():
    state, image, _ = golden("unext_s_full_in1")
    state["encoder1.weight"] = np.zeros((8, 3, 3, 3), np.float32)
    state["head.weight"] = state.pop("final.weight")
    del state["ebn1.running_var"]
    refused(
        lambda: load_torch_state("unext", state, inputs=(image,), **WIDTHS),
        "missing: batch_stats/ebn1/var, params/final/kernel",
        "surplus: head.weight",
        "misshapen: encoder1.weight (becomes (3, 3, 3, 8), needs (3, 3, 1, 8))",
        "networks.unext",
    )


TOYS = {
    "swin_unet": {"image_size": 64, "window": 4, "embed_dim": 24, "repeat_gray": False},
    "trans_unet": {
        "image_size": 32,
        "hidden": 16,
        "mlp": 32,
        "heads": 2,
        "layers": 1,
        "resnet_units": (1, 1, 1),
        "repeat_gray": False,
    },
}


@pytest.mark.parametrize(
    ("network", "tensor", "shape", "window"),
    [
        (
            "trans_unet",
            "transformer.embeddings.position_embeddings",
            (1, 196, 16),
            "",
        ),
        (
            "swin_unet",
            "layers.0.blocks.0.attn.relative_position_bias_table",
            (169, 3),
            "window=7",
        ),
    ],
)
def test_weights_of_another_size_name_it(network, tensor, shape, window):
    state = {tensor: np.zeros(shape, np.float32)}
    says = (f"misshapen: {tensor}", window, "data.size=224")
    refused(lambda: load_torch_state(network, state, **TOYS[network]), *says)


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("leaf", "shape", "path", "target", "theirs", "ours"),
    [
        # `theirs` and `ours` are the place of one element, worked out by hand.
        ("weight", (2, 3, 5, 7), "params/kernel", (5, 7, 3, 2), (1, 2, 4, 6), (4, 6, 2, 1)),
        ("weight", (4, 1, 3, 3), "params/kernel", (3, 3, 1, 4), (3, 0, 1, 2), (1, 2, 0, 3)),
        ("weight", (4, 2, 1, 1), "params/kernel", (2, 4), (3, 1, 0, 0), (1, 3)),
        ("weight", (6, 2, 1), "params/kernel", (2, 6), (5, 1, 0), (1, 5)),
        ("weight", (4, 2), "params/kernel", (2, 4), (3, 1), (1, 3)),
        ("weight", (4,), "params/scale", (4,), (3,), (3,)),
        ("bias", (4,), "params/bias", (4,), (3,), (3,)),
        ("running_mean", (4,), "batch_stats/mean", (4,), (3,), (3,)),
        ("running_var", (4,), "batch_stats/var", (4,), (3,), (3,)),
        ("positions", (1, 4, 2), "params/positions", (1, 4, 2), (0, 3, 1), (0, 3, 1)),
    ],
)  # fmt: skip
def test_layout_of_one_tensor(leaf, shape, path, target, theirs, ours):
    collection, name = path.split("/")
    tree = {collection: {"a": {name: jax.ShapeDtypeStruct(target, jnp.float32)}}}
    tensor = numbers(*shape)
    state = {f"a.{leaf}": tensor, "a.num_batches_tracked": np.int64(3)}
    found = to_variables("unet", state, tree)[collection]["a"][name]
    assert found.shape == target and found[ours] == tensor[theirs]


def test_two_tensors_for_one_place_are_refused():
    bias = jax.ShapeDtypeStruct((2,), jnp.float32)
    tree = {"params": {"block1": {"fc1": {"bias": bias}}}}
    state = {"block1.fc1.bias": numbers(2), "block1.0.fc1.bias": numbers(2)}
    surplus = "surplus: block1.0.fc1.bias"
    refused(lambda: to_variables("unext", state, tree), surplus)


def test_npz_is_read_and_the_data_parallel_prefix_taken_off(tmp_path):
    np.savez(
        tmp_path / "w.npz",
        **{"module.a.weight": numbers(2, 3), "module.a.bias": numbers(2)},
    )
    state = read_state(tmp_path / "w.npz")
    assert list(state) == ["a.weight", "a.bias"]
    np.testing.assert_array_equal(state["a.weight"], numbers(2, 3))


def safetensors(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_safetensors_are_read_bit_for_bit(tmp_path):
    data = (
        numbers(2, 3).tobytes()
        + np.float16([1.5, -2]).tobytes()
        + b"\xc0\x3f\x00\xc1"
        + np.int64(7).tobytes()
        + b"\x01\x00"
    )
    header = {
        "__metadata__": {"format": "pt"},
        "half": entry("F16", [2], 24, 28),
        "single": entry("F32", [2, 3], 0, 24),
        # 0x3fc0 is 1.5, 0xc100 is -8.
        "brain": entry("BF16", [2], 28, 32),
        "count": entry("I64", [], 32, 40),
        "flags": entry("BOOL", [2], 40, 42),
    }
    (tmp_path / "w.safetensors").write_bytes(safetensors(header, data))
    state = read_state(tmp_path / "w.safetensors")
    assert sorted(state) == ["brain", "count", "flags", "half", "single"]
    np.testing.assert_array_equal(state["single"], numbers(2, 3))
    assert state["half"].tolist() == [1.5, -2.0]
    assert state["brain"].astype(np.float32).tolist() == [1.5, -8.0]
    assert state["count"] == 7 and state["flags"].tolist() == [True, False]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\x00",
        safetensors({"a": entry("F32", [2], 0, 8)}, b"")[:20],
        (1 << 63).to_bytes(8, "little") + b"{}",
        safetensors(b"[1, 2]", b""),
        safetensors(b"[" * 100_000, b""),
        safetensors(b"\xff\xfe", b""),
        safetensors({"a": 3}, b""),
        safetensors({"a": {"dtype": "F32"}}, b""),
        safetensors({"a": entry("F8", [2], 0, 8)}, bytes(8)),
        safetensors({"a": entry("F32", [2], 0, 8)}, bytes(7)),
        safetensors({"a": entry("F32", [3], 0, 8)}, bytes(8)),
        safetensors({"a": entry("F32", [2], -8, 0)}, bytes(8)),
        safetensors({"a": entry("F32", [-1], 0, 8)}, bytes(8)),
        safetensors({"a": entry("F32", ["2"], 0, 8)}, bytes(8)),
        safetensors({"a": entry(["F32"], [2], 0, 8)}, bytes(8)),
    ],
)
def test_malformed_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    refused(lambda: read_state(path), path, "Export it again")


def test_an_npz_that_is_none_or_needs_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.save(tmp_path / "single.npy", numbers(2))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez_compressed(tmp_path / "cut.npz", a=numbers(100))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:60] + bytes(30) + whole[90:])
    for name in ("objects", "single", "text", "cut"):
        path = tmp_path / f"{name}.npz"
        refused(lambda path=path: read_state(path), path, "numpy.savez")


def test_other_files_are_refused_by_name(tmp_path):
    for name, fix in (("w.h5", ".npz, .safetensors, .pth"), ("w.npz", "path")):
        path = tmp_path / name
        refused(lambda path=path: read_state(path), path, fix)


def test_pth_without_torch_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"")
    path = tmp_path / "w.pth"
    refused(lambda: read_state(path), path, "pip install torch", ".npz")


def test_pth_is_read_unwrapped_and_never_unpickled(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {"module.a.weight": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    (read,) = read_state(tmp_path / "wrapped.pth").items()
    assert (read[0], read[1].tolist()) == ("a.weight", [[1.5, -2.0]])
    torch.save({"a.weight": torch.zeros(2), "path": "x"}, tmp_path / "mixed.pth")
    torch.save(pathlib.PurePosixPath("x"), tmp_path / "object.pth")
    for name in ("mixed", "object"):
        path = tmp_path / f"{name}.pth"
        refused(lambda path=path: read_state(path), path, "model.state_dict()")
