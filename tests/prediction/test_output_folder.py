"""Tests what is done again in an output folder and what is refused, on made-up masks.

Nothing is predicted.
"""

import json
import os
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.prediction import made_from, output_folder, outputs, scan_results
from biedsnet_jax.prediction.job import Job
from biedsnet_jax.prediction.result import OF_SAMPLES, Prediction
from biedsnet_jax.prediction.scans import Item, Scan

SETTINGS = {
    "model": "unet",
    "threshold": 0.5,
    "sampler.steps": 3,
    "data.window": [0, 1],
}


def scan_of(item: Item) -> Scan:
    """Makes a scan of four pixels or voxels."""
    if item.kind == "picture":
        return Scan(item, np.zeros((1, 2, 2, 1), np.uint8))
    volume = Volume(np.zeros((2, 2, 1), np.int16), np.eye(4), item.name)
    return Scan(item, volume.slices[..., None], volume)


def prediction(samples: bool = False) -> Prediction:
    """Makes a prediction whose mask has all pixels."""
    names = ("probability", "entropy", "mutual_information", "variance")
    maps = dict.fromkeys(names, np.ones((1, 2, 2, 1), np.float32))
    kept = np.ones((2, 1, 2, 2, 1), np.float32) if samples else None
    return Prediction(
        Fit(2).way((2, 2)), maps, kept, threshold=0.5, labels=((1,),), seconds=1.0
    )


class Place:
    """Pictures or series in `in`, masks in `out`; a run is `done = place.run()`."""

    def __init__(self, folder: Path):
        self.source = folder / "in"
        self.out = folder / "out"
        self.source.mkdir()
        self.settings, self.samples = SETTINGS, False
        self.model = output_folder.Model(folder / "work", "w1", step=10, config="c")
        self.items: dict[str, Item] = {}
        state = self.model.workdir / "checkpoints" / "10" / "state"
        state.parent.mkdir(parents=True)
        state.write_text("arrays")

    def picture(self, name: str, content: str = "old") -> Path:
        path = self.source / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        self.items[name] = Item(name, "picture", (path,))
        return path

    def series(self, name: str, slices: int) -> None:
        (self.source / name).mkdir(exist_ok=True)
        files = [self.source / name / f"{number}.dcm" for number in range(slices)]
        for path in files:
            if not path.exists():
                path.write_text(path.name)
        self.items[name] = Item(name, "dicom", tuple(files), slices)

    def set_model(self, **fields) -> None:
        self.model = self.model._replace(**fields)

    def plan(self) -> output_folder.Plan:
        self.out.mkdir(exist_ok=True)
        self.job = Job(
            self.out,
            list(self.items.values()),
            classes=1,
            samples=2,
            uncertainties=OF_SAMPLES,
            keep_samples=self.samples,
            settings=self.settings,
            weights=self.model.weights,
        )
        return output_folder.plan(self.job, self.model)

    def save(self, plan: output_folder.Plan) -> None:
        """Gives each scan of a plan a mask."""
        results = scan_results.Results(self.job, plan.todo)
        for item in self.job.items:
            if item.name in plan.todo:
                inputs = made_from.describe(item.files)
                results.save(scan_of(item), prediction(self.samples), inputs)

    def run(self) -> dict[str, str]:
        """Gives each scan that needs one a mask; returns the reasons."""
        plan = self.plan()
        self.save(plan)
        return plan.todo

    def predict_json(self) -> dict:
        return json.loads((self.out / "predict.json").read_text())


@pytest.fixture
def place(tmp_path):
    """Three pictures and a series with masks."""
    place = Place(tmp_path)
    for name in ("a", "b", "below/c"):
        place.picture(name)
    place.series("s", 3)
    assert place.run() == dict.fromkeys(("a", "b", "below/c", "s"), "")
    assert place.run() == {}
    return place


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mask(place, name="a"):
    return place.out / f"{name}_mask{'.nii.gz' if name == 's' else '.png'}"


# --- scans that change ---


def rewritten(path):
    path.write_text("new")


def replaced_by_a_file_of_the_same_time_and_size(path):
    before = path.stat()
    other = path.with_name("other")
    other.write_text("new")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def rewritten_and_its_time_set_back(path):
    before = path.stat()
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def longer(path):
    path.write_text("older")


