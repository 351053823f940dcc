"""MobileNetV2 detection, segmentation and classification: train, measure, ship."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from mnv2det.version import __version__

# albumentations asks the network for its newest version on import; nothing here goes online unasked
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

if TYPE_CHECKING:
    from mnv2det.config import load_config
    from mnv2det.engine.build import build_model
    from mnv2det.runtime.predictor import Predictor

__all__ = ["Predictor", "__version__", "build_model", "load_config"]

_HOMES = {
    "load_config": "mnv2det.config",
    "build_model": "mnv2det.engine.build",
    "Predictor": "mnv2det.runtime.predictor",
}


def __getattr__(name: str) -> Any:
    """Imports the public names when first used: `import mnv2det` alone loads no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mnv2det' has no attribute '{name}'")
