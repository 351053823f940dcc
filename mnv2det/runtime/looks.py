"""One picture seen several times: at several scales, mirrored, in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.errors import DataError
from mnv2det.models.head import Dense, Head
from mnv2det.models.windows import segment
from mnv2det.runtime.base import Outputs, Session
from mnv2det.structures import Frame, Preprocess, TaskResult


def combine_looks(
    session: Session,
    heads: Mapping[str, Head],
    preprocess: Preprocess,
    fitted: tuple[NDArray[np.uint8], Frame],
    scales: Sequence[float],
    flip: bool,
) -> dict[str, TaskResult]:
    """Computes what `Model.predict` computes for one picture: at several scales, mirrored, in windows if it is large.

    Args:
        session: The loaded network, in raw form.
        heads: By task.
        preprocess: Of the model.
        fitted: The picture, uint8 (H, W, 3), as it was brought to the input, and where it lies there.
        scales: Of the input, over which segmentation averages.
        flip: Whether segmentation also looks at every scale mirrored.

    Raises:
        DataError: The picture is larger than an export of a detector takes.
    """
    pixels, frame = fitted
    size = (pixels.shape[0], pixels.shape[1])
    dense = {task: head for task, head in heads.items() if isinstance(head, Dense)}
    results: dict[str, TaskResult] = {}
    if len(dense) < len(heads):
        if size != preprocess.input_size and not session.any_size:
            most = "x".join(str(side) for side in preprocess.input_size)
            raise DataError(f"picture of {size[0]}x{size[1]}: this export takes at most {most}, unscaled")
        whole = session.run(pixels[None], None)
        for task, head in heads.items():
            if task not in dense:
                results[task] = head.decode({**tensors_of(whole, task), **head.constants(size)}, [frame])[0]

    def probabilities(view: Tensor) -> dict[str, Tensor]:
        image = view.permute(0, 2, 3, 1).contiguous()
        if image.is_floating_point() and not session.float_pixels:
            image = image.round().to(torch.uint8)
        outputs = session.run(image.numpy(), None)
        shape = (image.shape[1], image.shape[2])
        return {task: head.scores(tensors_of(outputs, task), shape).cpu() for task, head in dense.items()}

    if dense:
        inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        window = preprocess.input_size if preprocess.fit == "pad" else size
        masks = segment(
            probabilities,
            inputs.float() if tuple(scales) != (1.0,) else inputs,
            [frame],
            window=window,
            scales=scales,
            flip=flip,
        )
        results |= {task: of_pictures[0] for task, of_pictures in masks.items()}
    return {task: results[task] for task in heads}


def tensors_of(outputs: Outputs, task: str) -> dict[str, Tensor]:
    """The tensors of one task by their own names."""
    return {
        name.removeprefix(f"{task}."): cast(Tensor, value)
        for name, value in outputs.items()
        if name.startswith(f"{task}.")
    }
