"""What labelling tools write: a file per format, which recognises, reads and writes it."""

from mnv2det.labels import boxes_csv, labelme, yolo

__all__ = ["boxes_csv", "labelme", "yolo"]
