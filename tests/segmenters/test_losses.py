"""Losses against numbers worked out by hand, closed forms and optax."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biedsnet_jax.segmenters import losses

LOSSES = [losses.joint, losses.mse_only, losses.dice_bce, losses.bce]


def maps(*examples):
    """One "1 w" map of one class per list of pixels."""
    return jnp.asarray(examples, jnp.float32)[:, None, :, None]


def random_pair():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (3, 4, 5, 2)), jnp.float32)
    return logits, jnp.asarray(rng.random(logits.shape) < 0.3, jnp.float32)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(1.0, [0.0125, 0.5]), (0.5, [0.025, 0.75]), (0.05, [0.125, 0.975])],
)
def test_smooth_l1_by_hand(beta, expected):
    # d = 0.2 and 0.1, then 1 and 1: d^2 / (2 beta) below beta, d - beta / 2 above.
    p, y = maps([0.2, 0.9], [1.0, 0.0]), maps([0.0, 1.0], [0.0, 1.0])
    np.testing.assert_allclose(losses.smooth_l1(p, y, beta=beta), expected, rtol=1e-5)


def test_smooth_l1_with_beta_1_is_half_the_squared_error_on_probabilities():
    logits, y = random_pair()
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(
        losses.smooth_l1(p, y), 0.5 * losses.mse(p, y), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.mse(p, y), np.square(p - y).mean((1, 2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 0, 0], 1 - 3 / 4),
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], 1 - 3 / 5),
        ([1, 1, 0, 0], [1, 1, 0, 0], 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
        ([1, 1, 1, 1], [0, 0, 0, 0], 1 - 1 / 5),
        ([0, 0, 0, 0], [1, 1, 1, 1], 1 - 1 / 5),
    ],
)
def test_dice_with_smoothing_1_by_hand(p, y, expected):
    np.testing.assert_allclose(losses.dice(maps(p), maps(y)), [expected], atol=1e-6)


def test_dice_is_the_mean_over_classes_of_each_classs_own():
    p = jnp.stack([jnp.ones((1, 2, 2)), jnp.zeros((1, 2, 2))], axis=-1)
    y = jnp.ones((1, 2, 2, 2))
    np.testing.assert_allclose(losses.dice(p, y), [(0 + (1 - 1 / 5)) / 2], rtol=1e-6)


def test_bce_is_optaxs():
    logits, y = random_pair()
    expected = optax.sigmoid_binary_cross_entropy(logits, y).mean((1, 2, 3))
    np.testing.assert_allclose(losses.bce(logits, y), expected, rtol=1e-5)


def test_joint_losses_by_hand():
    # p = 1/2 everywhere
    logits, y = maps([0, 0, 0, 0]), maps([1, 1, 0, 0])
    smooth_l1, ln2 = 0.125, math.log(2)
    np.testing.assert_allclose(
        losses.joint(logits, y), [smooth_l1 + (1 - 3 / 5) + 0.5 * ln2], rtol=1e-5
    )
    other = losses.joint(
        logits, y, smooth_l1_beta=0.5, dice_smooth=2.0, dice_weight=0.5, bce_weight=0.25
    )
    np.testing.assert_allclose(
        other, [0.25 + 0.5 * (1 - 4 / 6) + 0.25 * ln2], rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.dice_bce(logits, y), [(1 - 1 / 2) + 0.5 * ln2], rtol=1e-5
    )
    np.testing.assert_allclose(losses.mse_only(logits, y), [0.25], rtol=1e-5)


def test_gradients_are_the_closed_forms():
    logits, y = random_pair()
    p, pixels = jax.nn.sigmoid(logits), logits[0].size
    slope = p * (1 - p)
    bce = (p - y) / pixels
    mse = 2 * (p - y) * slope / pixels
    overlap, total = (x.sum((1, 2), keepdims=True) for x in (p * y, p + y))
    # two classes
    dice = (-2 * y / (total + 1) + (2 * overlap + 1) / (total + 1) ** 2) * slope / 2
    for loss, expected in [
        (losses.bce, bce),
        (losses.mse_only, mse),
        (losses.joint, mse / 2 + dice + bce / 2),
    ]:
        got = jax.jit(jax.grad(lambda logits, loss=loss: loss(logits, y).sum()))(logits)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_example_has_a_loss_of_its_own(loss):
    logits, y = random_pair()
    alone = [loss(logits[i : i + 1], y[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(loss(logits, y), alone, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("truth", [0.0, 1.0], ids=["empty", "full"])
def test_values_and_gradients_are_finite_on_empty_and_full_masks(loss, logit, truth):
    logits, y = jnp.full((2, 4, 4, 1), logit), jnp.full((2, 4, 4, 1), truth)
    value, grad = jax.value_and_grad(lambda logits: loss(logits, y).sum())(logits)
    assert np.isfinite(value) and value >= 0
    assert np.isfinite(grad).all()
    if logit != 0.0 and (logit > 0) == (truth > 0):
        assert value < 1e-6


def test_supervision_weighs_the_heads_final_first():
    logits, y = random_pair()
    heads = [logits, logits + 1, logits - 1, 2 * logits]
    weights = (0.7, 0.1, 0.15, 0.05)
    expected = sum(w * losses.joint(head, y) for w, head in zip(weights, heads))
    np.testing.assert_allclose(
        losses.supervised(losses.joint, heads, y, weights), expected, rtol=1e-5
    )
    units = [maps([1.0]), maps([10.0]), maps([100.0])]
    by_position = losses.supervised(
        lambda head, y: head[:, 0, 0, 0], units, maps([0.0]), (3.0, 2.0, 1.0)
    )
    np.testing.assert_allclose(by_position, [123])


def test_a_single_head_counts_fully():
    logits, y = random_pair()
    got = losses.supervised(losses.joint, [logits], y, (0.7, 0.1, 0.1, 0.1))
    np.testing.assert_array_equal(got, losses.joint(logits, y))


def test_heads_and_weights_of_different_number_are_refused():
    logits, y = random_pair()
    with pytest.raises(ValueError, match=r"supervision_weights has 3 .* 2 heads"):
        losses.supervised(losses.joint, [logits, logits], y, (0.7, 0.2, 0.1))


# ---- What is not known


def partly_known():
    """Logits, mask and known of three examples: all, some and nothing is known."""
    logits, y = random_pair()
    known = np.random.default_rng(1).random(y.shape) < 0.6
    known[0] = True
    # Of the second example nothing of the last class.
    known[1, ..., 1] = False
    known[2] = False
    return logits, y, jnp.asarray(known, jnp.float32)


def slow_joint(logits, y, known):
    """The joint loss of one example, pixel by known pixel."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    errors, entropies, dices = [], [], []
    for k in range(y.shape[-1]):
        overlap = total = count = 0
        for place in np.ndindex(y.shape[:2]):
            if not known[(*place, k)]:
                continue
            q, t = p[(*place, k)], float(y[(*place, k)])
            count += 1
            overlap += q * t
            total += q + t
            d = abs(q - t)
            errors.append(d * d / 2 if d < 1 else d - 0.5)
            entropies.append(-math.log(q if t else 1 - q))
        if count:
            dices.append(1 - (2 * overlap + 1) / (total + 1))
    if not errors:
        return 0.0
    return np.mean(errors) + np.mean(dices) + 0.5 * np.mean(entropies)


