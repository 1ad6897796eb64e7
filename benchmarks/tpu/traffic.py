"""HBM traffic of a program compiled for a TPU, by operation, array and module."""

import collections
import re

from benchmarks.tpu import hlo


def profile(module: hlo.Module, most: int) -> str:
    """Lists the `most` operations, arrays and modules that move most bytes."""
    weights = hlo.weights(module)
    operations = collections.Counter()
    arrays = collections.Counter()
    parts = collections.Counter()
    plain = 0
    for w in weights:
        # An operation in a loop moves its bytes in every turn.
        size = w.times * w.hbm_bytes
        operations[f"{w.times} x {_operation(w.op, module)}"] = size
        parts[_part(w.op.scope())] += size
        for array in hlo.moved(w.op, module):
            if array.in_hbm():
                arrays[_array(array)] += w.times * array.padded_bytes()
                plain += w.times * array.bytes()
    total = sum(parts.values())
    head = (
        f"HBM traffic {total / 1e9:.4g} GB in {len(weights)} operations, "
        f"{plain / 1e9:.4g} GB without padding"
    )
    lists = [
        _list("operation", operations, total, most),
        _list("array", arrays, total, most),
        _list("part of the network", parts, total, most),
    ]
    return "\n\n".join([head, *lists])


def _list(what, counts, total, most):
    lines = [
        f"{size / 1e9:8.3f} GB {100 * size / max(total, 1):5.1f} %  {name}"
        for name, size in counts.most_common(most)
    ]
    return "\n".join([f"by {what}:", *lines])


def _operation(op, module):
    """An operation's name, the large arrays it reads and writes, and its scope."""
    read = [array for name in op.operands for array in module.arrays.get(name, ())]
    return f"{op.name}: {_large(read)} -> {_large(op.result)}\n{'':21}{op.scope()}"


def _large(arrays, least=2**20):
    counts = collections.Counter(
        _array(array) for array in arrays if array.padded_bytes() >= least
    )
    shown = [f"{n} x {name}" if n > 1 else name for name, n in counts.items()]
    return " ".join(shown) or "small"


def _array(array):
    return f"{array.dtype}[{','.join(map(str, array.shape))}]{{{array.layout}}}"


def _part(scope):
    """The module of a scope, direction first: "backward denoiser/encoder_1_block_2"."""
    direction = "backward" if "transpose(" in scope else "forward"
    # What JAX puts around the names of modules.
    wrappers = ("jit", "jvp", "transpose", "while", "body", "closed_call")
    names = [
        name
        for name in re.sub(r"\([^/]*\)", "", scope).split("/")
        if re.fullmatch(r"[a-z]\w*", name) and name not in wrappers
    ]
    if len(names) < 2:
        return "the rest"
    return f"{direction} {'/'.join(names[:2])}"
