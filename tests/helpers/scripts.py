"""The scripts of benchmarks/, as modules for the tests of them."""

import importlib.util
import sys
import types

from places import ROOT

BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> types.ModuleType:
    """A fresh module of `benchmarks/<name>.py`, which finds the scripts beside it as one that python starts does."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