def test_the_joint_loss_of_known_pixels_is_that_of_a_slow_loop():
    logits, y, known = partly_known()
    expected = [slow_joint(*one) for one in zip(logits, y, np.asarray(known))]
    found = losses.joint(logits, y, known=known)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[2] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_not_known_neither_counts_nor_learns(loss):
    logits, y, known = partly_known()
    value = loss(logits, y, known=known)
    other = jnp.where(known > 0, logits, 17.0), jnp.where(known > 0, y, 1 - y)
    np.testing.assert_allclose(loss(*other, known=known), value, rtol=1e-6)
    # An example of which all is known has the loss that it has alone.
    np.testing.assert_allclose(value[0], loss(logits[:1], y[:1])[0], rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x, y, known=known).sum())(logits)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[np.asarray(known) == 0] == 0).all()
    assert (np.abs(np.asarray(gradient)[0]).sum((0, 1)) > 0).all()


def test_heads_leave_out_the_same_pixels():
    logits, y, known = partly_known()
    heads, weights = [logits, -logits], (0.7, 0.3)
    found = losses.supervised(losses.joint, heads, y, weights, known)
    parts = [losses.joint(head, y, known=known) for head in heads]
    np.testing.assert_allclose(found, 0.7 * parts[0] + 0.3 * parts[1], rtol=1e-6)
