"""What labelling tools write: a file per format, which recognises, reads and writes it."""

from mnv2det.labels import class_folders, coco, mask_pairs, voc

__all__ = ["class_folders", "coco", "mask_pairs", "voc"]
