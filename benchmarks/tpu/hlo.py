"""Bytes, FLOP and collectives of a program compiled for a TPU, from its HLO text.

The compiler's own cost analysis counts a loop's body once and says nothing of single
operations. Here every operation that runs by itself (a fusion is one) is weighed by the
arrays it reads and writes, as they lie in HBM: padded to the tiles of their layout. In
{3,0,2,1:T(8,128)} the axes stand fastest first, and the fastest two are padded to
multiples of 128 and 8. Arrays in the chip's own memory, S(1), cost no HBM traffic. An
operation in a loop counts as often as the loop turns, by the constant in the loop's
condition (once where there is none).
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
)
_MOVES_NOTHING = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "while",
    "call",
    "conditional",
}
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_OP = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_KIND = re.compile(r" ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|%[\w.-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an operation's result."""

    dtype: str
    shape: tuple[int, ...]
    layout: str  # what stands in braces behind the shape; "" where nothing does

    def bytes(self) -> int:
        """Bytes without padding."""
        return math.prod(self.shape) * _bits(self.dtype) // 8

    def padded_bytes(self) -> int:
        """Bytes with the padding of the layout's first tile."""
        order = [int(axis) for axis in self.layout.split(":")[0].split(",") if axis]
        # HLO without a layout has its last axis fastest.
        order = order or list(reversed(range(len(self.shape))))
        sides = [self.shape[axis] for axis in order]
        if tile := re.search(r"T\(([\d,]+)\)", self.layout):
            multiples = [int(t) for t in reversed(tile.group(1).split(","))]
            # A tile of more axes than the array pads the missing ones from 1.
            sides += [1] * (len(multiples) - len(sides))
            for i, multiple in enumerate(multiples):
                sides[i] = math.ceil(sides[i] / multiple) * multiple
        return math.prod(sides) * _bits(self.dtype) // 8

    def in_hbm(self) -> bool:
        """Whether it lies in the memory shared by all of the chip."""
        return not re.search(r"S\([1-9]", self.layout)


@dataclasses.dataclass(frozen=True)
class Op:
    """A line of HLO."""

    name: str
    kind: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # attributes

    def scope(self) -> str:
        """The Python scope that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Weight:
    """What one operation does in one call of the program."""

    op: Op
    times: int  # it runs
    bytes: int  # read and written each time, in any memory
    hbm_bytes: int  # of these, in HBM
    flop: int  # of its convolutions and matrix products, each time


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program: operations by computation, and results by name."""

    entry: str
    computations: dict[str, list[Op]]
    arrays: dict[str, tuple[Array, ...]]


def parse(text: str) -> Module:
    """Parses the text of `compiled.as_text()`. Raises ValueError without an entry."""
    computations = {}
    arrays = {}
    entry = None
    ops = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            ops = computations.setdefault(header.group(2), [])
            if header.group(1):
                entry = header.group(2)
        elif ops is not None and (found := _OP.match(line)):
            behind = " " + found.group(2)
            if kind := _KIND.search(behind):
                op = _op(found.group(1), kind, behind)
                ops.append(op)
                arrays[op.name] = op.result
    if entry is None:
        raise ValueError("The HLO text has no ENTRY.")
    return Module(entry, computations, arrays)


def weights(module: Module) -> list[Weight]:
    """Every operation that runs by itself and moves bytes or multiplies."""
    found = [
        Weight(op, times, *_bytes(moved(op, module)), _flop(op, module))
        for op, times, fused in executed(module)
        if not fused
        and op.kind not in _MOVES_NOTHING
        and not op.kind.endswith(("-done", "-update"))
    ]
    return [weight for weight in found if weight.bytes or weight.flop]


def moved(op: Op, module: Module) -> list[Array]:
    """The arrays that an operation reads and writes."""
    # The start of a copy returns what it reads, too.
    if op.kind.endswith("-start"):
        return list(op.result)
    return [*op.result, *_read(op, module)]


def _read(op, module):
    return [array for name in op.operands for array in module.arrays.get(name, ())]


def collectives(module: Module) -> list[tuple[str, int, int]]:
    """(kind, bytes, times) of each collective; a start and its done are one.

    Bytes are the larger of what goes in and what comes out of one chip, unpadded.
    """
    found = []
    for op, times, _ in executed(module):
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            given = sum(array.bytes() for array in _read(op, module))
            result = sum(array.bytes() for array in op.result)
            # The start of a gather returns its operand too.
            if op.kind in ("all-gather-start", "collective-permute-start"):
                result -= given
            found.append((kind, max(given, result), times))
    return found


def executed(module: Module) -> Iterator[tuple[Op, int, bool]]:
    """Yields (operation, how often it runs, whether it is fused), from the entry on.

    An operation in an asynchronous wrapper counts as fused.
    """
    yield from _executed(module, module.entry, 1, False)


def _executed(module, name, times, fused):
    for op in module.computations.get(name, []):
        yield op, times, fused
        if op.kind in ("fusion", "while", "call", "conditional", "async-start"):
            turns = times * _turns(op, module) if op.kind == "while" else times
            inside = fused or op.kind in ("fusion", "async-start")
            for called in _called(op):
                yield from _executed(module, called, turns, inside)


def _called(op):
    return [
        name
        for group in _CALLED.findall(op.rest)
        for name in re.findall(r"%([\w.-]+)", group)
    ]


def _turns(op, module):
    """Turns of a while loop that counts up to a constant."""
    if known := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', op.rest):
        return int(known.group(1))
    condition = re.search(r"condition=%([\w.-]+)", op.rest)
    ops = module.computations.get(condition.group(1), []) if condition else []
    counts = [
        int(n)
        for o in ops
        if o.kind == "constant"
        for n in re.findall(r"\bvalue=(\d+)$", o.rest)
    ]
    return max(counts, default=1)


def _op(name, kind, text):
    """Parses an operation from the line behind its equals sign.

    `kind` is the match of the operation's kind in it.
    """
    depth = 1
    end = kind.end()
    while depth and end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    inside = text[kind.end() : end - 1]
    rest = text[end:]
    if kind.group(1) == "constant":
        rest = f"{rest} value={inside}"
    result = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), layout)
        for dtype, shape, layout in _ARRAY.findall(text[: kind.start()])
    )
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    return Op(name, kind.group(1), result, operands, rest)


def _bytes(arrays):
    """Bytes of all arrays, and of those in HBM."""
    total = sum(array.padded_bytes() for array in arrays)
    return total, sum(array.padded_bytes() for array in arrays if array.in_hbm())


def _flop(op, module):
    """Twice the multiply-adds, with those of padding."""
    if op.kind == "fusion":
        names = _called(op)
        return sum(
            _flop(o, module) for n in names for o in module.computations.get(n, [])
        )
    labels = re.search(r"dim_labels=\w+_(\w+)->", op.rest)
    if op.kind != "convolution" or not labels:
        return 0
    kernel = module.arrays[op.operands[1]][0].shape
    # The label of the output channels is o.
    sides = zip(kernel, labels.group(1))
    taps = math.prod(side for side, label in sides if label != "o")
    return 2 * math.prod(op.result[0].shape) * taps


def _bits(dtype):
    if dtype == "pred":
        return 8
    bits = re.search(r"\d+", dtype)
    # A token is a type without bits.
    return int(bits.group()) if bits else 0
