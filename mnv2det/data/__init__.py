"""Data sets, augmentation and loading; importing this registers them."""

from mnv2det.data import coco, deeplab, imagefolder, shapes, transforms, voc

__all__ = ["coco", "deeplab", "imagefolder", "shapes", "transforms", "voc"]
