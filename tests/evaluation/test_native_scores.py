"""The figures of results.json are those of the files that mode predict writes.

The files are read back with SimpleITK or Pillow, which know nothing of this package, and
scored by slow loops over all pairs of border pixels.
"""

import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax
import pytest
import rules as rules_of
import SimpleITK as sitk
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from stubs import Stub

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
from biedsnet_jax.evaluation import evaluate, evaluations
from biedsnet_jax.prediction import predict
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import macs
from configs import folder, variants

# Millimetres, thick slices, of which the file's first axis goes up.
THICK = np.array([[0, -0.8, 0, 5], [0, 0, 1.3, 3], [3.0, 0, 0, -7], [0, 0, 0, 1]])
# Turned about all axes.
TURN = Rotation.from_euler("xyz", [12, -15, 10], degrees=True).as_matrix()
OBLIQUE = nib.affines.from_matvec(TURN @ np.diag([0.8, 1.1, 2.0]), [5, 3, -7])
NAMES = ("dice", "iou", "precision", "recall", "hd", "hd95", "assd", "nsd")
IN_MM = ("hd_mm", "hd95_mm", "assd_mm", "nsd_mm")
TOLERANCE = 1.5


class Levels(Stub):
    """Finds in class k what is brighter than level k, unsure near it, with some noise."""

    def __init__(self, classes):
        self.classes = classes

    def init(self, key, shape):
        return {"params": {"levels": jnp.array([0.5, 0.62])}, "batch_stats": {}}

    def predict(self, variables, image, keys, *, ensemble):
        levels = variables["params"]["levels"][: self.classes]
        found = jax.nn.sigmoid(9.0 * (image[..., :1] - levels[None, None, None]))

        def sample(number):
            def noise(key):
                key = jax.random.fold_in(key, number)
                return jax.random.normal(key, (*image.shape[1:3], self.classes))

            return jnp.clip(found + 0.2 * jax.vmap(noise)(keys), 0.0, 1.0)

        return jax.vmap(sample)(jnp.arange(ensemble))


def trained(workdir, higher=0.0, **fields):
    """Writes a run of `Levels` on a data set; returns its config."""
    cfg = folder.get_config()
    variants.toy(cfg)
    cfg.data.update(size=16, normalise="minmax", verify=False)
    cfg.eval.update(
        batch_size=8,
        pictures=0,
        nsd_tolerance=TOLERANCE,
        nsd_tolerance_mm=TOLERANCE,
        lesions=True,
    )
    cfg.log.tensorboard = False
    cfg.sampler.ensemble = 2
    cfg.compile_cache = ""
    cfg.update_from_flattened_dict(fields)
    variables = Levels(2).init(None, None)
    variables["params"]["levels"] += higher
    state = train_state.create(variables, optax.identity())
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, config=cfg.to_dict())
    run_config.save(cfg, workdir / "config.json")
    return cfg


def trained_together(folder, models, rules, **fields):
    """Writes runs of other levels; returns their config, and them with commas."""
    workdirs = [folder / f"run{number}" for number in range(models)]
    configs = [
        trained(workdir, 0.04 * number, **fields)
        for number, workdir in enumerate(workdirs)
    ]
    for workdir, cfg in zip(workdirs, configs):
        if rules:
            rules_of.write(workdir, cfg, **rules)
    return configs[0], ",".join(map(str, workdirs))


def differs_without_rules(cfg, run, results):
    """Checks that the rules matter, and that one flag switches them off."""
    plain = cfg.copy_and_resolve_references()
    plain.postprocess = False
    without = evaluate.run(plain, run)
    assert without["postprocess"] is None
    assert without["differs"]["postprocess"] == [True, False]
    for key in ("dice", "precision"):
        before, after = (one["standard"][key]["mean"] for one in (without, results))
        assert abs(before - after) > 1e-4
    # Before the mask goes back to its file there are no rules.
    assert without["network_grid"] == results["network_grid"]


@pytest.fixture(autouse=True)
def model(monkeypatch):
    one = devices.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(devices, "make_mesh", lambda **fields: one)
    monkeypatch.setattr(build_model, "build", lambda cfg: Levels(cfg.data.classes))
    monkeypatch.setattr(macs, "prediction_gmacs", lambda *args, **fields: 0.0)


def made_up(rng, shape):
    """An image and a label map of 0, 1 and 2 that a threshold nearly finds."""
    image = gaussian_filter(rng.normal(size=shape), [1.5 * (n > 1) for n in shape])
    image = (image - image.min()) / np.ptp(image)
    near = image + 0.05 * rng.normal(size=shape)
    label = (near > 0.55).astype(np.uint8) + (near > 0.7)
    return image, label.astype(np.uint8)


