"""What labelling tools write: a file per format, which recognises, reads and writes it."""

from mnv2det.labels import boxes_csv, class_folders, coco, labelme, mask_pairs, voc, yolo

__all__ = ["boxes_csv", "class_folders", "coco", "labelme", "mask_pairs", "voc", "yolo"]
