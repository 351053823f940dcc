"""Evaluators; importing this registers them."""

from mnv2det.evaluation import coco, voc

__all__ = ["coco", "voc"]
