"""The precisions that a GPU is measured in, and what a result says of its origin."""

import dataclasses

import jax

from biedsnet_jax.benchmarking import benchmark

_PLACES = ("compile_cache", "data.root", "data.cache_dir")


@dataclasses.dataclass(frozen=True)
class Precision:
    """What a network computes in, and how products of float32 are rounded."""

    dtype: str  # the config's
    products: str  # jax_default_matmul_precision
    torch_words: tuple[str, ...]  # flags of beside_torch/run.py


PRECISIONS = {
    "bfloat16": Precision("bfloat16", "default", ("--config.dtype=bfloat16",)),
    "TF32": Precision("float32", "tensorfloat32", ("--tf32",)),
    "float32": Precision("float32", "highest", ()),
}


def apply(name: str, cfg) -> None:
    """Sets the config's dtype, and this process's precision of products."""
    precision = PRECISIONS[name]
    cfg.dtype = precision.dtype
    jax.config.update("jax_default_matmul_precision", precision.products)


def fields_of(cfg) -> dict:
    """The fields of a config by dotted name, without where files lie."""
    fields = benchmark.flat(cfg)
    return {name: value for name, value in fields.items() if name not in _PLACES}


def machine(name: str, mesh) -> dict:
    """What every result says of where it was measured."""
    return {
        "device": benchmark.device(mesh),
        "versions": benchmark.versions(),
        "precision": name,
    }
