"""The training step against loops by hand, over devices, through bad batches."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from random_weights import squares, weights

from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.diffusion import schedule
from biedsnet_jax.networks.biedsnet import BIEDSNet
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.training.train_step import Update, make_train_step, one_or_other


class Pull:
    """Half the mean squared distance of one number w from the image.

    Its gradient is w - mean(image).
    """

    def loss(self, variables, batch, key, *, train):
        w, image = variables["params"]["w"], batch["image"]
        metrics = {"draw": jax.random.normal(key)}
        batch_stats = {"seen": jnp.mean(image)}
        return 0.5 * jnp.mean(jnp.square(w - image)), (metrics, batch_stats)


class Root:
    """A loss that is finite at w = 0 while its gradient is not."""

    def loss(self, variables, batch, key, *, train):
        return jnp.sqrt(variables["params"]["w"]), ({}, variables["batch_stats"])


class Lines(nn.Module):
    """Two convolutions without norm."""

    @nn.compact
    def __call__(self, image, *, train):
        return nn.Conv(1, (3, 3), name="out")(
            nn.tanh(nn.Conv(4, (3, 3), name="in")(image))
        ), {}


def one_device():
    return devices.make_mesh(jax.devices()[:1])


def pull_state(w: float, optimizer):
    return train_state.create(
        {"params": {"w": jnp.asarray(w)}, "batch_stats": {"seen": jnp.asarray(0.0)}},
        optimizer,
    )


def pixels(*values):
    return {"image": jnp.asarray(values, jnp.float32)[:, None, None, None]}


def batch_of_squares(count: int):
    image, mask = squares(count, 8)
    return {"image": image, "mask": mask}


def trees(state):
    """Copies of what an update may change, but for the counters.

    Copies, since the state itself is donated.
    """
    return {
        name: jax.device_get(getattr(state, name))
        for name in ("params", "ema_params", "batch_stats", "opt_state")
    }


def assert_equal(a, b, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 0})),
        a,
        b,
    )


# ---- One update


def test_updates_and_ema_are_those_of_a_loop_by_hand():
    optimizer, decay = optax.sgd(0.5), 0.3
    step = make_train_step(Update(Pull(), optimizer, ema_decay=decay), one_device())
    state = pull_state(4.0, optimizer)
    w = ema = 4.0
    for number, target in enumerate([1.0, -2.0, 0.5, 3.0, 8.0, -1.0]):
        state, metrics = step(state, pixels(target - 1, target + 1), jax.random.key(0))
        loss, gradient = 0.5 * ((w - target) ** 2 + 1), w - target
        w = w - 0.5 * gradient
        # That is 0.1, 0.18, 0.25, then 0.3.
        warm = min(decay, (1 + number) / (10 + number))
        ema = warm * ema + (1 - warm) * w
        assert float(state.params["w"]) == pytest.approx(w, rel=1e-5)
        assert float(state.ema_params["w"]) == pytest.approx(ema, rel=1e-5)
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(abs(gradient), rel=1e-5)
        assert int(state.step) == number + 1
        assert float(state.batch_stats["seen"]) == pytest.approx(target)
    assert state.ema_variables == {
        "params": state.ema_params,
        "batch_stats": state.batch_stats,
    }


def test_each_step_draws_from_the_runs_key_and_its_own_number():
    step = make_train_step(Update(Pull(), optax.sgd(0.1), ema_decay=0.9), one_device())

    def draws(seed):
        state, seen = pull_state(0.0, optax.sgd(0.1)), []
        for _ in range(3):
            state, metrics = step(state, pixels(0.0), jax.random.key(seed))
            seen.append(float(metrics["draw"]))
        return seen

    first = draws(0)
    assert first == draws(0)
    assert len({*first, *draws(1)}) == 6


def test_the_old_state_is_donated():
    optimizer = optax.adam(0.1)
    mesh = one_device()
    old = jax.device_put(pull_state(1.0, optimizer), devices.replicated(mesh))
    new, _ = make_train_step(Update(Pull(), optimizer, ema_decay=0.9), mesh)(
        old, pixels(0.0), jax.random.key(0)
    )
    assert all(
        leaf.is_deleted()
        for leaf in jax.tree.leaves((old.params, old.ema_params, old.opt_state))
    )
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


# ---- Bad steps


def test_a_batch_that_is_not_finite_changes_only_the_counters_and_a_good_one_resets_them():
    optimizer = optax.adam(0.1)
    step = make_train_step(Update(Pull(), optimizer, ema_decay=0.9), one_device())
    key = jax.random.key(0)
    state, _ = step(pull_state(4.0, optimizer), pixels(1.0, 2.0), key)
    before = trees(state)
    for count, value in enumerate([math.nan, math.inf], start=1):
        state, metrics = step(state, pixels(1.0, value), key)
        assert_equal(trees(state), before)
        assert int(state.step) == 1 + count
        for counter in ("bad_steps", "skipped_steps"):
            assert int(getattr(state, counter)) == int(metrics[counter]) == count
        assert not math.isfinite(metrics["loss"])
    state, _ = step(state, pixels(3.0, 3.0), key)
    assert (int(state.step), int(state.bad_steps)) == (4, 0)
    assert int(state.skipped_steps) == 2
    straight, _ = step(pull_state(4.0, optimizer), pixels(1.0, 2.0), key)
    straight, _ = step(straight, pixels(3.0, 3.0), key)
    assert_equal((state.params, state.opt_state), (straight.params, straight.opt_state))


def test_a_gradient_that_is_not_finite_is_skipped_though_its_loss_is():
    optimizer = optax.sgd(0.1)
    step = make_train_step(Update(Root(), optimizer, ema_decay=0.9), one_device())
    state, metrics = step(pull_state(0.0, optimizer), pixels(0.0), jax.random.key(0))
    assert float(metrics["loss"]) == 0.0
    assert (float(state.params["w"]), int(state.bad_steps)) == (0.0, 1)


# ---- The optimizer


def optimizer_of(**changes):
    fields = {
        "learning_rate": 0.1,
        "steps": 12,
        "warmup_steps": 2,
        "final_fraction": 0.2,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    return make_optimizer(ConfigDict(fields | changes))


@pytest.mark.parametrize(
    ("warmup_steps", "rates"),
    # Cosine from 0.1 down to 0.02: their mean halfway between the end of the warm-up
    # and the last step.
    [
        (2, {0: 0.0, 1: 0.05, 2: 0.1, 7: 0.06, 12: 0.02, 50: 0.02}),
        (0, {0: 0.1, 6: 0.06, 12: 0.02}),
    ],
)
def test_the_rate_warms_up_linearly_and_falls_as_a_cosine(warmup_steps, rates):
    _, rate = optimizer_of(warmup_steps=warmup_steps)
    assert {step: float(rate(step)) for step in rates} == pytest.approx(rates, abs=1e-7)


def test_a_run_shorter_than_its_warm_up_has_finite_rates():
    _, rate = optimizer_of(steps=3, warmup_steps=10)
    assert [float(rate(step)) for step in range(3)] == pytest.approx([0.0, 0.01, 0.02])


def test_the_optimizer_is_adamw_behind_a_clip():
    optimizer, _ = optimizer_of()
    params = p = np.array([1.0, -1.0])
    state, m, v = optimizer.init(jnp.asarray(params)), 0.0, 0.0
    # Of norm 5, 0.5 and 2; the clip is at 1.
    gradients = [(3.0, 4.0), (0.3, 0.4), (0.0, -2.0)]
    for i, (gradient, rate) in enumerate(zip(gradients, [0.0, 0.05, 0.1]), start=1):
        updates, state = jax.jit(optimizer.update)(
            jnp.asarray(gradient), state, jnp.asarray(params)
        )
        params = params + np.asarray(updates)
        g = np.asarray(gradient) / max(1.0, np.hypot(*gradient))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
        p = p - rate * (step + 0.01 * p)
        np.testing.assert_allclose(params, p, rtol=1e-4)


# ---- Parts and devices


def test_a_batch_in_parts_is_the_batch_at_once_over_any_devices():
    direct = Direct(Lines(), lambda heads, y, _: losses.joint(heads[0], y))
    batch, optimizer = batch_of_squares(16), optax.sgd(1.0)
    variables = weights(direct.network, batch["image"], train=False)

    def updated(mesh, accumulate):
        state = train_state.create(jax.tree.map(jnp.copy, variables), optimizer)
        step = make_train_step(
            Update(direct, optimizer, ema_decay=0.5, accumulate=accumulate), mesh
        )
        state, metrics = step(state, batch, jax.random.key(0))
        return jax.device_get((state.params, state.ema_params, metrics))

    whole = updated(one_device(), 1)
    assert_equal(updated(one_device(), 2), whole, atol=1e-6)
    assert_equal(updated(devices.make_mesh(), 2), whole, atol=1e-6)


def train_small(mesh, steps: int):
    """(what the first step left behind, losses) of a small BIEDSNet."""
    network = BIEDSNet(channels=(8, 16), blocks_per_level=1, dconv="lineage")
    diffusion = Diffusion(
        network, schedule.linear(1000), lambda heads, y, _: losses.joint(heads[0], y)
    )
    batch, optimizer = batch_of_squares(8), optax.sgd(0.3)
    variables = weights(
        network, batch["mask"], batch["image"], jnp.zeros(8, jnp.int32), train=False
    )
    state = train_state.create(variables, optimizer)
    step = make_train_step(Update(diffusion, optimizer, ema_decay=0.9), mesh)
    batch = devices.put_batch(jax.device_get(batch), mesh)
    first, values = None, []
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(0))
        first = first or trees(state)
        values.append(float(metrics["loss"]))
    return first, values


@pytest.mark.slow
def test_eight_devices_make_the_update_of_one_and_steps_lower_the_loss():
    one, seen = train_small(one_device(), 12)
    eight, (loss,) = train_small(devices.make_mesh(), 1)
    assert loss == pytest.approx(seen[0], abs=1e-5)
    # Batch norm included: its statistics are the whole batch's, not a device's.
    assert_equal(eight, one, atol=1e-5)
    assert np.mean(seen[-4:]) < 0.8 * np.mean(seen[:4]), seen


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_what_is_not_chosen_leaves_no_trace_on_any_platform(platform):
    either = jax.jit(
        lambda true, x: one_or_other(platform)(
            true, lambda x: {"a": 1 / x}, lambda x: {"a": x}, x
        )
    )
    x = jnp.array([0.0, 2.0])
    np.testing.assert_array_equal(either(False, x)["a"], [0.0, 2.0])
    np.testing.assert_array_equal(either(True, x)["a"], [np.inf, 0.5])


def test_a_gpu_has_no_branch_to_wait_for_and_others_keep_what_is_packed_apart():
    def made(platform):
        return str(
            jax.make_jaxpr(one_or_other(platform), static_argnums=(1, 2))(
                True, jnp.sin, jnp.cos, 0.5
            )
        )

    assert "cond[" not in made("gpu")
    assert "cond[" in made("cpu") and "cond[" in made("tpu")
