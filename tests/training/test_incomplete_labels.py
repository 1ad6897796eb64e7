"""Runs on labels that are not complete, of each kind, against counts by hand.

Each is trained for a few steps; what mode predict then writes is read back with nibabel
and counted against the label maps.
"""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from refusals import refused
from scipy.ndimage import gaussian_filter

from biedsnet_jax.config import run_config
from biedsnet_jax.prediction import predict
from biedsnet_jax.reporting import record
from biedsnet_jax.training import train
from configs import nifti, variants

CASES = ("a1", "a2", "b1", "b2", "b3")
TESTED = ("b1", "b2")
VOID = 9
NAMES = {"background": 0, "oedema": 1, "core": 2}


def make(root, *, void, names):
    """Writes volumes of 16 x 16 x 4 with the labels 1 and 2, and VOID in some."""
    rng = np.random.default_rng(0)
    for case in CASES:
        image = gaussian_filter(rng.normal(size=(16, 16, 4)), (2, 2, 1))
        image = (image - image.min()) / np.ptp(image)
        label = (image > 0.5).astype(np.uint8) + (image > 0.65)
        if void:
            label[4:9, 3:12] = VOID
        voxels = {"imagesTr": (image * 900).astype(np.int16), "labelsTr": label}
        for folder, values in voxels.items():
            path = root / folder / f"{case}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = nib.Nifti1Image(values.astype(values.dtype), np.diag([1, 1, 2, 1]))
            nib.save(volume, path)
    about = {"channel_names": {"0": "CT"}, "labels": names}
    (root / "dataset.json").write_text(json.dumps(about))


def config(root, **fields):
    c = nifti.get_config("unet")
    variants.toy(c)
    c.data.update(root=str(root), size=16, cache_dir=str(root / "cache"))
    c.data.classes = 2
    c.split.update(train=("a1", "b3"), val=("a2",), test=TESTED)
    c.train.update(steps=4, batch_size=8)
    c.eval.update(every=2, batch_size=8, pictures=4, lesions=True)
    c.checkpoint.every = 4
    c.log.update(tensorboard=True, images=1, every=2)
    c.compile_cache = ""
    c.update_from_flattened_dict(fields)
    return c


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def counts(pred, truth, known):
    """tp, fp, fn and tn of the known voxels, one by one."""
    found = dict.fromkeys(("tp", "fp", "fn", "tn"), 0)
    for p, t, is_known in zip(pred.flat, truth.flat, known.flat):
        if is_known:
            right = "t" if p == t else "f"
            found[right + ("p" if p else "n")] += 1
    return found


