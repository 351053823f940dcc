"""Trained weights or an exported model in, results out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.data.images import decode_image, read_image
from mnv2det.data.transforms import fit
from mnv2det.errors import ConfigError, DataError
from mnv2det.export.program import SUFFIXES
from mnv2det.models.build import assemble, from_file, weights_of
from mnv2det.models.head import Dense, Head
from mnv2det.models.model import pick_device
from mnv2det.models.weight_file import Header, read_header
from mnv2det.models.windows import average_windows
from mnv2det.ops.maps import label
from mnv2det.registry import HEADS
from mnv2det.runtime.backends import Backend, Outputs, Precision, open_export, open_model
from mnv2det.structures import Detections, Frame, Preprocess, Result, Scores, Segmentation

Pixels = NDArray[np.uint8]
Picture = str | os.PathLike[str] | bytes | Pixels


class Predictor:
    """A model with all it needs to know: classes, input size, mean and std come with it.

    Threads may share one. Its work is `prepare`, `run` and `finish`, for who wants to time them.

    Args:
        source: A run folder (its ``best.safetensors``), a weight file, or an exported model
            (``.onnx``, ``.xml`` of OpenVINO, ``.pt2``).
        backend: ``torch``, ``onnxruntime`` or ``openvino``. ``auto`` takes torch for weights, which the
            others need seconds to convert, and for an exported model the first that reads it.
        device: ``cpu``, ``cuda`` ...; None takes CUDA where there is one and the backend is torch.
        threads: That a prediction computes with; None takes all cores. Of torch they are the process's.
        precision: ``fp32``, or ``bf16`` where backend and processor have it. An int8 file stays int8;
            this is then the precision of what is not quantized in it.
        memory_budget: Bytes of activations that the backbone may hold at once, on torch and the CPU
            (paper, section 5.1); 0: as little as costs no time, None: no limit.
        heads: By task, thresholds in place of the model's: ``score_threshold``, ``nms_iou``,
            ``max_detections``.

    Attributes:
        header: What travels with the weights.
        classes: Class names by task.
        backend: What runs the network.

    Raises:
        ConfigError: The backend is not installed, or cannot do what is asked for.
        WeightsError: There are no weights, or they are damaged.

    Example:
        >>> predictor = Predictor("runs/ssdlite_bccd")          # doctest: +SKIP
        >>> found = predictor("photo.jpg")["det"]               # doctest: +SKIP
        >>> [predictor.classes["det"][i] for i in found.labels]  # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        precision: Precision = "fp32",
        memory_budget: int | None = None,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        exported = Path(source).suffix.lower() in SUFFIXES
        elsewhere = exported or backend in ("onnxruntime", "openvino")
        self.device = pick_device("cpu" if device is None and elsewhere else device)
        if exported and memory_budget is not None:
            raise ConfigError(f"{source}: a memory budget needs weights, not an exported model")
        if exported:
            self.backend: Backend = open_export(
                Path(source), backend, device=self.device, threads=threads, precision=precision
            )
            self.header = self.backend.metadata.header
            if heads and self.backend.metadata.form == "complete":
                raise ConfigError(f"{source}: a complete export holds its thresholds; export it again with others")
            self.heads = _heads(self.header, heads or {}, str(source))
        else:
            model, self.header = from_file(str(weights_of(source)), heads=heads)
            self.backend = open_model(
                model,
                self.header,
                backend,
                device=self.device,
                threads=threads,
                precision=precision,
                memory_budget=memory_budget,
            )
            self.heads = dict(model.heads.items())  # type: ignore[arg-type]
        self.classes = self.header.classes
        self.preprocess: Preprocess = self.header.preprocess
        self.backend.attach_heads(self.heads)
        self._fixed = {task: head.constants(self.preprocess.input_size) for task, head in self.heads.items()}

    @property
    def precision(self) -> str:
        """That of most of the network: ``fp32``, ``bf16`` or ``int8``."""
        return "int8" if self.backend.metadata.precision == "int8" else self.backend.precision

    def __call__(self, picture: Picture) -> dict[str, Result]:
        """Results of every task for one picture.

        Args:
            picture: A file, the bytes of one, or uint8 (H, W, 3) RGB.

        Returns:
            Task name to result, in the picture's own pixels.

        Raises:
            DataError: The picture cannot be read, or has another shape or type.
        """
        return self.batch([picture])[0]

    def batch(self, pictures: Sequence[Picture]) -> list[dict[str, Result]]:
        """Results for several pictures, of any sizes; those of one size after fitting in one pass if that is faster."""
        if self.backend.singly and len(pictures) > 1:
            return [self(picture) for picture in pictures]
        images = [load(picture) for picture in pictures]
        fitted = [self.prepare(image) for image in images]
        results: list[dict[str, Result]] = [{} for _ in images]
        for shape in dict.fromkeys(pixels.shape for pixels, _ in fitted):
            chosen = [number for number, (pixels, _) in enumerate(fitted) if pixels.shape == shape]
            frames = [fitted[number][1] for number in chosen]
            if self.backend.metadata.form == "raw" and shape[:2] != self.preprocess.input_size:
                found = [self._larger(*fitted[number]) for number in chosen]
            else:
                found = self.finish(self.run(_stack([fitted[number][0] for number in chosen]), frames), frames)
            for number, result in zip(chosen, found, strict=True):
                results[number] = result
        return results

    def prepare(self, image: Pixels) -> tuple[Pixels, Frame]:
        """What the network is given of a picture uint8 (H, W, 3) RGB: itself, where the export is complete."""
        if self.backend.metadata.form == "complete":
            return image, Frame((image.shape[0], image.shape[1]), self.preprocess.input_size)
        return fit(image, self.preprocess)

    def run(self, pixels: Pixels, frames: Sequence[Frame] = ()) -> Outputs:
        """The network's outputs for uint8 (B, H, W, 3).

        Given `prepare`'s frames, some of `finish`'s work is done here where the backend is faster at it.
        """
        return self.backend.run(pixels, frames[0] if len(frames) == 1 else None)

    def finish(self, outputs: Outputs, frames: Sequence[Frame]) -> list[dict[str, Result]]:
        """Results of the pictures of one batch, from `run`'s outputs and `prepare`'s frames."""
        if self.backend.metadata.form == "complete":
            return [{task: _result(outputs, task, number) for task in self.heads} for number in range(len(frames))]
        found: dict[str, Sequence[Any]] = {}
        for task, head in self.heads.items():
            if task in outputs:
                found[task] = [outputs[task]]
                continue
            with torch.no_grad():
                found[task] = head.decode({**_of(outputs, task), **self._fixed[task]}, frames)
        return [{task: results[number] for task, results in found.items()} for number in range(len(frames))]

    def _larger(self, pixels: Pixels, frame: Frame) -> dict[str, Result]:
        """A picture larger than the input that may not be scaled: as `Model.predict` sees it."""
        size = (pixels.shape[0], pixels.shape[1])
        dense = {task: head for task, head in self.heads.items() if isinstance(head, Dense)}
        found: dict[str, Result] = {}
        if len(dense) < len(self.heads):
            if not self.backend.any_size:
                most = "x".join(str(side) for side in self.preprocess.input_size)
                raise DataError(f"picture of {size[0]}x{size[1]}: this export takes at most {most}, unscaled")
            whole = self.run(pixels[None])
            for task, head in self.heads.items():
                found[task] = head.decode({**_of(whole, task), **head.constants(size)}, [frame])[0]

        def probabilities(rows: slice, columns: slice) -> dict[str, Tensor]:
            part = np.ascontiguousarray(pixels[None, rows, columns])
            outputs = self.run(part)
            shape = (part.shape[1], part.shape[2])
            return {task: head.scores(_of(outputs, task), shape).cpu() for task, head in dense.items()}

        maps = average_windows(probabilities, size, self.preprocess.input_size)
        found |= {task: label(each, [frame])[0] for task, each in maps.items()}
        return {task: found[task] for task in self.heads}


