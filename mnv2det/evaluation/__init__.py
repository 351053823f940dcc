"""Evaluators; importing this registers them."""

from mnv2det.evaluation import coco, miou, topk, voc

__all__ = ["coco", "miou", "topk", "voc"]
