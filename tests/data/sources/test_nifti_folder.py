"""Folders of volumes: three layouts, slices in canonical order, what is refused."""

import json
import os
import unicodedata

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    ornt_transform,
)
from refusals import refused

from biedsnet_jax.data.formats import nifti
from biedsnet_jax.data.sources.nifti_folder import NiftiFolder, class_masks
from biedsnet_jax.data.sources.nifti_layouts import group_channels, search

# Millimetres along x, y, z.
SPACING = (0.7, 1.1, 5.0)
# Voxels along x, y, z.
SHAPE = (6, 5, 4)


def anatomy(number=0, dtype=np.int16):
    """Makes an image in RAS order of different values, the case in thousands."""
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) + 1000 * number).astype(dtype)


def labelled(values=(1, 2)):
    """Makes a label map in RAS order.

    The first value lies to the right, front and feet, the second to the left, back and
    head.
    """
    label = np.zeros(SHAPE, np.uint8)
    label[4:, 3:, :2] = values[0]
    label[:2, :2, 2:] = values[-1]
    return label


def save(path, voxels, codes="RAS", kind=np.asarray, affine=None):
    """Saves voxels in RAS order as a file of another order."""
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    path.parent.mkdir(parents=True, exist_ok=True)
    there = affine @ inv_ornt_aff(change, SHAPE)
    nib.Nifti1Image(kind(apply_orientation(voxels, change)), there).to_filename(path)
    return path


def mirrored(root, cases=("a", "b"), label=None):
    for number, name in enumerate(cases):
        save(root / "images" / f"{name}.nii.gz", anatomy(number))
        label_map = labelled() if label is None else label
        save(root / "labels" / f"{name}.nii.gz", label_map)
    return root


def folder(root, **fields):
    return NiftiFolder(root, root / "cache", **({"classes": 2} | fields))


def examples(source):
    return [source[i] for i in range(len(source))]


# --- slices


def test_slices_by_hand(tmp_path):
    source = folder(mirrored(tmp_path))
    assert source.cases == ["a"] * 4 + ["b"] * 4 and len(source) == 8
    example = source[6]
    assert (example["case"], example["slice"]) == ("b", "002")
    assert example["path"] == str(tmp_path / "images" / "b.nii.gz")
    assert example["spacing"] == pytest.approx((1.1, 0.7))
    # Rows run from the front, columns from the right.
    expected = anatomy(1)[::-1, ::-1, 2].T
    np.testing.assert_array_equal(example["image"][..., 0], expected)
    assert example["image"].dtype == np.float32 and example["mask"].dtype == np.uint8
    label = labelled()[::-1, ::-1, 2].T
    np.testing.assert_array_equal(
        example["mask"], np.stack([label == 1, label == 2], axis=-1)
    )


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "SAL", "AIR", "ILP"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_examples_do_not_depend_on_the_order_of_the_file(tmp_path, codes, dtype):
    for name, order in (("ras", "RAS"), ("other", codes)):
        save(tmp_path / name / "images" / "a.nii.gz", anatomy(dtype=dtype), order)
        save(tmp_path / name / "labels" / "a.nii.gz", labelled(), order)
    for one, two in zip(
        *(examples(folder(tmp_path / name)) for name in ("ras", "other"))
    ):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["mask"], two["mask"])
        assert (
            one["spacing"] == pytest.approx(two["spacing"])
            and one["slice"] == two["slice"]
        )


def test_the_label_map_follows_its_image_where_the_nearest_order_is_a_toss_up(tmp_path):
    for off, kind in ((1e-6, "images"), (-1e-6, "labels")):
        a = np.pi / 4 + off
        turned = np.eye(4)
        turned[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
        voxels = (
            anatomy() if kind == "images" else (anatomy() % 7 == 0).astype(np.uint8)
        )
        save(tmp_path / kind / "a.nii", voxels, affine=turned)
    for example in examples(folder(tmp_path, classes=1)):
        np.testing.assert_array_equal(example["mask"], example["image"] % 7 == 0)


@pytest.mark.parametrize("context", [1, 2])
def test_neighbours_are_channels_and_the_ends_are_repeated(tmp_path, context):
    source = folder(mirrored(tmp_path), context=context)
    plain = folder(tmp_path)
    for z in range(4):
        near = [min(max(z + step, 0), 3) for step in range(-context, context + 1)]
        # They are never of the case before.
        expected = np.concatenate([plain[4 + n]["image"] for n in near], axis=-1)
        np.testing.assert_array_equal(source[4 + z]["image"], expected)
        np.testing.assert_array_equal(source[4 + z]["mask"], plain[4 + z]["mask"])


# --- layouts


def test_folders_below_are_mirrored_in_natural_order(tmp_path):
    mirrored(tmp_path, ["site2/p10", "site2/p9", "site1/p1"])
    (tmp_path / "images" / "._x.nii.gz").write_bytes(b"a file manager's droppings")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / ".hidden" / "y.nii.gz").write_bytes(b"")
    (tmp_path / "images" / "notes.txt").write_text("not a volume")
    assert [case.name for case in search(tmp_path).cases] == [
        "site1/p1",
        "site2/p9",
        "site2/p10",
    ]


