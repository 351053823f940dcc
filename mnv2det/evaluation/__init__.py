"""Evaluators; importing this registers them."""

from mnv2det.evaluation import coco, miou, voc

__all__ = ["coco", "miou", "voc"]
