"""Sets jax up for tests: eight CPU devices, quick compilation and strict checks.

Shapes are checked at run time, and rank promotion is an error. A compile cache that the
tests share saves nothing: most programs are compiled once, and the small ones load from
a file no faster than they compile.
"""

import os

import jax
from hypothesis import settings
from jaxtyping import install_import_hook

# Unoptimised programs compile several times faster, and tests run them once. XLA before
# jax 0.11 can also leave out its slow fusion emitters; later ones stop the process at
# the flag.
_FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

install_import_hook("biedsnet_jax", "beartype.beartype")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Fuzz tests take the profile "quick" unless --hypothesis-profile=thorough is given.
settings.register_profile(
    "quick", max_examples=12, derandomize=True, deadline=None, database=None
)
settings.register_profile("thorough", max_examples=200, deadline=None, database=None)
settings.load_profile("quick")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that none is left to one process at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
