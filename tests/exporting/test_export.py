"""Exported programs against `predict`; what lies beside them; the loader where little
but jax and numpy is there.
"""

import importlib.util
import json
import subprocess
import sys
import venv
from pathlib import Path

import absl_flags
import jax
import numpy as np
import pytest
from refusals import refused
from untrained import image, toy, untrained

from biedsnet_jax import main
from biedsnet_jax.config import build_model
from biedsnet_jax.data import transforms
from biedsnet_jax.exporting import export, loader
from biedsnet_jax.exporting import program as export_program
from biedsnet_jax.prediction import predictor as predict
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices, files
from configs import nifti

# Closeness: float32 normalisation against float64, and bfloat16 in batches of another
# size.
KINDS = {
    "diffusion": (lambda: toy(fusion="mean_squared", seed=3, threshold=0.25, data__normalise="percentile"), 2e-6),
    "bfloat16": (lambda: toy(dtype="bfloat16", sampler__method="ddpm"), 0.05),
    "direct": (lambda: toy(chosen="unet", data__channels=3), 1e-6),
    "volume": (
        lambda: toy(
            nifti, "unext", data__context=1, data__classes=2, data__labels=((1,), (2, 4)), data__size=32,
            data__window=(-200.0, 300.0), data__normalise="none",
        ),
        1e-6,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported(kind)` -> (predictor, folder, what export.json says, the loader's
    function); samples are kept.
    """
    made, root = {}, tmp_path_factory.mktemp("exports")

    def get(kind):
        if kind not in made:
            cfg = KINDS[kind][0]()
            workdir, folder = untrained(root / kind, cfg), root / f"{kind}_export"
            export.run(cfg, str(workdir), str(folder), keep_samples=True)
            made[kind] = predict.load(workdir), folder, *loader.load(folder)
        return made[kind]

    return get


def with_neighbours(scan, context):
    """Slices with those below and above as channels."""
    around = [
        np.clip(np.arange(len(scan)) + step, 0, len(scan) - 1)
        for step in range(-context, context + 1)
    ]
    return np.concatenate([scan[places] for places in around], axis=-1)


# --- the same as predict ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_maps_equal_predicts(exported, kind, batch):
    predictor, _, about, run = exported(kind)
    data = predictor.model.config.data
    scan = image(batch, data.size, data.size, data.channels)
    expected = predictor(scan, keep_samples=True)
    found = run(with_neighbours(scan, data.context))
    assert set(found) == {*expected.maps, "samples"} == set(about["outputs"])
    for name, values in (expected.maps | {"samples": expected.samples_kept}).items():
        np.testing.assert_allclose(
            found[name], values, rtol=0, atol=KINDS[kind][1], err_msg=name
        )
        assert list(found[name].shape) == [
            batch if n == "b" else n for n in about["outputs"][name]["shape"]
        ]
        assert found[name].dtype == about["outputs"][name]["dtype"] == "float32"
    assert (
        about["threshold"] == expected.threshold
        and tuple(map(tuple, about["labels"])) == expected.labels
    )


def test_noise_follows_from_the_seed_and_the_number_of_a_slice(exported):
    _, _, about, run = exported("diffusion")
    scan = image(3, 16, 16, 1)
    whole = run(scan)["samples"]
    np.testing.assert_allclose(
        run(scan[2:], first=2)["samples"], whole[:, 2:], atol=1e-5
    )
    assert abs(run(scan[2:])["samples"] - whole[:, 2:]).max() > 1e-3
    assert abs(run(scan, seed=about["seed"] + 1)["samples"] - whole).max() > 1e-3
    run(scan, seed=2**32 - 1)


@pytest.mark.parametrize("method", transforms.METHODS)
def test_intensities_are_brought_to_the_scale_of_training(method):
    x = image(4, 24, 20, 2)
    # constant
    x[1, :, :, 0] = 7
    x[2, :, :, 1] = 0
    # percentiles that coincide
    x[2, 3, 4, 1] = 9
    x[3] = np.round(x[3]) + 1000
    expected = np.stack([transforms.normalise(one, method) for one in x])
    program = jax.jit(export_program.normalise, static_argnums=1)
    np.testing.assert_allclose(program(x, method), expected, rtol=2e-6, atol=2e-6)
    cut = jax.jit(lambda image: export_program.window(image, -300.0, 500.0))
    np.testing.assert_allclose(
        cut(x), (np.clip(x, -300, 500) + 300) / 800, rtol=1e-6, atol=1e-6
    )


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_artefact_is_for_three_platforms_and_any_batch(exported):
    _, folder, about, _ = exported("direct")
    program = jax.export.deserialize(
        bytearray((folder / "predict.stablehlo").read_bytes())
    )
    assert program.platforms == ("cpu", "cuda", "tpu") == tuple(about["platforms"])
    assert str(program.in_avals[-3].shape) == "(b, 16, 16, 3)"
    assert about["inputs"]["image"]["shape"] == ["b", 16, 16, 3]
    assert program.calling_convention_version == about["calling_convention_version"]
    assert about["versions"]["jax"] == jax.__version__
    assert {path.name for path in folder.iterdir()} == {
        "predict.stablehlo", "weights.npz", "export.json", "load.py", "MODEL_CARD.md",
    }  # fmt: skip


# In a process of its own, since libtpu reads its variables once.
COMPILE = """
import os, sys
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # beside a process that has it
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
import jax
from jax.experimental import topologies
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices[0]
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
def three(x):
    shape = [size if isinstance(size, int) else 3 for size in x.shape]
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(device))
inputs, _ = jax.tree.unflatten(program.in_tree, map(three, program.in_avals))
print(jax.jit(program.call).lower(*inputs).compile().memory_analysis().argument_size_in_bytes > 0)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_the_artefact_compiles_for_a_tpu(exported):
    _, folder, *_ = exported("direct")
    line = [sys.executable, "-c", COMPILE, folder / "predict.stablehlo"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


EVERY = [
    "biedsnet", "unet", "unetpp", "attention_unet", "unext", "swin_unet", "trans_unet", "medsegdiff", "medsegdiff_v1",
    "lineage", "row1",
]  # fmt: skip
FIELDS = {
    "folded": {
        "networks__biedsnet__fold": True,
        "networks__biedsnet__remat": True,
        "fusion": "staple",
    },
    "batch norm": {
        "networks__biedsnet__norm": "batch",
        "sampler__method": "dpm_solver",
        "fusion": "majority",
    },
}


@pytest.mark.parametrize("variant", [*EVERY, *FIELDS])
def test_every_network_can_be_exported(variant):
    chosen = "biedsnet" if variant in FIELDS else variant
    cfg = toy(chosen=chosen, data__size=32, **FIELDS.get(variant, {}))
    model = build_model.build(cfg)
    shapes = jax.eval_shape(lambda: build_model.init_variables(model, cfg))
    model = Trained(cfg, model, {}, 0, devices.make_mesh())
    program = export_program.lower(
        model, export_program.flatten(shapes), keep_samples=False
    )
    (probability,) = [x for x in program.out_avals if x.shape[1:] == (32, 32, 1)][:1]
    assert str(probability.shape[0]) == "b" and "samples" not in str(program.out_tree)


def test_weights_come_back_as_they_were():
    variables = {"params": {"a": {"kernel": 1, "bias": 2}, "b": 3}, "batch_stats": {}}
    flat = export_program.flatten(variables)
    assert flat == {"params/a/kernel": 1, "params/a/bias": 2, "params/b": 3}
    assert export_program.unflatten(flat) == variables


def test_a_killed_export_is_not_loaded_and_the_same_command_finishes_it(
    exported, tmp_path, monkeypatch
):
    predictor, *_ = exported("direct")
    workdir, folder = tmp_path / "run", tmp_path / "out"
    untrained(workdir, predictor.model.config)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", full)
        cfg = predictor.model.config
        refused(
            lambda: export.run(cfg, str(workdir), str(folder)),
            "No space left on device",
            folder,
        )
    assert not (folder / "export.json").exists() and (folder / "weights.npz").exists()
    export.run(predictor.model.config, str(workdir), str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export.run(predictor.model.config, str(workdir), str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_path_of_this_machine_is_in_the_artefact(exported):
    for path in exported("diffusion")[1].iterdir():
        assert b".py" not in path.read_bytes().replace(b"load.py", b""), path.name


# --- without this package --------------------------------------------------------------------------------------------

# Anything else is as if it were not installed. jax itself wants ml_dtypes, opt_einsum
# and scipy; jax.export, to read an artefact, flatbuffers.
ONLY = """
import runpy, sys
there = {"jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy", *sys.stdlib_module_names}
class Only:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        return self.finder.find_spec(name, path, target) if top in there or top.startswith("_sysconfigdata") else None
sys.meta_path[:] = map(Only, sys.meta_path)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(sorted({name.partition(".")[0] for name in sys.modules} & {"flax", "biedsnet_jax", "ml_collections", "orbax"}))
"""


@pytest.mark.parametrize("kind", ["diffusion", "direct"])
def test_the_loader_needs_neither_flax_nor_this_package(exported, tmp_path, kind):
    predictor, folder, about, _ = exported(kind)
    scan = image(*(2, *about["inputs"]["image"]["shape"][1:]))
    np.save(tmp_path / "slices.npy", scan)
    line = [
        sys.executable,
        "-I",
        "-c",
        ONLY,
        folder / "load.py",
        tmp_path / "slices.npy",
        tmp_path / "masks.npz",
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    expected = predictor(scan)
    with np.load(tmp_path / "masks.npz") as found:
        np.testing.assert_allclose(
            found["probability"], expected.probability, atol=1e-4
        )
        np.testing.assert_array_equal(
            found["mask"], found["probability"] > expected.threshold
        )


def test_the_loader_says_what_it_wants(exported, tmp_path):
    _, folder, *_ = exported("direct")
    np.save(tmp_path / "slices.npy", image(2, 15, 16, 3))
    line = [
        sys.executable,
        folder / "load.py",
        tmp_path / "slices.npy",
        tmp_path / "masks.npz",
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "(2, 15, 16, 3)" in done.stderr and "['b', 16, 16, 3]" in done.stderr


def test_the_loader_in_a_fresh_environment(exported, tmp_path):
    _, folder, about, _ = exported("direct")
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    wanted = [f"jax=={jax.__version__}", "numpy", "flatbuffers"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--retries",
        "1",
        "--timeout",
        "10",
    ]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    if any(
        sign in done.stderr
        for sign in ("from versions: none", "onnection", "No module named pip")
    ):
        pytest.skip("no network, or no pip, to make an environment with")
    assert done.returncode == 0, done.stderr
    np.save(
        tmp_path / "slices.npy", image(*(1, *about["inputs"]["image"]["shape"][1:]))
    )
    line = [
        python,
        "-I",
        folder / "load.py",
        tmp_path / "slices.npy",
        tmp_path / "masks.npz",
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "masks.npz") as found:
        assert found["mask"].shape == (1, 16, 16, 1)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*flags)` -> (exit code, stderr), in this process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def call(*arguments):
        absl_flags.forget()
        return main.run(
            ["biedsnet_jax", "--mode=export", *map(str, arguments)]
        ), capsys.readouterr().err

    yield call
    absl_flags.forget()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workdir={}/run"], ["no folder", "--output"]),
        (["--workdir={}/none", "--output={}/new"], ["no trained run", "none"]),
        (
            ["--workdir={}/begun", "--output={}/new"],
            ["no complete checkpoint", "begun"],
        ),
        (
            ["--workdir={}/run", "--output={}/run"],
            ["folder of something else", "run", "--output"],
        ),
        (
            ["--workdir={}/run", "--output={}/run/config.json"],
            ["folder of something else", "config.json"],
        ),
        (
            ["--workdir={}/run", "--output={}/run/config.json/new"],
            ["Cannot write", "is no folder", "--output"],
        ),
        (
            ["--workdir={}/run", "--output=/sys/kernel/new"],
            ["Cannot write", "/sys/kernel/new", "--output"],
        ),
        (
            ["--workdir={}/damaged", "--output={}/new"],
            ["damaged results", "results.json"],
        ),
        (
            ["--workdir={}/run", "--output={}/new", "--config.data.size=64"],
            ["workdir of another config", "data.size"],
        ),
    ],
)
def test_refused_in_one_line(command, tmp_path, flags, says):
    cfg = toy()
    for name in ("run", "damaged"):
        untrained(tmp_path / name, cfg)
    (tmp_path / "damaged" / "results.json").write_text("{")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes(
        (tmp_path / "run" / "config.json").read_bytes()
    )
    before = sorted(map(str, tmp_path.rglob("*")))
    code, err = command(*(flag.format(tmp_path) for flag in flags))
    assert code == 2 and err.startswith("biedsnet: ") and err.count("\n") == 1, err
    for part in says:
        assert part in err
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_the_command_writes_the_folder(command, tmp_path, capsys):
    untrained(tmp_path / "run", toy(chosen="unet"))
    code, err = command(
        f"--workdir={tmp_path}/run",
        f"--output={tmp_path}/deep/out",
        "--config.threshold=0.3",
    )
    assert code == 0, err
    about = json.loads((tmp_path / "deep" / "out" / "export.json").read_text())
    assert (
        about["threshold"] == 0.3
        and about["network"] == "unet"
        and about["sampler"] is None
    )
    assert "samples" not in about["outputs"]
    assert (Path(loader.__file__)).read_text() == (
        tmp_path / "deep" / "out" / "load.py"
    ).read_text()
