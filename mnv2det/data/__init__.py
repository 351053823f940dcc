"""Data sets, augmentation and loading; importing this registers them."""

from mnv2det.data import coco, shapes, transforms, voc

__all__ = ["coco", "shapes", "transforms", "voc"]
