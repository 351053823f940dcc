"""Backbones, heads and the model; importing this registers them."""

from mnv2det.models import classifier, deeplab, mobilenet_v2, ssdlite
from mnv2det.models.variants import mobilenet_v1, residual

__all__ = ["classifier", "deeplab", "mobilenet_v1", "mobilenet_v2", "residual", "ssdlite"]
