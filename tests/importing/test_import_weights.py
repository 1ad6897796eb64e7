"""Mode import: weights of another program become a workdir that the other modes read."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from places import GOLDEN
from refusals import refused

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.importing import imagenet, import_weights
from biedsnet_jax.prediction import predict
from biedsnet_jax.runtime import devices
from biedsnet_jax.runtime.lock import Lock
from configs import folder, phantom

VECTORS = GOLDEN / "unet_4uiiurz1_w8.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(VECTORS) as file:
        return dict(file)


@pytest.fixture
def weights(golden, tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(
        path,
        **{name[2:]: value for name, value in golden.items() if name.startswith("w:")},
    )
    return path


@pytest.fixture
def cfg():
    c = folder.get_config("unet")
    c.networks.unet.channels = (8, 16, 32, 64, 128)
    c.data.size = 64
    return c


def test_an_imported_workdir_predicts_what_pytorch_did(golden, weights, cfg, tmp_path):
    import_weights.run(cfg, str(tmp_path / "run"), str(weights))
    saved, mesh = (
        run_config.load(tmp_path / "run"),
        devices.make_mesh(jax.devices()[:1]),
    )
    model = build_model.build(saved)
    like = jax.eval_shape(
        lambda: train_state.create(
            build_model.init_variables(model, saved), optax.identity()
        )
    )
    variables, step = checkpoint.restore_variables(tmp_path / "run", like, mesh)
    image = jnp.asarray(golden["in:x"].transpose(0, 2, 3, 1))
    keys = jax.random.split(jax.random.key(0), len(image))
    with jax.default_matmul_precision("highest"):
        got = model.predict(variables, image, keys, ensemble=1)[0]
    expected = 1.0 / (1.0 + np.exp(-golden["out:y"].transpose(0, 2, 3, 1)))
    assert step == 0
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_evaluate_and_predict_accept_an_imported_workdir(tmp_path):
    with np.load(VECTORS.with_name("unext_s_full_in1.npz")) as file:
        np.savez(
            tmp_path / "w.npz",
            **{name[2:]: file[name] for name in file.files if name.startswith("w:")},
        )
    c = phantom.get_config("unext")
    c.networks.unext.channels, c.data.size = (8, 16, 32, 64, 128), 32
    c.data.phantom.update(n_cases=3, slices_per_case=2)
    import_weights.run(c, str(tmp_path / "run"), str(tmp_path / "w.npz"))
    saved = run_config.load(tmp_path / "run")
    assert evaluate.run(saved, str(tmp_path / "run"))["parameters"] == 253_417
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(
        tmp_path / "slice.png"
    )
    predicted = tmp_path / "out"
    assert (
        predict.run(
            saved, str(tmp_path / "run"), str(tmp_path / "slice.png"), str(predicted)
        )
        == 0
    )
    assert [Image.open(path).size for path in predicted.rglob("*mask*.png")] == [
        (50, 40)
    ]


@pytest.mark.parametrize(
    ("network", "fields", "said"),
    [
        (
            "swin_unet",
            {"window": 7},
            "data.size 256. Use 224 or 448, or ",
        ),
        ("trans_unet", {}, "positions are those of data.size=224"),
    ],
)
def test_a_size_that_weights_cannot_have_is_answered_with_that_they_can(
    tmp_path, network, fields, said
):
    np.savez(
        tmp_path / "w.npz",
        **{
            "transformer.embeddings.position_embeddings": np.zeros(
                (1, 196, 768), np.float32
            )
        },
    )
    c = folder.get_config(network)
    c.networks[network].update(fields)
    with pytest.raises(BadInput) as error:
        import_weights.run(c, str(tmp_path / "run"), str(tmp_path / "w.npz"))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_leave_nothing_behind(weights, cfg, tmp_path):
    cfg.networks.unet.channels = (4, 16, 32, 64, 128)
    with pytest.raises(BadInput, match=r"misshapen: conv0_0\.conv1\.weight"):
        import_weights.run(cfg, str(tmp_path / "run"), str(weights))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["weights.npz", "weights.npz/run", "/sys/kernel/run"])
def test_a_workdir_that_cannot_be_written_is_named_before_anything_is_read(
    cfg, weights, tmp_path, place
):
    with pytest.raises(BadInput, match=r"Cannot write to .*give another --workdir"):
        import_weights.run(cfg, str(tmp_path / place), str(tmp_path / "gone.npz"))


def test_a_workdir_in_use_is_kept(weights, cfg, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="workdir in use"):
        import_weights.run(cfg, str(tmp_path), str(weights))


def other_weights(weights, path):
    with np.load(weights) as file:
        np.savez(path, **{name: 2 * file[name] for name in file.files})
    return path


def test_what_a_killed_import_left_is_not_taken_for_the_weights_of_another(
    weights, cfg, tmp_path
):
    import_weights.run(cfg, str(tmp_path / "run"), str(weights))
    # it comes last
    (tmp_path / "run" / "config.json").unlink()
    other = other_weights(weights, tmp_path / "other.npz")
    refused(
        lambda: import_weights.run(cfg, str(tmp_path / "run"), str(other)),
        tmp_path / "run",
        "ended before it was done",
        "--workdir",
    )
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_workdir_that_somebody_else_writes_is_refused(weights, cfg, tmp_path):
    with Lock(tmp_path):
        refused(
            lambda: import_weights.run(cfg, str(tmp_path), str(weights)),
            tmp_path,
            "is in use by",
        )
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("place", ["/sys/kernel", "/sys/kernel/run", "/dev/null/run"])
def test_a_place_that_cannot_be_written_is_refused(weights, cfg, place):
    refused(lambda: import_weights.run(cfg, place, str(weights)), place, "--workdir")


def test_a_disk_that_is_full_leaves_no_workdir(weights, cfg, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        refused(
            lambda: import_weights.run(cfg, str(tmp_path / "run"), str(weights)),
            "checkpoint of step 0 not saved",
            tmp_path / "run",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run" / "config.json").exists()
    import_weights.run(cfg, str(tmp_path / "run"), str(weights))
    assert (tmp_path / "run" / "config.json").exists()


def test_imagenet_layouts_are_told_from_a_networks_own():
    names = {"Transformer/encoder_norm/scale": 0}
    assert (
        import_weights._imagenet_start("trans_unet", names)
        is imagenet.load_pretrained_vit_r50
    )
    assert (
        import_weights._imagenet_start("swin_unet", {"head.weight": 0})
        is imagenet.load_pretrained_swin_t
    )
    assert import_weights._imagenet_start("swin_unet", {"output.weight": 0}) is None
