"""Tests that the examples of docs/python.md run, one after the other."""

import documented
import nibabel as nib
import numpy as np
import pytest
from places import ROOT
from untrained import toy, untrained

from biedsnet_jax import api

PAGE = ROOT / "docs" / "python.md"


def test_the_examples_run(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    # What training and evaluating do, test_api tries.
    called = []

    def train(config, workdir):
        called.append((config.network, config.data.root, config.train.steps, workdir))
        return {"standard": {"dice": {"mean": 0.5}}}

    monkeypatch.setattr(api, "train", train)
    monkeypatch.setattr(api, "evaluate", lambda *given: called.append(given))
    monkeypatch.chdir(tmp_path)
    untrained(tmp_path / "runs" / "mine", toy(chosen="unet", compile_cache=""))
    voxels = np.random.default_rng(0).normal(size=(20, 24, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), "scan.nii.gz")

    names = {"array": voxels.T[..., None]}
    for example in documented.examples(PAGE):
        exec(compile(example.text, example.place, "exec"), names)
    written = nib.load("scan_mask.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), names["labels"])
    assert called == [
        ("biedsnet", "DIR", 2000, "runs/mine"),
        ("runs/mine", {"sampler.ensemble": 9}),
    ]