# ---- Slow scores


def border(mask):
    """The pixels of a mask that have a face neighbour outside it."""
    found = []
    for place in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            beside = place.copy()
            beside[axis] += step
            inside = 0 <= beside[axis] < mask.shape[axis]
            if not inside or not mask[tuple(beside)]:
                found.append(place)
                break
    return np.array(found, float)


def distances(pred, truth, spacing):
    """HD, HD95, ASSD and NSD between two masks, of all pairs of border pixels."""
    scale = np.array(spacing)
    if not pred.any():
        diagonal = math.sqrt(sum(((np.array(truth.shape) - 1) * scale) ** 2))
        return [diagonal] * 3 + [0.0]
    ours, theirs = border(pred) * scale, border(truth) * scale
    pairs = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    near = (there <= TOLERANCE).sum() + (back <= TOLERANCE).sum()
    return [
        max(there.max(), back.max()),
        max(np.percentile(there, 95), np.percentile(back, 95)),
        (there.mean() + back.mean()) / 2,
        near / (len(there) + len(back)),
    ]


def slow_scores(pred, truth, spacing):
    """Scores by name; none for a truth that is empty."""
    if not truth.any():
        return {}
    tp = sum(1 for a, b in zip(pred.flat, truth.flat) if a and b)
    p, t = int(pred.sum()), int(truth.sum())
    scores = [2 * tp / (p + t), tp / (p + t - tp), tp / p if p else 0.0, tp / t]
    scores += distances(pred, truth, (1.0,) * truth.ndim)
    found = dict(zip(NAMES, scores))
    if spacing:
        found |= dict(zip(IN_MM, distances(pred, truth, spacing)))
    return found


def compare(results, slices, scores_of="standard"):
    """Compares the means in results.json with those of slow scores."""
    found = results[scores_of] if scores_of else results
    for name in slices[0] if slices else ():
        values = [one[name] for one in slices]
        assert found[name]["n"] == len(values), name
        assert found[name]["mean"] == pytest.approx(np.mean(values), abs=1e-6), name


def parts(label, labels):
    """The mask of each class in a label map."""
    return [np.isin(label, group) for group in labels]


# ---- The test


# Rules for the masks of one and of two classes of pictures.
OF_PICTURES = {
    "thresholds": (0.4, 0.55),
    "holes": (True, False),
    "smallest": (9.0, 4.0),
    "unit": "pixels",
}


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("rules", [{}, OF_PICTURES], ids=["plain", "post-processed"])
@pytest.mark.parametrize("fit", ["squash", "pad", "tile"])
@pytest.mark.parametrize("classes", [1, 2])
def test_pictures(tmp_path, classes, fit, rules, models):
    rng = np.random.default_rng(0)
    shapes = {"a": (20, 30), "b": (17, 17), "c": (40, 24), "d": (9, 50)}
    for case, number in itertools.product(shapes, range(3)):
        image, label = made_up(rng, shapes[case])
        if case == "d" and number == 2:
            label[:] = 0
        label = (label > 0) * np.uint8(255) if classes == 1 else label
        pixels = {"images": (image * 255).astype(np.uint8), "masks": label}
        for kind, values in pixels.items():
            path = tmp_path / "data" / kind / case / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    fields = {
        "data.root": str(tmp_path / "data"),
        "data.fit": fit,
        "data.classes": classes,
        "split.train": ("a",),
        "split.val": ("b",),
        "split.test": ("c", "d"),
    }
    own = {
        name: value if name == "unit" else value[:classes]
        for name, value in rules.items()
    }
    cfg, run = trained_together(tmp_path, models, own, **fields)
    results = evaluate.run(cfg, run)
    assert results["grid"] == "file"
    assert len(results.get("members", [run])) == models
    assert "volumes" not in results
    assert "paper" not in results
    for case in "cd":
        shutil.copytree(tmp_path / "data/images" / case, tmp_path / "in" / case)
    predict.run(cfg, run, str(tmp_path / "in"), str(tmp_path / "out"))
    of_class = [[] for _ in range(classes)]
    for case, number in itertools.product("cd", range(3)):
        written = np.array(Image.open(tmp_path / "out" / case / f"{number}_mask.png"))
        truth = np.array(Image.open(tmp_path / "data/masks" / case / f"{number}.png"))
        labels = [[255]] if classes == 1 else [[1], [2]]
        for k, pair in enumerate(zip(parts(written, labels), parts(truth, labels))):
            of_class[k].append(slow_scores(*pair, None))
    _compare_classes(results, of_class)
    assert results["n_images"] == 6
    folder = evaluations.folder_of(tmp_path / "run0", results)
    network = json.loads((folder / "results.json").read_text())["network_grid"]
    # Tiles are cut out of the slices' own pixels, where one class leaves no choice.
    same = network["dice"]["mean"] == results["standard"]["dice"]["mean"]
    assert same == (fit == "tile" and classes == 1 and not rules)
    if rules:
        differs_without_rules(cfg, run, results)


