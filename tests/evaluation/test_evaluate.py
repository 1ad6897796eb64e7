"""Scores a split with made-up models: whose noise an image gets, what padding does, the
mean for validation, and what is kept for the report.
"""

import json
import math

import csv_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused
from stubs import Stub

from biedsnet_jax.config import build_data
from biedsnet_jax.diffusion.sampler import Trajectory
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.prediction.trained import Trained, noise_keys
from biedsnet_jax.reporting import record
from biedsnet_jax.runtime import devices
from biedsnet_jax.scoring import calibration
from biedsnet_jax.segmenters import fusion, macs
from biedsnet_jax.training.validation import mean_dice
from configs import phantom


class Noise(Stub):
    """Predicts uniform noise from the key of each image and sample."""

    def predict(self, variables, image, keys, *, ensemble):
        def one(key, number):
            return jax.random.uniform(
                jax.random.fold_in(key, number), (*image.shape[1:3], 1)
            )

        return jax.vmap(lambda number: jax.vmap(lambda key: one(key, number))(keys))(
            jnp.arange(ensemble)
        )

    def trajectory(self, variables, image, keys):
        """Takes two steps: half of the first sample's noise, then all of it."""
        (sample,) = self.predict(variables, image, keys, ensemble=1)
        return Trajectory(
            jnp.stack([image, image / 2]), jnp.stack([sample / 2, sample])
        )


class Bright(Stub):
    """Predicts 1 where the normalised image is above a value, 0 elsewhere."""

    def predict(self, variables, image, keys, *, ensemble):
        return (image > variables["above"]).astype(jnp.float32)[None]

    def trajectory(self, variables, image, keys):
        (mask,) = self.predict(variables, image, keys, ensemble=1)
        return Trajectory(*[jnp.stack([mask, mask])] * 2)


def config(**fields):
    c = phantom.get_config()
    c.data.size = 16
    c.data.phantom.update(n_cases=3, slices_per_case=6, empty_fraction=0.5)
    c.update_from_flattened_dict(fields)
    return c


def probabilities(cfg, model, mesh, *, seed=0, fusion="mean", variables=None):
    data = build_data.open_data(cfg)
    cfg.update_from_flattened_dict(
        {"seed": seed, "fusion": fusion, "sampler.ensemble": 2}
    )
    batches = list(
        Trained(cfg, model, variables or {}, 0, mesh).predict_split(
            data, data.train + data.test
        )
    )
    assert [
        e["index"] for _, _, examples in batches for e in examples
    ] == data.train + data.test
    # Slices that fill up a batch are left out.
    assert all(
        len(p) == len(b["image"]) == len(b["mask"]) == len(examples)
        for p, b, examples in batches
    )
    return np.concatenate([p for p, _, _ in batches]), np.concatenate(
        [b["mask"] for _, b, _ in batches]
    )


def test_an_images_noise_is_its_own_whatever_shares_its_batch_or_device():
    eight = devices.make_mesh()
    one = devices.make_mesh(jax.devices()[:1])
    expected, _ = probabilities(config(**{"eval.batch_size": 8}), Noise(), eight)
    assert len(expected) == 12
    assert len(np.unique(expected[:, 0, 0, 0])) == 12
    for mesh, batch_size in ((eight, 16), (eight, 3), (one, 5), (one, 1)):
        found, _ = probabilities(
            config(**{"eval.batch_size": batch_size}), Noise(), mesh
        )
        np.testing.assert_array_equal(found, expected)
    other, _ = probabilities(config(**{"eval.batch_size": 8}), Noise(), eight, seed=1)
    assert np.abs(other - expected).mean(axis=(1, 2, 3)).min() > 0.1


def test_samples_are_fused():
    mesh = devices.make_mesh()
    cfg = config(**{"eval.batch_size": 8})
    mean, _ = probabilities(cfg, Noise(), mesh)
    squared, _ = probabilities(cfg, Noise(), mesh, fusion="mean_squared")
    majority, _ = probabilities(cfg, Noise(), mesh, fusion="majority")
    np.testing.assert_allclose(squared, mean**2, rtol=1e-6)
    assert set(np.unique(majority)) == {0.0, 0.5, 1.0}


def test_staple_is_the_same_on_one_device_and_on_eight():
    found = []
    for mesh in (devices.make_mesh(), devices.make_mesh(jax.devices()[:1])):
        found += [
            probabilities(
                config(**{"eval.batch_size": 8}), Noise(), mesh, fusion="staple"
            )[0]
        ]
    np.testing.assert_allclose(*found, atol=1e-5)
    assert found[0].std() > 0.1


