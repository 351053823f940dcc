"""Trained weights or an exported model in, results out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from mnv2det.data.fit import fit
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.models.build import assemble, from_file, weights_of
from mnv2det.models.head import Dense, Head
from mnv2det.models.model import pick_device
from mnv2det.models.weight_file import Header, read_header
from mnv2det.registry import HEADS
from mnv2det.runtime.base import Options, Outputs, Precision, Session, choose, is_export, readers, runtimes
from mnv2det.runtime.looks import combine_looks, tensors_of
from mnv2det.runtime.pictures import Channels, Picture, Pixels, load
from mnv2det.runtime.result import Result
from mnv2det.structures import Frame, Preprocess, TaskResult

TOGETHER = 8  # pictures of a list that are predicted together


class Predictor:
    """A model with all it needs to know: classes, input size, mean and std come with it.

    Threads may share one. `prepare`, `run` and `finish` are the three steps of a prediction; who wants to time
    them calls them one by one.

    Args:
        source: A run folder (its ``best.safetensors``), a weight file, or an exported model
            (``.onnx``, ``.xml`` of OpenVINO, ``.pt2``, ``.param`` of ncnn, ``.tflite``).
        backend: ``torch``, ``onnxruntime``, ``openvino``, ``ncnn``, ``litert`` or a runtime of your own. ``auto`` takes
            torch for weights, which the others must convert first, and for an exported model the first that reads it.
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
        session: The loaded network.

    Raises:
        ConfigError: The backend is not installed, or cannot do what is asked for.
        WeightsError: There are no weights, or they are damaged.

    Example:
        >>> predictor = Predictor("runs/ssdlite_bccd")    # doctest: +SKIP
        >>> result = predictor("photo.jpg", threshold=0.5)  # doctest: +SKIP
        >>> result.names, result.boxes, result.scores     # doctest: +SKIP
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
        path, exported = Path(source), is_export(source)
        if exported and memory_budget is not None:
            raise ConfigError(f"{source}: a memory budget needs weights, not an exported model")
        if exported and not path.is_file():
            raise WeightsError(f"{source}: no such exported model")
        if exported:
            able = readers(path)
        else:
            model, self.header = from_file(str(weights_of(source)), heads=heads)
            able = [runtime for runtime in runtimes() if runtime.native or backend != "auto"]
        runtime = choose(backend, able, str(source), precision)
        self.device = pick_device(device or (None if runtime.native and not exported else runtime.devices[0]))
        options = Options(self.device, threads, precision, memory_budget)
        runtime.check(options)
        if exported:
            self.session: Session = runtime.open(path, options)
            self.header = self.session.metadata.header
            if heads and self.session.metadata.form == "complete":
                raise ConfigError(f"{source}: a complete export holds its thresholds; export it again with others")
            self.heads = _heads(self.header, heads or {}, str(source))
        else:
            self.session = runtime.load(ExportProgram(model, ExportMetadata(self.header, "raw")), options)
            self.heads = dict(model.heads.items())  # type: ignore[arg-type]
        self.classes = self.header.classes
        self.preprocess: Preprocess = self.header.preprocess
        self.session.attach_heads(self.heads)
        self._constants = {task: head.constants(self.preprocess.input_size) for task, head in self.heads.items()}

    @property
    def precision(self) -> str:
        """That of most of the network: ``fp32``, ``bf16`` or ``int8``."""
        return "int8" if self.session.metadata.precision == "int8" else self.session.precision

    @overload
    def __call__(
        self,
        picture: Picture,
        *,
        threshold: float = 0.3,
        channels: Channels = "rgb",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> Result: ...
    @overload
    def __call__(
        self,
        picture: list[Picture] | tuple[Picture, ...],
        *,
        threshold: float = 0.3,
        channels: Channels = "rgb",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> list[Result]: ...
    def __call__(
        self,
        picture: Picture | list[Picture] | tuple[Picture, ...],
        *,
        threshold: float = 0.3,
        channels: Channels = "rgb",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> Result | list[Result]:
        """Looks at a picture, or at several.

        Args:
            picture: A path, the bytes of a picture file, a picture of Pillow's, an array or tensor, as
                `mnv2det.runtime.pictures.load` takes them; or a list of them. Each `Result` keeps its picture.
            threshold: The lowest score of a box, 0 ... 1. 0 leaves the model's own threshold, which lets nearly
                everything through.
            channels: ``rgb``, or ``bgr`` for arrays and tensors as OpenCV has them.
            scales: As `batch` takes them, as is ``flip``.
            flip: Whether segmentation also looks at the mirrored picture.

        Returns:
            What was found, in the picture's own pixels; of a list, a list.

        Raises:
            ConfigError: This model cannot look at a picture that way, or the threshold is out of range.
            DataError: A picture cannot be read, or has another shape or type.
        """
        if not isinstance(picture, list | tuple):
            image = load(picture, channels)
            (results,) = self.batch([image], scales=scales, flip=flip)
            return Result(results, self.classes, image).filter(threshold=threshold)
        found = []
        for start in range(0, len(picture), TOGETHER):
            images = [load(each, channels) for each in picture[start : start + TOGETHER]]
            for image, results in zip(images, self.batch(images, scales=scales, flip=flip), strict=True):
                found.append(Result(results, self.classes, image).filter(threshold=threshold))
        return found

    def batch(
        self, pictures: Sequence[Picture], *, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> list[dict[str, TaskResult]]:
        """All that the heads say of several pictures, without another threshold: for programs that measure or compare.

        Pictures may have any sizes; those of one size after fitting are computed in one pass if that is faster.

        Args:
            pictures: Each as `__call__` takes one.
            scales: Segmentation averages its probabilities over the input at these scales (``test.scales``); other
                tasks look once, as in `Model.predict`.
            flip: Whether segmentation also looks at every scale mirrored (``test.flip``).

        Returns:
            For each picture the results by task, as tensors, in the picture's own pixels.

        Raises:
            ConfigError: This model cannot look at a picture that way.
            DataError: A picture cannot be read, or has another shape or type.
        """
        if self.session.prefers_single_pictures and len(pictures) > 1:
            return [self.batch([picture], scales=scales, flip=flip)[0] for picture in pictures]
        several_looks = self._looks_several_times(scales, flip)
        images = [load(picture) for picture in pictures]
        fitted = [self.prepare(image) for image in images]
        results: list[dict[str, TaskResult]] = [{} for _ in images]
        for shape in dict.fromkeys(pixels.shape for pixels, _ in fitted):
            chosen = [number for number, (pixels, _) in enumerate(fitted) if pixels.shape == shape]
            frames = [fitted[number][1] for number in chosen]
            larger = self.session.metadata.form == "raw" and shape[:2] != self.preprocess.input_size
            if larger or several_looks:
                of_shape = [
                    combine_looks(self.session, self.heads, self.preprocess, fitted[number], scales, flip)
                    for number in chosen
                ]
            else:
                of_shape = self.finish(self.run(_stack([fitted[number][0] for number in chosen]), frames), frames)
            for number, result in zip(chosen, of_shape, strict=True):
                results[number] = result
        return results

    def prepare(self, image: Pixels) -> tuple[Pixels, Frame]:
        """Brings a picture uint8 (H, W, 3) RGB to the network's input; a complete export takes it as it is."""
        if self.session.metadata.form == "complete":
            return image, Frame((image.shape[0], image.shape[1]), self.preprocess.input_size)
        return fit(image, self.preprocess)

    def run(self, pixels: Pixels, frames: Sequence[Frame] = ()) -> Outputs:
        """Computes the network's outputs for uint8 (B, H, W, 3).

        With the frames that `prepare` returned, a session may already do some of the work of `finish`.
        """
        return self.session.run(pixels, frames[0] if len(frames) == 1 else None)

    def finish(self, outputs: Outputs, frames: Sequence[Frame]) -> list[dict[str, TaskResult]]:
        """Computes the results of one batch from `run`'s outputs and `prepare`'s frames."""
        if self.session.metadata.form == "complete":
            return [
                {task: head.result_from_export(tensors_of(outputs, task), number) for task, head in self.heads.items()}
                for number in range(len(frames))
            ]
        by_task: dict[str, Sequence[Any]] = {}
        for task, head in self.heads.items():
            if task in outputs:
                by_task[task] = [outputs[task]]
                continue
            with torch.no_grad():
                by_task[task] = head.decode({**tensors_of(outputs, task), **self._constants[task]}, frames)
        return [{task: results[number] for task, results in by_task.items()} for number in range(len(frames))]

    def _looks_several_times(self, scales: Sequence[float], flip: bool) -> bool:
        """Whether scales or mirror images ask for several looks at a picture; refuses what this model cannot do."""
        scaled = tuple(scales) != (1.0,)
        if not (scaled or flip) or not any(isinstance(head, Dense) for head in self.heads.values()):
            return False
        if self.session.metadata.form == "complete":
            raise ConfigError("test.scales, test.flip: a complete export looks once; use a raw one or the weights")
        if scaled and not self.session.any_size:
            size = "x".join(str(side) for side in self.preprocess.input_size)
            raise ConfigError(
                f"test.scales: expected [1.0], as this export takes inputs of {size} only; or use the weights"
            )
        return True


def header_of(source: str | os.PathLike[str]) -> Header:
    """What a run folder, weight file or exported model says of itself.

    Raises:
        ConfigError, WeightsError: As `Predictor`.
    """
    if is_export(source):
        return Predictor(source).header
    return read_header(weights_of(source))


def _heads(header: Header, changed: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Head]:
    """The heads of an exported model, without weights, to decode the network's outputs.

    Args:
        header: Of the file.
        changed: By task, thresholds in place of the file's.
        where: The file, for messages.
    """
    heads = {}
    for task, head in header.heads.items():
        architecture = HEADS.get(head["name"], place=f"{where}: head {task}").architecture_args
        fixed = [key for key in changed.get(task, {}) if key in architecture]
        if fixed:
            raise ConfigError(f"tasks.{task}.head.args.{fixed[0]}: {where} holds it; only thresholds can be others")
        heads[task] = {"name": head["name"], "args": {**head["args"], **changed.get(task, {})}}
    with torch.device("meta"):
        model = assemble(header.backbone, heads, classes=header.classes, preprocess=header.preprocess)
    return dict(model.eval().heads.items())  # type: ignore[arg-type]


def _stack(images: Sequence[Pixels]) -> Pixels:
    return np.ascontiguousarray(images[0])[None] if len(images) == 1 else np.stack(images)
