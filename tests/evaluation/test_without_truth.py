"""Evaluates and reports test splits without any lesion, or without one of the classes."""

import html
import json

import csv_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from stubs import Stub

from biedsnet_jax.config import build_data
from biedsnet_jax.diffusion.sampler import Trajectory
from biedsnet_jax.evaluation import closing, evaluate
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.reporting import report
from biedsnet_jax.runtime import devices
from biedsnet_jax.scoring import results
from biedsnet_jax.segmenters import macs
from configs import folder, phantom

SIZE = 16


class Made(Stub):
    """Marks the pixels above a value in every class, in one pass or two samples."""

    def __init__(self, cfg):
        self.classes = cfg.data.classes
        self.draws_samples = cfg.method != "direct"

    def predict(self, variables, image, keys, *, ensemble):
        mask = (image[..., :1] > variables["above"]).astype(jnp.float32)
        return jnp.broadcast_to(mask, (ensemble, *mask.shape[:-1], self.classes))

    def trajectory(self, variables, image, keys):
        (mask,) = self.predict(variables, image, keys, ensemble=1)
        return Trajectory(*[jnp.stack([mask, mask])] * 2)


def evaluated(cfg, workdir, monkeypatch, *, above):
    """Evaluates the made-up model; above 9 it predicts nothing."""
    monkeypatch.setattr(macs, "prediction_gmacs", lambda *args, **fields: 0.0)
    workdir.mkdir()
    mesh = devices.make_mesh(jax.devices()[:1])
    variables = {"above": jnp.float32(above), "params": {}}
    data = build_data.open_data(cfg)
    return evaluate.evaluate(Trained(cfg, Made(cfg), variables, 7, mesh), workdir, data)


def shown(workdir):
    """Reads results.json strictly and both reports."""
    fields = json.loads(
        (workdir / "results.json").read_text(), parse_constant=pytest.fail
    )
    assert results.load(workdir).fields == fields
    pages = [(workdir / f"report.{end}").read_text() for end in ("html", "md")]
    report.run(str(workdir), str(workdir / "again.html"))
    assert (workdir / "again.md").read_text() == pages[1]
    return fields, pages


@pytest.mark.parametrize(
    "above", [0.7, 9.0], ids=["false lesions", "nothing predicted"]
)
@pytest.mark.parametrize(
    ("method", "classes"),
    [("direct", 1), ("direct", 2), ("diffusion", 1), ("diffusion", 2)],
)
def test_a_test_without_lesion(tmp_path, monkeypatch, capsys, method, classes, above):
    cfg = phantom.get_config()
    fields = {
        "data.size": SIZE,
        "data.classes": classes,
        "method": method,
        "sampler.steps": 2,
        "eval.batch_size": 8,
    }
    fields |= {
        "eval.pictures": 3,
        "eval.lesions": True,
        "data.phantom.empty_fraction": 1.0,
        "log.tensorboard": True,
    }
    cfg.update_from_flattened_dict(
        fields | {"data.phantom.n_cases": 4, "data.phantom.slices_per_case": 2}
    )
    found = evaluated(cfg, tmp_path / "run", monkeypatch, above=above)
    fields, pages = shown(tmp_path / "run")
    slices = found["n_images"]
    got = 0 if above == 9 else slices
    sentence = (
        "no slice of the test has a lesion: Dice is undefined; "
        f"{got} of {slices} slices got a false one"
    )
    assert found["standard"]["dice"]["mean"] is None
    assert found["n_empty"] == slices * classes
    # Of two classes that are equally likely, the first is written.
    assert len(found["false_positive_slices"]) == got
    assert found == fields
    assert all(sentence in page for page in pages)
    closing.tested(found, str(tmp_path / "run"), seconds=1.0)
    assert sentence in capsys.readouterr().out
    assert list((tmp_path / "run" / "tensorboard").glob("*.test"))


def write_cases(root, truths):
    """Writes a folder of cases: each a list of slices, each slice its classes."""
    for case, slices in truths.items():
        for number, labels in enumerate(slices):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            for label in labels:
                mask[4 * label : 4 * label + 3, 2:9] = label
            for kind, pixels in (("images", mask * 60 + 20), ("masks", mask)):
                path = root / kind / case / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("classes", "truths", "sentence"),
    [
        (
            1,
            {"a": [[1], [1]], "b": [[], []], "c": [[]]},
            "3 of 3 slices without lesion got one, 2 of 2 cases without lesion got one",
        ),
        (1, {"a": [[1], []]}, "1 of 1 slice without lesion got one"),
        (
            1,
            {"=a": [[]], "+b|c": [[]]},
            "no slice of the test has a lesion: Dice is undefined; 2 of 2 slices",
        ),
        (
            2,
            {"a": [[1], [1]], "b": [[]]},
            "class 2: no slice of the test has one: its Dice is undefined; 0 of 3",
        ),
        (
            2,
            {"a": [[2]]},
            "class 1: no slice of the test has one: its Dice is undefined; 1 of 1 slice got",
        ),
        (
            2,
            {"a": [[1, 2]], "b": [[1], [2]]},
            "class 1: 1 of 1 slice without lesion got one",
        ),
    ],
    ids=[
        "one case has all",
        "one case",
        "none, odd names",
        "no class 2",
        "one slice, no class 1",
        "not in each",
    ],
)
def test_cases_and_classes_that_have_none(
    tmp_path, monkeypatch, capsys, classes, truths, sentence
):
    others = {"of_training": [[1, 2][:classes]], "of_validation": [[1]]}
    write_cases(tmp_path / "data", truths | others)
    cfg = folder.get_config()
    fields = {
        "data.root": str(tmp_path / "data"),
        "data.size": SIZE,
        "data.classes": classes,
        "eval.batch_size": 8,
    }
    fields |= {"split.train": ("of_training",), "split.val": ("of_validation",)}
    fields |= {"split.test": tuple(truths), "eval.pictures": 2}
    cfg.update_from_flattened_dict(
        fields | {"method": "direct", "log.tensorboard": False, "eval.lesions": True}
    )
    # Every pixel is predicted.
    found = evaluated(cfg, tmp_path / "run", monkeypatch, above=-99)
    closing.tested(found, str(tmp_path / "run"), seconds=1.0)
    assert sentence in capsys.readouterr().out
    _, (page, text) = shown(tmp_path / "run")
    assert sentence.lower() in html.unescape(page).lower()
    assert sentence.lower() in text.lower()
    # Names that a spreadsheet would take for formulas come back as they were.
    assert {case for case, _, _ in results.load(tmp_path / "run").images} == set(truths)
    for name in ("cases.csv", "slices.csv", "lesions.csv"):
        assert not any(
            row["case"].startswith(("=", "+"))
            for row in csv_files.read(tmp_path / "run" / name)
        )