def test_masks_is_another_name_for_labels_and_extensions_may_differ(tmp_path):
    save(tmp_path / "images" / "a.nii", anatomy())
    save(tmp_path / "masks" / "a.nii.gz", labelled())
    assert len(folder(tmp_path)) == 4


def decathlon(root, training, cases=("a_1", "a_2", "a_10"), axes=1):
    for number, name in enumerate(cases):
        voxels = np.stack([anatomy(number + 10 * c) for c in range(axes)], axis=-1)
        save(root / "imagesTr" / f"{name}.nii.gz", voxels)
        save(root / "labelsTr" / f"{name}.nii.gz", labelled())
    if training is not None:
        write_list(root, training, name="A", numTraining=9)
    return root


def write_list(root, training, **fields):
    """Writes a dataset.json that lists these cases."""
    fields["training"] = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
        for n in training
    ]
    (root / "dataset.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("training", "found"),
    [
        # A list of files that are there counts.
        (["a_10", "a_2"], ["a_2", "a_10"]),
        (None, ["a_1", "a_2", "a_10"]),
        ([], ["a_1", "a_2", "a_10"]),
        # A list of other files does not.
        (["a_2", "gone"], ["a_1", "a_2", "a_10"]),
    ],
)
def test_decathlon(tmp_path, training, found):
    source = folder(decathlon(tmp_path, training))
    assert list(dict.fromkeys(source.cases)) == found
    first = ["a_1", "a_2", "a_10"].index(found[0])
    np.testing.assert_array_equal(
        source[0]["image"][..., 0], anatomy(first)[::-1, ::-1, 0].T
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Restore or remove it"),
        (
            '{"training": [{"image": "imagesTr/a_1.png", "label": "labelsTr/a_1.png"}]}',
            "imagesTr/a_1.png",
        ),
    ],
)
def test_a_damaged_list(tmp_path, text, says):
    decathlon(tmp_path, None)
    (tmp_path / "dataset.json").write_text(text)
    refused(lambda: folder(tmp_path), says, tmp_path / "dataset.json")


@pytest.mark.parametrize("listed", [False, True])
def test_nnu_net_has_a_file_a_channel(tmp_path, listed):
    for number, name in enumerate(["la_2", "la_10"]):
        for channel in range(2):
            save(
                tmp_path / "imagesTr" / f"{name}_{channel:04d}.nii.gz",
                anatomy(10 * number + channel),
            )
        save(tmp_path / "labelsTr" / f"{name}.nii.gz", labelled())
    write_list(tmp_path, ("la_2", "la_10") if listed else (), file_ending=".nii.gz")
    source = folder(tmp_path, channels=2)
    assert source.cases == ["la_2"] * 4 + ["la_10"] * 4
    both = np.stack([anatomy(10), anatomy(11)], axis=-1)
    np.testing.assert_array_equal(
        source[4]["image"], both[::-1, ::-1, 0].swapaxes(0, 1)
    )


def test_a_fourth_axis_is_channels_too(tmp_path):
    source = folder(decathlon(tmp_path, ["a_2"], axes=2), channels=2)
    np.testing.assert_array_equal(
        source[3]["image"][..., 1], anatomy(11)[::-1, ::-1, 3].T
    )


@pytest.mark.parametrize(
    ("names", "known", "groups"),
    [
        (
            ["a_0000", "a_0001", "b_0000"],
            {"a", "b"},
            {"a": ["a_0000", "a_0001"], "b": ["b_0000"]},
        ),
        # These are names of cases.
        (
            ["a_0000", "a_0001"],
            {"a_0000", "a_0001"},
            {"a_0000": ["a_0000"], "a_0001": ["a_0001"]},
        ),
        (["a_0001", "a_0000", "c"], set(), {"a": ["a_0000", "a_0001"], "c": ["c"]}),
        (
            ["s/a_0000", "s/a_12"],
            {"s/a", "s/a_12"},
            {"s/a": ["s/a_0000"], "s/a_12": ["s/a_12"]},
        ),
    ],
)
def test_names_of_channels(names, known, groups):
    assert dict(group_channels(names, known)) == groups


