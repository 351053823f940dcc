"""Backbones, heads and the model; importing this registers them."""

from mnv2det.models import classifier, deeplab, mobilenet_v1, mobilenet_v2, residual, ssdlite

__all__ = ["classifier", "deeplab", "mobilenet_v1", "mobilenet_v2", "residual", "ssdlite"]
