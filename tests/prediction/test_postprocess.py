"""Tests what is done to masks after the network, against slow loops over pixels."""

import dataclasses
import itertools
import json

import bright_model
import numpy as np
import pytest
from ml_collections import ConfigDict

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import postprocess, result
from biedsnet_jax.prediction.postprocess import Postprocess

VOLUME = (3.0, 0.5, 2.0)


def parts(mask, reach):
    """The connected parts of a mask, each a set of places.

    Places touch where they differ by one step along at most `reach` axes.
    """
    steps = [
        step
        for step in itertools.product((-1, 0, 1), repeat=mask.ndim)
        if 0 < sum(map(abs, step)) <= reach
    ]
    left = {tuple(place) for place in np.argwhere(mask)}
    found = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            place = edge.pop()
            part.add(place)
            beside = {tuple(a + b for a, b in zip(place, step)) for step in steps}
            edge += beside & left
            left -= beside
        found.append(part)
    return found


def filled(mask):
    """The places of the parts of the background that touch no border, by faces."""
    last = [size - 1 for size in mask.shape]
    found = np.zeros_like(mask)
    for part in parts(~mask, reach=1):
        if not any(a in (0, b) for place in part for a, b in zip(place, last)):
            found[tuple(np.transpose(list(part)))] = True
    return found


def kept(mask, least, size, only_one):
    """The parts of a mask of at least `least`, or of these the largest."""
    found = np.zeros_like(mask)
    every = sorted(parts(mask, reach=mask.ndim), key=len, reverse=True)
    every = [part for part in every if len(part) * size >= least]
    for part in every[:1] if only_one else every:
        found[tuple(np.transpose(list(part)))] = True
    return found


def drawn(seed, shape=(4, 9, 11, 2), share=0.4):
    return np.random.default_rng(seed).random(shape) < share


# ---- Objects and holes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_objects_of_volumes_are_those_of_a_slow_loop(seed, share):
    masks = drawn(seed, share=share)
    rules = Postprocess(
        holes=(True, False), smallest=(0.0, 12.0), largest=(False, False), unit="mm3"
    )
    found = rules.apply(masks, VOLUME, exclusive=False)
    first, second = np.moveaxis(masks, -1, 0)
    np.testing.assert_array_equal(found[..., 0], first | filled(first))
    # A voxel has 3 mm3.
    np.testing.assert_array_equal(found[..., 1], kept(second, 12.0, 3.0, False))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("unit", "spacing", "size"),
    [
        ("pixels", None, 1.0),
        ("pixels", VOLUME, 1.0),
        ("mm2", (0.5, 2.0), 1.0),
        ("mm2", (0.5, 0.5), 0.25),
        # The picture does not tell, so the median of the validation is taken.
        ("mm2", None, 2.0),
        # Slice by slice in a volume too, as it was decided.
        ("mm2", VOLUME, 1.0),
    ],
)
def test_objects_of_pictures_are_those_of_each_slice(seed, unit, spacing, size):
    masks = drawn(seed, shape=(3, 12, 10, 1))
    rules = Postprocess(smallest=(4.0,), unit=unit, pixel_mm2=2.0)
    found = rules.apply(masks, spacing, exclusive=False)
    for one, before in zip(found[..., 0], masks[..., 0]):
        np.testing.assert_array_equal(one, kept(before, 4.0, size, False))
    rules = Postprocess(holes=(True,), unit=unit, pixel_mm2=2.0)
    found = rules.apply(masks, spacing, exclusive=False)
    for one, before in zip(found[..., 0], masks[..., 0]):
        np.testing.assert_array_equal(one, before | filled(before))


def test_the_largest_object_is_one_body():
    masks = drawn(5, shape=(4, 12, 12, 1), share=0.15)
    for least in (0.0, 9.0):
        rules = Postprocess(smallest=(least,), largest=(True,), unit="mm3")
        found = rules.apply(masks, (3.0, 1.0, 1.0), exclusive=True)
        expected = kept(masks[..., 0], least, 3.0, True)
        np.testing.assert_array_equal(found[..., 0], expected)
        assert len(parts(found[..., 0], reach=3)) == 1
    nothing = np.zeros_like(masks)
    assert not rules.apply(nothing, (3.0, 1.0, 1.0), exclusive=True).any()
    whole = ~nothing
    assert rules.apply(whole, (3.0, 1.0, 1.0), exclusive=True).all()


def test_rules_of_volumes_leave_what_is_no_volume():
    masks = drawn(0)
    rules = Postprocess(
        holes=(True, True), smallest=(90.0, 90.0), largest=(True, True), unit="mm3"
    )
    for spacing in (None, (0.5, 2.0)):
        assert rules.apply(masks, spacing, exclusive=True) is masks
    assert Postprocess().apply(masks, VOLUME, exclusive=True) is masks


