"""Eight fake CPU devices, strict rank promotion and run-time shape checks for every test."""

import os

# Level 1 compiles several times faster and runs small programs as fast; floats move by 1e-6.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"

from jaxtyping import install_import_hook

install_import_hook("biedsnet_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
