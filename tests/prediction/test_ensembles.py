"""Several workdirs as one model: as the predictions of each, put together by hand."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import rules
from PIL import Image
from refusals import refused
from untrained import image, toy, untrained

import biedsnet_jax as bj
from biedsnet_jax.config import members, run_config
from biedsnet_jax.prediction import ensembles, predict, predictor
from biedsnet_jax.segmenters import fusion

KINDS = {"diffusion": None, "direct": "unet"}


def config_of(kind, **fields):
    return toy(chosen=KINDS[kind], compile_cache="", **fields)


def two_runs(folder, kind, **fields):
    """Two folds of a run; the second has other weights, and another seed and budget."""
    first = config_of(kind, split__folds=3, **fields)
    second = config_of(kind, split__folds=3, split__fold=1, seed=5, **fields)
    second.train.steps = 7
    second.augment.rotate_degrees = 3.0
    return [untrained(folder / "f0", first), untrained(folder / "f1", second, seed=1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs[kind]` are the two workdirs of a kind of model."""
    return {kind: two_runs(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def alone(workdirs, scan, **fields):
    """Samples "n d H W k" of each workdir alone, drawn from the noise of the first."""
    found = []
    for workdir in workdirs:
        cfg = run_config.load(workdir)
        seed = run_config.load(workdirs[0]).seed
        cfg.update_from_flattened_dict({"seed": seed, **fields})
        # The seed of the noise is that of the first; a run alone keeps its own.
        model = ensembles.load([workdir], run_config.load(workdir))
        model = dataclasses.replace(model, config=cfg, predict_batch=None)
        made = predictor.of_model(model)
        found.append(made(scan, keep_samples=True).samples_kept)
    return found


def entropy(p):
    p = p.astype(np.float64).clip(1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_are_the_mean_of_their_predictions(runs, kind):
    scan = image(3, 20, 24, 1)
    found = bj.load(runs[kind], {"compile_cache": ""})(scan, keep_samples=True)
    one, other = alone(runs[kind], scan)
    assert np.abs(one - other).max() > 0.01
    # K samples of the first, then K of the second.
    count = 3 if kind == "diffusion" else 1
    np.testing.assert_allclose(found.samples_kept[:count], one, atol=1e-6)
    np.testing.assert_allclose(found.samples_kept[count:], other, atol=1e-6)
    mean = (one.mean(axis=0) + other.mean(axis=0)) / 2
    np.testing.assert_allclose(found.maps["probability"], mean, atol=1e-6)

    # The uncertainty in its parts.
    assert list(found.uncertainty) == [
        "entropy",
        "mutual_information",
        "variance",
        "within_models",
        "between_models",
    ]
    within = [
        entropy(of_one.mean(axis=0)) - entropy(of_one).mean(axis=0)
        for of_one in (one, other)
    ]
    of_means = (entropy(one.mean(axis=0)) + entropy(other.mean(axis=0))) / 2
    between = entropy(mean) - of_means
    maps = found.maps
    np.testing.assert_allclose(maps["within_models"], np.mean(within, 0), atol=1e-5)
    np.testing.assert_allclose(maps["between_models"], between, atol=1e-5)
    np.testing.assert_allclose(
        maps["mutual_information"], np.mean(within, axis=0) + between, atol=1e-5
    )
    assert between.max() > 1e-4


@pytest.mark.parametrize("name", ["majority", "staple", "mean_squared"])
def test_samples_of_all_models_are_fused_together(runs, name):
    scan = image(2, 16, 16, 1)
    cfg = run_config.load(runs["diffusion"][0])
    cfg.fusion = name
    found = predictor.load(runs["diffusion"], cfg)(scan)
    samples = jnp.concatenate(alone(runs["diffusion"], scan))
    expected = fusion.FUSIONS[name](samples)
    np.testing.assert_allclose(found.maps["probability"], expected, atol=1e-6)


def test_mirrored_passes_of_two_models(runs):
    scan = image(2, 16, 16, 1)
    fields = {"sampler.mirror": "lr,ud", "compile_cache": ""}
    found = bj.load(runs["direct"], fields)(scan).maps["probability"]
    # A network of one pass takes no noise, so that turning the image is all there is.
    passes = []
    for axes in [(), (1,), (2,), (1, 2)]:
        turned = np.flip(scan, axes)
        passes += [np.flip(p[0], axes) for p in alone(runs["direct"], turned)]
    np.testing.assert_allclose(found, np.mean(passes, axis=0), atol=1e-6)


def test_models_that_are_cut_over_devices_predict_the_same(runs):
    scan = image(2, 16, 16, 1)
    whole = bj.load(runs["diffusion"], {"compile_cache": ""})
    fields = {"compile_cache": "", "parallel.fsdp": 4}
    cut = bj.load(runs["diffusion"], fields)
    np.testing.assert_allclose(
        cut(scan).maps["probability"], whole(scan).maps["probability"], atol=1e-5
    )


def test_a_list_of_one_is_that_one(runs):
    workdir = runs["diffusion"][0]
    scan = image(2, 16, 16, 1)
    one = predictor.load(workdir)
    listed = predictor.load([workdir])
    assert listed.model.members == ()
    assert repr(listed) == repr(one)
    found, expected = listed(scan), one(scan)
    assert found.maps.keys() == expected.maps.keys()
    for name, values in expected.maps.items():
        np.testing.assert_array_equal(found.maps[name], values)


def test_an_ensemble_says_what_it_is_of(runs):
    made = bj.load(runs["diffusion"], {"compile_cache": "", "sampler.mirror": "lr"})
    model = made.model
    assert [pathlib.Path(member.workdir) for member in model.members] == [
        workdir.resolve() for workdir in runs["diffusion"]
    ]
    assert len({member.weights for member in model.members}) == 2
    first = predictor.load(runs["diffusion"][0]).model
    assert model.members[0].weights == first.weights_digest()
    text = repr(made)
    assert "2 models" in text and "6 samples" in text and "mirrored lr" in text


# --- what cannot predict together ---


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("data.size", 16, 32),
        ("data.fit", "squash", "pad"),
        ("data.window", (), (-100.0, 200.0)),
        ("data.normalise", "minmax", "zscore"),
        ("networks.unet.channels", (8, 16), (8, 24)),
        ("dtype", "float32", "bfloat16"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, name, here, there):
    fields = {"networks__unet__channels": (8, 16)}
    one = untrained(tmp_path / "a", config_of("direct", **fields))
    field = name.replace(".", "__")
    other = config_of("direct", **(fields | {field: there}))
    # Its config alone is read.
    (tmp_path / "b").mkdir()
    run_config.save(other, tmp_path / "b" / "config.json")
    refused(
        lambda: bj.load([one, tmp_path / "b"]),
        f"{name} is {here!r} in {one}",
        f"{there!r} in {tmp_path / 'b'}",
        "Give models that have it in common",
    )


def test_classes_and_labels_must_be_the_same(tmp_path):
    one = config_of("direct", data__source="nifti", data__labels=((1, 2),))
    other = config_of("direct", data__source="nifti", data__labels=((2,),))
    for name, cfg in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        run_config.save(cfg, tmp_path / name / "config.json")
    workdirs = [tmp_path / "a", tmp_path / "b"]
    check = members.check_members
    refused(lambda: check(workdirs, one), "data.labels is ((1, 2),)", "((2,),)")


def test_a_network_of_another_kind_is_refused(runs):
    mixed = [runs["diffusion"][0], runs["direct"][0]]
    refused(lambda: bj.load(mixed), "network", mixed[0], mixed[1])


def test_what_one_of_them_did_not_mirror_is_not_mirrored(tmp_path):
    one = config_of("direct", sampler__mirror="lr")
    other = config_of("direct", augment__hflip=0.0)
    for name, cfg in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        run_config.save(cfg, tmp_path / name / "config.json")
    workdirs = [tmp_path / "a", tmp_path / "b"]
    refused(
        lambda: members.check_members(workdirs, one),
        "sampler.mirror is 'lr'",
        "augment.hflip was 0",
        tmp_path / "b",
    )


@pytest.mark.parametrize("text", ["{0},{0}", "{0},{0}/", "{0},{0}/../f0"])
def test_a_workdir_that_is_named_twice(runs, text):
    workdir = runs["direct"][0]
    refused(lambda: predictor.load(text.format(workdir)), "f0", "named twice")


def test_a_workdir_that_is_no_run(runs, tmp_path):
    first = runs["direct"][0]
    refused(lambda: predictor.load(f"{first},{tmp_path}"), tmp_path, "config.json")
    refused(lambda: bj.load([]), "workdir is an empty list")


def test_names_with_commas(tmp_path):
    for name in ("a,b", "c"):
        (tmp_path / name).mkdir()
    found = members.folders(f"{tmp_path}/a,b,{tmp_path}/c")
    assert found == [tmp_path / "a,b", tmp_path / "c"]
    assert members.folders(f"{tmp_path}/a,b") == [tmp_path / "a,b"]


# --- mode predict ---


def predicted(workdir, source, output, **fields):
    cfg = run_config.load(members.folders(workdir)[0])
    cfg.update_from_flattened_dict(fields)
    assert predict.run(cfg, workdir, str(source), str(output), keep_samples=True) == 0
    return {path.name for path in output.iterdir()}


def test_the_files_of_mode_predict(runs, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    pixels = rng.integers(0, 256, (20, 24), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    both = f"{runs['direct'][0]},{runs['direct'][1]}"
    found = predicted(both, tmp_path / "in", tmp_path / "out")
    alone = predicted(str(runs["direct"][0]), tmp_path / "in", tmp_path / "alone")
    # One model in one pass has no samples; two have one each.
    assert found - alone == {
        f"a_{name}.png"
        for name in (
            "entropy",
            "mutual_information",
            "variance",
            "within_models",
            "between_models",
            "sample_1",
            "sample_2",
        )
    }
    written = {
        name: np.array(Image.open(tmp_path / "out" / f"a_{name}.png")) / 65535
        for name in ("probability", "sample_1", "sample_2", "mutual_information")
    }
    mean = (written["sample_1"] + written["sample_2"]) / 2
    np.testing.assert_allclose(written["probability"], mean, atol=2e-5)

    recorded = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert recorded["workdir"] == ",".join(str(one.resolve()) for one in runs["direct"])
    assert [one["step"] for one in recorded["members"]] == [0, 0]
    assert [one["workdir"] for one in recorded["members"]] == recorded["workdir"].split(
        ","
    )
    of_one = json.loads((tmp_path / "alone" / "predict.json").read_text())
    assert "members" not in of_one


def test_a_folder_of_an_ensemble_is_not_one_of_its_members(runs, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "in" / "a.png")
    first, second = map(str, runs["direct"])
    both = f"{first},{second}"
    predicted(both, tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "a_mask.png").stat().st_mtime_ns
    predicted(both, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "a_mask.png").stat().st_mtime_ns == before
    given = tmp_path / "in", tmp_path / "out"
    refused(lambda: predicted(first, *given), given[1], "another --output")
    turned = f"{second},{first}"
    refused(lambda: predicted(turned, *given), given[1], "another --output")
    refused(
        lambda: predicted(both, *given, **{"sampler.mirror": "ud"}),
        "sampler.mirror was '' and is 'ud'",
    )


@pytest.mark.parametrize("of_second", [None, (0.8,), (0.7,)])
def test_rules_are_applied_where_all_models_have_the_same(tmp_path, capsys, of_second):
    workdirs = two_runs(tmp_path, "direct")
    config = run_config.load(workdirs[0])
    rules.write(workdirs[0], config, thresholds=(0.7,))
    if of_second:
        # What they gave on the cases of a model is no part of the rules.
        rules.write(workdirs[1], config, thresholds=of_second)
    prediction = bj.load(workdirs)(image(1, 16, 16, 1))
    err = capsys.readouterr().err
    warned = "warning" in err and str(workdirs[1]) in err
    same = of_second == (0.7,)
    assert warned != same
    threshold = 0.7 if same else config.threshold
    np.testing.assert_array_equal(prediction.mask, prediction.probability > threshold)
