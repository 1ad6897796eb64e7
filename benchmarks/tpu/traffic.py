"""Where the HBM traffic of a program compiled for a TPU goes: by operation, by array,
by part of the network.
"""

import collections
import re

from benchmarks.tpu import hlo


def profile(module: hlo.Module, most: int) -> str:
    """Three lists of the `most` that move most bytes."""
    weights = hlo.weights(module)
    total = sum(w.hbm_bytes * w.times for w in weights)
    traffic, plain = collections.Counter(), 0
    for w in weights:
        for array in hlo.moved(w.op, module):
            if array.in_hbm():
                traffic[_array(array)] += w.times * array.padded_bytes()
                plain += w.times * array.bytes()
    parts = collections.Counter()
    for w in weights:
        parts[_part(w.op.scope())] += w.times * w.hbm_bytes
    operations = collections.Counter(
        {
            f"{w.times} x {_operation(w.op, module)}": w.times * w.hbm_bytes
            for w in weights
        }
    )
    head = f"HBM traffic {total / 1e9:.4g} GB in {len(weights)} operations, {plain / 1e9:.4g} GB without padding"
    lists = [_list(what, counts, total, most) for what, counts in
             (("operation", operations), ("array", traffic), ("part of the network", parts))]  # fmt: skip
    return "\n\n".join([head, *lists])


def _list(what, counts, total, most):
    lines = [
        f"{size / 1e9:8.3f} GB {100 * size / max(total, 1):5.1f} %  {name}"
        for name, size in counts.most_common(most)
    ]
    return "\n".join([f"by {what}:", *lines])


def _operation(op, module):
    """Name, the large arrays it reads and writes, and where it comes from."""
    read = [array for name in op.operands for array in module.arrays.get(name, ())]
    return f"{op.name}: {_large(read)} -> {_large(op.result)}\n{'':21}{op.scope()}"


def _large(arrays, least=2**20):
    shown = [_array(array) for array in arrays if array.padded_bytes() >= least]
    return (
        " ".join(
            f"{shown.count(s)} x {s}" if shown.count(s) > 1 else s
            for s in dict.fromkeys(shown)
        )
        or "small"
    )


def _array(array):
    return f"{array.dtype}[{','.join(map(str, array.shape))}]{{{array.layout}}}"


def _part(scope):
    """The module of a scope, direction first: "backward denoiser/encoder_1_block_2"."""
    direction = "backward" if "transpose(" in scope else "forward"
    names = [
        n
        for n in re.sub(r"\([^/]*\)", "", scope).split("/")
        if re.fullmatch(r"[a-z]\w*", n)
    ]
    names = [
        n
        for n in names
        if n not in ("jit", "jvp", "transpose", "while", "body", "closed_call")
    ]
    return f"{direction} {'/'.join(names[:2])}" if names[1:] else "the rest"