def test_a_hole_is_taken_from_no_other_class():
    ring = np.zeros((1, 7, 7), bool)
    ring[0, 1:6, 1:6] = True
    ring[0, 2:5, 2:5] = False
    core = np.zeros_like(ring)
    core[0, 3, 3] = True
    masks = np.stack([ring, core], axis=-1)
    rules = Postprocess(holes=(True, False))
    found = rules.apply(masks, None, exclusive=True)
    assert found[..., 0].sum() == 25 - 1
    np.testing.assert_array_equal(found[..., 1], core)
    # Regions lie within one another.
    found = rules.apply(masks, None, exclusive=False)
    assert found[..., 0].sum() == 25


def test_holes_come_before_sizes():
    ring = np.zeros((1, 6, 6, 1), bool)
    ring[0, 1:4, 1:4] = True
    ring[0, 2, 2] = False
    rules = Postprocess(holes=(True,), smallest=(9.0,))
    assert rules.apply(ring, None, exclusive=True).sum() == 9


# ---- Thresholds of classes, and the label map


def prediction(probability, labels, rules, spacing=None):
    size = probability.shape[1:3]
    return result.Prediction(
        way=Fit(size).way(size),
        maps={"probability": probability.astype(np.float32)},
        samples_kept=None,
        threshold=0.5,
        labels=labels,
        seconds=0.0,
        postprocess=rules,
        spacing=spacing,
    )


def test_the_likeliest_class_above_its_own_threshold_is_written():
    rows = [
        # p of two classes, and the label by thresholds 0.3 and 0.6.
        ((0.2, 0.2), 0),
        ((0.35, 0.2), 1),
        ((0.3, 0.1), 0),
        ((0.35, 0.5), 1),
        ((0.35, 0.6), 1),
        ((0.35, 0.65), 7),
        ((0.7, 0.65), 1),
        ((0.1, 0.65), 7),
    ]
    p = np.array([[values for values, _ in rows]])[None]
    one = prediction(p, ((1,), (7, 8)), Postprocess(thresholds=(0.3, 0.6)))
    assert one.label_map.ravel().tolist() == [label for _, label in rows]
    assert one.mask.dtype == bool
    by_hand = [(a > 0.3001, b > 0.6001) for (a, b), _ in rows]
    np.testing.assert_array_equal(one.mask[0, 0], by_hand)


def test_regions_keep_their_painting_order():
    # The whole lesion, and its core.
    p = np.array([[[[0.9, 0.9], [0.4, 0.1], [0.2, 0.8], [0.1, 0.1]]]])
    one = prediction(p, ((1, 2), (2,)), Postprocess(thresholds=(0.3, 0.5)))
    assert one.label_map.ravel().tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "labels", [((1,),), ((1,), (2,)), ((1, 2), (2,)), ((1,), (2,), (3,), (4,))]
)
def test_without_rules_the_label_map_is_that_of_the_threshold(seed, labels):
    # Eighths, so that several classes are the likeliest.
    p = np.random.default_rng(seed).integers(0, 9, (3, 6, 5, len(labels))) / 8
    one = prediction(p, labels, Postprocess())
    expected = np.zeros(p.shape[:3], int)
    for place in np.ndindex(*p.shape[:3]):
        above = [k for k in range(len(labels)) if p[place][k] > 0.5]
        if not above:
            continue
        if labels[0] == (1, 2):
            expected[place] = 2 if 1 in above else 1
        else:
            expected[place] = 1 + max(above, key=lambda k: p[place][k])
    np.testing.assert_array_equal(one.label_map, expected)
    np.testing.assert_array_equal(one.mask, p.astype(np.float32) > 0.5)


def test_objects_are_removed_from_the_label_map_and_the_mask():
    p = np.zeros((2, 8, 8, 2))
    p[:, 1:4, 1:4, 0] = 0.9
    p[0, 6, 6, 0] = 0.9
    p[1, 6, 1:3, 1] = 0.8
    rules = Postprocess(smallest=(4.0, 0.0), unit="mm3")
    one = prediction(p, ((1,), (2,)), rules, spacing=(2.0, 1.0, 1.0))
    assert (one.label_map == 1).sum() == 18
    assert (one.label_map == 2).sum() == 2
    assert one.mask[..., 0].sum() == 18
    np.testing.assert_array_equal(one.mask_at(0), one.mask[0])
    # An array without a geometry is no volume.
    assert (prediction(p, ((1,), (2,)), rules).label_map == 1).sum() == 19
    assert "post-processed" in one.summary()["classes"]


# ---- The file


RULES = Postprocess(
    thresholds=(0.3, 0.5),
    holes=(False, True),
    smallest=(20.0, 0.0),
    largest=(),
    unit="mm2",
    pixel_mm2=0.25,
    cases=3,
    before=0.5,
    after=0.6,
)


def config(**fields):
    made = {"postprocess": True, "threshold": 0.5, "fusion": "mean"}
    return ConfigDict(made | fields | {"data": {"classes": 2}})


