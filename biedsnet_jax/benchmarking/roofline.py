"""What a compiled program must do, what the device can do, and the least time that
follows:

    roofline time = max(FLOP / peak FLOP per second, bytes / copied bytes per second)

FLOP and bytes are the compiler's own count. It counts the body of a loop once, however
often the loop turns, so what it leaves out is added here: for each scan, (length - 1)
times its body, compiled and counted by itself, inner scans first. What the compiler
lifts out of a loop counts as if it had stayed inside; a loop of unknown length counts
once.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.extend import core

from biedsnet_jax.benchmarking import timing
from biedsnet_jax.segmenters import macs


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one call on one device; None where the compiler does not say."""

    flop: float | None
    bytes: float | None

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(_add(self.flop, other.flop), _add(self.bytes, other.bytes))

    def times(self, number: int) -> "Cost":
        """Of so many calls."""
        return Cost(
            *(None if x is None else number * x for x in (self.flop, self.bytes))
        )


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What one device was seen to reach."""

    matmul: dict[str, dict[int, float]]  # FLOP/s by dtype and size
    copy: float  # bytes/s, read and written

    def peak(self) -> float:
        """FLOP/s of the best size and dtype."""
        return max(
            rate for by_size in self.matmul.values() for rate in by_size.values()
        )


def program_cost(compiled, fn: Callable, *args) -> Cost:
    """Of a compiled program; `fn(*args)` is what one device does of it, traced to find
    its loops.
    """
    return reported_cost(compiled) + _left_out(jax.make_jaxpr(fn)(*args).jaxpr)


def reported_cost(compiled) -> Cost:
    """The compiler's count as it stands, loop bodies once."""
    try:
        analysis = compiled.cost_analysis()
    # jax's own run-time errors are RuntimeErrors
    except (NotImplementedError, RuntimeError):
        analysis = None
    # one a module, in some versions
    if isinstance(analysis, list | tuple):
        analysis = analysis[0] if analysis else None
    return Cost(
        *(_known((analysis or {}).get(name)) for name in ("flops", "bytes accessed"))
    )


def roofline(cost: Cost, *, peak: float, copy: float) -> tuple[float, str] | None:
    """(seconds, "arithmetic" or "memory", whichever takes them); None where the cost is
    not known.
    """
    if cost.flop is None or cost.bytes is None:
        return None
    return max((cost.flop / peak, "arithmetic"), (cost.bytes / copy, "memory"))


def measure_ceilings(
    dtypes: set[str], *, sizes: tuple[int, ...], copy_bytes: int, repeats: int
) -> Ceilings:
    """Square matrix products in each dtype, and x + 1 in place over float32s; the best
    repeat of each.
    """
    matmul = {
        dtype: {
            size: 2 * size**3 / _matmul_seconds(size, dtype, repeats) for size in sizes
        }
        for dtype in sorted(dtypes)
    }
    count = copy_bytes // 4
    return Ceilings(matmul, 2 * 4 * count / _copy_seconds(count, repeats))


def _matmul_seconds(size, dtype, repeats):
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(jnp.matmul)
    return min(timing.measure(lambda: product(a, b), repeats=repeats).seconds)


def _copy_seconds(count, repeats):
    x = [jnp.zeros(count)]
    # in place, so that no time goes into fresh pages
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call():
        x[0] = add(x[0])
        return x[0]

    return min(timing.measure(call, repeats=repeats).seconds)


def _left_out(jaxpr: core.Jaxpr) -> Cost:
    """What the compiler's count of a program lacks."""
    total = Cost(0.0, 0.0)
    for scan in _scans(jaxpr):
        body, length = scan.params["jaxpr"], scan.params["length"]
        total += _left_out(body.jaxpr).times(length)
        if length > 1:
            total += _cost_alone(body).times(length - 1)
    return total


def _cost_alone(body: core.ClosedJaxpr) -> Cost:
    inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
    return reported_cost(jax.jit(core.jaxpr_as_fun(body)).lower(*inputs).compile())


def _scans(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The outermost scans, also inside the functions that are called."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        else:
            for inner in macs.inner_jaxprs(eqn):
                yield from _scans(inner)


def _known(value):
    """A count as a float; some backends say -1 or NaN for what they do not know."""
    return (
        float(value)
        if value is not None and math.isfinite(value) and value >= 0
        else None
    )


def _add(a, b):
    return None if a is None or b is None else a + b
