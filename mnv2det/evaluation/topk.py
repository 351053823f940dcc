"""Accuracy of classes of whole pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mnv2det.evaluation.evaluator import Evaluator, Truth, mean_of_defined
from mnv2det.registry import EVALUATORS
from mnv2det.structures import Scores, TaskResult

MAX_LISTED = 100  # classes; of more there are neither metrics per class nor a confusion matrix


class Record(NamedTuple):
    """What is kept of one image.

    Attributes:
        truth: Its class.
        prediction: The class with the highest score.
        rank: The number of classes that did not score less than its own.
    """

    truth: int
    prediction: int
    rank: int


@EVALUATORS.register("topk")
class TopK(Evaluator):
    """Shares of images whose class has the highest score (``top1``) or one of the five highest (``top5``).

    ``top1/<class>`` is the share within one class, for data sets of at most 100 classes, and
    ``mean_class`` its mean over classes. Where scores are equal, the image's own class comes last.
    """

    main = "top1"
    records: dict[int | str, Record]

    def update(self, image_id: int | str, result: TaskResult, truth: Truth) -> None:
        """Records one image; one without a class is left out.

        Args:
            image_id: The data set's identifier.
            result: Class probabilities.
            truth: ``label``, 0 ... K-1.

        Raises:
            ConfigError: The head does not return classes of pictures.
            DataError: The label has no class.
        """
        prediction = self.expect(result, Scores, "classes of pictures")
        if "label" not in truth:
            return
        label = int(truth["label"])
        self.check_labels(np.array([label]), f"image {image_id}: annotated label")
        scores = prediction.probabilities.detach().cpu().numpy()
        others = np.delete(scores, label)
        # a NaN is never less than the class's own score
        rank = len(others) - int(np.count_nonzero(others < scores[label]))
        self.records[image_id] = Record(label, int(scores.argmax()), rank)

    def compute(self) -> dict[str, float]:
        """See `Evaluator`; -1 where there is no image."""
        names = ["top1", *(["top5"] if len(self.classes) > 5 else []), "mean_class"]
        per_class = [f"top1/{name}" for name in self.classes] if len(self.classes) <= MAX_LISTED else []
        if not self.records:
            return dict.fromkeys([*names, *per_class], -1.0)
        rows = np.array(list(self.records.values()), np.int64).reshape(-1, 3)
        right = rows[:, 2] == 0
        counts = np.bincount(rows[:, 0], minlength=len(self.classes))
        hits = np.bincount(rows[right, 0], minlength=len(self.classes))
        shares = np.where(counts > 0, hits / np.maximum(counts, 1), -1.0)
        metrics = {
            "top1": float(right.mean()),
            "top5": float((rows[:, 2] < 5).mean()),
            "mean_class": mean_of_defined(shares),
        }
        return {name: metrics[name] for name in names} | dict(zip(per_class, shares.tolist(), strict=False))

    def report(self) -> dict[str, Any]:
        """The confusion matrix, a row for each true class, of at most 100 classes."""
        if len(self.classes) > MAX_LISTED or not self.records:
            return {}
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        rows = np.array([(record.truth, record.prediction) for record in self.records.values()])
        np.add.at(matrix, (rows[:, 0], rows[:, 1]), 1)
        return {"classes": self.classes, "confusion": matrix.tolist()}
