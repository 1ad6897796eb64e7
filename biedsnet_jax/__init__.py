"""Segments medical images by diffusion: `import biedsnet_jax as bj`.

    model = bj.load("runs/phantom")
    prediction = model(array)

The names below are loaded at their first use, so the import itself costs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biedsnet_jax.api import evaluate, get_config, load, train
    from biedsnet_jax.errors import BadInput
    from biedsnet_jax.prediction.predictor import Predictor
    from biedsnet_jax.prediction.result import Prediction
    from biedsnet_jax.prediction.scan_prediction import ScanPrediction

__version__ = "0.1.0"
__all__ = [
    "BadInput",
    "Prediction",
    "Predictor",
    "ScanPrediction",
    "__version__",
    "evaluate",
    "get_config",
    "load",
    "train",
]
# The module of each name.
_MODULES = {
    "BadInput": "errors",
    "Prediction": "prediction.result",
    "Predictor": "prediction.predictor",
    "ScanPrediction": "prediction.scan_prediction",
    "evaluate": "api",
    "get_config": "api",
    "load": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
