"""Multiply-adds of a function, counted in its jaxpr: traced, never compiled or run.

Convolutions and matrix products count, as in papers. Norms, activations, pooling,
resizing and FFTs do not.

    convolution      outputs x kernel height x kernel width x input channels / groups
    matrix product   outputs x length of the contracted axes

Padding counts as if it were image. What nothing depends on is left out, as the compiler
leaves it out.
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.extend import core

# Networks mark by `jax.named_scope` what its primitives alone would miscount: resizing
# written as matrix products, which are left out,
_RESAMPLING = "resampling"
# and a convolution written as elementwise products, which count.
_PRODUCTS = "products_of_convolution"


def count_macs(fn: Callable, *args) -> int:
    """Multiply-adds of `fn(*args)`.

    Arguments are arrays or `jax.ShapeDtypeStruct`s, in any pytree. A scan
    counts its body once a step, a conditional its costliest branch, `shard_map` what
    all devices of its mesh do. Raises ValueError for a while loop with multiply-adds in
    it: how often it turns is not known before it runs.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr, scope="")


def prediction_gmacs(
    model, variables: dict, shape: tuple[int, int, int], *, ensemble: int
) -> float:
    """Multiply-adds of `model.predict` for one image, in units of 1e9.

    `model` is a `segmenter.Segmenter`, `variables` its arrays or their shapes, `shape`
    (height, width, channels). A diffusion method encodes the image once and evaluates
    the denoiser steps x samples times.
    """

    def predict(variables, image, keys):
        return model.predict(variables, image, keys, ensemble=ensemble)

    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return count_macs(predict, variables, image, keys) / 1e9


def _count(jaxpr, scope):
    return sum(
        _count_equation(eqn, f"{scope}/{eqn.source_info.name_stack}")
        for eqn in _live(jaxpr)
    )


def _count_equation(eqn, scope):
    name = eqn.primitive.name
    if _RESAMPLING in scope:
        return 0
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name == "dot_general":
        return _matrix_product(eqn)
    if name == "mul" and _PRODUCTS in scope:
        return eqn.outvars[0].aval.size
    inner = [_count(jaxpr, scope) for jaxpr in inner_jaxprs(eqn)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return eqn.params["length"] * sum(inner)
    if name == "while" and any(inner):
        raise ValueError(
            "A while loop has multiply-adds in it, and it may turn any number of times. "
            "Use lax.scan."
        )
    if name == "shard_map":
        return eqn.params["mesh"].size * sum(inner)
    return sum(inner)


def _convolution(eqn):
    image, kernel = (x.aval for x in eqn.invars)
    out_axis, in_axis = eqn.params["dimension_numbers"].rhs_spec[:2]
    # Transposed: every pixel meets every tap, the zeros between do not.
    if math.prod(eqn.params["lhs_dilation"]) > 1:
        in_channels = kernel.shape[in_axis] * eqn.params["feature_group_count"]
        return image.size * kernel.size // in_channels
    return eqn.outvars[0].aval.size * kernel.size // kernel.shape[out_axis]


def _matrix_product(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _live(jaxpr):
    """The equations that some output depends on, last first."""
    needed = _variables(jaxpr.outvars)
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or needed & set(eqn.outvars):
            live.append(eqn)
            needed |= _variables(eqn.invars)
    return live


def _variables(atoms):
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}


def inner_jaxprs(eqn) -> Iterator[core.Jaxpr]:
    """The functions that an equation calls.

    They are the bodies of jit, scan, cond, remat, custom derivatives and shard_map.
    """
    for value in eqn.params.values():
        items = value if isinstance(value, tuple | list) else (value,)
        for item in items:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
