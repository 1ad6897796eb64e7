"""The least time that a program can take on a device, by the roofline model:

    roofline time = max(FLOP / peak FLOP per second, bytes / copied bytes per second)

FLOP and bytes are the compiler's own count. It counts the body of a loop once, whatever
the loop's length, so the rest is added here: for each scan (length - 1) times its body,
compiled and counted by itself, inner scans first. What the compiler moves out of a loop
counts as if it had stayed inside. A loop of unknown length counts once.
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
    """FLOP and bytes of a call on one device, None where the compiler has no count."""

    flop: float | None
    bytes: float | None

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(_add(self.flop, other.flop), _add(self.bytes, other.bytes))

    def times(self, number: int) -> "Cost":
        """The cost of `number` calls."""
        flop = None if self.flop is None else number * self.flop
        return Cost(flop, None if self.bytes is None else number * self.bytes)


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Speeds that one device reached when measured."""

    matmul: dict[str, dict[str, float]]  # FLOP/s by dtype and size
    copy: float  # bytes/s, read and written

    def peak(self) -> float:
        """FLOP/s of the best size and dtype."""
        return max(max(by_size.values()) for by_size in self.matmul.values())


def program_cost(compiled, fn: Callable, *args) -> Cost:
    """The cost of a compiled program.

    `fn(*args)` is one device's part of it, which is traced to find the loops.
    """
    return reported_cost(compiled) + _left_out(jax.make_jaxpr(fn)(*args).jaxpr)


def reported_cost(compiled) -> Cost:
    """The compiler's own count, with loop bodies once."""
    try:
        # JAX's run-time errors are RuntimeErrors.
        counts = compiled.cost_analysis() or {}
    except (NotImplementedError, RuntimeError):
        counts = {}
    return Cost(_known(counts.get("flops")), _known(counts.get("bytes accessed")))


def roofline(cost: Cost, *, peak: float, copy: float) -> tuple[float, str] | None:
    """(seconds, "arithmetic" or "memory", which takes them); None for unknown cost."""
    if cost.flop is None or cost.bytes is None:
        return None
    return max((cost.flop / peak, "arithmetic"), (cost.bytes / copy, "memory"))


def measure_ceilings(
    dtypes: set[str], *, sizes: tuple[int, ...], copy_bytes: int, repeats: int
) -> Ceilings:
    """Measures square matrix products by dtype, and x + 1 in place over float32.

    The best repeat of each counts.
    """
    matmul = {dtype: {} for dtype in sorted(dtypes)}
    for dtype, by_size in matmul.items():
        for size in sizes:
            # A text, since JSON has no other keys.
            seconds = _matmul_seconds(size, dtype, repeats)
            by_size[str(size)] = 2 * size**3 / seconds
    count = copy_bytes // 4
    # Four bytes a float32, read and written.
    return Ceilings(matmul, 2 * 4 * count / _copy_seconds(count, repeats))


def _matmul_seconds(size, dtype, repeats):
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(jnp.matmul)
    return min(timing.measure(lambda: product(a, b), repeats=repeats).seconds)


def _copy_seconds(count, repeats):
    x = [jnp.zeros(count)]
    # In place, so that no time goes into fresh pages of memory.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call():
        x[0] = add(x[0])
        return x[0]

    return min(timing.measure(call, repeats=repeats).seconds)


def _left_out(jaxpr: core.Jaxpr) -> Cost:
    """The cost that the compiler's count of a program leaves out."""
    total = Cost(0.0, 0.0)
    for scan in _scans(jaxpr):
        body = scan.params["jaxpr"]
        length = scan.params["length"]
        total += _left_out(body.jaxpr).times(length)
        if length > 1:
            total += _cost_alone(body).times(length - 1)
    return total


def _cost_alone(body: core.ClosedJaxpr) -> Cost:
    inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
    return reported_cost(jax.jit(core.jaxpr_as_fun(body)).lower(*inputs).compile())


def _scans(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yields the outermost scans, also those inside functions that are called."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        else:
            for inner in macs.inner_jaxprs(eqn):
                yield from _scans(inner)


def _known(value):
    """A count as a float, None where unknown: some backends then give -1 or NaN."""
    if value is None or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _add(a, b):
    if a is None or b is None:
        return None
    return a + b