def linked_to_another(path):
    other = path.with_suffix(".other")
    other.write_text("new")
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        replaced_by_a_file_of_the_same_time_and_size,
        rewritten_and_its_time_set_back,
        longer,
        linked_to_another,
    ],
)
def test_a_scan_that_changed_is_done_again_and_no_other(place, change):
    change(place.source / "a.png")
    assert place.run() == {"a": "the scan changed"}
    assert place.run() == {}


def test_a_change_in_the_middle_of_a_large_file_is_seen(place):
    path = place.picture("large", "x" * 2**22)
    place.run()
    with path.open("r+") as file:
        file.seek(2**21)
        file.write("y")
    assert place.run() == {"large": "the scan changed"}


def touched(path):
    os.utime(path, (1, 1))


def copied_and_moved_back(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def made_unwritable(path):
    path.chmod(0o400)


@pytest.mark.parametrize("touch", [touched, copied_and_moved_back, made_unwritable])
def test_a_scan_of_the_same_bytes_is_not_done_again(place, touch):
    touch(place.source / "a.png")
    assert place.run() == {}


def test_slices_that_are_added_or_removed_are_the_reason(place):
    place.series("s", 5)
    assert place.run() == {"s": "slices were added"}
    place.series("s", 4)
    assert place.run() == {"s": "slices were removed"}
    (place.source / "s" / "1.dcm").write_text("another slice")
    assert place.run() == {"s": "the scan changed"}
    assert place.run() == {}


def test_a_scan_of_the_same_name_from_another_place(place):
    other = place.source.parent / "other" / "a.png"
    other.parent.mkdir()
    other.write_text("old")
    place.items = {"a": Item("a", "picture", (other,))}
    assert place.run() == {"a": "the scan is another one of that name"}
    place.items = {
        "a": Item("a", "picture", (other.parent / ".." / "other" / "a.png",))
    }
    assert place.run() == {}


def test_scans_that_are_gone_are_counted_and_those_of_another_input_are_not(place):
    (place.source / "a.png").unlink()
    (place.source / "s" / "0.dcm").unlink()
    place.items = {}
    place.picture("new")
    plan = place.plan()
    assert (plan.todo, plan.gone) == ({"new": ""}, 2)
    assert mask(place).exists()


def test_a_scan_that_cannot_be_read_is_tried_again(place):
    (place.source / "a.png").unlink()
    assert place.plan().todo == {"a": "the scan changed"}


# --- the model and the settings ---


def test_a_model_that_was_trained_further_does_all_again(place):
    place.set_model(weights="w2", step=20)
    first = place.plan()
    assert first.todo == dict.fromkeys(
        ("a", "b", "below/c", "s"), "the model or its post-processing changed"
    )
    assert place.predict_json()["checkpoint_step"] == 20
    # The first plan was not carried out, and its scans are not forgotten.
    assert place.run() == first.todo
    assert place.run() == {}


def test_masks_of_the_earlier_model_outside_the_input_are_named(place):
    items = dict(place.items)
    place.set_model(weights="w2")
    place.items = {"a": items["a"]}
    (place.source / "b.png").unlink()
    (note,) = place.plan().notes
    # The file of "b" is gone, so "below/c" and "s" are left.
    assert str(place.out) in note and "2 in all" in note and "--input" in note
    place.run()
    assert len(place.plan().notes) == 1
    place.items = {name: item for name, item in items.items() if name != "b"}
    assert place.run().keys() == {"below/c", "s"}
    assert place.plan().notes == []


def test_a_model_retrained_to_the_same_step_does_all_again(place):
    place.set_model(weights="w2")
    assert set(place.run().values()) == {"the model or its post-processing changed"}


def test_a_model_that_was_moved_is_the_same(place):
    place.set_model(workdir=Path("/elsewhere"))
    assert place.run() == {}


def test_another_model_is_refused_and_changes_nothing(place):
    before, workdir = contents(place.out), place.model.workdir
    place.set_model(weights="w2", workdir=Path("/elsewhere"))
    refused(place.plan, place.out, workdir, "/elsewhere", "--output")
    assert contents(place.out) == before


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("threshold", 0.4, "threshold was 0.5 and is 0.4"),
        ("sampler.steps", 4, "sampler.steps was 3 and is 4"),
        ("data.window", [0, 2], "data.window was [0, 1] and is [0, 2]"),
        ("a.new.field", True, "a.new.field was None and is True"),
    ],
)
def test_other_settings_are_refused(place, name, value, shown):
    place.settings = SETTINGS | {name: value}
    refused(place.plan, place.out, shown, "--output")


