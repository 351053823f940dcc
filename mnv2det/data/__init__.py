"""Data sets, augmentation and loading; importing this registers them."""

from mnv2det.data import coco, deeplab, shapes, transforms, voc

__all__ = ["coco", "deeplab", "shapes", "transforms", "voc"]
