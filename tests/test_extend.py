"""The parts of docs/extend.md work in a copy of the project, added as the page says."""

import os
import shutil
import subprocess
import sys

import documented
import numpy as np
import pytest
from PIL import Image
from places import ROOT

PAGE = ROOT / "docs" / "extend.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with every part of the page in it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("biedsnet_jax", "configs"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for block in documented.blocks(PAGE):
        if not block.lines[0].startswith("# "):
            continue
        path = folder / block.lines[0].removeprefix("# ")
        if block.language == "python":
            assert not path.exists()
            path.write_text("\n".join(block.lines) + "\n")
        else:
            path.write_text(_with_lines(path.read_text(), block.lines[1:]))
    return folder


def _with_lines(text, lines):
    """Adds what a block of the page says: an import, an entry of a dict, or fields."""
    imports = "".join(f"{line}\n" for line in lines if line.startswith("from "))
    added = "".join(
        f"{line}\n" for line in lines if line.startswith("    ") and "..." not in line
    )
    dicts = [line for line in lines if line.endswith("{")]
    text = text.replace("\nfrom ", f"\n{imports}from ", 1)
    if dicts:
        before, after = f"\n{dicts[0]}", f"\n{dicts[0]}\n{added}"
    else:
        before, after = "    return c.lock()", f"{added}    return c.lock()"
    assert text.count(before) == 1, before
    return text.replace(before, after)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of four cases of two slices with a bright square."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for case in range(4):
        mask = np.zeros((2, 40, 32), np.uint8)
        mask[:, 8 : 20 + case, 8:20] = 1
        image = mask + rng.normal(0, 0.1, mask.shape)
        np.savez(folder / f"case_{case}.npz", image=image, mask=mask)
    return folder


def run(project, *words):
    command = [sys.executable, "-m", "biedsnet_jax.main", *map(str, words)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command,
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TOY = [
    "--config.train.steps=3",
    "--config.eval.every=0",
    "--config.sampler.ensemble=1",
    "--config.eval.pictures=0",
    "--config.log.tensorboard=False",
]


@pytest.mark.slow
def test_a_network_and_a_source(project, data, tmp_path):
    source = ("--config.data.source=npz", f"--config.data.root={data}")
    own = ("--config.network=tiny_net", "--config.networks.tiny_net.width=8")
    run(
        project, "--config=configs/phantom.py:toy", "--workdir=run", *source, *own, *TOY
    )
    assert "test: 2 slices of 1 case" in run(
        project, "--mode=evaluate", "--workdir=run"
    )
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "scan.png")
    run(
        project,
        "--mode=predict",
        "--workdir=run",
        f"--input={tmp_path}",
        "--output=masks",
    )
    mask = np.asarray(Image.open(project / "masks" / "scan_mask.png"))
    voxels = np.load(project / "masks" / "scan_voxels.npy")
    np.testing.assert_array_equal(voxels[0, ..., 0], mask == 255)


@pytest.mark.slow
def test_a_loss_a_sampler_and_a_network_of_a_config_file(project):
    loss = ("--config.loss.name=tversky", "--config.loss.tversky_alpha=0.2")
    sampler = ("--config.sampler.method=renoise", "--config.sampler.steps=2")
    run(project, "--config=my_config.py:toy", "--workdir=own", *loss, *sampler, *TOY)
    assert (project / "own" / "results.json").exists()
