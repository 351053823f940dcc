"""Data sets, augmentation and loading; importing this registers them."""

from mnv2det.data import deeplab, shapes, transforms
from mnv2det.data.formats import coco, imagefolder, voc

__all__ = ["coco", "deeplab", "imagefolder", "shapes", "transforms", "voc"]