def test_a_field_that_came_later_stands_for_what_was_done_before(place):
    place.settings = SETTINGS | {"diffusion.self_condition": False}
    assert place.run() == {}
    place.settings = SETTINGS | {"diffusion.self_condition": True}
    refused(place.plan, "diffusion.self_condition was False and is True")


def test_masks_made_with_a_field_that_is_gone_are_not_mixed_with_others(place):
    place.run()
    path, there = place.out / "predict.json", place.predict_json()
    path.write_text(json.dumps(there | {"sampler.start": "noise"}))
    assert place.run() == {}
    path.write_text(json.dumps(there | {"sampler.start": "direct"}))
    refused(
        place.plan, place.out, "sampler.start was 'direct' and is 'noise'", "--output"
    )


def test_what_an_earlier_version_read_is_done_again(place, monkeypatch):
    monkeypatch.setattr(made_from, "READING", made_from.READING + 1)
    assert set(place.run().values()) == {"an earlier version read it"}
    assert place.run() == {}


# --- output files ---


@pytest.mark.parametrize("name", ["mask", "overlay", "probability", "variance"])
def test_a_file_that_is_missing_is_made_again(place, name):
    (place.out / f"a_{name}.png").unlink()
    assert place.run() == {"a": "an output file was missing"}
    assert place.run() == {}
    assert (place.out / f"a_{name}.png").exists()


def test_a_mask_that_somebody_edited_is_kept_beside_the_new_one(place):
    Image.new("L", (2, 2), 7).save(mask(place))
    plan = place.plan()
    assert plan.todo == {"a": "an output file was changed"}
    (note,) = plan.notes
    assert "1 in all" in note
    assert "a_mask_replaced_1.png" in note
    place.save(plan)
    assert np.asarray(Image.open(place.out / "a_mask_replaced_1.png")).max() == 7
    assert np.asarray(Image.open(mask(place))).max() == 255
    assert place.run() == {}


def test_an_edited_mask_outlives_a_new_model_too(place):
    mask(place).write_text("edited")
    place.set_model(weights="w2")
    place.run()
    assert (place.out / "a_mask_replaced_1.png").read_text() == "edited"


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-4] + bytes(4), lambda b: b""]
)
def test_a_mask_that_lost_its_end_is_made_again(place, damage):
    whole = mask(place).read_bytes()
    mask(place).write_bytes(damage(whole))
    assert place.run() == {"a": "an output file was changed"}
    assert mask(place).read_bytes() == whole


def test_a_folder_that_was_copied_is_the_same(place):
    for path in place.out.rglob("*_mask.png"):
        other = path.with_name("copy")
        other.write_bytes(path.read_bytes())
        other.replace(path)
    assert place.run() == {}


def test_samples_of_an_earlier_scan_do_not_stay_beside_its_new_mask(place):
    place.samples = True
    assert set(place.run().values()) == {"an output file was missing"}
    assert (place.out / "a_sample_2.png").exists()
    place.samples = False
    assert place.run() == {}
    rewritten(place.source / "a.png")
    place.run()
    assert not (place.out / "a_sample_1.png").exists()
    assert (place.out / "b_sample_1.png").exists()


# --- cut short ---


def zeroed(content, at):
    return content[:at] + bytes(len(content) - at)


def cut(content, at):
    return content[:at]