def channel_files(root, cases):
    """Writes the channels of each case; None is a file without a number."""
    for case, channels in cases.items():
        names = [
            case if channel is None else f"{case}_{channel:04d}" for channel in channels
        ]
        for number, name in enumerate(names):
            save(root / "imagesTr" / f"{name}.nii.gz", anatomy(number))
        save(root / "labelsTr" / f"{case}.nii.gz", labelled())
    return root


@pytest.mark.parametrize(
    ("cases", "channels", "says"),
    [
        ({"a": (0, 2), "b": (0, 2)}, 2, ["Case a ", "_0000, _0002,", " _0001."]),
        ({"a": (0,), "b": (1,)}, 1, ["Case b ", "_0001,", " _0000."]),
        ({"a": (1, 2)}, 2, ["Case a ", "_0001, _0002,", " _0000."]),
        (
            {"s/a": (0, 1, 4)},
            3,
            ["Case s/a ", "_0000, _0001, _0004,", " _0002, _0003."],
        ),
        ({"a": (0, 9)}, 2, ["_0001, _0002, _0003, _0004, ..."]),
        ({"a": (0, 1), "b": (0, 1), "c": (0,)}, 2, ["Case c ", " 1 ", "a 2."]),
        ({"a": (None, 0)}, 2, [" a and a_0000", "Keep one"]),
    ],
)
def test_channels_that_are_not_complete(tmp_path, cases, channels, says):
    channel_files(tmp_path, cases)
    refused(lambda: folder(tmp_path, channels=channels), tmp_path / "imagesTr", *says)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"channel_names": {"0": "CT"}}, ["1 channel (CT)", " 2."]),
        (
            {"modality": {"0": "A", "1": "B", "2": "C"}},
            ["3 channels (A, B, C)", " 2."],
        ),
        (
            {"labels": {"0": "background", "1": "ignore"}},
            ['label 1 "ignore"', "data.classes"],
        ),
        ({"labels": {"left": 1, "right": 2, "top": 3}}, ["data.classes is 2", "=3"]),
    ],
)
def test_dataset_json_must_fit_the_files(tmp_path, about, says):
    channel_files(tmp_path, {"a": (0, 1)})
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    refused(lambda: folder(tmp_path, channels=2), tmp_path / "dataset.json", *says)


def test_beside_images_only_the_labels_of_dataset_json_count(tmp_path):
    mirrored(tmp_path)
    for content in (
        "no json",
        '{"modality": {"0": "A", "1": "B"}, "training": [{"image": "x"}]}',
    ):
        (tmp_path / "dataset.json").write_text(content)
        assert len(folder(tmp_path)) == 8
    (tmp_path / "dataset.json").write_text('{"labels": {"lesion": 1, "ignore": 2}}')
    refused(lambda: folder(tmp_path), tmp_path / "dataset.json", 'label 2 "ignore"')


# --- what is passed over, and names


def passed(source):
    return {one.path.name: one.why for one in source.facts.passed}


def test_what_is_not_read_is_reported(tmp_path):
    mirrored(tmp_path)
    for name in (
        "images/c.nrrd",
        "labels/c.mha",
        "images/d.hdr",
        "images/.e.nii.gz",
        "labels/f.bmp",
        "images/README",
    ):
        (tmp_path / name).write_bytes(b"x")
    assert passed(folder(tmp_path)) == {
        "c.nrrd": "not a format that is read (.nrrd)",
        "c.mha": "not a format that is read (.mha)",
        "d.hdr": "not a format that is read (.hdr)",
        ".e.nii.gz": "hidden",
        "f.bmp": "not a format that is read (.bmp)",
        "README": "not a format that is read (a name without extension)",
    }
    assert passed(folder(mirrored(tmp_path / "other"))) == {}


