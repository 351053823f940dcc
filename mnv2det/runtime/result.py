"""What a model finds in one picture: what people ask of it, whatever runtime computed it."""

from __future__ import annotations

import os
from collections.abc import Collection, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.errors import near
from mnv2det.io import import_optional
from mnv2det.report.draw import encode
from mnv2det.runtime import forms
from mnv2det.structures import Detections, Scores, Segmentation, TaskResult

R = TypeVar("R", Detections, Segmentation, Scores)
Rows = slice | Sequence[bool] | Sequence[int] | NDArray[Any] | Tensor

WHAT = {Detections: "detector", Segmentation: "segmenter", Scores: "classifier"}


class Box(NamedTuple):
    """One box that was found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture.
        score: 0 ... 1.
        label: Number of its class, 0 ... K-1.
        name: Name of its class.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


class Result:
    """What a model found in one picture.

    It is a sequence of boxes, the best first: ``len(result)``, ``for box in result``, ``result[0]``, and parts of it as
    `Result`s: ``result[:3]``, ``result[result.scores > 0.5]``. By the name of a task it gives what the head says, as
    tensors: ``result["det"]`` is a `Detections`, ``result["seg"]`` a `Segmentation`, ``result["cls"]`` a `Scores`;
    ``keys``, ``values``, ``items`` and ``in`` go by tasks, too.

    The attributes below are NumPy arrays on the CPU. One that the model has no head for, or several, raises an
    AttributeError that says so; of several detectors `only` takes one.

    Args:
        results: By task, of one picture.
        class_names: By task.
        image: The picture, uint8 (H, W, 3), RGB. It is kept as it is, not copied, for `plot`.

    Example:
        >>> import numpy, torch
        >>> boxes = torch.tensor([[10.0, 20.0, 60.0, 80.0], [0.0, 0.0, 30.0, 30.0]])
        >>> found = Detections(boxes, scores=torch.tensor([0.9, 0.4]), labels=torch.tensor([1, 0]))
        >>> result = Result({"det": found}, {"det": ["cat", "dog"]}, numpy.zeros((100, 120, 3), numpy.uint8))
        >>> result
        <Result: 1 dog, 1 cat; 100x120>
        >>> result.names
        ['dog', 'cat']
        >>> len(result[result.scores > 0.5]), result.filter(names="cat")[0].box
        (1, (0.0, 0.0, 30.0, 30.0))
    """

    def __init__(
        self, results: Mapping[str, TaskResult], class_names: Mapping[str, Sequence[str]], image: NDArray[np.uint8]
    ) -> None:
        self._results = dict(results)
        self.class_names = class_names
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Of the detector: float32 (N, 4), x1, y1, x2, y2 in pixels of the picture, best first."""
        return self._of(Detections)[1].boxes.cpu().numpy()

    @property
    def scores(self) -> NDArray[np.float32]:
        """Of the detector: float32 (N,), 0 ... 1."""
        return self._of(Detections)[1].scores.cpu().numpy()

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the detector: int64 (N,), number of each box's class, 0 ... K-1."""
        return self._of(Detections)[1].labels.cpu().numpy()

    @property
    def names(self) -> list[str]:
        """Of the detector: name of each box's class."""
        task, found = self._of(Detections)
        return [self.class_names[task][label] for label in found.labels.tolist()]

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Of the segmenter: uint8 (H, W), number of each pixel's class; names are in ``class_names[task]``."""
        return self._of(Segmentation)[1].mask.cpu().numpy()

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Of the classifier: float32 (K,), adding up to 1, in the order of `classes`."""
        return self._of(Scores)[1].probabilities.cpu().numpy()

    @property
    def classes(self) -> list[str]:
        """Of the classifier: names of all classes, in the order of `probabilities`; `top` has the best ones."""
        return list(self.class_names[self._of(Scores)[0]])

    def top(self, count: int = forms.BEST) -> list[tuple[str, float]]:
        """Of the classifier: name and probability of the best classes, best first."""
        task, found = self._of(Scores)
        return forms.best_classes(found, self.class_names[task], count)

    def _of(self, kind: type[R]) -> tuple[str, R]:
        """The only task with such results."""
        found = [(task, result) for task, result in self._results.items() if isinstance(result, kind)]
        if len(found) == 1:
            return found[0]
        tasks = ", ".join(task for task, _ in found or self._results.items())
        if found:
            raise AttributeError(f"this model has several {WHAT[kind]}s ({tasks}): take one with only('{found[0][0]}')")
        raise AttributeError(f"this model has no {WHAT[kind]}; its tasks: {tasks}")

    def keys(self) -> KeysView[str]:
        """Names of the tasks."""
        return self._results.keys()

    def values(self) -> ValuesView[TaskResult]:
        """What each head says, as tensors."""
        return self._results.values()

    def items(self) -> ItemsView[str, TaskResult]:
        """Names of the tasks, and what each head says, as tensors."""
        return self._results.items()

    def get(self, task: str) -> TaskResult | None:
        """What the head of a task says, as tensors; None without such a task."""
        return self._results.get(task)

    def __contains__(self, task: object) -> bool:
        return task in self._results

    def detectors(self) -> dict[str, Detections]:
        """The results of those tasks that find boxes."""
        return forms.detectors_of(self._results)

    def only(self, *tasks: str) -> Result:
        """The result of some of the tasks alone.

        Raises:
            KeyError: There is no such task.
        """
        return self._with({task: self[task] for task in tasks})

    def _with(self, results: Mapping[str, TaskResult]) -> Result:
        return Result(results, self.class_names, self.image)

    def __len__(self) -> int:
        return sum(len(found.scores) for found in self.detectors().values())

    def __bool__(self) -> bool:
        """Whether a box was found; true of models without a detector, which always find something."""
        return len(self) > 0 or not self.detectors()

    def __iter__(self) -> Iterator[Box]:
        for task, found in self.detectors().items():
            boxes, scores, labels = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
            for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
                yield Box((x1, y1, x2, y2), score, label, self.class_names[task][label])

    @overload
    def __getitem__(self, index: str) -> TaskResult: ...
    @overload
    def __getitem__(self, index: int) -> Box: ...
    @overload
    def __getitem__(self, index: Rows) -> Result: ...
    def __getitem__(self, index: str | int | Rows) -> TaskResult | Box | Result:
        if isinstance(index, str):
            if index not in self._results:
                raise KeyError(f"no task '{index}'{near(index, self._results)}")
            return self._results[index]
        if isinstance(index, int | np.integer):
            return list(self)[index]
        task, found = self._of(Detections)
        # NumPy knows every kind of index, and says what is wrong with one
        rows = np.arange(len(found.scores))[index.cpu().numpy() if isinstance(index, Tensor) else index]
        return self._with({**self._results, task: forms.chosen(found, torch.from_numpy(np.array(rows, np.int64)))})

    def filter(self, *, names: str | Collection[str] | None = None, threshold: float | None = None) -> Result:
        """The boxes of some classes, or with some score; masks and probabilities stay as they are.

        Args:
            names: One or several names of classes; None keeps all.
            threshold: The lowest score, 0 ... 1; None keeps all.

        Raises:
            ConfigError: There is no such class, or the threshold is out of range.
        """
        return self._with(forms.filtered(self._results, self.class_names, names, threshold))

    def draw(self) -> NDArray[np.uint8]:
        """The picture with masks and boxes drawn on it, uint8 (H, W, 3), RGB; what a classifier says is not drawn."""
        return forms.draw(self.image, self._results, self.class_names)

    def plot(self) -> PIL.Image.Image:
        """What `draw` draws as a picture of Pillow's, RGB, in the size of the picture."""
        return PIL.Image.fromarray(self.draw())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what `draw` draws into a picture file; its suffix decides on the format.

        Raises:
            DataError: There is no such format, or the file cannot be written.
        """
        forms.write_picture(path, self.draw())

    def _repr_png_(self) -> bytes:
        """Shows it in notebooks."""
        return encode(self.draw(), ".png")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __str__(self) -> str:
        return "; ".join([*forms.describe(self._results, self.class_names), "{}x{}".format(*self.size)])

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data that JSON can hold; the numbers are rounded as in ``predictions.json``.

        Returns:
            ``height`` and ``width``; of a detector ``boxes``, a list of ``name``, ``label``, ``score`` and ``box`` (x1,
            y1, x2, y2); of a classifier ``classes``, the five best with ``name`` and ``score``; of a segmenter
            ``pixels``, the share of the picture by class name. With several segmenters ``pixels`` lies below the name
            of each task.
        """
        height, width = self.size
        return {"height": height, "width": width, **forms.plain(self._results, self.class_names)}

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The boxes in COCO's results format, a row each: ``image_id``, ``category_id``, ``bbox`` and ``score``.

        Args:
            image_id: Goes into every row.
            category_ids: The id of each class, in the order of ``class_names``; of several detectors, those of all, one
                after the other. None numbers the classes from 1, as ``predictions.json`` does.

        Returns:
            ``bbox`` holds x and y of the upper left corner, width and height in pixels.

        Raises:
            ConfigError: There are more or fewer ids than classes.
        """
        return forms.coco_rows(self.detectors(), self.class_names, image_id, category_ids)

    def to_pandas(self) -> Any:
        """The boxes as a ``pandas.DataFrame``: a row each with name, label, score, x1, y1, x2 and y2.

        Raises:
            ConfigError: pandas is not installed.
        """
        rows = [(box.name, box.label, box.score, *box.box) for box in self]
        columns = ("name", "label", "score", "x1", "y1", "x2", "y2")
        return import_optional("pandas", "pandas").DataFrame(rows, columns=columns)

    def to_supervision(self) -> Any:
        """The detector's boxes as ``supervision.Detections``, with the names as ``data["class_name"]``.

        Raises:
            ConfigError: supervision is not installed.
        """
        return import_optional("supervision", "supervision").Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )
