"""Canonical slices of volumes, there and back, against places voxel by voxel."""

import dataclasses
import itertools

import numpy as np
import pytest
from nibabel.orientations import aff2axcodes
from refusals import refused

from biedsnet_jax.data.formats.volumes import (
    Volume,
    check_affine,
    check_same_grid,
    is_lost,
    own_plane,
    plane_note,
)


def oblique(degrees: float):
    """Rotation about the feet-to-head axis, and by half of it about left-to-right."""
    a, b = np.radians([degrees, degrees / 2])
    about_z = np.array(
        [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    return about_z @ about_x


def made(
    order=(0, 1, 2), signs=(1, 1, 1), turn=0.0, sizes=(4, 5, 6), spacing=(0.7, 1.1, 5.0)
) -> Volume:
    """Makes a volume whose file axis n runs along patient axis order[n].

    It runs backwards where the sign is -1. Voxels hold their number.
    """
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (patient, sign) in enumerate(zip(order, signs)):
        affine[patient, axis] = sign * spacing[patient]
    affine[:3, :3] = oblique(turn) @ affine[:3, :3]
    affine[:3, 3] = 10.0, -20.0, 30.0
    shape = tuple(sizes[patient] for patient in order)
    return Volume(
        np.arange(np.prod(shape), dtype=np.int32).reshape(shape), affine, "made.nii"
    )


EVERY = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("turn", [0.0, 12.0])
@pytest.mark.parametrize(("order", "signs"), EVERY)
def test_slices_run_up_rows_back_columns_left_whatever_the_files_order(
    order, signs, turn
):
    volume = made(order, signs, turn)
    slices = volume.slices
    assert slices.shape == (6, 5, 4)
    position = {
        volume.voxels[index]: oblique(turn).T @ (volume.affine @ [*index, 1])[:3]
        for index in np.ndindex(volume.shape)
    }
    places = np.array([position[value] for value in slices.ravel()])
    places = places.reshape(*slices.shape, 3)
    # Slices go up, rows to the back, and columns against x.
    for axis, step in enumerate([(0, 0, 5.0), (0, -1.1, 0), (-0.7, 0, 0)]):
        assert np.allclose(np.diff(places, axis=axis), step)
    assert volume.spacing == pytest.approx((5.0, 1.1, 0.7))


@pytest.mark.parametrize(("order", "signs"), EVERY)
def test_restore_is_the_inverse_of_slices_and_keeps_further_axes(order, signs):
    volume = made(order, signs)
    assert np.array_equal(volume.restore(volume.slices), volume.voxels)
    two = np.stack([volume.slices, -volume.slices], axis=-1)
    assert np.array_equal(volume.restore(two)[..., 1], -volume.voxels)


def test_the_canonical_affine_puts_slices_where_the_files_affine_put_voxels():
    volume = made((2, 0, 1), (-1, 1, -1), turn=12.0)
    assert aff2axcodes(volume.canonical_affine) == tuple("LPS")
    d, h, w = 2, 3, 1
    index = np.argwhere(volume.voxels == volume.slices[d, h, w])[0]
    assert np.allclose(
        volume.canonical_affine @ [w, h, d, 1], volume.affine @ [*index, 1]
    )


def test_voxel_volume_by_hand():
    assert made().voxel_ml == pytest.approx(0.7 * 1.1 * 5.0 / 1000)
    assert made((2, 1, 0), (1, -1, 1), turn=20.0).voxel_ml == pytest.approx(
        0.7 * 1.1 * 5.0 / 1000
    )


@pytest.mark.parametrize(
    "broken",
    [
        np.zeros((4, 4)),
        np.full((4, 4), np.nan),
        np.diag([1.0, 1.0, 0.0, 1.0]),
        # The axes i and j are one direction.
        np.array([[1e30, 1e20, 0, 0], [0, 1e-5, 0, 0], [0, 0, 1e-5, 0], [0, 0, 0, 1]]),
    ],
)
def test_an_affine_that_places_nothing_is_refused(broken):
    refused(lambda: check_affine(broken, "scan.nii"), "scan.nii", "affine", "Write")


def test_a_mask_must_lie_on_its_image():
    shape, affine = (4, 5, 6), np.diag([0.5, 0.5, 2.0, 1.0])
    check_same_grid(shape, affine + 1e-4, shape, affine, "mask.nii")
    refused(
        lambda: check_same_grid((4, 6, 5), affine, shape, affine, "mask.nii"),
        "mask.nii",
        "4x6x5",
        "4x5x6",
    )
    moved = affine.copy()
    moved[2, 3] = 1.0
    refused(
        lambda: check_same_grid(shape, moved, shape, affine, "mask.nii"),
        "mask.nii",
        "1 mm",
        "affine",
    )
    tilted = affine.copy()
    tilted[:3, :3] = oblique(2.0) @ tilted[:3, :3]
    refused(lambda: check_same_grid(shape, tilted, shape, affine, "mask.nii"), "affine")


# --- planes


def stack(depth, height, width, spacing, order, signs) -> Volume:
    """Makes `depth` canonical slices of `height` x `width` in a file of any order."""
    small = made(order, signs, sizes=(1, 1, 1), spacing=spacing[::-1])
    shape = tuple((width, height, depth)[patient] for patient in order)
    return Volume(np.broadcast_to(np.uint8(0), shape), small.affine, "made.nii")


ORDERS = [((0, 1, 2), (-1, -1, 1)), ((1, 2, 0), (1, -1, 1)), ((2, 0, 1), (1, 1, -1))]


@pytest.mark.parametrize(("order", "signs"), ORDERS)
@pytest.mark.parametrize(
    ("depth", "height", "width", "spacing", "says"),
    [
        # Nothing is lost: axial stacks, thick, of one slice, of even voxels, small.
        (20, 512, 512, (5, 0.7, 0.7), ""),
        (1, 512, 400, (5, 0.7, 0.7), ""),
        (9, 64, 64, (4, 4, 4), ""),
        (35, 51, 35, (1, 1, 1), ""),
        (9, 10, 11, (1, 1, 1), ""),
        (4, 5, 6, (1, 1, 1), ""),
        (256, 256, 176, (1, 1, 1), ""),
        (100, 8, 90, (3, 1, 1), ""),
        # Sagittal and coronal stacks.
        (320, 320, 20, (0.5, 0.5, 4), "20 sagittal slices of 320x320 pixels"),
        (320, 24, 300, (0.5, 3, 0.5), "24 coronal slices of 320x300 pixels"),
        (320, 320, 12, (0.5, 0.5, 4), "320x12 pixels of 0.5x4 mm"),
        (9, 8, 3, (1, 1, 4), "3 sagittal slices of 9x8 pixels"),
        (64, 48, 15, (1, 1, 1), "15 sagittal slices of 64x48 pixels"),
    ],
)
def test_slices_that_are_cut_across_are_warned_of(
    depth, height, width, spacing, says, order, signs
):
    note = plane_note(stack(depth, height, width, spacing, order, signs))
    assert says in note and bool(note) == bool(says)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
@pytest.mark.parametrize(
    ("depth", "height", "width", "spacing", "says"),
    [
        (64, 48, 9, (0.5, 0.5, 4), "9 sagittal slices of 64x48 pixels"),
        (64, 48, 1, (0.5, 0.5, 0.1), "1 sagittal slice of 64x48 pixels"),
        (64, 48, 1, (2, 0.5, 0.5), "1 sagittal slice of 64x48 pixels"),
        (256, 3, 256, (1, 1, 1), "3 coronal slices of 256x256 pixels"),
    ],
)
def test_a_stack_that_would_be_cut_to_lines_is_refused(
    depth, height, width, spacing, says, order, signs
):
    volume = stack(depth, height, width, spacing, order, signs)
    refused(lambda: plane_note(volume), "made.nii", says, "Resample")


# Steps in mm along slices, rows and columns.
STEPS = {
    # From front to back, from the head down, from right to left.
    "coronal": [(0, -1.1, 0), (0, 0, -5.0), (-0.7, 0, 0)],
    # From right to left, from the head down, from front to back.
    "sagittal": [(-0.7, 0, 0), (0, 0, -5.0), (0, -1.1, 0)],
}


@pytest.mark.parametrize(("order", "signs"), EVERY[::5])
@pytest.mark.parametrize("plane", STEPS)
def test_slices_of_each_plane_are_as_a_radiologist_sees_them(plane, order, signs):
    volume = dataclasses.replace(made(order, signs), plane=plane)
    slices = volume.slices
    position = {
        volume.voxels[index]: (volume.affine @ [*index, 1])[:3]
        for index in np.ndindex(volume.shape)
    }
    places = np.array([position[value] for value in slices.ravel()])
    places = places.reshape(*slices.shape, 3)
    for axis, step in enumerate(STEPS[plane]):
        assert np.allclose(np.diff(places, axis=axis), step)
    np.testing.assert_array_equal(volume.restore(slices), volume.voxels)
    lengths = [np.linalg.norm(step) for step in STEPS[plane]]
    assert volume.spacing == pytest.approx(lengths)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
@pytest.mark.parametrize(
    ("sizes", "spacing", "plane"),
    [
        ((320, 320, 20), (0.5, 0.5, 4), "sagittal"),
        ((320, 24, 300), (0.5, 3, 0.5), "coronal"),
        ((64, 48, 1), (0.5, 0.5, 0.1), "sagittal"),
        ((20, 512, 512), (5, 0.7, 0.7), "axial"),
        ((35, 51, 35), (1, 1, 1), "axial"),
        ((256, 256, 176), (1, 1, 1), "axial"),
    ],
)
def test_a_stack_is_cut_in_its_own_plane_without_a_warning(
    sizes, spacing, plane, order, signs
):
    volume = stack(*sizes, spacing, order, signs)
    assert own_plane(volume) == plane
    cut = dataclasses.replace(volume, plane=plane)
    assert own_plane(cut) == plane
    assert plane_note(cut) == ""
    if plane != "axial":
        along = {"coronal": 1, "sagittal": 2}[plane]
        assert len(cut.slices) == sizes[along]


def test_a_stack_is_lost_where_it_is_refused():
    volume = stack(64, 48, 9, (0.5, 0.5, 4), *ORDERS[0])
    assert is_lost(volume)
    refused(lambda: plane_note(volume, "Do this."), "Do this.")
    assert not is_lost(dataclasses.replace(volume, plane="sagittal"))
    # A warning is enough.
    assert not is_lost(stack(64, 48, 15, (1, 1, 1), *ORDERS[0]))