def test_where_nothing_is_read_the_message_says_what_is_there(tmp_path):
    for name in ("images/a.nrrd", "images/b.nrrd", "labels/a.mha"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    refused(
        lambda: folder(tmp_path), tmp_path / "images", "2 files passed over", "(.nrrd)"
    )
    save(tmp_path / "labels" / "b.nii", labelled())
    refused(lambda: folder(tmp_path), "1 of 1", tmp_path / "labels", " b.", "(.nrrd)")


def test_cases_that_the_list_leaves_out_are_reported(tmp_path):
    source = folder(decathlon(tmp_path, ["a_2", "a_1"]))
    assert sorted(set(source.cases)) == ["a_1", "a_2"]
    left_out = [one for one in source.facts.passed if one.path.name == "a_10.nii.gz"]
    assert {one.path.parent.name for one in left_out} == {"imagesTr", "labelsTr"}
    assert {one.why for one in left_out} == {"not in the list of dataset.json"}
    assert source.facts.notes == []


@pytest.mark.parametrize("lost", [["gone"], ["gone", "lost"]])
def test_a_list_of_images_that_are_not_there_is_warned_of(tmp_path, lost):
    source = folder(decathlon(tmp_path, ["a_2", *lost]))
    (note,) = source.facts.notes
    assert f" {len(lost)} image" in note and "./imagesTr/gone.nii.gz" in note
    assert "\n" not in note


def test_the_list_of_nnu_net_names_cases_without_a_warning(tmp_path):
    channel_files(tmp_path, {"la_1": (0,), "la_2": (0,)})
    write_list(tmp_path, ("la_1", "la_2"))
    facts = folder(tmp_path).facts
    assert (facts.notes, list(facts.passed)) == ([], [])


def test_a_case_that_is_listed_twice(tmp_path):
    decathlon(tmp_path, ["a_1", "a_2", "a_1"])
    refused(lambda: folder(tmp_path), tmp_path / "dataset.json", "a_1", "Keep one")


def test_linked_folders_and_files_are_cases_and_a_loop_ends(tmp_path):
    mirrored(tmp_path / "disk", ["p1/a", "p2/b", "c"])
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "p1").symlink_to(tmp_path / "disk" / kind / "p1")
        (tmp_path / kind / "p2").symlink_to(tmp_path / "disk" / kind / "p2")
        (tmp_path / kind / "c.nii.gz").symlink_to(tmp_path / "disk" / kind / "c.nii.gz")
        (tmp_path / "disk" / kind / "p1" / "up").symlink_to(tmp_path / kind)
    source = folder(tmp_path)
    assert list(dict.fromkeys(source.cases)) == ["c", "p1/a", "p2/b"]
    assert passed(source) == {"up": "a folder that is read under another name"}
    np.testing.assert_array_equal(
        source[8]["image"][..., 0], anatomy(1)[::-1, ::-1, 0].T
    )


def test_a_whole_folder_may_be_a_link(tmp_path):
    mirrored(tmp_path / "disk")
    for kind in ("images", "labels"):
        (tmp_path / kind).symlink_to(tmp_path / "disk" / kind)
    assert len(folder(tmp_path)) == 8


@pytest.mark.parametrize("name", ["Müller", "é/ñandú", "각"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("listed", [False, True])
def test_names_pair_whichever_way_their_letters_are_stored(
    tmp_path, name, forms, listed
):
    images, labels = (unicodedata.normalize(form, name) for form in forms)
    save(tmp_path / "imagesTr" / f"{images}.nii.gz", anatomy())
    save(tmp_path / "labelsTr" / f"{labels}.nii.gz", labelled())
    if listed and "/" not in name:
        pairs = [
            {"image": f"imagesTr/{labels}.nii.gz", "label": f"labelsTr/{images}.nii.gz"}
        ]
        (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs}))
    source = folder(tmp_path)
    assert (
        source.cases == [unicodedata.normalize("NFC", name)] * 4
        and not source.facts.notes
    )


def test_a_list_holds_whichever_way_its_letters_are_stored(tmp_path):
    stored, listed = (unicodedata.normalize(form, "Müller") for form in ("NFD", "NFC"))
    for name in (stored, "another"):
        save(tmp_path / "imagesTr" / f"{name}.nii.gz", anatomy())
        save(tmp_path / "labelsTr" / f"{name}.nii.gz", labelled())
    pair = {kind: f"{kind}sTr/{listed}.nii.gz" for kind in ("image", "label")}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [pair]}))
    assert folder(tmp_path).cases == [listed] * 4


def test_two_names_that_look_the_same_are_two_files_of_one_name(tmp_path):
    mirrored(tmp_path, [unicodedata.normalize(form, "ü") for form in ("NFC", "NFD")])
    refused(lambda: folder(tmp_path), tmp_path / "images", "Keep one")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, kind):
    mirrored(tmp_path)
    (tmp_path / kind / "b.nii.gz").unlink()
    os.mkfifo(tmp_path / kind / "b.nii.gz")
    refused(lambda: folder(tmp_path), tmp_path / kind / "b.nii.gz", "named pipe")


# --- units and planes