@pytest.mark.parametrize("damage", [cut, zeroed])
@pytest.mark.parametrize("name", ["summary.csv", "made_from.jsonl", "predict.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.98])
def test_a_record_that_lost_its_end_costs_the_scans_it_lost(place, name, damage, share):
    path = place.out / name
    content = path.read_bytes()
    path.write_bytes(damage(content, int(len(content) * share)))
    again = place.run()
    kept = content[: int(len(content) * share)].count(b"\n")
    if name == "summary.csv":
        # Its first line is the header.
        kept = max(kept - 1, 0)
    elif name == "predict.json":
        # Each line of the record has the settings too, so no scan is lost.
        kept = 4
    assert set(again) <= {"a", "b", "below/c", "s"}
    assert len(again) == 4 - kept
    assert place.run() == {}
    assert len(outputs.Summary(place.out, classes=1).done) == 4


@pytest.mark.parametrize("text", ["{", "[1, 2]", "3", "null", "\0\0", '{"model": '])
def test_settings_that_are_lost_are_found_in_the_record(place, text):
    (place.out / "predict.json").write_text(text)
    place.settings = SETTINGS | {"threshold": 0.4}
    assert set(place.plan().todo.values()) == {"nothing said what it was made from"}
    (place.out / "predict.json").write_text(text)
    place.run()
    assert place.run() == {}
    assert place.predict_json()["threshold"] == 0.4


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "null",
        '{"name": 3}',
        '{"name": ["a"]}',
        '{"name": "x", "why": "", "weights": "w", "settings": "s", "reading": 1, '
        '"inputs": [], "outputs": []}',
        '{"name": "x", "inputs": [{"path": 5}], "outputs": 3}',
        "[" * 100_000,
    ],
)
def test_a_strange_line_in_the_record_is_ignored(place, line):
    with (place.out / "made_from.jsonl").open("a") as file:
        file.write(line + "\n")
    assert place.run() == {}
    assert line not in (place.out / "made_from.jsonl").read_text().splitlines()


