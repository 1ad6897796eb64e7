"""Exported programs equal `predict`, and their loader needs little but jax and numpy."""

import importlib.util
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import absl_flags
import evaluated_workdir
import jax
import nibabel as nib
import numpy as np
import pytest
import rules
from PIL import Image
from refusals import refused
from untrained import SIZE, image, toy, untrained

from biedsnet_jax import main
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.data import transforms
from biedsnet_jax.exporting import export, loader, model_card, preparation, program
from biedsnet_jax.prediction import predictor
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices, files
from biedsnet_jax.scoring.results import EVALUATIONS
from configs import nifti


def slow(value):
    """A parameter whose test is slow."""
    return pytest.param(value, marks=pytest.mark.slow)


def config_of(kind):
    """A config of each kind of model."""
    if kind == "diffusion":
        return toy(
            fusion="mean_squared", seed=3, threshold=0.25, data__normalise="percentile"
        )
    if kind == "bfloat16":
        return toy(dtype="bfloat16", sampler__method="ddpm")
    if kind == "direct":
        return toy(chosen="unet", data__channels=3)
    return toy(
        nifti,
        "unext",
        data__context=1,
        data__classes=2,
        data__labels=((1,), (2, 4)),
        data__size=32,
        data__window=(-200.0, 300.0),
        data__normalise="none",
    )