def in_unit(path, voxels, unit, affine=None):
    image = nib.Nifti1Image(
        voxels, np.diag([20.0, 30.0, 50.0, 1]) if affine is None else affine
    )
    image.header.set_xyzt_units(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


@pytest.mark.parametrize("label_unit", ["micron", "unknown"])
def test_spacing_is_in_millimetres_and_another_unit_is_warned_of(tmp_path, label_unit):
    for name in "abc":
        in_unit(tmp_path / "images" / f"{name}.nii", anatomy(), "micron")
        in_unit(tmp_path / "labels" / f"{name}.nii", labelled(), label_unit)
    source = folder(tmp_path)
    source.verify()
    assert source[0]["spacing"] == pytest.approx((0.03, 0.02))
    (note,) = source.facts.notes
    for part in ("a.nii", "micrometres", "0.02 x 0.03 x 0.05 mm", "2 more volumes"):
        assert part in note


@pytest.mark.parametrize("label_unit", ["mm", "meter"])
def test_a_label_map_in_another_unit_at_another_place_is_refused(tmp_path, label_unit):
    in_unit(tmp_path / "images" / "a.nii", anatomy(), "micron")
    in_unit(tmp_path / "labels" / "a.nii", labelled(), label_unit)
    refused(lambda: folder(tmp_path), tmp_path / "labels" / "a.nii", "affine")


def test_the_same_place_in_two_units_fits(tmp_path):
    in_unit(
        tmp_path / "images" / "a.nii",
        anatomy(),
        "micron",
        np.diag([700.0, 1100.0, 5000.0, 1]),
    )
    in_unit(
        tmp_path / "labels" / "a.nii", labelled(), "mm", np.diag([0.7, 1.1, 5.0, 1])
    )
    assert folder(tmp_path)[0]["spacing"] == pytest.approx((1.1, 0.7))


def stacks(root, slices, count=2):
    """Writes sagittal stacks, 4 mm between slices of 0.5 mm pixels."""
    sagittal = np.array(
        [[0, 0, 4, 0], [-0.5, 0, 0, 0], [0, -0.5, 0, 0], [0, 0, 0, 1.0]]
    )
    for name in map(str, range(count)):
        for kind in ("images", "labels"):
            voxels = np.random.default_rng(0).integers(0, 2, (64, 48, slices))
            voxels = voxels.astype(np.int16)
            (root / kind).mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(voxels, sagittal).to_filename(root / kind / f"{name}.nii")
    return root


@pytest.mark.parametrize("slices", [1, 5, 9])
def test_a_sagittal_stack_that_leaves_slices_of_a_few_pixels_is_refused(
    tmp_path, slices
):
    refused(
        lambda: folder(stacks(tmp_path, slices)),
        "0.nii",
        f"{slices} sagittal slice",
        f"64x{slices} pixels",
        "data.plane=sagittal",
    )


@pytest.mark.parametrize("slices", [10, 15, 30])
def test_a_sagittal_stack_of_more_slices_is_warned_of(tmp_path, slices):
    (note,) = folder(stacks(tmp_path, slices)).facts.notes
    assert f"{slices} sagittal slices of 48x64 pixels" in note
    assert f"64x{slices} pixels of 0.5x4 mm" in note and note.endswith("1 more volume.")


# --- classes


@pytest.mark.parametrize(
    ("classes", "labels", "rows"),
    [
        (1, (), [[0, 1, 1, 1]]),
        (3, (), [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        (2, ((1,), (2, 3)), [[0, 1, 0, 0], [0, 0, 1, 1]]),
        # Regions overlap.
        (3, ((1, 2, 3), (2, 3), (3,)), [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
    ],
)
def test_labels_to_classes_by_hand(classes, labels, rows):
    masks = class_masks(np.array([[0, 1, 2, 3]], np.uint16), classes, labels)
    np.testing.assert_array_equal(masks[0].T, rows)


def test_one_class_without_a_map_is_every_label(tmp_path):
    source = folder(mirrored(tmp_path, label=labelled((4, 250))), classes=1)
    source.verify()
    assert [int(e["mask"].sum()) for e in examples(source)[:4]] == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("least", "labels", "kept"),
    [
        (4, (), ["000", "001", "002", "003"]),
        (6, (), ["003"]),
        (4, ((2,), (3,)), ["002", "003"]),
        (6, ((2, 3), (3,)), ["003"]),
        (2, ((3,), (1, 2, 3)), ["000", "001", "002", "003"]),
    ],
)
def test_slices_with_little_foreground_are_left_out(tmp_path, least, labels, kept):
    # The slices have 4 pixels of label 1, 4 of 1, 4 of 2, and 4 of 2 with 2 of 3.
    label = np.zeros(SHAPE, np.uint8)
    label[:2, :2, :2], label[:2, :2, 2:], label[4:, 0, 3] = 1, 2, 3
    if labels == ((2,), (3,)) or labels == ((2, 3), (3,)):
        label[label == 1] = 0
    source = folder(
        mirrored(tmp_path, label=label),
        classes=2 if labels else 3,
        labels=labels,
        min_foreground=least,
    )
    assert [e["slice"] for e in examples(source)] == kept * 2
    assert source.cases == ["a"] * len(kept) + ["b"] * len(kept)


def test_no_slice_with_so_much_foreground(tmp_path):
    refused(
        lambda: folder(mirrored(tmp_path), min_foreground=31),
        tmp_path,
        "31 pixels",
        "data.min_foreground",
    )


# --- the cache


def test_after_verify_no_voxel_is_read_from_gzip_again(tmp_path, monkeypatch):
    source = folder(mirrored(tmp_path), context=1, min_foreground=1)
    source.verify()
    expected = examples(source)
    monkeypatch.setattr(nifti, "read", lambda path: pytest.fail(f"read {path}"))
    again = folder(tmp_path, context=1, min_foreground=1)
    again.verify()
    for one, two, three in zip(expected, examples(source), examples(again)):
        for other in (two, three):
            np.testing.assert_array_equal(one["image"], other["image"])
            np.testing.assert_array_equal(one["mask"], other["mask"])


def test_a_changed_file_is_read_anew(tmp_path):
    before = folder(mirrored(tmp_path))[0]["image"]
    save(tmp_path / "images" / "a.nii.gz", anatomy(5))
    np.testing.assert_array_equal(folder(tmp_path)[0]["image"], before + 5000)


# --- what is refused


def test_no_known_layout_and_no_volumes(tmp_path):
    refused(lambda: folder(tmp_path), tmp_path, "imagesTr/ and labelsTr/")
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    refused(lambda: folder(tmp_path), tmp_path / "images", ".nii.gz")


@pytest.mark.parametrize(
    ("kind", "partner"), [("labels", "images"), ("images", "labels")]
)
def test_a_file_without_partner(tmp_path, kind, partner):
    mirrored(tmp_path, ["a", "b", "s/c"])
    (tmp_path / kind / "s" / "c.nii.gz").unlink()
    refused(
        lambda: folder(tmp_path),
        "1 of 3",
        "s/c",
        tmp_path / partner,
        tmp_path / kind,
    )


def test_two_files_of_one_name(tmp_path):
    save(mirrored(tmp_path) / "images" / "a.nii", anatomy())
    refused(lambda: folder(tmp_path), tmp_path / "images", "a.nii ", "a.nii.gz")


@pytest.mark.parametrize("channels", [2, 3])
def test_another_number_of_channels(tmp_path, channels):
    refused(
        lambda: folder(mirrored(tmp_path), channels=channels),
        "a.nii.gz",
        "1 image channel",
        "data.channels to 1",
    )


def test_a_mask_of_another_shape(tmp_path):
    mirrored(tmp_path)
    nib.Nifti1Image(labelled()[:-1], np.diag([*SPACING, 1])).to_filename(
        tmp_path / "labels" / "b.nii.gz"
    )
    path = tmp_path / "labels" / "b.nii.gz"
    refused(lambda: folder(tmp_path), path, "6x5x4", "5x5x4")


def test_a_mask_of_another_affine(tmp_path):
    mirrored(tmp_path)
    nib.Nifti1Image(labelled(), np.diag([0.7, 1.1, 4.0, 1])).to_filename(
        tmp_path / "labels" / "b.nii.gz"
    )
    path = tmp_path / "labels" / "b.nii.gz"
    refused(lambda: folder(tmp_path), path, "3 mm", "affine")


def test_channels_of_different_grids(tmp_path):
    save(tmp_path / "images" / "a_0000.nii", anatomy())
    save(tmp_path / "images" / "a_0001.nii", anatomy(), affine=np.eye(4))
    save(tmp_path / "labels" / "a.nii", labelled())
    refused(lambda: folder(tmp_path, channels=2), "affine", "a_0001.nii")


@pytest.mark.parametrize(
    ("label", "fields", "says"),
    [
        (labelled((1, 7)), {}, ["labels 7,", "0, 1, 2.", "data.labels"]),
        (
            labelled((2, 4)),
            {"labels": ((1, 2), (3,))},
            ["labels 4,", "0, 1, 2, 3.", "data.labels"],
        ),
        (labelled() + np.float32(0.5), {}, ["0.5", "whole numbers"]),
        (labelled().astype(np.int16) - 1, {"classes": 1}, ["-1", "0 to 65535"]),
    ],
)
@pytest.mark.parametrize("how", ["verify", "read", "foreground"])
def test_a_mask_that_is_no_label_map(tmp_path, label, fields, says, how):
    mirrored(tmp_path)
    path = save(tmp_path / "labels" / "b.nii.gz", label)
    make = {
        "verify": lambda: folder(tmp_path, **fields).verify(),
        "read": lambda: folder(tmp_path, **fields)[4],
        "foreground": lambda: folder(tmp_path, min_foreground=1, **fields),
    }
    refused(make[how], path, *says)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_truncated_volume_is_named_by_verify(tmp_path, kind):
    mirrored(tmp_path)
    path = tmp_path / kind / "b.nii.gz"
    noise = np.random.default_rng(0).normal(size=SHAPE)
    save(path, noise if kind == "images" else labelled())
    path.write_bytes(path.read_bytes()[:-12])
    refused(lambda: folder(tmp_path).verify(), path, "Replace or remove it")


def test_an_image_that_is_blank_or_not_finite(tmp_path):
    mirrored(tmp_path)
    path = save(tmp_path / "images" / "b.nii.gz", np.full(SHAPE, 3, np.int16))
    refused(folder(tmp_path).verify, path, " 3.", "Replace or remove it")
    save(path, np.where(anatomy() == 9, np.nan, anatomy()).astype(np.float32))
    refused(folder(tmp_path).verify, "1 of 120 are NaN", path)


def test_a_label_map_that_is_listed_but_gone(tmp_path):
    decathlon(tmp_path, ["a_1", "a_2"])
    (tmp_path / "labelsTr" / "a_2.nii.gz").unlink()
    refused(lambda: folder(tmp_path), tmp_path / "labelsTr" / "a_2.nii.gz")


# --- cases, sides and foreground


@pytest.mark.parametrize(
    ("names", "case", "cases", "slice_"),
    [
        (
            [f"patient{p:03d}_frame{f:02d}" for p in (1, 2, 3) for f in (1, 12)],
            "auto",
            3,
            "frame01_000",
        ),
        (
            [f"patient{p:03d}_frame{f:02d}" for p in (1, 2, 3) for f in (1, 12)],
            "",
            6,
            "000",
        ),
        ([f"BRATS_{p:03d}" for p in (1, 2, 3)], "auto", 3, "000"),
        (["anna_before", "anna_later", "bob_before"], r"([a-z]+)_", 2, "before_000"),
    ],
)
def test_volumes_of_one_patient_are_one_case(tmp_path, names, case, cases, slice_):
    source = folder(mirrored(tmp_path, names), case=case)
    assert len(set(source.cases)) == len(source.facts.files) == cases
    assert source[0]["slice"] == slice_
    of_each = {(source[i]["case"], source[i]["slice"]) for i in range(len(source))}
    assert len(of_each) == len(source) == SHAPE[2] * len(names)
    assert sum(len(paths) for paths in source.facts.files.values()) == 2 * len(names)


def test_folders_of_volumes_are_sides(tmp_path):
    source = folder(mirrored(tmp_path, ["train/a", "train/b", "val/c", "test/d"]))
    assert source.facts.sides == {"a": "train", "b": "train", "c": "val", "d": "test"}
    assert set(source.cases) == {"a", "b", "c", "d"} and source[0]["slice"] == "000"


@pytest.mark.parametrize(
    "fields", [{"classes": 2}, {"classes": 1}, {"classes": 1, "labels": ((3,),)}]
)
def test_volumes_without_foreground_are_refused(tmp_path, fields):
    source = folder(mirrored(tmp_path, label=np.zeros(SHAPE, np.uint8)), **fields)
    refused(source.verify, "0 of 8 masks", "data.labels", "data.verify=False")
    folder(mirrored(tmp_path / "b")).verify()


# --- labels that are not complete


def void_label():
    """The labels 1 and 2, and 255 where nobody looked: over both and the background."""
    label = labelled()
    label[3:5, 2:, :3] = 255
    return label


def in_slices(voxels):
    """Voxels in RAS order as slices, by the rule of `test_slices_by_hand`."""
    return np.moveaxis(voxels, (2, 1, 0), (0, 1, 2))[:, ::-1, ::-1]


@pytest.mark.parametrize(
    ("fields", "groups"),
    [
        ({"classes": 2}, [(1,), (2,)]),
        ({"classes": 1}, [(1, 2)]),
        # Regions overlap.
        ({"classes": 2, "labels": ((1, 2), (2,))}, [(1, 2), (2,)]),
    ],
)
def test_voxels_to_ignore_are_known_of_no_class(tmp_path, fields, groups):
    source = folder(mirrored(tmp_path, label=void_label()), ignore=255, **fields)
    source.verify()
    label = in_slices(void_label())
    (scan,) = source.scans("a")
    for z in range(SHAPE[2]):
        example = source[z]
        known = label[z] != 255
        for k, group in enumerate(groups):
            np.testing.assert_array_equal(example["known"][..., k], known)
            expected = np.isin(label[z], group) & known
            np.testing.assert_array_equal(example["mask"][..., k], expected)
        np.testing.assert_array_equal(scan.truth[z], example["mask"])
        np.testing.assert_array_equal(scan.known[z], example["known"])


def test_voxels_to_ignore_are_no_foreground(tmp_path):
    label = np.zeros(SHAPE, np.uint8)
    label[..., 0] = 255
    label[:2, 0, 1] = 1
    label[:, :, 2] = 255
    label[0, :3, 2] = 1
    root = mirrored(tmp_path, ("a",), label)
    slices = [
        example["slice"]
        for example in examples(folder(root, classes=1, ignore=255, min_foreground=3))
    ]
    assert slices == ["002"]
    refused(lambda: folder(root, classes=2).verify(), "255", "data.labels")


def public(root, about):
    for name in ("a", "b"):
        save(root / "imagesTr" / f"{name}.nii.gz", anatomy())
        save(root / "labelsTr" / f"{name}.nii.gz", void_label())
    (root / "dataset.json").write_text(json.dumps(about))
    return root


NAMED = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "left": 1, "right": 2, "ignore": 255},
}


def test_the_label_that_dataset_json_ignores(tmp_path):
    source = folder(public(tmp_path, NAMED))
    source.verify()
    given = folder(public(tmp_path, NAMED), ignore=255)
    for one, other in zip(examples(source), examples(given)):
        np.testing.assert_array_equal(one["known"], other["known"])
    assert not all(example["known"].all() for example in examples(source))
    assert source.facts.class_names == ("left", "right")
    assert source.facts.channel_names == ("CT",)
    assert source.facts.ignore == "255"


def test_a_label_to_ignore_that_contradicts_dataset_json(tmp_path):
    path = tmp_path / "dataset.json"
    refused(lambda: folder(public(tmp_path, NAMED), ignore=7), path, "7", "255")


def test_the_label_that_is_ignored_beside_images(tmp_path):
    mirrored(tmp_path, label=void_label())
    (tmp_path / "dataset.json").write_text(json.dumps(NAMED))
    source = folder(tmp_path)
    source.verify()
    assert source.facts.ignore == "255" and source.facts.class_names == ()


def test_without_a_label_to_ignore_nothing_says_what_is_known(tmp_path):
    source = folder(mirrored(tmp_path))
    assert "known" not in source[0]
    (scan,) = source.scans("a")
    assert scan.known is None


# Voxels and mm along x, y, z.
AXIAL_STACK = (36, 40, 8), (1, 1, 4)
SAGITTAL_STACK = (8, 40, 36), (4, 1, 1)
EVEN = (24, 24, 24), (1, 1, 1)


def write_stacks(root, kinds):
    for number, (shape, spacing) in enumerate(kinds):
        for folder in ("images", "labels"):
            path = root / folder / f"{number}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = (np.indices(shape).sum(axis=0) % 2).astype(np.uint8)
            nib.Nifti1Image(voxels, np.diag([*spacing, 1])).to_filename(path)
    return root


@pytest.mark.parametrize("plane", ["auto", "axial", "sagittal", "coronal"])
def test_stacks_of_two_planes_are_counted(tmp_path, plane):
    root = write_stacks(tmp_path, [AXIAL_STACK] * 2 + [SAGITTAL_STACK] * 3)
    refused(
        lambda: NiftiFolder(root, tmp_path / "cache", plane=plane),
        ".nii is a stack of",
        "2 axial, 3 sagittal",
        "a folder of their own",
    )
    # What the line advises.
    alone = write_stacks(tmp_path / "alone", [SAGITTAL_STACK] * 3)
    assert (
        NiftiFolder(alone, tmp_path / "cache", plane="auto").facts.plane == "sagittal"
    )


def test_a_plane_that_suits_all_volumes_is_advised(tmp_path):
    root = write_stacks(tmp_path, [EVEN] * 3 + [SAGITTAL_STACK] * 2)
    refused(
        lambda: NiftiFolder(root, tmp_path / "cache", plane="auto"),
        "3 axial, 2 sagittal",
        "data.plane=sagittal",
    )
    found = NiftiFolder(root, tmp_path / "cache", plane="sagittal")
    assert found[len(found) - 1]["mask"].shape == (36, 40, 1)