@pytest.mark.parametrize("stops", range(10))
def test_a_kill_anywhere_leaves_a_scan_finished_or_to_be_done(
    place, monkeypatch, stops
):
    """Stops the run of a scan that was replaced before its `stops`-th file change."""
    rewritten(place.source / "a.png")
    left = [stops]

    def counted(call):
        def change(*arguments, **named):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return call(*arguments, **named)

        return change

    plan = place.plan()
    with monkeypatch.context() as patch:
        patch.setattr(outputs.files, "append_text", counted(outputs.files.append_text))
        patch.setattr(Path, "replace", counted(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            place.save(plan)
    assert set(place.run()) == {"a"}
    assert place.run() == {}
    assert not list(place.out.rglob(".partial*"))


def test_parts_of_a_killed_run_are_taken_over(place):
    rewritten(place.source / "a.png")
    rewritten(place.source / "b.png")
    plan = place.plan()
    scan_results.Results(place.job, plan.todo).forget(plan.todo)
    part = scan_results.Results(place.job, plan.todo, part=1)
    item = place.items["b"]
    part.save(scan_of(item), prediction(), made_from.describe(item.files))
    assert place.plan().todo == {"a": ""}
    assert not list(place.out.glob("*part*"))


# --- folders of earlier versions ---


@pytest.fixture
def earlier(place):
    """The folder as an earlier version without a record leaves it."""
    (place.out / "made_from.jsonl").unlink()
    there = {
        "config": "c",
        "checkpoint_step": 10,
        "model": "unet",
        "threshold": 0.5,
        "sampler.steps": 3,
    }
    (place.out / "predict.json").write_text(json.dumps(there))
    return place


def at(path, hours):
    os.utime(path, (time.time() + 3600 * hours,) * 2)


def make_newer(place, *names):
    """Makes masks newer than all other files, whose times are now."""
    for name in names:
        at(mask(place, name), 1)


def test_masks_newer_than_scan_and_model_are_kept_and_that_is_said_once(earlier):
    make_newer(earlier, "a", "b", "below/c", "s")
    plan = earlier.plan()
    assert plan.todo == {}
    (note,) = plan.notes
    assert str(earlier.out) in note
    assert "4 masks" in note
    assert "0 are made again" in note
    assert earlier.plan().notes == []
    assert earlier.plan().todo == {}
    rewritten(earlier.source / "a.png")
    assert earlier.run() == {"a": "the scan changed"}


def test_masks_older_than_their_scan_are_made_again(earlier):
    make_newer(earlier, "a", "b", "below/c", "s")
    at(earlier.source / "a.png", 2)
    at(earlier.source / "s" / "1.dcm", 2)
    plan = earlier.plan()
    assert plan.todo == dict.fromkeys(("a", "s"), "nothing said what it was made from")
    assert "2 masks" in plan.notes[0]
    assert "2 are made again" in plan.notes[0]
    earlier.save(plan)
    assert earlier.plan() == ({}, 0, [])


def test_a_slice_that_was_taken_away_shows_in_the_folders_time(earlier):
    make_newer(earlier, "a", "b", "below/c", "s")
    earlier.series("s", 2)
    at(earlier.source / "s", 2)
    assert set(earlier.run()) == {"s"}


def test_masks_older_than_the_model_are_made_again(earlier):
    make_newer(earlier, "a", "b", "below/c", "s")
    at(earlier.model.workdir / "checkpoints" / "10" / "state", 2)
    assert len(earlier.run()) == 4


def test_masks_of_another_step_are_made_again(earlier):
    make_newer(earlier, "a", "b", "below/c", "s")
    earlier.set_model(step=20)
    assert len(earlier.run()) == 4


@pytest.mark.parametrize(
    "change", ["scan of another place", "file missing", "no figures"]
)
def test_an_earlier_versions_scan_that_is_not_whole_is_done_again(earlier, change):
    make_newer(earlier, "a", "b", "below/c", "s")
    if change == "file missing":
        (earlier.out / "a_entropy.png").unlink()
    elif change == "no figures":
        outputs.Summary(earlier.out, classes=1).forget(["a"])
    else:
        (earlier.source / "moved").mkdir()
        moved = (earlier.source / "a.png").rename(earlier.source / "moved" / "a.png")
        earlier.items["a"] = Item("a", "picture", (moved,))
    assert set(earlier.run()) == {"a"}


@pytest.mark.parametrize(
    ("name", "value"), [("config", "other"), ("threshold", 0.4), ("model", "unetpp")]
)
def test_an_earlier_versions_folder_of_something_else_is_refused(earlier, name, value):
    there = json.loads((earlier.out / "predict.json").read_text()) | {name: value}
    (earlier.out / "predict.json").write_text(json.dumps(there))
    refused(earlier.plan, f"{name} was {value!r}", "--output")


# --- names that some file systems take for one ---

TWINS = [
    ("A", "a"),
    ("Sub/x", "sub/x"),
    ("ä", unicodedata.normalize("NFD", "ä")),
    ("É", "e\u0301"),
]


@pytest.mark.parametrize("names", TWINS)
def test_twins_have_files_of_their_own_where_the_system_keeps_them_apart(
    tmp_path, names
):
    place = Place(tmp_path)
    for name in names:
        place.picture(name)
    place.run()
    assert all(mask(place, name).exists() for name in names)
    assert place.run() == {}
    assert len({mask(place, name).stat().st_ino for name in names}) == 2
    assert not list(place.out.glob(".names*"))


@pytest.mark.parametrize("names", TWINS)
def test_twins_are_refused_where_the_system_takes_them_for_one(
    tmp_path, monkeypatch, names
):
    place = Place(tmp_path)
    for name in names:
        place.picture(name)
    exists = Path.exists

    def folds(path):
        """Behaves as a disk that knows neither case nor the form of a letter."""
        if exists(path):
            return True
        alike = {
            unicodedata.normalize("NFC", one.name.casefold())
            for one in path.parent.iterdir()
        }
        return unicodedata.normalize("NFC", path.name.casefold()) in alike

    monkeypatch.setattr(Path, "exists", folds)
    refused(place.plan, *(place.source / f"{name}.png" for name in names), "Rename")


def test_a_cut_name_that_another_scan_has_is_refused(tmp_path):
    place = Place(tmp_path)
    place.picture("a" * 240)
    place.plan()
    short = next(iter(place.job.where.values()))["mask"].name.removesuffix("_mask.png")
    place.picture(short)
    refused(place.plan, "a" * 240, f"{short}_", "Rename")