def _compare_classes(results, of_class, scores_of="standard"):
    known = [[scores for scores in one if scores] for one in of_class]
    compare(results, list(itertools.chain(*known)), scores_of)
    if len(of_class) > 1:
        for k, one in enumerate(known):
            compare(results["classes"][str(k + 1)], one, scores_of)


# Voxels of the volumes have 1.76 to 3.12 mm3.
OF_VOLUMES = {
    "thresholds": (0.4, 0.55),
    "holes": (True, True),
    "smallest": (0.0, 12.0),
    "largest": (True, False),
    "unit": "mm3",
}


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize(
    ("labels", "fit", "rules"),
    [
        (((1, 2),), "squash", {}),
        (((1,), (2,)), "squash", {}),
        (((1, 2), (2,)), "squash", {}),
        (((1,), (2,)), "pad", {}),
        (((1,), (2,)), "tile", {}),
        (((1,), (2,)), "squash", OF_VOLUMES),
        (((1, 2), (2,)), "pad", OF_VOLUMES),
        (((1,), (2,)), "tile", OF_VOLUMES),
    ],
    ids=[
        "one",
        "exclusive",
        "regions",
        "pad",
        "tile",
        "post-processed",
        "regions post-processed",
        "tile post-processed",
    ],
)
def test_volumes(tmp_path, labels, fit, rules, models):
    rng = np.random.default_rng(1)
    cases = {"a": THICK, "b": OBLIQUE, "c": THICK, "d": OBLIQUE}
    shapes = {"a": (4, 12, 12), "b": (12, 12, 4), "c": (5, 15, 24), "d": (20, 17, 6)}
    for case, affine in cases.items():
        image, label = made_up(rng, shapes[case])
        voxels = {"images": (image * 2000 - 900).astype(np.int16), "labels": label}
        for kind, values in voxels.items():
            path = tmp_path / "data" / kind / f"{case}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, affine), path)
    fields = {
        "data.source": "nifti",
        "data.root": str(tmp_path / "data"),
        "data.cache_dir": str(tmp_path / "cache"),
        "data.fit": fit,
        # Of no volume's own, so that all are resampled.
        "data.spacing": "" if fit == "squash" else "0.6,0.9",
        "data.classes": len(labels),
        "data.labels": labels,
        # The scores are of whole volumes all the same.
        "data.min_foreground": 30,
        "split.train": ("a",),
        "split.val": ("b",),
        "split.test": ("c", "d"),
    }
    cfg, run = trained_together(tmp_path, models, rules, **fields)
    results = evaluate.run(cfg, run)
    for case in "cd":
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(tmp_path / f"data/images/{case}.nii.gz", tmp_path / "in")
    predict.run(cfg, run, str(tmp_path / "in"), str(tmp_path / "out"))
    slices = [[] for _ in labels]
    volumes = [[] for _ in labels]
    lesions = 0
    for case in "cd":
        written = sitk.ReadImage(str(tmp_path / f"out/{case}_mask.nii.gz"))
        truth = sitk.ReadImage(str(tmp_path / f"data/labels/{case}.nii.gz"))
        written, truth = (sitk.DICOMOrient(one, "LPS") for one in (written, truth))
        # z, y, x
        spacing = truth.GetSpacing()[::-1]
        assert written.GetSpacing() == pytest.approx(spacing[::-1], rel=1e-5)
        found = parts(sitk.GetArrayFromImage(written), labels)
        true = parts(sitk.GetArrayFromImage(truth), labels)
        for k, (pred, mask) in enumerate(zip(found, true)):
            scores = slow_scores(pred, mask, spacing)
            volumes[k].append({name: scores[name] for name in (*NAMES[:4], *IN_MM)})
            slices[k] += [slow_scores(*pair, spacing[1:]) for pair in zip(pred, mask)]
            body = sitk.GetImageFromArray(mask.astype(np.uint8))
            parted = sitk.ConnectedComponent(body, True)
            lesions += int(sitk.GetArrayFromImage(parted).max())
    assert results["n_images"] == 5 + 6
    _compare_classes(results, slices)
    assert results["volumes"]["n"] == 2 * len(labels)
    _compare_classes(results["volumes"], volumes, scores_of="")
    assert results["lesions"]["true"] == lesions > 0
    assert 0.2 < results["standard"]["dice"]["mean"] < 0.95
    if rules:
        differs_without_rules(cfg, run, results)
