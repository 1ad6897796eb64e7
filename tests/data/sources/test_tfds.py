"""Prepared TFDS sets as a source: features by name, classes, cache, refusals."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from places import ROOT
from refusals import refused

from biedsnet_jax.data.sources import tfds as tfds_source
from biedsnet_jax.data.sources.source import Source
from biedsnet_jax.data.sources.tfds import Tfds, find

FEATURES = {
    "image": "scan",
    "mask": "seg",
    "case": "patient",
    "slice": "number",
    "spacing": "mm",
}


def examples(count: int = 6, *, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "scan": rng.integers(0, 256, (8 + n, 9, 1), np.uint8),
            "colour": rng.integers(0, 256, (8 + n, 9, 3), np.uint8),
            "real": rng.normal(size=(8 + n, 9, 1)).astype(np.float32),
            "seg": rng.integers(0, 3, (8 + n, 9, 1), np.uint8),
            "flat": rng.integers(0, 2, (8 + n, 9), np.int32) * 300,
            "patient": f"patient {n // 2}",
            "number": n,
            "mm": np.array([0.5, 0.25 * (n + 1)], np.float32),
        }
        for n in range(count)
    ]


class Scans(tfds.core.GeneratorBasedBuilder):
    """Builds the set `scans`, as other people's builders do."""

    VERSION = tfds.core.Version("1.0.0")
    made: list

    def _info(self):
        def array(channels, dtype=np.uint8):
            return tfds.features.Tensor(
                shape=(None, None, *channels), dtype=dtype, encoding="zlib"
            )

        arrays = {
            "scan": array((1,)),
            "colour": array((3,)),
            "real": array((1,), np.float32),
        }
        masks = {"seg": array((1,)), "flat": array((), np.int32)}
        rest = {
            "patient": tfds.features.Text(),
            "number": np.int32,
            "mm": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
        features = tfds.features.FeaturesDict(arrays | masks | rest)
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(self.made[:4]),
            "test": self._generate_examples(self.made[4:]),
        }

    def _generate_examples(self, made):
        yield from enumerate(made)


