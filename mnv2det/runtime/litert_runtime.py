"""LiteRT (formerly TensorFlow Lite) on the CPU, the runtime of Android: ``.tflite``."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.errors import WeightsError
from mnv2det.graphs.litert import halve, quantize, to_flatbuffer
from mnv2det.graphs.program import INPUT, ExportMetadata, ExportProgram
from mnv2det.graphs.sidecar import read_sidecar, sidecar_of, write_sidecar
from mnv2det.io import cores, import_optional
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.base import Options, Outputs, Runtime, Session, one_line
from mnv2det.structures import Frame


@RUNTIMES.register("litert")
class LiteRtRuntime(Runtime):
    """Writes and reads ``.tflite``, with the metadata beside it as JSON."""

    format = "litert"
    suffix = ".tflite"
    reads = (".tflite",)
    forms = ("raw",)
    int8 = True
    fp16 = True
    library = "ai_edge_litert"
    converter = "litert_torch"
    extra = "litert"

    def quantize(self, program: ExportProgram, pictures: Iterable[NDArray[np.uint8]]) -> ExportProgram:
        """See `Runtime`; calibrated when it is written, as LiteRT quantises its own files."""
        return program.calibrate_on(pictures)

    def write(self, program: ExportProgram, path: Path) -> None:
        """See `Runtime`; the network takes one picture of the model's own size."""
        shapes = to_flatbuffer(program, path)
        if program.metadata.precision == "fp16":
            halve(path)
        elif program.metadata.precision == "int8":
            quantize(path, program.calibration)
        taken = {"shape": [*program.example.shape[1:]], "layout": "HWC", "type": "uint8", "pixels": "RGB, 0 to 255"}
        write_sidecar(program, [path], {INPUT: taken}, shapes)

    def open(self, path: Path, options: Options) -> LiteRtSession:
        """See `Runtime`."""
        self.import_library()
        library = import_optional("ai_edge_litert.interpreter", self.extra)
        metadata, facts = read_sidecar(path, [path])
        try:
            interpreter = library.Interpreter(str(path), num_threads=options.threads or cores())
            runner = interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{path}: LiteRT cannot load it ({one_line(error)})") from None
        return LiteRtSession(runner, metadata, list(facts["outputs"]))

    def files(self, path: Path) -> list[Path]:
        """See `Runtime`."""
        return [path, sidecar_of(path)]


class LiteRtSession(Session):
    """A signature of a LiteRT interpreter, which takes one picture at a time.

    Args:
        runner: The signature's ``SignatureRunner``.
        metadata: Of the file.
        names: Of the outputs, in the model's order.
    """

    prefers_single_pictures = True

    def __init__(self, runner: Any, metadata: ExportMetadata, names: list[str]) -> None:
        self.runner, self.metadata, self.names = runner, metadata, names
        self.running = threading.Lock()  # an interpreter serves one thread at a time

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Session`."""
        with self.running:
            results = [self.runner(**{INPUT: picture[None]}) for picture in image]
        return {name: torch.from_numpy(np.concatenate([result[name] for result in results])) for name in self.names}
