"""Data opened by a config, whose folders may be the sides of its split."""

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from biedsnet_jax.config import build_data
from biedsnet_jax.data.sources.source import Facts
from configs import folder, phantom


def data(root, counts, *, nested=False, **fields):
    """Opens a data set of `counts` cases, of two slices each, in each folder."""
    for side, count in counts.items():
        for n in range(count):
            for slice_ in range(2):
                name = f"{side}_{n}/{slice_}" if nested else f"{side}_{n}_z{slice_}"
                for kind in ("images", "masks"):
                    path = root / kind / side / f"{name}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(path)
    config = folder.get_config("unet,toy")
    config.data.root = str(root)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return build_data.open_data(config)


@pytest.mark.parametrize("names", [("CT", "CT"), ("CT", "")])
def test_names_that_no_config_may_have_are_not_taken_from_the_data(names):
    cfg = folder.get_config()
    facts = Facts(class_names=("background",), channel_names=names, ignore="255")
    build_data.take_facts(cfg, facts)
    assert (cfg.data.class_names, cfg.data.channel_names) == ((), ())
    assert cfg.data.ignore == "255"
    build_data.take_facts(cfg, Facts(class_names=("lesion",)))
    assert cfg.data.class_names == ("lesion",)


@pytest.mark.parametrize("nested", [False, True])
def test_folders_train_val_and_test_are_the_split(tmp_path, nested):
    opened = data(tmp_path, {"train": 4, "val": 2, "test": 3}, nested=nested)
    assert opened.cases("train") == [f"train_{n}" for n in range(4)]
    assert opened.cases("val") == ["val_0", "val_1"]
    assert opened.cases("test") == [f"test_{n}" for n in range(3)]


def test_validation_is_dealt_out_of_training_where_it_has_no_folder(tmp_path):
    fractions = (0.8, 0.1, 0.1)
    opened = data(tmp_path, {"training": 9, "Test": 2}, split__fractions=fractions)
    assert opened.cases("test") == ["Test_0", "Test_1"]
    assert len(opened.cases("val")) == 1 and len(opened.cases("train")) == 8


def test_lists_of_cases_win_over_folders(tmp_path):
    opened = data(
        tmp_path,
        {"train": 3, "val": 2, "test": 3},
        split__train=("test_*",),
        split__val=("val_0",),
        split__test=("train_1", "val_1"),
    )
    assert opened.cases("test") == ["train_1", "val_1"]
    assert opened.cases("train") == [f"test_{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("counts", "folds", "says"),
    [
        ({"train": 3, "test": 3}, 3, "split.folds is 3"),
        ({"train": 3, "val": 3}, 0, "none for test"),
        ({"val": 3, "test": 3}, 0, "none for train"),
    ],
)
def test_folders_that_are_no_whole_split_are_refused(tmp_path, counts, folds, says):
    refused(lambda: data(tmp_path, counts, split__folds=folds), says)


def test_empty_masks_stop_a_run_unless_they_are_meant(tmp_path):
    data(tmp_path, {"a": 3, "b": 2, "c": 2})
    for path in (tmp_path / "masks").rglob("*.png"):
        Image.new("L", (8, 8)).save(path)
    refused(lambda: data(tmp_path, {}), "14 masks", "data.verify=False")
    assert len(data(tmp_path, {}, data__verify=False).source) == 14


def test_a_root_that_is_no_folder_is_answered_with_the_hint(tmp_path):
    refused(lambda: data(tmp_path / "gone", {}), tmp_path / "gone", "data.root=DIR")


def test_a_network_trains_on_shares_and_is_scored_on_masks():
    cfg = phantom.get_config()
    cfg.data.update(size=8, target="share", fit="pad")
    example = {"image": np.zeros((16, 16, 1)), "mask": np.zeros((16, 16, 1), np.uint8)}
    # A quarter of one pixel of the network.
    example["mask"][0, 0] = 1
    assert build_data.make_train_prepare(cfg)(example)["mask"].max() == 0.25
    assert build_data.make_prepare(cfg)(example)["mask"].max() == 0
    cfg.data.target = "hard"
    assert build_data.make_train_prepare(cfg) == build_data.make_prepare(cfg)