def write(data_dir: Path, made: list[dict]) -> Path:
    tfds.disable_progress_bar()
    Scans.made = made
    Scans(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir / "scans" / "1.0.0"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tfds"), examples())


@pytest.fixture
def opened(prepared, tmp_path):
    def open_set(folder=prepared, split="all", classes=2, **how):
        names = FEATURES | {
            name: how.pop(name) for name in tfds_source.ROLES if name in how
        }
        return Tfds(folder, tmp_path, names, split=split, classes=classes, **how)

    return open_set


# --- what comes out


def test_examples_come_as_from_any_source(opened):
    source = opened()
    assert isinstance(source, Source) and len(source) == 6
    assert source.cases == [f"patient {n // 2}" for n in range(6)]
    for n, made in enumerate(examples()):
        example = source[n]
        np.testing.assert_array_equal(example["image"], made["scan"])
        np.testing.assert_array_equal(example["mask"], made["seg"] == (1, 2))
        assert example["mask"].dtype == np.uint8
        assert (example["case"], example["slice"]) == (made["patient"], f"{n:03d}")
        assert example["spacing"] == (0.5, 0.25 * (n + 1))
        assert example["path"].endswith(f"all[{n}]")


@pytest.mark.parametrize(
    ("split", "numbers"),
    [("train", range(4)), ("test", range(4, 6)), ("train[2:]+test", range(2, 6))],
)
def test_a_split_of_the_set(opened, split, numbers):
    source = opened(split=split)
    assert [source[n]["slice"] for n in range(len(source))] == [
        f"{n:03d}" for n in numbers
    ]
    assert len(source.cases) == len(source)


def test_regions_from_sets_of_labels(opened):
    mask = opened(labels=((1, 2), (2,)))[3]["mask"]
    label = examples()[3]["seg"][..., 0]
    np.testing.assert_array_equal(mask, np.stack([label > 0, label == 2], axis=-1))


def test_one_class_takes_whatever_is_not_zero(opened):
    mask = opened(mask="flat", classes=1)[0]["mask"]
    np.testing.assert_array_equal(mask[..., 0], examples()[0]["flat"] == 300)


@pytest.mark.parametrize(
    ("how", "of_class"),
    [
        ({"classes": 1}, [(1,)]),
        ({"classes": 2, "labels": ((1,), (0, 1))}, [(1,), (0, 1)]),
    ],
)
def test_pixels_of_a_label_to_ignore_are_known_of_no_class(opened, how, of_class):
    source = opened(ignore=2, **how)
    source.verify()
    for n, made in enumerate(examples()):
        label = made["seg"][..., 0]
        example = source[n]
        (scan,) = [one for one in source.scans(made["patient"]) if one.indices == (n,)]
        for k, group in enumerate(of_class):
            np.testing.assert_array_equal(example["known"][..., k], label != 2)
            expected = [[value in group for value in line] for line in label]
            np.testing.assert_array_equal(example["mask"][..., k], expected)
        np.testing.assert_array_equal(scan.known[0], example["known"])
    # Only the label to ignore may be there beside those of the classes.
    refused(
        opened(ignore=1, classes=1, labels=((3,),)).verify, "labels 2,", "data.labels"
    )


@pytest.mark.parametrize(("image", "channels"), [("colour", 3), ("real", 1)])
def test_other_kinds_of_image(opened, image, channels):
    np.testing.assert_array_equal(
        opened(image=image, channels=channels)[1]["image"], examples()[1][image]
    )


def test_units_of_an_image_of_bytes(opened):
    image = opened(units=(-1250.0, 250.0))[0]["image"]
    np.testing.assert_allclose(
        image, examples()[0]["scan"] / 255 * 1500 - 1250, rtol=1e-5
    )
    refused(
        lambda: opened(image="real", units=(0.0, 1.0))[0],
        "all[0]",
        "float32",
        "data.tfds.units to ()",
    )


def test_without_a_case_each_example_is_its_own(opened):
    source = opened(case="", slice="", spacing="")
    assert source.cases == [f"{n:05d}" for n in range(6)]
    assert source[4]["case"] == source[4]["slice"] == "00004"
    assert source[4]["spacing"] is None


def test_what_a_pass_found_is_kept_until_the_set_changes(
    prepared, tmp_path, opened, monkeypatch
):
    first = opened()
    cases = first.cases
    first.verify()
    again = opened()
    # A pass over the examples would fail.
    monkeypatch.setattr(tfds_source, "ThreadPoolExecutor", None)
    again.verify()
    assert again.cases == cases
    refused(opened(classes=1, labels=((1,),)).verify, "labels 2,", "all[0]")
    os.utime(prepared / "dataset_info.json")
    # The set counts as prepared anew, and is read again.
    with pytest.raises(TypeError):
        opened().verify()
    monkeypatch.undo()
    assert opened(case="number").cases == [f"{n:03d}" for n in range(6)]
    assert opened().cases == cases
    for damage in (b"[broken", b"", bytes(200)):
        for path in tmp_path.glob("*.json"):
            path.write_bytes(damage)
        assert opened().cases == cases


def test_what_is_kept_is_on_the_disk_before_it_has_its_name(
    tmp_path, opened, monkeypatch
):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda d: (synced.append(os.fstat(d).st_ino), fsync(d))
    )
    before = os.umask(0o027)
    try:
        opened().verify()
    finally:
        os.umask(before)
    (path,) = tmp_path.glob("*.json")
    assert path.stat().st_ino in synced and stat.S_IMODE(path.stat().st_mode) == 0o640


# --- what is refused


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            {"image": "picture"},
            ["data.tfds.image is 'picture'", "number, patient, real, scan, seg"],
        ),
        ({"mask": ""}, ["data.tfds.mask is ''"]),
        ({"case": "who"}, ["data.tfds.case is 'who'"]),
        ({"mask": "colour"}, ["data.tfds.mask is 'colour'", "(None, None, 3)"]),
        ({"image": "number"}, ["data.tfds.image is 'number'", "()"]),
        ({"spacing": "number"}, ["data.tfds.spacing is 'number'", "()"]),
        ({"case": "scan"}, ["data.tfds.case is 'scan'"]),
        (
            {"split": "validation"},
            ["data.tfds.split is 'validation'", "train, test"],
        ),
        ({"image": "colour"}, ["Set data.channels to 3"]),
        ({"channels": 3}, ["Set data.channels to 1"]),
    ],
)
def test_names_that_do_not_fit_the_set(opened, how, says):
    refused(lambda: opened(**how), *says)


@pytest.mark.parametrize(
    ("change", "how", "says"),
    [
        (
            {"seg": np.full((10, 9, 1), 7, np.uint8)},
            {},
            ["all[2]", "labels 7,", "0, 1, 2.", "data.labels"],
        ),
        ({"seg": np.zeros((7, 9, 1), np.uint8)}, {}, ["all[2]", "10x9", "7x9"]),
        (
            {"real": np.full((10, 9, 1), np.nan, np.float32)},
            {"image": "real"},
            ["all[2]", "NaN"],
        ),
        (
            {"flat": np.full((10, 9), -1, np.int32)},
            {"mask": "flat"},
            ["all[2]", "int32", "data.tfds.mask"],
        ),
        (
            {"real": np.full((10, 9, 1), 0.5, np.float32)},
            {"mask": "real"},
            ["all[", "float32", "data.tfds.mask"],
        ),
    ],
)
def test_an_example_that_does_not_fit(tmp_path, opened, change, how, says):
    made = examples()
    made[2] |= change
    source = opened(folder=write(tmp_path / "made", made), **how)
    refused(source.verify, *says)
    if "all[2]" in " ".join(says):
        refused(lambda: source[2], *says)