KINDS = {
    "ignore": (True, {**NAMES, "ignore": VOID}, {}, ((1,), (2,)), ()),
    "ignore, by the config": (
        True,
        NAMES,
        {"data.ignore": str(VOID), "data.foreground": 0.5, "data.target": "share"},
        ((1,), (2,)),
        (),
    ),
    "region": (False, NAMES, {"data.labels": ((1, 2), (2,))}, ((1, 2), (2,)), ()),
    "missing class": (
        False,
        NAMES,
        {"data.unannotated": (("?1", (2,)),)},
        ((1,), (2,)),
        ("b1",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_scores(tmp_path, capsys, kind):
    void, names, fields, groups, without_2 = KINDS[kind]
    make(tmp_path / "data", void=void, names=names)
    workdir = tmp_path / "run"
    results = train.train(config(tmp_path / "data", **fields), str(workdir))
    assert "data.window" in capsys.readouterr().err
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for one in map(json.loads, lines) if "loss" in one]
    assert losses and np.isfinite(losses).all()

    saved = run_config.load(workdir)
    assert saved.data.ignore == (str(VOID) if void else "")
    title = "oedema+core" if kind == "region" else "oedema"
    assert saved.data.class_names == (title, "core")
    assert saved.data.channel_names == ("CT",)

    for case in TESTED:
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(tmp_path / f"data/imagesTr/{case}.nii.gz", tmp_path / "in")
    cfg = run_config.load(workdir)
    predict.run(cfg, str(workdir), str(tmp_path / "in"), str(tmp_path / "out"))
    rows = {}
    for case in TESTED:
        written, label = (
            np.asarray(nib.load(path).dataobj)
            for path in (
                tmp_path / f"out/{case}_mask.nii.gz",
                tmp_path / f"data/labelsTr/{case}.nii.gz",
            )
        )
        for k, group in enumerate(groups):
            known = label != VOID
            if k == 1 and case in without_2:
                known = np.zeros_like(known)
            pred, truth = np.isin(written, group), np.isin(label, group)
            rows[case, str(k + 1)] = counts(pred, truth, known)
    check(workdir, results, rows)
    check_pictures(workdir, void, without_2)
    check_names(workdir, tmp_path / "out", title)
    # The same command goes on, and finds nothing left to do.
    train.train(config(tmp_path / "data", **fields), str(workdir))
    assert run_config.load(workdir).to_dict() == saved.to_dict()


def check(workdir, results, rows):
    """Compares the files of an evaluation with counts of each (case, class)."""
    summed = {key: dict.fromkeys(one, 0) for key, one in rows.items()}
    slices = table(workdir / "slices.csv")
    for row in slices:
        for name in summed[row["case"], row["class"]]:
            summed[row["case"], row["class"]][name] += int(row[name])
    assert summed == rows
    known = {key: one for key, one in rows.items() if any(one.values())}
    for name in ("cases.csv", "volumes.csv"):
        of_file = table(workdir / name)
        assert {(row["case"], row["class"]) for row in of_file} == set(known)
        for row in of_file:
            one = known[row["case"], row["class"]]
            both = 2 * one["tp"] + one["fp"] + one["fn"]
            assert float(row["dice"]) == pytest.approx(2 * one["tp"] / both)
    assert results["volumes"]["n"] == len(known)
    of_slices = [
        [int(row[name]) for name in ("tp", "fp", "fn", "tn")] for row in slices
    ]
    with_any = [one for one in of_slices if any(one)]
    assert results["n_empty"] == sum(tp + fn == 0 for tp, _, fn, _ in with_any)
    assert results.get("n_masks", len(slices)) == len(with_any)
    pooled = results["standard"]["accuracy"]["pooled"]
    total = np.sum(of_slices, axis=0)
    assert pooled == pytest.approx((total[0] + total[3]) / total.sum())


def check_pictures(workdir, void, without_2):
    """The report's pictures have the pixels whose truth is known, class by class."""
    slices = table(workdir / "slices.csv")
    dice = np.array([float(row["dice"]) for row in slices])
    kept = record.load(workdir, dice)
    if not void and not without_2:
        assert kept.known is None
        return
    for number, known in zip(kept.slices, kept.known):
        case = slices[2 * number]["case"]
        for k in range(2):
            # The square that is void has 5 x 9 pixels.
            count = 256 - 45 * void
            if k == 1 and case in without_2:
                count = 0
            assert known[..., k].sum() == count
    assert not kept.truth[kept.known == 0].any()


def check_names(workdir, out, title):
    """The names stand in every table that has classes."""
    for path in (
        *(workdir / f"{name}.csv" for name in ("slices", "cases", "volumes")),
        workdir / "lesions.csv",
        out / "summary.csv",
    ):
        rows = table(path)
        assert {row["class_name"] for row in rows} <= {title, "core"}
        for row in rows:
            assert (row["class"] == "2") == (row["class_name"] == "core")
    labels = json.loads((out / "labels.json").read_text())
    assert labels == {"background": 0, title: 1, "core": 2}
    report = (workdir / "report.html").read_text()
    assert f"class 1, {title}" in report and "class 2, core" in report


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data.unannotated": (("c*", (2,)),)}, ("data.unannotated", "c*", "nearest")),
        ({"data.ignore": "8"}, ("dataset.json", "8", "9")),
        ({"data.classes": 3}, ("dataset.json", "data.classes is 3", "=2")),
    ],
)
def test_what_does_not_fit_the_data_starts_nothing(tmp_path, fields, says):
    make(tmp_path / "data", void=True, names={**NAMES, "ignore": VOID})
    cfg = config(tmp_path / "data", **fields)
    refused(lambda: train.train(cfg, str(tmp_path / "run")), *says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("side", "cases"),
    [
        ("train", ("a1", "b3")),
        ("val", ("a2",)),
        ("test", TESTED),
    ],
)
def test_a_side_of_which_nothing_is_known_starts_nothing(tmp_path, side, cases):
    make(tmp_path / "data", void=False, names=NAMES)
    unannotated = tuple((case, (1, 2)) for case in cases)
    cfg = config(tmp_path / "data", **{"data.unannotated": unannotated})
    refused(
        lambda: train.train(cfg, str(tmp_path / "run")),
        "data.unannotated",
        cases[0],
        f"split.{side}",
    )
    assert not (tmp_path / "run").exists()
