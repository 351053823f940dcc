"""The loop over a labelled set."""

from __future__ import annotations

from typing import Any

import torch

from mnv2det.evaluation.evaluator import Evaluator, Truth
from mnv2det.evaluation.run import evaluate
from mnv2det.structures import Batch, Frame, Scores, TaskResult


class Right(Evaluator):
    """The share of images whose first probability is the truth's."""

    main = "right"

    def update(self, image_id: int | str, result: TaskResult, truth: Truth) -> None:
        assert isinstance(result, Scores)
        self.records[image_id] = float(result.probabilities[0]) == float(truth["value"])

    def compute(self) -> dict[str, float]:
        return {"right": sum(self.records.values()) / len(self.records) if self.records else -1.0}


def batch(*ids: int, skipped: int = 0) -> Batch:
    """Images of one pixel that holds their number, as does their truth."""
    images = torch.tensor(ids, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    frames = [Frame((1, 1), (1, 1))] * len(ids)
    truths: list[Any] = [{"value": number} for number in ids]
    return Batch(images, [{} for _ in ids], list(ids), frames, truths, ["broken"] * skipped)


def predict(batch: Batch) -> dict[str, list[TaskResult]]:
    """Knows of all images but number 2 what they show."""
    values = [float(image[0, 0, 0]) for image in batch.images]
    return {"cls": [Scores(torch.tensor([value if value != 2 else -1.0])) for value in values]}


def test_each_image_is_measured_by_its_own_truth_in_batches_of_any_size() -> None:
    evaluators = {"cls": Right(classes=["a"])}
    assert evaluate([batch(1, 2), batch(3), batch(4)], predict, evaluators) == {"cls/right": 0.75}
    assert evaluators["cls"].records == {1: True, 2: False, 3: True, 4: True}


def test_records_of_an_earlier_evaluation_do_not_count() -> None:
    evaluators = {"cls": Right(classes=["a"])}
    evaluate([batch(2)], predict, evaluators)
    assert evaluate([batch(1)], predict, evaluators) == {"cls/right": 1.0}


def test_skipped_images_are_counted_and_an_empty_batch_is_not_predicted() -> None:
    batches = [batch(1, skipped=1), batch(skipped=2), batch(3)]
    assert evaluate(batches, predict, {"cls": Right(classes=["a"])}) == {"cls/right": 1.0, "skipped_images": 3.0}


def test_processes_join_their_records_and_counts() -> None:
    def gather(value: Any) -> list[Any]:
        return [value, 2 if isinstance(value, int) else {2: False, 5: True, 6: True}]

    metrics = evaluate([batch(1, skipped=1)], predict, {"cls": Right(classes=["a"])}, gather=gather)
    assert metrics == {"cls/right": 0.75, "skipped_images": 3.0}