@pytest.mark.parametrize("above", [-9.0, 0.0, 9.0])
def test_mean_dice_is_over_the_slices_with_truth(above):
    mesh = devices.make_mesh()
    cfg = config(**{"eval.batch_size": 8})
    variables = {"above": jnp.float32(above)}
    data = build_data.open_data(cfg)
    found = mean_dice(
        Trained(cfg, Bright(), variables, 0, mesh), data, data.train + data.test
    )
    dice = []
    for p, y in zip(*probabilities(cfg, Bright(), mesh, variables=variables)):
        if y.sum():
            dice.append(2 * (p * y).sum() / (p.sum() + y.sum()))
    # Half of the twelve slices are empty.
    assert len(dice) == 6
    assert found == pytest.approx(np.mean(dice), rel=1e-6)
    assert (found == 0.0) == (above == 9.0)


def test_mean_dice_without_any_truth_is_undefined():
    mesh = devices.make_mesh()
    cfg = config(**{"eval.batch_size": 8, "data.phantom.empty_fraction": 1.0})
    data = build_data.open_data(cfg)
    assert (
        mean_dice(
            Trained(cfg, Bright(), {"above": jnp.float32(0)}, 0, mesh), data, data.val
        )
        is None
    )


def scored(cfg, workdir, monkeypatch, model=None, mesh=None):
    """Evaluates a model, by default one that knows the bright pixels.

    Returns the content of results.json and the rows of slices.csv.
    """
    monkeypatch.setattr(macs, "prediction_gmacs", lambda *args, **fields: 0.0)
    variables = {"above": jnp.float32(0.7), "params": {}}
    workdir.mkdir(exist_ok=True)
    mesh, data = mesh or devices.make_mesh(), build_data.open_data(cfg)
    evaluate.evaluate(
        Trained(cfg, model or Bright(), variables, 7, mesh), workdir, data
    )
    return json.loads((workdir / "results.json").read_text()), csv_files.read(
        workdir / "slices.csv"
    )


def test_nsd_at_the_configs_tolerances_stands_in_both_files(tmp_path, monkeypatch):
    cfg = config(**{"eval.nsd_tolerance": 1.0, "eval.nsd_tolerance_mm": 0.5})
    results, rows = scored(cfg, tmp_path, monkeypatch)
    known = [float(row["nsd"]) for row in rows if row["nsd"] != "nan"]
    assert (results["nsd_tolerance"], results["nsd_tolerance_mm"]) == (1.0, 0.5)
    assert results["standard"]["nsd"]["mean"] == pytest.approx(np.mean(known))
    assert results["standard"]["nsd"]["n"] == len(known)
    assert 0 < np.mean(known) < 1
    # The image is smaller than the tolerance.
    cfg = config(**{"eval.nsd_tolerance": 99.0})
    results, _ = scored(cfg, tmp_path, monkeypatch)
    assert results["standard"]["nsd"]["mean"] == 1.0


def test_the_papers_convention_is_computed_where_asked_for(tmp_path, monkeypatch):
    results, rows = scored(config(**{"eval.paper": True}), tmp_path, monkeypatch)
    counts = [[int(row[name]) for name in ("tp", "fp", "fn")] for row in rows]
    dice = [(2 * tp + 1) / (2 * tp + fp + fn + 1) for tp, fp, fn in counts]
    assert [float(row["paper_dice"]) for row in rows] == pytest.approx(dice)
    assert results["paper"]["dice"] == pytest.approx(np.mean(dice))
    results, rows = scored(config(), tmp_path, monkeypatch)
    assert "paper" not in results
    assert "paper_dice" not in rows[0]


@pytest.mark.parametrize("name", ["results.json", "tensorboard"])
def test_a_workdir_that_refuses_to_be_written_is_one_line(tmp_path, monkeypatch, name):
    if name == "tensorboard":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    refused(
        lambda: scored(config(), tmp_path, monkeypatch), tmp_path, "--mode=evaluate"
    )


def test_lesions_are_reported_where_asked_for(tmp_path, monkeypatch):
    results, cases = scored(
        config(**{"eval.lesions": True, "eval.lesion_overlap": 0.5}),
        tmp_path,
        monkeypatch,
    )
    rows = csv_files.read(tmp_path / "lesions.csv")
    found = results["lesions"]
    true = [row for row in rows if row["mask"] == "truth"]
    assert found["least_overlap"] == 0.5
    assert found["true"] == len(true) > 0
    assert found["found"] == sum(float(row["overlap"]) >= 0.5 for row in true)
    for mask, columns in {"truth": ("tp", "fn"), "prediction": ("tp", "fp")}.items():
        pixels = sum(int(row["pixels"]) for row in rows if row["mask"] == mask)
        assert pixels == sum(int(case[name]) for case in cases for name in columns)
    results, _ = scored(config(), tmp_path, monkeypatch)
    assert results["device"] == f"8 x {devices.device_kind(devices.make_mesh())}"
    # The file of the evaluation before is gone.
    assert "lesions" not in results
    assert not (tmp_path / "lesions.csv").exists()


# ---- What is kept for the report


