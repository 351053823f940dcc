"""Accuracy of classes of whole pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mnv2det.errors import ConfigError, DataError
from mnv2det.evaluation.evaluator import Evaluator, Truth
from mnv2det.registry import EVALUATORS
from mnv2det.structures import Result, Scores

MOST = 100  # classes of which each has its figure and its row of the confusion matrix


class Record(NamedTuple):
    """What is kept of one image: its class, the likeliest one, and how many were likelier than its own."""

    truth: int
    found: int
    rank: int


@EVALUATORS.register("topk")
class TopK(Evaluator):
    """Shares of images whose class is the likeliest (``top1``) or among the five likeliest (``top5``).

    ``mean_class`` is the mean over classes of their share of ``top1``. Of at most 100 classes each has
    its own, ``top1/<class>``. Of equal scores the image's own class counts as the less likely one.
    """

    main = "top1"
    records: dict[int | str, Record]

    def update(self, image_id: int | str, result: Result, truth: Truth) -> None:
        """Records one image; one without a class is left out.

        Args:
            image_id: The data set's identifier.
            result: Class probabilities.
            truth: ``label``, 0 ... K-1.

        Raises:
            ConfigError: The head does not give classes of pictures.
            DataError: The label is no class.
        """
        if not isinstance(result, Scores):
            raise ConfigError(f"evaluator topk needs classes of pictures, the head gives {type(result).__name__}")
        if "label" not in truth:
            return
        label = int(truth["label"])
        if not 0 <= label < len(self.classes):
            raise DataError(f"image {image_id}: class {label} of {len(self.classes)}")
        scores = result.probabilities.detach().cpu().numpy()
        others = np.delete(scores, label)
        # a NaN is never less than the class's own score
        rank = len(others) - int(np.count_nonzero(others < scores[label]))
        self.records[image_id] = Record(label, int(scores.argmax()), rank)

    def compute(self) -> dict[str, float]:
        """See `Evaluator`; -1 where there is no image."""
        names = ["top1", *(["top5"] if len(self.classes) > 5 else []), "mean_class"]
        each = [f"top1/{name}" for name in self.classes] if len(self.classes) <= MOST else []
        if not self.records:
            return dict.fromkeys([*names, *each], -1.0)
        rows = np.array(list(self.records.values()), np.int64).reshape(-1, 3)
        right = rows[:, 2] == 0
        counts = np.bincount(rows[:, 0], minlength=len(self.classes))
        hits = np.bincount(rows[right, 0], minlength=len(self.classes))
        shares = np.where(counts > 0, hits / np.maximum(counts, 1), -1.0)
        metrics = {"top1": float(right.mean()), "top5": float((rows[:, 2] < 5).mean())}
        metrics["mean_class"] = float(shares[counts > 0].mean())
        return {name: metrics[name] for name in names} | dict(zip(each, shares.tolist(), strict=False))

    def report(self) -> dict[str, Any]:
        """The confusion matrix, a row for each true class, of at most 100 classes."""
        if len(self.classes) > MOST or not self.records:
            return {}
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        rows = np.array([(record.truth, record.found) for record in self.records.values()])
        np.add.at(matrix, (rows[:, 0], rows[:, 1]), 1)
        return {"classes": self.classes, "confusion": matrix.tolist()}