# Normalisation is in float32 here and in float64 in predict; bfloat16 differs between
# batches of another size.
TOLERANCES = {"diffusion": 2e-6, "bfloat16": 0.05, "direct": 1e-6, "volume": 1e-6}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported(kind)` gives predictor, folder, export.json and the loader's function."""
    made, root = {}, tmp_path_factory.mktemp("exports")

    def get(kind):
        if kind not in made:
            cfg = config_of(kind)
            workdir, folder = untrained(root / kind, cfg), root / f"{kind}_export"
            export.run(cfg, str(workdir), str(folder), keep_samples=True)
            made[kind] = predictor.load(workdir), folder, *loader.load(folder)
        return made[kind]

    return get


def with_neighbours(scan, context):
    """Slices with those below and above them as channels."""
    around = [
        np.clip(np.arange(len(scan)) + step, 0, len(scan) - 1)
        for step in range(-context, context + 1)
    ]
    return np.concatenate([scan[places] for places in around], axis=-1)


# --- the same as predict -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "kind",
    ["diffusion", "direct", slow("bfloat16"), slow("volume")],
)
def test_maps_equal_those_of_predict(exported, kind, batch):
    predict, _, about, run = exported(kind)
    data = predict.model.config.data
    scan = image(batch, data.size, data.size, data.channels)
    expected = predict(scan, keep_samples=True)
    found = run(with_neighbours(scan, data.context))
    assert set(found) == {*expected.maps, "samples"} == set(about["outputs"])
    for name, values in (expected.maps | {"samples": expected.samples_kept}).items():
        np.testing.assert_allclose(
            found[name], values, rtol=0, atol=TOLERANCES[kind], err_msg=name
        )
        output = about["outputs"][name]
        shape = [batch if n == "b" else n for n in output["shape"]]
        assert list(found[name].shape) == shape
        assert found[name].dtype == output["dtype"] == "float32"
    assert about["threshold"] == expected.threshold
    assert tuple(map(tuple, about["labels"])) == expected.labels


@pytest.mark.slow
def test_noise_follows_from_the_seed_and_the_number_of_a_slice(exported):
    _, _, about, run = exported("diffusion")
    scan = image(3, 16, 16, 1)
    whole = run(scan)["samples"]
    last = run(scan[2:], first=2)["samples"]
    np.testing.assert_allclose(last, whole[:, 2:], atol=1e-5)
    assert abs(run(scan[2:])["samples"] - whole[:, 2:]).max() > 1e-3
    assert abs(run(scan, seed=about["seed"] + 1)["samples"] - whole).max() > 1e-3
    run(scan, seed=2**32 - 1)


@pytest.mark.parametrize("method", transforms.METHODS)
def test_intensities_are_brought_to_the_scale_of_training(method):
    x = image(4, 24, 20, 2)
    # A constant channel.
    x[1, :, :, 0] = 7
    # Percentiles that coincide.
    x[2, :, :, 1] = 0
    x[2, 3, 4, 1] = 9
    x[3] = np.round(x[3]) + 1000
    expected = np.stack([transforms.normalise(one, method) for one in x])
    found = jax.jit(program.normalise, static_argnums=1)(x, method)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_a_window_is_cut_as_in_training():
    x = image(24, 20, 2)
    cut = jax.jit(program.window, static_argnums=(1, 2))
    (found,) = cut(x[None], -300.0, 500.0)
    expected = transforms.window(x, -300.0, 500.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# --- what is written -----------------------------------------------------------------


def test_the_program_is_for_three_platforms_and_any_batch(exported):
    _, folder, about, _ = exported("direct")
    read = jax.export.deserialize(
        bytearray((folder / "predict.stablehlo").read_bytes())
    )
    assert read.platforms == ("cpu", "cuda", "tpu") == tuple(about["platforms"])
    assert str(read.in_avals[-3].shape) == "(b, 16, 16, 3)"
    assert about["inputs"]["image"]["shape"] == ["b", 16, 16, 3]
    assert read.calling_convention_version == about["calling_convention_version"]
    assert about["versions"]["jax"] == jax.__version__
    names = "predict.stablehlo weights.npz export.json load.py MODEL_CARD.md"
    assert {path.name for path in folder.iterdir()} == set(names.split())


# In a process of its own, since libtpu reads its variables once.
COMPILE = """
import os, sys
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"
# Another process may have libtpu loaded.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
import jax
from jax.experimental import topologies
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
def three(x):
    shape = [size if isinstance(size, int) else 3 for size in x.shape]
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
inputs, _ = jax.tree.unflatten(program.in_tree, map(three, program.in_avals))
compiled = jax.jit(program.call).lower(*inputs).compile()
print(compiled.memory_analysis().argument_size_in_bytes > 0)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_the_program_compiles_for_a_tpu(exported):
    _, folder, *_ = exported("direct")
    line = [sys.executable, "-c", COMPILE, folder / "predict.stablehlo"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def check_lowered(cfg):
    """Asserts that a config's program can be lowered, of shapes alone."""
    segmenter = build_model.build(cfg)
    shapes = jax.eval_shape(lambda: build_model.init_variables(segmenter, cfg))
    model = Trained(cfg, segmenter, {}, 0, devices.make_mesh())
    lowered = program.lower(model, program.flatten(shapes), keep_samples=False)
    probability = next(x for x in lowered.out_avals if x.shape[1:] == (32, 32, 1))
    assert str(probability.shape[0]) == "b" and "samples" not in str(lowered.out_tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        "biedsnet",
        "unet",
        "unetpp",
        "attention_unet",
        "unext",
        "swin_unet",
        slow("trans_unet"),
        slow("medsegdiff"),
        slow("medsegdiff_v1"),
        "lineage",
        "row1",
    ],
)
def test_every_network_can_be_exported(chosen):
    check_lowered(toy(chosen=chosen, data__size=32))


@pytest.mark.slow
def test_folded_maps_and_batch_norm_can_be_exported():
    cfg = toy(data__size=32, fusion="staple")
    cfg.networks.biedsnet.update(fold=True, remat=True)
    check_lowered(cfg)
    cfg = toy(data__size=32, fusion="majority", sampler__method="dpm_solver")
    cfg.networks.biedsnet.norm = "batch"
    check_lowered(cfg)


def test_weights_come_back_as_they_were():
    variables = {"params": {"a": {"kernel": 1, "bias": 2}, "b": 3}, "batch_stats": {}}
    flat = program.flatten(variables)
    assert flat == {"params/a/kernel": 1, "params/a/bias": 2, "params/b": 3}
    assert program.unflatten(flat) == variables


@pytest.mark.slow
def test_a_killed_export_is_not_loaded_and_the_same_command_finishes_it(
    exported, tmp_path, monkeypatch
):
    predict, whole, *_ = exported("direct")
    cfg, workdir, folder = predict.model.config, tmp_path / "run", tmp_path / "out"
    untrained(workdir, cfg)

    def write_to_full_disk(*_):
        raise OSError(28, "No space left on device")

    def run():
        export.run(cfg, str(workdir), str(folder), keep_samples=True)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", write_to_full_disk)
        refused(run, "No space left on device", folder)
    assert not (folder / "export.json").exists() and (folder / "weights.npz").exists()
    run()
    assert {path.name for path in folder.iterdir()} == {p.name for p in whole.iterdir()}
    # The same model gives the same bytes.
    for path in whole.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_no_path_of_this_machine_is_in_the_export(exported):
    for path in exported("diffusion")[1].iterdir():
        assert b".py" not in path.read_bytes().replace(b"load.py", b""), path.name


# --- without this package ------------------------------------------------------------

# Other packages are as if they were not installed. jax itself needs ml_dtypes,
# opt_einsum and scipy; jax.export needs flatbuffers to read a program.
ONLY = """
import runpy, sys
there = {"jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy"}
there |= sys.stdlib_module_names
class Only:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in there or top.startswith("_sysconfigdata"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Only, sys.meta_path)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"flax", "biedsnet_jax", "ml_collections", "orbax"}))
"""


def load_line(folder, tmp_path):
    """Arguments of the loader, from slices.npy to masks.npz in `tmp_path`."""
    return [folder / "load.py", tmp_path / "slices.npy", tmp_path / "masks.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion", "direct"])
def test_the_loader_needs_neither_flax_nor_this_package(exported, tmp_path, kind):
    predict, folder, about, _ = exported(kind)
    scan = image(2, *about["inputs"]["image"]["shape"][1:])
    np.save(tmp_path / "slices.npy", scan)
    line = [sys.executable, "-I", "-c", ONLY, *load_line(folder, tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    expected = predict(scan)
    with np.load(tmp_path / "masks.npz") as found:
        probability = found["probability"]
        np.testing.assert_allclose(probability, expected.probability, atol=1e-4)
        np.testing.assert_array_equal(found["mask"], probability > expected.threshold)


def test_the_loader_refuses_slices_of_another_shape(exported, tmp_path):
    _, folder, *_ = exported("direct")
    np.save(tmp_path / "slices.npy", image(2, 15, 16, 3))
    line = [sys.executable, *load_line(folder, tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "(2, 15, 16, 3)" in done.stderr and "['b', 16, 16, 3]" in done.stderr


@pytest.mark.slow
def test_the_loader_in_a_fresh_environment(exported, tmp_path):
    _, folder, about, _ = exported("direct")
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    pip += [
        "install",
        "--quiet",
        "--retries",
        "1",
        "--timeout",
        "10",
        "numpy",
        "flatbuffers",
    ]
    pip.append(f"jax=={jax.__version__}")
    done = subprocess.run(pip, capture_output=True, text=True)
    for sign in ("from versions: none", "onnection", "No module named pip"):
        if sign in done.stderr:
            pytest.skip("there is no network, or no pip, to make an environment with")
    assert done.returncode == 0, done.stderr
    slices = image(1, *about["inputs"]["image"]["shape"][1:])
    np.save(tmp_path / "slices.npy", slices)
    line = [python, "-I", *load_line(folder, tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "masks.npz") as found:
        assert found["mask"].shape == (1, 16, 16, 1)


# --- what is refused -----------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*flags)` gives exit code and stderr of an export in this process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def call(*arguments):
        absl_flags.forget()
        code = main.run(["biedsnet_jax", "--mode=export", *arguments])
        return code, capsys.readouterr().err

    yield call
    absl_flags.forget()


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A folder of runs: one is whole, one only began, one has damaged results."""
    folder, cfg = tmp_path_factory.mktemp("workdirs"), toy()
    untrained(folder / "run", cfg)
    shutil.copytree(folder / "run", folder / "damaged")
    (folder / "damaged" / "results.json").write_text("{")
    (folder / "begun").mkdir()
    run_config.save(cfg, folder / "begun" / "config.json")
    return folder


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--workdir={}/run", ["--output"]),
        ("--workdir={}/none --output={}/new", ["{}/none", "Train first"]),
        ("--workdir={}/begun --output={}/new", ["{}/begun/checkpoints", "Train first"]),
        ("--workdir={}/run --output={}/run", ["--output", "{}/run"]),
        ("--workdir={}/run --output={}/run/config.json", ["--output", "config.json"]),
        ("--workdir={}/run --output={}/run/config.json/new", ["--output"]),
        ("--workdir={}/run --output=/sys/kernel/new", ["/sys/kernel/new", "--output"]),
        ("--workdir={}/damaged --output={}/new", ["{}/damaged/results.json"]),
        (
            "--workdir={}/run --output={}/new --config.data.size=64",
            ["{}/run", "data.size is 16 there and 64 here", "--workdir"],
        ),
    ],
)
def test_refused_in_one_line(command, workdirs, flags, says):
    before = sorted(map(str, workdirs.rglob("*")))
    code, err = command(*flags.replace("{}", str(workdirs)).split())
    assert code == 2 and err.startswith("biedsnet: ") and err.count("\n") == 1, err
    for part in says:
        assert part.replace("{}", str(workdirs)) in err
    assert sorted(map(str, workdirs.rglob("*"))) == before


def test_the_command_writes_the_folder(command, tmp_path):
    untrained(tmp_path / "run", toy(chosen="unet"))
    folder = tmp_path / "deep" / "out"
    flags = (f"--workdir={tmp_path}/run", f"--output={folder}")
    code, err = command(*flags, "--config.threshold=0.3")
    assert code == 0, err
    about = json.loads((folder / "export.json").read_text())
    assert (about["threshold"], about["network"]) == (0.3, "unet")
    assert about["sampler"] is None and "samples" not in about["outputs"]
    assert (folder / "load.py").read_text() == Path(loader.__file__).read_text()


def test_rules_of_the_validation_are_in_the_folder(tmp_path):
    cfg = toy(chosen="unet", data__classes=2, data__labels=())
    workdir = untrained(tmp_path / "run", cfg)
    made = rules.write(
        workdir, cfg, thresholds=(0.3, 0.6), smallest=(0.0, 20.0), unit="pixels"
    )
    out = tmp_path / "out"
    export.run(cfg, str(workdir), str(out))
    about = json.loads((out / "export.json").read_text())
    assert about["thresholds"] == [0.3, 0.6]
    assert about["postprocess"] == made.to_json()
    card = (out / "MODEL_CARD.md").read_text()
    for part in (about["not_applied"], "class 1 above 0.3", "0.6000, before 0.5000"):
        assert part in card
    np.save(tmp_path / "slices.npy", image(2, 16, 16, 1))
    line = [sys.executable, *load_line(out, tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert about["not_applied"] in done.stdout
    assert "20 pixels" in about["not_applied"]
    with np.load(tmp_path / "masks.npz") as found:
        expected = found["probability"] > np.float32([0.3, 0.6])
        np.testing.assert_array_equal(found["mask"], expected)


def test_a_model_whose_padding_would_be_normalised_is_refused(tmp_path):
    cfg = config_of("diffusion")
    cfg.data.fit = "pad"
    refused(
        lambda: export.run(cfg, str(tmp_path / "run"), str(tmp_path / "out")),
        "data.fit",
        "pad",
        "data.fit=squash",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "expected", "says"),
    [
        ({}, ("squash", None, "axial"), "Resize each slice to 16x16"),
        (
            {"data.fit": "pad", "data.spacing": "0.5,0.8", "data.normalise": "none"},
            ("pad", [0.5, 0.8], "axial"),
            "0.5 x 0.8 mm",
        ),
        (
            {
                "data.source": "nifti",
                "data.plane": "sagittal",
                "data.fit": "tile",
                "data.spacing": "",
                "data.normalise": "none",
            },
            ("tile", None, "sagittal"),
            "tiles of 16x16",
        ),
    ],
)
def test_export_json_says_how_slices_come_to_the_size(fields, expected, says):
    cfg = toy()
    cfg.update_from_flattened_dict(fields)
    found = preparation.describe(cfg)
    assert (found["fit"], found["spacing"], found["plane"]) == expected
    assert says in " ".join(found["prepare"])
    assert expected[2] in found["prepare"][0]


def test_a_slice_prepared_as_export_json_says_gets_the_maps_of_predict(tmp_path):
    fields = {"data__fit": "pad", "data__spacing": "2.0,1.0", "data__normalise": "none"}
    cfg = toy(nifti, "unet", **fields)
    workdir = untrained(tmp_path / "run", cfg)
    export.run(cfg, str(workdir), str(tmp_path / "out"))
    about, run = loader.load(tmp_path / "out")
    for part in about["data"]["prepare"]:
        assert part in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    # Columns, rows and slices: 10 x 12 mm, 5 x 12 pixels of the model.
    voxels = image(12, 10, 3)
    nib.Nifti1Image(voxels, np.diag([-1, -1, 4, 1])).to_filename(tmp_path / "a.nii")
    expected = predictor.load(workdir).file(tmp_path / "a.nii")

    mm = about["data"]["spacing"]
    slices = []
    for z in range(3):
        # Rows from front to back, columns from right to left, as in the file.
        part = Image.fromarray(voxels[..., z].T)
        size = round(12 / mm[1]), round(10 / mm[0])
        part = np.asarray(part.resize(size, Image.Resampling.BILINEAR))
        canvas = np.full((SIZE, SIZE, 1), part.min())
        top, left = (SIZE - size[1]) // 2, (SIZE - size[0]) // 2
        canvas[top : top + size[1], left : left + size[0], 0] = part
        slices.append(canvas)
    found = run(np.stack(slices))["probability"]
    np.testing.assert_allclose(found, expected.maps["probability"], atol=2e-6)


# --- several models as one -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [None, "unet"])
def test_an_ensemble_is_one_program(tmp_path, chosen):
    cfg = toy(chosen=chosen, sampler__mirror="lr", data__normalise="none")
    cfg.compile_cache = ""
    one = untrained(tmp_path / "one", cfg)
    other = untrained(tmp_path / "other", cfg, seed=1)
    workdirs = [str(one), str(other)]
    export.run(cfg, workdirs, str(tmp_path / "both"), keep_samples=True)
    about, run = loader.load(tmp_path / "both")
    scan = image(3, SIZE, SIZE, 1)
    expected = predictor.load(workdirs)(scan, keep_samples=True)
    found = run(scan)
    assert set(found) == {*expected.maps, "samples"} == set(about["outputs"])
    for name, values in (expected.maps | {"samples": expected.samples_kept}).items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-6, err_msg=name)
    assert {"within_models", "between_models"} <= set(found)
    assert [member["workdir"] for member in about["members"]] == ["one", "other"]
    assert about["mirror"] == "lr"
    # Each array has the two models first, and the program is hardly longer than one's.
    first = next(iter(np.load(tmp_path / "both" / "weights.npz").values()))
    assert len(first) == 2
    export.run(cfg, str(one), str(tmp_path / "alone"), keep_samples=True)
    sizes = [
        (tmp_path / name / export.PROGRAM).stat().st_size for name in ("both", "alone")
    ]
    assert sizes[0] < 1.25 * sizes[1]
    card = (tmp_path / "both" / export.CARD).read_text()
    assert "of 2 models together" in card
    assert "mirrored passes (lr)" in card
    alone = json.loads((tmp_path / "alone" / export.ABOUT).read_text())
    assert "members" not in alone


def test_the_scores_of_an_ensemble_are_those_of_the_same_models(tmp_path):
    def evaluated(name, weights, differs):
        folder = tmp_path / EVALUATIONS / name
        fields = {"members": [{"weights": one} for one in weights], "differs": differs}
        evaluated_workdir.write(folder, **fields)

    read = model_card.read_results_of
    assert read(tmp_path, ["a", "b"]) is None
    evaluated_workdir.write(
        tmp_path / EVALUATIONS / "of one", differs={"threshold": []}
    )
    evaluated("x", ["a", "c"], {"members": []})
    evaluated("y", ["a", "b"], {"members": [], "threshold": []})
    assert read(tmp_path, ["a", "b"])["differs"] == {"members": [], "threshold": []}
    evaluated("z", ["a", "b"], {"members": []})
    assert read(tmp_path, ["a", "b"])["differs"] == {"members": []}
