"""A network from a user's own file: the examples of docs/extend.md, and refusals."""

import shutil
import sys

import absl_flags
import documented
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from places import ROOT
from refusals import refused

from biedsnet_jax import main
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.runtime import devices
from configs import phantom

EXAMPLES = [one.text for one in documented.examples(ROOT / "docs" / "extend.md")]
DENOISER = next(text for text in EXAMPLES if "class TinyDenoiser" in text)
DIRECT = next(text for text in EXAMPLES if "class TinyNet" in text)


def run(*words):
    """Exit code of a command that runs on one device."""
    one = devices.make_mesh(jax.devices()[:1])
    absl_flags.forget()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(devices, "make_mesh", lambda *_, **fields: one)
        patched.setattr(sys, "argv", list(sys.argv))
        code = main.run(["biedsnet_jax", *map(str, words)])
    absl_flags.forget()
    return code


def config_of(file, network, **fields):
    """A config of a network in a user's file, with these fields of its own."""
    c = phantom.get_config("toy")
    c.network, c.network_file = network, str(file)
    if fields:
        with c.unlocked():
            c.networks[network] = fields
    return c


@pytest.mark.slow
def test_a_run_outlives_the_file_of_its_network(tmp_path):
    file = tmp_path / "my_config.py"
    file.write_text(DENOISER)
    # Less to compile and to draw.
    smaller = (
        "train.steps=4 checkpoint.every=2 eval.every=0 sampler.ensemble=1 "
        "eval.pictures=0 log.images=0 log.tensorboard=False compile_cache="
    )
    fields = [f"--config.{field}" for field in smaller.split(" ")]
    assert run(f"--config={file}:toy", f"--workdir={tmp_path / 'run'}", *fields) == 0
    file.unlink()
    trained = (tmp_path / "run").rename(tmp_path / "moved")
    assert run("--mode=evaluate", f"--workdir={trained}") == 0
    picture, masks = tmp_path / "scan.png", tmp_path / "masks"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(picture)
    files = (f"--input={picture}", f"--output={masks}")
    assert run("--mode=predict", f"--workdir={trained}", *files) == 0
    assert (masks / "scan_mask.png").exists()
    shutil.rmtree(trained / "checkpoints" / "4")
    assert run(f"--workdir={trained}") == 0
    assert (trained / "checkpoints" / "4").is_dir()


def test_a_file_that_changed_is_another_config(tmp_path):
    file, workdir = tmp_path / "elsewhere.py", tmp_path / "run"
    file.write_text(DENOISER)
    workdir.mkdir()
    run_config.save(config_of(file, "TinyDenoiser", width=8), workdir / "config.json")
    c = run_config.load(workdir)
    assert c.network_file == str(workdir / "network.py")
    assert c.networks.TinyDenoiser.width == 8
    c.network_file = str(file)
    run_config.check_same_run(c, workdir)
    file.write_text(DENOISER + "# changed\n")
    says = ("network_file", workdir / "network.py", file)
    refused(lambda: run_config.check_same_run(c, workdir), *says)


def test_both_kinds_are_built(tmp_path):
    kinds = ((DIRECT, "TinyNet", "Direct"), (DENOISER, "TinyDenoiser", "Diffusion"))
    for text, network, kind in kinds:
        file = tmp_path / f"{network}.py"
        file.write_text(text)
        c = config_of(file, network)
        check_config(c)
        segmenter = build_model.build(c)
        assert (type(segmenter).__name__, segmenter.network.width) == (kind, 16)

        def predict(keys, segmenter=segmenter):
            variables = segmenter.init(keys[0], (16, 16, 1))
            image = jnp.zeros((2, 16, 16, 1))
            return segmenter.predict(variables, image, keys, ensemble=1)

        keys = jax.random.split(jax.random.key(1), 2)
        assert jax.eval_shape(predict, keys).shape == (1, 2, 16, 16, 1)
    assert "network" not in sys.modules and "TinyNet" not in sys.modules


def test_fields_are_those_of_the_class(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(DIRECT)
    cases = (("wide", 8, "networks.TinyNet.width"), ("width", "8", "'8'"))
    for field, value, says in cases:
        c = config_of(file, "TinyNet", **{field: value})
        refused(lambda c=c: check_config(c), f"networks.TinyNet.{field}", says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, ["network_file", "own.py"]),
        ("TinyNet = 1 / 0", ["own.py", "ZeroDivisionError"]),
        ("class TinyNet", ["own.py", "SyntaxError"]),
        (DIRECT.replace("TinyNet", "Other"), ["network is 'TinyNet'", "own.py"]),
        ("class TinyNet: pass", ["TinyNet", "flax.linen.Module"]),
        (DIRECT.replace("def check_size", "def check_sizes"), ["lacks check_size"]),
        (DIRECT.replace("__call__", "forward"), ["lacks __call__"]),
        (
            DENOISER.replace("TinyDenoiser", "TinyNet").replace("encode", "see"),
            ["lacks encode"],
        ),
    ],
)
def test_what_is_no_network_is_refused(tmp_path, text, says):
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    refused(lambda: check_config(config_of(file, "TinyNet")), *says)
