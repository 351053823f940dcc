"""One interface to the libraries that can run a network on this machine."""

from __future__ import annotations

import importlib.util
import queue
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnv2det.errors import ConfigError, WeightsError, near
from mnv2det.export.graph import Raw
from mnv2det.export.program import INPUT, SUFFIXES, ExportMetadata, write
from mnv2det.io import cores, import_optional
from mnv2det.models.head import Head
from mnv2det.models.model import Model
from mnv2det.models.weight_file import Header
from mnv2det.runtime.openvino_detections import FRAME, GraphDetections, add_detections, write_frame
from mnv2det.runtime.strips.backbone import memory_efficient
from mnv2det.structures import Frame, Result

Precision = Literal["fp32", "bf16"]
Outputs = dict[str, Tensor | Result]
NAMES = ("torch", "onnxruntime", "openvino")
# which of them read a format, the one that `auto` prefers first
READERS = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "torch": ("torch",)}


class Backend(ABC):
    """A loaded network. Threads may share it.

    Attributes:
        name: Of the library.
        metadata: What it computes.
        precision: Of what is not int8.
        any_size: Whether the raw form also takes inputs of other sizes than the model's.
        singly: Whether pictures take less time one by one than in a batch.
    """

    name: str
    metadata: ExportMetadata
    precision: Precision = "fp32"
    any_size = False
    singly = False

    def attach_heads(self, heads: Mapping[str, Head]) -> None:
        """Told once, before it runs, what comes after the network, by task: a backend may take over some of it."""
        return

    @abstractmethod
    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """The network's outputs as ``task.name``, for the caller to keep.

        Args:
            image: uint8 (B, H, W, 3), RGB, C-contiguous.
            frame: Of the one picture, if it is one: a backend may then give the result of a task, under
                its name, in place of its outputs.
        """