def test_a_shard_that_is_damaged_or_gone(tmp_path, opened):
    folder = write(tmp_path / "made", examples())
    (shard,) = folder.glob("*train*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(lambda: opened(folder=folder).verify(), folder, "Prepare the set again")
    shard.unlink()
    refused(lambda: opened(folder=folder).verify(), folder)


def test_a_set_is_found_by_name(prepared, tmp_path):
    data_dir = prepared.parents[1]
    for name in ("scans", "scans/1.0.0", "scans:1.0.0"):
        assert find(name, str(data_dir)) == prepared
    refused(
        lambda: find("scan", str(data_dir)),
        "data.tfds.name is 'scan'",
        f"{data_dir} holds scans.",
    )
    refused(
        lambda: find("scans", str(tmp_path)),
        "data.tfds.name is 'scans'",
        "file_format='array_record'",
    )


def test_the_newest_version_and_one_config(tmp_path):
    for version in ("1.9.0", "1.10.0", "incomplete.X_2.0.0"):
        (tmp_path / "one" / version).mkdir(parents=True)
        (tmp_path / "one" / version / "dataset_info.json").write_text("{}")
    for config in ("big", "small"):
        (tmp_path / "two" / config / "1.0.0").mkdir(parents=True)
        (tmp_path / "two" / config / "1.0.0" / "dataset_info.json").write_text("{}")
    assert find("one", str(tmp_path)).name == "1.10.0"
    refused(lambda: find("two", str(tmp_path)), "data.tfds.name", "two/big, two/small")
    assert find("two/small", str(tmp_path)) == tmp_path / "two" / "small" / "1.0.0"


@pytest.mark.parametrize("damage", ["features.json", "dataset_info.json"])
def test_a_folder_that_is_no_set(prepared, tmp_path, opened, damage):
    for file in prepared.iterdir():
        (tmp_path / file.name).write_bytes(
            b"{" if file.name == damage else file.read_bytes()
        )
    refused(lambda: opened(folder=tmp_path), tmp_path, "Prepare it again")


def test_a_set_without_random_access(prepared, tmp_path, opened):
    for file in prepared.iterdir():
        text = file.read_bytes().replace(b"array_record", b"tfrecord")
        (tmp_path / file.name.replace("array_record", "tfrecord")).write_bytes(text)
    refused(
        lambda: opened(folder=tmp_path),
        tmp_path,
        "tfrecord",
        "file_format='array_record'",
    )


@pytest.mark.slow
def test_a_run_on_any_prepared_set_by_its_config(prepared, tmp_path):
    fields = {
        "data.tfds.data_dir": prepared.parents[1],
        "data.tfds.name": "scans",
        "data.cache_dir": tmp_path,
    }
    fields |= {f"data.tfds.{role}": name for role, name in FEATURES.items()}
    code = """
import sys
from biedsnet_jax.config import build_data
from biedsnet_jax.config.check import check_config
from configs import default
c = default.get_config()
c.data.source, c.data.classes, c.split.fractions = "tfds", 2, (0.34, 0.33, 0.33)
c.update_from_flattened_dict(dict(argument.split("=", 1) for argument in sys.argv[1:]))
check_config(c)
data = build_data.open_data(c)
cases = sorted(data.cases("train") + data.cases("val") + data.cases("test"))
print(cases, "tensorflow" in sys.modules)
"""
    assignments = [f"{name}={value}" for name, value in fields.items()]
    line = [sys.executable, "-c", code, *assignments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['patient 0', 'patient 1', 'patient 2'] False\n"


@pytest.mark.parametrize(("mask", "classes"), [("seg", 2), ("seg", 1), ("flat", 1)])
def test_a_set_whose_masks_are_empty_is_refused(tmp_path, opened, mask, classes):
    empty = [
        made | {"seg": made["seg"] * 0, "flat": made["flat"] * 0} for made in examples()
    ]
    source = opened(write(tmp_path / "sets", empty), mask=mask, classes=classes)
    # The second refusal is from the cache.
    for _ in range(2):
        refused(source.verify, "0 of 6 masks", "data.verify=False")


def test_a_set_is_refused_where_no_mask_has_the_labels_of_a_class(opened, tmp_path):
    made = [one | {"seg": np.minimum(one["seg"], 1)} for one in examples()]
    found = write(tmp_path / "sets", made)
    opened(found, labels=((1,), (2,))).verify()