def header_of(source: str | os.PathLike[str]) -> Header:
    """What a run folder, weight file or exported model says of itself.

    Raises:
        ConfigError, WeightsError: As `Predictor`.
    """
    if Path(source).suffix.lower() in SUFFIXES:
        return Predictor(source).header
    return read_header(weights_of(source))


def load(picture: Picture) -> Pixels:
    """A picture's pixels, uint8 (H, W, 3) RGB.

    Raises:
        DataError: It cannot be read, or is an array of another shape or type.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return decode_image(bytes(picture), where=f"picture of {len(picture)} bytes")
    if not isinstance(picture, np.ndarray):
        if not isinstance(picture, str | os.PathLike):
            raise DataError(f"picture: expected a path, bytes or an array, got {type(picture).__name__}")
        return read_image(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise DataError(f"array of {picture.dtype} {picture.shape}: expected uint8 (H, W, 3), RGB")
    return picture


def _heads(header: Header, given: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Head]:
    """The heads of an exported model, for what comes after the network; they have no weights."""
    parts = {}
    for task, head in header.heads.items():
        own = HEADS.get(head["name"], place=f"{where}: head {task}")
        fixed = [key for key in given.get(task, {}) if key in own.architecture_args]
        if fixed:
            raise ConfigError(f"tasks.{task}.head.args.{fixed[0]}: {where} holds it; only thresholds can be others")
        parts[task] = {"name": head["name"], "args": {**head["args"], **given.get(task, {})}}
    with torch.device("meta"):
        model = assemble(header.backbone, parts, classes=header.classes, preprocess=header.preprocess)
    return dict(model.eval().heads.items())  # type: ignore[arg-type]


def _of(outputs: Outputs, task: str) -> dict[str, Tensor]:
    """The tensors of one task by their own names."""
    return {
        name.removeprefix(f"{task}."): cast(Tensor, value)
        for name, value in outputs.items()
        if name.startswith(f"{task}.")
    }


def _result(outputs: Outputs, task: str, number: int) -> Result:
    """One picture's result from a complete export."""
    own = {name: value[number] for name, value in _of(outputs, task).items()}
    if "mask" in own:
        return Segmentation(own["mask"])
    if "probabilities" in own:
        return Scores(own["probabilities"])
    count = int(own["count"])
    return Detections(own["boxes"][:count], own["scores"][:count], own["labels"][:count])


def _stack(images: Sequence[Pixels]) -> Pixels:
    return np.ascontiguousarray(images[0])[None] if len(images) == 1 else np.stack(images)
