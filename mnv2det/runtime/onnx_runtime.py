"""onnxruntime on the CPU, and ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.errors import WeightsError
from mnv2det.graphs.program import INPUT, ExportMetadata, ExportProgram
from mnv2det.io import cores
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.base import Options, Outputs, Runtime, Session, one_line
from mnv2det.structures import Frame


@RUNTIMES.register("onnxruntime")
class OnnxRuntime(Runtime):
    """Writes and reads ``.onnx``."""

    format = "onnx"
    suffix = ".onnx"
    reads = (".onnx",)
    int8 = True
    library = "onnxruntime"
    extra = "export"

    def write(self, program: ExportProgram, path: Path) -> None:
        """See `Runtime`."""
        path.write_bytes(program.onnx.SerializeToString())

    def open(self, path: Path, options: Options) -> OnnxSession:
        """See `Runtime`."""
        library = self.import_library()
        settings = library.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads or cores(), 1
        settings.log_severity_level = 3
        # otherwise its threads go on spinning on the cores that decoding the results needs
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = library.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has no error class of its own
            raise WeightsError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from None
        entries = dict(session.get_modelmeta().custom_metadata_map)
        return OnnxSession(session, ExportMetadata.of(entries, where=str(path)))


class OnnxSession(Session):
    """An ``onnxruntime.InferenceSession`` of an exported model."""

    def __init__(self, session: Any, metadata: ExportMetadata) -> None:
        self.session, self.metadata, self.any_size = session, metadata, metadata.any_size
        self.outputs = [output.name for output in session.get_outputs()]

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Session`."""
        values = self.session.run(self.outputs, {INPUT: image})
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)}
