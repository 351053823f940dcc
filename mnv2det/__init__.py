"""MobileNetV2 detection, segmentation and classification: train, measure, ship."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from mnv2det.version import __version__

# albumentations asks the network for its newest version on import; nothing here goes online unasked
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

if TYPE_CHECKING:
    from mnv2det.api import Run, check_data, evaluate, export, train
    from mnv2det.config import load_config
    from mnv2det.engine.build import build_model
    from mnv2det.errors import ConfigError, DataError, Mnv2detError, TrainingError, WeightsError
    from mnv2det.runtime.predictor import Predictor
    from mnv2det.runtime.result import Result

__all__ = [
    "ConfigError",
    "DataError",
    "Mnv2detError",
    "Predictor",
    "Result",
    "Run",
    "TrainingError",
    "WeightsError",
    "__version__",
    "build_model",
    "check_data",
    "evaluate",
    "export",
    "load_config",
    "train",
]

_HOMES = {
    "mnv2det.api": ("Run", "check_data", "evaluate", "export", "train"),
    "mnv2det.config": ("load_config",),
    "mnv2det.engine.build": ("build_model",),
    "mnv2det.errors": ("ConfigError", "DataError", "Mnv2detError", "TrainingError", "WeightsError"),
    "mnv2det.runtime.predictor": ("Predictor",),
    "mnv2det.runtime.result": ("Result",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports the public names when first used: `import mnv2det` alone loads no torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mnv2det' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
