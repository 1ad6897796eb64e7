"""Mode import: weights of another program become a workdir that other modes read."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from places import GOLDEN
from refusals import refused

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.importing import import_weights
from biedsnet_jax.prediction import predict
from biedsnet_jax.runtime import devices
from biedsnet_jax.runtime.lock import Lock
from configs import folder, phantom

VECTORS = GOLDEN / "unet_4uiiurz1_w8.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(VECTORS) as file:
        return dict(file)


def save_weights(vectors, path):
    """Writes the weights among golden vectors to a file of their own."""
    names = [name for name in vectors if name.startswith("w:")]
    np.savez(path, **{name[2:]: vectors[name] for name in names})
    return path


@pytest.fixture
def weights(golden, tmp_path):
    return save_weights(golden, tmp_path / "weights.npz")


@pytest.fixture
def cfg():
    """The config of the golden U-Net."""
    c = folder.get_config("unet")
    c.networks.unet.channels = (8, 16, 32, 64, 128)
    c.data.size = 64
    return c


@pytest.mark.slow
def test_an_imported_workdir_predicts_what_pytorch_did(golden, weights, cfg, tmp_path):
    import_weights.run(cfg, str(tmp_path / "run"), str(weights))
    saved = run_config.load(tmp_path / "run")
    model, mesh = build_model.build(saved), devices.make_mesh(jax.devices()[:1])

    def draw():
        return train_state.create(build_model.init_variables(model, saved))

    like = jax.eval_shape(draw)
    variables, step = checkpoint.restore_variables(tmp_path / "run", like, mesh)
    image = jnp.asarray(golden["in:x"].transpose(0, 2, 3, 1))
    keys = jax.random.split(jax.random.key(0), len(image))
    predict_masks = jax.jit(model.predict, static_argnames="ensemble")
    with jax.default_matmul_precision("highest"):
        (got,) = predict_masks(variables, image, keys, ensemble=1)
    expected = 1.0 / (1.0 + np.exp(-golden["out:y"].transpose(0, 2, 3, 1)))
    assert step == 0
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_evaluate_and_predict_accept_an_imported_workdir(tmp_path):
    run, scan, masks = (str(tmp_path / name) for name in ("run", "scan.png", "masks"))
    with np.load(VECTORS.with_name("unext_s_full_in1.npz")) as file:
        weights = save_weights(file, tmp_path / "w.npz")
    c = phantom.get_config("unext")
    c.networks.unext.channels, c.data.size = (8, 16, 32, 64, 128), 32
    c.data.phantom.update(n_cases=3, slices_per_case=2)
    import_weights.run(c, run, str(weights))
    saved = run_config.load(run)
    assert evaluate.run(saved, run)["parameters"] == 253_417
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(pixels).save(scan)
    assert predict.run(saved, run, scan, masks) == 0
    (mask,) = (tmp_path / "masks").rglob("*mask*.png")
    assert Image.open(mask).size == (50, 40)


@pytest.mark.parametrize(
    ("network", "fields", "fix"),
    [
        ("swin_unet", {"window": 7}, "224 or 448"),
        ("trans_unet", {}, "data.size=224"),
    ],
)
def test_a_size_that_weights_cannot_have_is_answered_with_theirs(
    tmp_path, network, fields, fix
):
    positions = np.zeros((1, 196, 768), np.float32)
    name = "transformer.embeddings.position_embeddings"
    np.savez(tmp_path / "w.npz", **{name: positions})
    c = folder.get_config(network)
    c.networks[network].update(fields)
    run, source = str(tmp_path / "run"), str(tmp_path / "w.npz")
    refused(lambda: import_weights.run(c, run, source), "data.size", fix)
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_leave_nothing_behind(weights, cfg, tmp_path):
    cfg.networks.unet.channels = (4, 16, 32, 64, 128)
    run, misfit = str(tmp_path / "run"), "misshapen: conv0_0.conv1.weight"
    refused(lambda: import_weights.run(cfg, run, str(weights)), misfit)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "place",
    [
        "weights.npz",
        "weights.npz/run",
        "/sys/kernel",
        "/sys/kernel/run",
        "/dev/null/run",
    ],
)
def test_a_workdir_that_cannot_be_written_is_named_before_anything_is_read(
    cfg, weights, tmp_path, place
):
    run, gone = str(tmp_path / place), str(tmp_path / "gone.npz")
    refused(lambda: import_weights.run(cfg, run, gone), run, "--workdir")


def test_a_workdir_in_use_is_kept(weights, cfg, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = str(tmp_path)
    refused(lambda: import_weights.run(cfg, run, str(weights)), "--workdir", run)


@pytest.mark.slow
def test_a_killed_import_is_not_taken_for_one_of_other_weights(weights, cfg, tmp_path):
    run = tmp_path / "run"
    import_weights.run(cfg, str(run), str(weights))
    # The config comes last, so a killed import has none.
    (run / "config.json").unlink()
    refused(lambda: import_weights.run(cfg, str(run), str(weights)), run, "--workdir")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_workdir_that_somebody_else_writes_is_refused(weights, cfg, tmp_path):
    run = str(tmp_path)
    with Lock(tmp_path):
        refused(lambda: import_weights.run(cfg, run, str(weights)), run, "--workdir")
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_no_workdir(weights, cfg, tmp_path):
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        says = ("step 0", run, "Make room")
        refused(lambda: import_weights.run(cfg, str(run), str(weights)), *says)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (run / "config.json").exists()
    import_weights.run(cfg, str(run), str(weights))
    assert (run / "config.json").exists()
