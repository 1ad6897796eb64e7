"""Loads the trained models of one workdir or several as one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from biedsnet_jax.config import members
from biedsnet_jax.prediction import postprocess, trained
from biedsnet_jax.prediction.postprocess import Postprocess
from biedsnet_jax.prediction.trained import Member, Trained
from biedsnet_jax.runtime import devices, processes
from biedsnet_jax.segmenters.ensemble import Ensemble


def load(
    workdirs: Sequence[Path], config: ConfigDict, *, free: tuple[str, ...] = ()
) -> Trained:
    """Loads the model of a workdir, or those of several as one model.

    All predict as `config` says, which is that of the first workdir but for fields that
    may differ and `free`, see `trained.load`. Raises BadInput as that does, and where
    the models cannot predict together.
    """
    first = trained.load(workdirs[0], config, free=free)
    if len(workdirs) == 1:
        return first
    members.check_members(workdirs, config)
    others = [
        trained.load(workdir, config, free=members.MAY_DIFFER)
        for workdir in workdirs[1:]
    ]
    every = [first, *others]
    named = [
        Member(str(workdir.resolve()), one.step, one.weights_digest())
        for workdir, one in zip(workdirs, every)
    ]
    return dataclasses.replace(
        first,
        segmenter=Ensemble(first.segmenter),
        variables=_stacked([one.variables for one in every]),
        members=tuple(named),
        postprocess=_shared_rules(every, workdirs),
        # A program of its own.
        predict_batch=None,
    )


def _shared_rules(every, workdirs) -> Postprocess:
    """The rules for masks that all models have; none, with a warning, where they differ."""
    rules = [one.postprocess.alone() for one in every]
    others = [
        workdir for workdir, own in zip(workdirs, rules, strict=True) if own != rules[0]
    ]
    if not others:
        return rules[0]
    if processes.is_first():
        processes.say(
            f"warning: {others[0]} and {workdirs[0]} have different rules in "
            f"{postprocess.NAME}, or one has none, so masks are not post-processed."
        )
    return Postprocess()


def _stacked(variables: list[dict]) -> dict:
    """Joins the arrays of members along a new first axis, cut over devices as they are."""

    def sharding(x):
        mesh, spec = x.sharding.mesh, x.sharding.spec
        return NamedSharding(mesh, PartitionSpec(None, *spec))

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    places = jax.tree.map(sharding, variables[0])
    once = devices.RUN_ONCE
    return jax.jit(stack, out_shardings=places, compiler_options=once)(variables)