class TorchBackend(Backend):
    """A model of ours in torch, or an exported program.

    Args:
        network: Maps uint8 (B, H, W, 3) to tensors by name.
        metadata: Of the model.
        device: Where it computes.
        autocast: Whether convolutions are computed in bfloat16 from float32 weights.
    """

    name = "torch"

    def __init__(
        self, network: nn.Module, metadata: ExportMetadata, *, device: torch.device, autocast: bool = False
    ) -> None:
        self.network, self.metadata, self.device, self.autocast = network, metadata, device, autocast
        self.any_size = isinstance(network, Raw)
        if autocast or (isinstance(network, Raw) and network.dtype == torch.bfloat16):
            self.precision = "bf16"

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Backend`."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            found: Outputs = self.network(torch.from_numpy(image).to(self.device))
        return found


class OnnxBackend(Backend):
    """An ONNX file in onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: None takes all cores.

    Raises:
        WeightsError: It cannot be read.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, *, threads: int | None) -> None:
        library = import_optional("onnxruntime", "export")
        options = library.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads or cores(), 1
        options.log_severity_level = 3
        # its threads would go on spinning on the cores that decoding the results needs
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has no error class of its own
            raise WeightsError(f"{path}: onnxruntime cannot load it ({_line(error)})") from None
        self.metadata = ExportMetadata.of(dict(self.session.get_modelmeta().custom_metadata_map), where=str(path))
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Backend`."""
        found = self.session.run(self.outputs, {INPUT: image})
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, found, strict=True)}


class OpenVinoBackend(Backend):
    """An OpenVINO or ONNX file in OpenVINO, on the CPU.

    Single inputs of the model's own size, the usual ones, have a network compiled for that shape.

    Args:
        path: The file.
        threads: None takes all cores.
        precision: Of what is not int8 in the file.

    Raises:
        WeightsError: It cannot be read.
    """

    name = "openvino"
    singly = True

    def __init__(self, path: Path, *, threads: int | None, precision: Precision) -> None:
        self.precision = precision
        library = import_optional("openvino", "openvino")
        self.core, self.tensor = library.Core(), library.Tensor
        try:
            network = self.core.read_model(path)
            # where its reader of ONNX puts a file's metadata
            places = {key: ["framework", key] for key in ExportMetadata.KEYS}
            entries = {
                key: network.get_rt_info(at).astype(str) for key, at in places.items() if network.has_rt_info(at)
            }
            self.metadata = ExportMetadata.of(entries, where=str(path))
        except RuntimeError as error:
            raise WeightsError(f"{path}: OpenVINO cannot load it ({_line(error)})") from None
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads or cores(),
            # by itself it takes bfloat16 wherever the processor has it
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else precision,
        }
        self.outputs = [output.any_name for output in network.outputs]
        self.network, self.compiling = network, threading.Lock()
        self.compiled: dict[bool, Any] = {}
        self.idle: dict[bool, queue.SimpleQueue[tuple[Any, Frame | None]]] = {
            True: queue.SimpleQueue(),
            False: queue.SimpleQueue(),
        }
        self.usual = (1, *self.metadata.header.preprocess.input_size, 3) if self.metadata.form == "raw" else None
        self.heads: Mapping[str, Head] = {}
        self.shortlists: list[GraphDetections] = []

    def attach_heads(self, heads: Mapping[str, Head]) -> None:
        """See `Backend`: it takes over what detectors do with their best candidates."""
        self.heads = heads
        self._compile(usual=self.usual is not None)

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Backend`."""
        usual = image.shape == self.usual
        # a request serves one thread at a time
        try:
            request, described = self.idle[usual].get_nowait()
        except queue.Empty:
            request, described = self._compile(usual=usual).create_infer_request(), None
        shortlists = self.shortlists if usual and frame is not None else []
        if shortlists and frame is not None and frame != described:
            write_frame(frame, request.get_tensor(FRAME).data)
            described = frame
        # infer() would make arrays of all outputs
        request.set_tensor(INPUT, self.tensor(image, shared_memory=image.flags.writeable))
        request.start_async()
        request.wait()
        found: Outputs = {}
        for shortlist in shortlists:
            if (result := shortlist.read(request)) is not None:
                found[shortlist.task] = result
        for name in self.outputs:
            if name.split(".")[0] not in found:
                found[name] = torch.from_numpy(request.get_tensor(name).data.copy())
        self.idle[usual].put((request, described))
        return found

    def _compile(self, *, usual: bool) -> Any:
        """The network for inputs of the usual shape, or for any; compiled when first needed."""
        with self.compiling:
            if usual not in self.compiled:
                network = self.network.clone()
                if usual:
                    network.reshape(list(self.usual or ()))
                    self.shortlists = add_detections(network, self.heads, self.metadata.header.preprocess.input_size)
                self.compiled[usual] = self.core.compile_model(network, "CPU", self.settings)
            return self.compiled[usual]


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def open_model(
    model: Model,
    header: Header,
    backend: str,
    *,
    device: torch.device,
    threads: int | None,
    precision: Precision,
    memory_budget: int | None = None,
) -> Backend:
    """A model of ours in any backend; ``auto`` takes torch, others need seconds to convert it.

    Args:
        model: The model.
        header: Of its file.
        backend: As in `mnv2det.runtime.predictor.Predictor`, as are the others.
        device: Likewise.
        threads: Likewise.
        precision: Likewise.
        memory_budget: Likewise.

    Raises:
        ConfigError: The backend is not installed, or has not that device or precision.
    """
    metadata = ExportMetadata(header, "raw")
    name = _choose(backend, NAMES, "this model", precision) if backend != "auto" else "torch"
    _check(name, device, threads, precision)
    if memory_budget is not None and name != "torch":
        raise ConfigError(f"memory budget: only the torch backend has it, not '{name}'")
    if name == "torch":
        raw = Raw(model, torch.bfloat16 if precision == "bf16" else torch.float32)
        raw = raw.to(device).to(memory_format=torch.channels_last)
        if memory_budget is not None:
            raw = memory_efficient(raw, memory_budget or None)
        return TorchBackend(raw, metadata, device=device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(model, metadata, path)
        return _open(name, path, threads=threads, precision=precision)


def open_export(
    path: Path, backend: str, *, device: torch.device, threads: int | None, precision: Precision
) -> Backend:
    """An exported file in a backend that reads it.

    Raises:
        ConfigError: The backend does not read it or is not installed, or has not that device or precision.
        WeightsError: The file is missing, damaged or not ours.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such exported model")
    name = _choose(backend, READERS[SUFFIXES[path.suffix.lower()]], str(path), precision)
    _check(name, device, threads, precision)
    if name == "torch":
        return _open_program(path, precision)
    return _open(name, path, threads=threads, precision=precision)


def _open(name: str, path: Path, *, threads: int | None, precision: Precision) -> Backend:
    if name == "onnxruntime":
        return OnnxBackend(path, threads=threads)
    return OpenVinoBackend(path, threads=threads, precision=precision)


def _open_program(path: Path, precision: Precision) -> Backend:
    entries: dict[str, Any] = dict.fromkeys(ExportMetadata.KEYS, "")
    try:
        program = torch.export.load(path, extra_files=entries)
    except Exception as error:  # whatever its archive reader stumbles over
        raise WeightsError(f"{path}: torch cannot load it ({_line(error)})") from None
    metadata = ExportMetadata.of({key: value for key, value in entries.items() if value}, where=str(path))
    return TorchBackend(program.module(), metadata, device=torch.device("cpu"), autocast=precision == "bf16")


def _choose(backend: str, able: tuple[str, ...], what: str, precision: str) -> str:
    if backend != "auto" and backend not in NAMES:
        raise ConfigError(f"backend '{backend}'{near(backend, ('auto', *NAMES))}")
    if backend == "auto":
        fit = [name for name in able if not (precision == "bf16" and name == "onnxruntime")] or list(able)
        return next((name for name in fit if importlib.util.find_spec(name)), fit[0])
    if backend not in able:
        raise ConfigError(f"backend '{backend}' does not read {what}; {' or '.join(able)} does")
    return backend


def _check(name: str, device: torch.device, threads: int | None, precision: str) -> None:
    """What a backend has not; sets torch's threads, which are the process's."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision '{precision}': expected fp32 or bf16; int8 comes from a quantized file")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: expected at least 1, got {threads}")
    if name != "torch" and device.type != "cpu":
        raise ConfigError(f"backend '{name}' runs on the CPU here, not on {device}")
    if precision == "bf16" and name == "onnxruntime":
        raise ConfigError("onnxruntime has no bf16 on the CPU; use openvino or torch")
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        raise ConfigError("precision bf16: this processor has none (AVX-512 needed); use fp32")
    if name == "torch" and threads is not None:
        torch.set_num_threads(threads)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