def decision(rules=RULES, **fields):
    made = {"checkpoint_step": 7, "threshold": 0.5, "fusion": "mean"}
    return made | {"rules": rules.to_json()} | fields


def test_the_file_holds_the_rules(tmp_path):
    assert postprocess.load(tmp_path, config(), 7) == Postprocess()
    assert postprocess.decided_step(tmp_path, 2) is None
    postprocess.write(tmp_path, decision())
    assert postprocess.load(tmp_path, config(), 7) == RULES
    assert postprocess.decided_step(tmp_path, 2) == 7
    assert postprocess.load(tmp_path, config(postprocess=False), 7) == Postprocess()
    none = Postprocess(cases=1)
    postprocess.write(tmp_path, decision(none))
    assert postprocess.load(tmp_path, config(), 7) == none
    assert not none.changes_masks


def test_rules_of_another_checkpoint_are_not_applied_and_a_line_says_so(
    tmp_path, capsys
):
    postprocess.write(tmp_path, decision())
    assert postprocess.load(tmp_path, config(), 9) == Postprocess()
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "postprocess.json" in err and "step 7" in err and "step 9" in err


@pytest.mark.parametrize("field", ["threshold", "fusion"])
def test_a_threshold_or_fusion_of_ones_own_takes_the_place_of_thresholds(
    tmp_path, field
):
    postprocess.write(tmp_path, decision())
    other = {"threshold": 0.4, "fusion": "majority"}[field]
    found = postprocess.load(tmp_path, config(**{field: other}), 7)
    assert found.thresholds == ()
    assert (found.holes, found.smallest) == (RULES.holes, RULES.smallest)
    # Nobody knows what these gave.
    assert found.before is found.after is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ("{", "line 1"),
        ("[]", "[]"),
        ("null", "null"),
        ('"rules"', '"rules"'),
        ("7", "7"),
        ("[" * 20_000, "nested"),
        (b"\xff\xfe", "no text"),
        ("{}", "checkpoint_step"),
        ({"rules": None}, "null"),
        ({"rules": []}, "[]"),
        ({"rules": {}}, "thresholds"),
        ({"checkpoint_step": "late"}, 'checkpoint_step is "late"'),
        ({"checkpoint_step": [7]}, "checkpoint_step is [7]"),
        ({"checkpoint_step": 7.5}, "checkpoint_step is 7.5"),
        ({"thresholds": [0.3]}, "thresholds is [0.3]"),
        ({"thresholds": [0.3, 1.2]}, "thresholds is [0.3, 1.2]"),
        ({"thresholds": [0.3, None]}, "thresholds is [0.3, null]"),
        ({"thresholds": None}, "thresholds is null"),
        ({"thresholds": "ab"}, 'thresholds is "ab"'),
        ({"holes": [0, 1]}, "holes is [0, 1]"),
        ({"largest": {"1": True, "2": True}}, "largest is"),
        ({"smallest": [-1.0, 0.0]}, "smallest is [-1.0, 0.0]"),
        ({"smallest": 5}, "smallest is 5"),
        ({"smallest": [10**400, 0]}, "smallest is"),
        ({"unit": "feet"}, "unit is"),
        ({"unit": []}, "unit is []"),
        ({"pixel_mm2": None}, "pixel_mm2 is null"),
        ({"pixel_mm2": -1}, "pixel_mm2 is -1"),
        ({"pixel_mm2": "x"}, "pixel_mm2 is"),
        ({"cases": None}, "cases is null"),
        ({"cases": float("nan")}, "cases is NaN"),
        ({"after": [1]}, "after is [1]"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, text, says):
    path = tmp_path / "postprocess.json"
    if isinstance(text, dict):
        fields = decision()
        for name, value in text.items():
            where = fields if name in fields else fields["rules"]
            where[name] = value
        text = json.dumps(fields)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    fix = "--config.postprocess=False"
    with pytest.raises(BadInput) as caught:
        postprocess.load(tmp_path, config(), 7)
    message = str(caught.value)
    for part in (str(path), says, fix):
        assert part in message
    # Nothing of Python's own.
    for word in ("Error", "object", "NoneType", "'", "invalid literal"):
        assert word not in message.replace(str(path), "")
    assert postprocess.load(tmp_path, config(postprocess=False), 7) == Postprocess()


def test_masks_of_other_rules_count_as_of_other_weights(tmp_path):
    with bright_model.in_place():
        workdir = bright_model.write_workdir(tmp_path / "run")
        digests = []
        for rules in (
            None,
            Postprocess(cases=0),
            Postprocess(smallest=(3.0,), cases=3),
            Postprocess(smallest=(5.0,), cases=3),
        ):
            model = bright_model_of(workdir)
            if rules is not None:
                model = dataclasses.replace(model, postprocess=rules)
            digests.append(model.weights_digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def bright_model_of(workdir):
    from biedsnet_jax.prediction import predictor

    return predictor.load(workdir).model
