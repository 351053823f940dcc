"""OpenVINO on the CPU: its own files, and ONNX files."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.errors import WeightsError
from mnv2det.graphs.program import INPUT, ExportMetadata, ExportProgram
from mnv2det.io import cores, import_optional
from mnv2det.models.head import Head
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.base import Options, Outputs, Runtime, Session, one_line
from mnv2det.runtime.openvino_detections import FRAME, GraphDetections, add_detections, write_frame
from mnv2det.structures import Frame

# where OpenVINO's reader of ONNX puts a file's metadata; files of ours have it there, too
METADATA_PATHS = {key: ["framework", key] for key in ExportMetadata.KEYS}

MAKING_CORE = threading.Lock()


@functools.cache
def _make_core() -> Any:
    return import_optional("openvino", "openvino").Core()


def shared_core() -> Any:
    """The one ``openvino.Core`` of this process, which lives as long as it.

    Where the processor has AMX, OpenVINO's CPU plugin gives the thread that makes a core another stack for signal
    handlers. Of two cores, the one deleted last puts back the stack of the one deleted first, whose memory is gone
    by then: the next signal that Python handles (Ctrl-C, the end of a data loader's worker) would kill the process.
    """
    with MAKING_CORE:
        return _make_core()


@RUNTIMES.register("openvino")
class OpenVinoRuntime(Runtime):
    """Writes ``.xml``, with the weights beside it as ``.bin``; reads that and ``.onnx``."""

    format = "openvino"
    suffix = ".xml"
    reads = (".xml", ".onnx")
    precisions = ("fp32", "bf16")
    int8 = True
    library = "openvino"
    extra = "openvino"

    def write(self, program: ExportProgram, path: Path) -> None:
        """See `Runtime`."""
        library = self.import_library()
        network = shared_core().read_model(program.onnx.SerializeToString())
        for key, value in program.metadata.entries().items():
            network.set_rt_info(value, METADATA_PATHS[key])
        # half-precision weights, the default, would change results
        library.save_model(network, path, compress_to_fp16=False)

    def open(self, path: Path, options: Options) -> OpenVinoSession:
        """See `Runtime`."""
        library = self.import_library()
        try:
            network = shared_core().read_model(path)
            entries = {
                key: network.get_rt_info(place).astype(str)
                for key, place in METADATA_PATHS.items()
                if network.has_rt_info(place)
            }
        except RuntimeError as error:
            raise WeightsError(f"{path}: OpenVINO cannot load it ({one_line(error)})") from None
        return OpenVinoSession(library, network, ExportMetadata.of(entries, where=str(path)), options)

    def files(self, path: Path) -> list[Path]:
        """See `Runtime`."""
        return [path, path.with_suffix(".bin")] if path.suffix.lower() == self.suffix else [path]


class OpenVinoSession(Session):
    """An ``openvino.Model`` of an exported model.

    Single inputs of the model's own size, the usual ones, have a network compiled for that shape.

    Args:
        library: The module ``openvino``.
        network: The ``openvino.Model``.
        metadata: Of the file.
        options: Threads and precision.
    """

    prefers_single_pictures = True

    def __init__(self, library: Any, network: Any, metadata: ExportMetadata, options: Options) -> None:
        self.tensor, self.network = library.Tensor, network
        self.metadata, self.precision, self.any_size = metadata, options.precision, metadata.any_size
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": options.threads or cores(),
            # by default OpenVINO takes bfloat16 wherever the processor has it
            "INFERENCE_PRECISION_HINT": "f32" if options.precision == "fp32" else options.precision,
        }
        self.outputs = [output.any_name for output in network.outputs]
        self.compiling = threading.Lock()
        self.compiled: dict[bool, Any] = {}
        self.idle: dict[bool, queue.SimpleQueue[tuple[Any, Frame | None]]] = {
            True: queue.SimpleQueue(),
            False: queue.SimpleQueue(),
        }
        self.usual = (1, *metadata.header.preprocess.input_size, 3) if metadata.form == "raw" else None
        self.heads: Mapping[str, Head] = {}
        self.detections: list[GraphDetections] = []

    def attach_heads(self, heads: Mapping[str, Head]) -> None:
        """Compiles the network, with what detectors do with their best candidates, for the usual shape."""
        self.heads = heads
        self._compile(usual=self.usual is not None)

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Session`."""
        usual = image.shape == self.usual
        # a request serves one thread at a time
        try:
            request, described = self.idle[usual].get_nowait()
        except queue.Empty:
            request, described = self._compile(usual=usual).create_infer_request(), None
        detections = self.detections if usual and frame is not None else []
        if detections and frame is not None and frame != described:
            write_frame(frame, request.get_tensor(FRAME).data)
            described = frame
        # infer() would make arrays of all outputs
        request.set_tensor(INPUT, self.tensor(image, shared_memory=image.flags.writeable))
        request.start_async()
        request.wait()
        outputs: Outputs = {}
        for detector in detections:
            if (result := detector.read(request)) is not None:
                outputs[detector.task] = result
        for name in self.outputs:
            if name.split(".")[0] not in outputs:
                outputs[name] = torch.from_numpy(request.get_tensor(name).data.copy())
        self.idle[usual].put((request, described))
        return outputs

    def _compile(self, *, usual: bool) -> Any:
        """The network for inputs of the usual shape, or for any; compiled when first needed."""
        with self.compiling:
            if usual not in self.compiled:
                network = self.network.clone()
                if usual:
                    network.reshape(list(self.usual or ()))
                    self.detections = add_detections(network, self.heads, self.metadata.header.preprocess.input_size)
                self.compiled[usual] = shared_core().compile_model(network, "CPU", self.settings)
            return self.compiled[usual]
