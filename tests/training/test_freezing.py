"""Patterns of init.freeze, and an update that leaves those parameters as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from refusals import refused

from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.runtime import devices
from biedsnet_jax.training.freezing import find_frozen
from biedsnet_jax.training.train_step import Update, make_train_step

PARAMS = {
    "condition": {"level_1": {"kernel": 0.0, "bias": 0.0}, "level_12": {"kernel": 0.0}},
    "head": {"kernel": 0.0},
}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("condition",), {"level_1/kernel", "level_1/bias", "level_12/kernel"}),
        (("condition/level_1",), {"level_1/kernel", "level_1/bias"}),
        (("*/kernel",), {"level_1/kernel", "level_12/kernel", "head/kernel"}),
        (("condition/*_1/bias", "head"), {"level_1/bias", "head/kernel"}),
    ],
)
def test_a_pattern_names_a_path_or_all_below_it(patterns, names):
    found = jax.tree_util.tree_leaves_with_path(find_frozen(PARAMS, patterns))
    paths = {
        "/".join(key.key for key in path[-2:]) for path, is_frozen in found if is_frozen
    }
    assert paths == names


def test_no_pattern_freezes_nothing():
    assert find_frozen(PARAMS, ()) is None


def test_patterns_that_name_nothing_or_everything_are_refused():
    refused(lambda: find_frozen(PARAMS, ("decoder",)), "init.freeze", "decoder", "head")
    refused(lambda: find_frozen(PARAMS, ("*",)), "init.freeze", "*")


class Sum:
    """Half the squared distance of the sum of two numbers from the image's mean."""

    def loss(self, variables, batch, key, *, train):
        total = variables["params"]["a"] + variables["params"]["b"]
        return 0.5 * jnp.square(total - jnp.mean(batch["image"])), ({}, {})


def test_frozen_parameters_stay_and_the_others_move_as_if_they_were_constants():
    fields = {
        "learning_rate": 0.1,
        "steps": 10,
        "warmup_steps": 0,
        "final_fraction": 1.0,
        "weight_decay": 0.5,
        "clip_norm": 0.3,
    }
    frozen = {"a": True, "b": False}
    optimizer, _ = make_optimizer(ConfigDict(fields), frozen=frozen)
    params = {"a": jnp.asarray(0.7), "b": jnp.asarray(0.2)}
    state = train_state.create({"params": params, "batch_stats": {}}, optimizer)
    mesh = devices.make_mesh(jax.devices()[:1])
    update = Update(Sum(), optimizer, ema_decay=0.9, frozen=frozen)
    step = make_train_step(update, mesh)
    batch = {"image": jnp.full((2, 1, 1, 1), 3.0)}

    b, alone = (
        0.2,
        optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.1, weight_decay=0.5)),
    )
    moments = alone.init(jnp.asarray(b))
    for _ in range(4):
        state, metrics = step(state, batch, jax.random.key(0))
        gradient = np.float32(0.7) + b - 3.0
        assert float(metrics["grad_norm"]) == pytest.approx(abs(gradient), rel=1e-5)
        move, moments = alone.update(jnp.asarray(gradient), moments, jnp.asarray(b))
        b = b + float(move)
    assert float(state.params["b"]) == pytest.approx(b, rel=1e-5)
    # Bit for bit, in the moving average too.
    for tree in (state.params, state.ema_params):
        assert np.asarray(tree["a"]) == np.float32(0.7)