def kept(cfg, workdir, monkeypatch, **fields):
    _, rows = scored(cfg, workdir, monkeypatch, **fields)
    found = record.load(workdir, np.array([float(row["dice"]) for row in rows]))
    assert isinstance(found, record.ReportData), found
    return found, rows


def test_pictures_are_those_of_the_masks_that_were_scored(tmp_path, monkeypatch):
    cfg = config(
        **{
            "eval.pictures": 4,
            "sampler.ensemble": 3,
            "threshold": 0.6,
            "sampler.steps": 2,
        }
    )
    found, rows = kept(cfg, tmp_path / "run", monkeypatch, model=Noise())
    assert len(rows) == 6
    assert (
        len(found.slices) == len(found.images) == len(set(found.slices.tolist())) == 4
    )
    for i, number in enumerate(found.slices):
        mask = found.probability[i] > round(0.6 * 200)
        truth = found.truth[i] > 0
        assert (mask & truth).sum() == int(rows[number]["tp"])
        assert (mask & ~truth).sum() == int(rows[number]["fp"])
    # Draws the samples again, from the key of a picture: number 0 of its scan.
    keys = noise_keys(cfg.seed, jnp.zeros(4, int))
    samples = Noise().predict({}, jnp.zeros((4, 16, 16, 1)), keys, ensemble=3)
    mutual = fusion.uncertainty(samples)["mutual_information"]
    np.testing.assert_allclose(
        found.mutual_information, 255 * np.asarray(mutual), atol=0.51
    )
    assert found.x_0.shape == (3, 2, 16, 16, 1)
    assert found.times.tolist() == [999, 499]
    expected = record.levels(np.asarray(samples[0, :3]), 0.6)
    np.testing.assert_array_equal(found.x_0[:, 1], expected)


def test_the_histogram_counts_every_pixel_of_the_test_split(tmp_path, monkeypatch):
    found, rows = kept(config(), tmp_path / "run", monkeypatch, model=Noise())
    cells = {"tp": (1, 1), "fp": (0, 1), "fn": (1, 0), "tn": (0, 0)}
    for name, (truth, mask) in cells.items():
        assert found.histogram[0, :, truth, mask].sum() == sum(
            int(row[name]) for row in rows
        )
    assert found.facts["splits"]["test"] == {rows[0]["case"]: 6}
    assert {"jax", "python"} <= set(found.facts["versions"])


def test_each_slice_has_its_entropy_and_the_run_its_calibration_error(
    tmp_path, monkeypatch
):
    found, rows = kept(
        config(**{"eval.pictures": 6}), tmp_path / "run", monkeypatch, model=Noise()
    )
    # In each twentieth of the probabilities: |sum of p - number of true pixels|.
    wrong = 0.0
    for low in range(0, calibration.BINS, calibration.BINS // 20):
        each = [
            (i, found.histogram[0, i].sum(-1))
            for i in range(low, low + calibration.BINS // 20)
        ]
        predicted = sum(
            (i + 0.5) / calibration.BINS * pixels.sum() for i, pixels in each
        )
        wrong += abs(predicted - sum(pixels[1] for _, pixels in each))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["calibration_error"] == pytest.approx(wrong / found.histogram.sum())
    for number, levels in zip(found.slices, found.probability[..., 0] / 200):
        p = levels[levels >= 0.05]
        bits = [
            -a * math.log2(a) - (1 - a) * math.log2(1 - a) if 0 < a < 1 else 0.0
            for a in p.tolist()
        ]
        # Probabilities are kept to 1/200.
        entropy = float(rows[number]["entropy"])
        assert entropy == pytest.approx(np.mean(bits), abs=0.02)


def test_what_is_kept_depends_on_neither_devices_nor_batch(tmp_path, monkeypatch):
    one = devices.make_mesh(jax.devices()[:1])
    kept(config(**{"eval.batch_size": 8}), tmp_path / "8", monkeypatch, model=Noise())
    kept(
        config(**{"eval.batch_size": 4}),
        tmp_path / "1",
        monkeypatch,
        model=Noise(),
        mesh=one,
    )
    contents = [(tmp_path / name / record.NAME).read_bytes() for name in "81"]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("fields", "absent"),
    [
        ({"eval.pictures": 0}, ("slices", "mutual_information", "x_0")),
        ({"sampler.ensemble": 1}, ("mutual_information",)),
        ({"method": "direct"}, ("mutual_information", "x_0")),
        ({"sampler.steps": 101}, ("x_0",)),
    ],
)
def test_what_a_method_has_not_is_left_out(tmp_path, monkeypatch, fields, absent):
    cfg = config(**fields)
    model = Bright()
    model.draws_samples = cfg.method != "direct"
    found, _ = kept(cfg, tmp_path / "run", monkeypatch, model=model)
    for name in ("slices", "mutual_information", "x_0"):
        value = getattr(found, name)
        assert (value is None or not len(value)) == (name in absent), name
    assert (tmp_path / "run" / "report.html").exists()
