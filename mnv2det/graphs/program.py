"""A model on its way into a file of another runtime: the forms that a writer can start from, and what the file says."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from mnv2det.data.fit import fit
from mnv2det.errors import WeightsError
from mnv2det.graphs.graph import Complete, Raw
from mnv2det.graphs.int8 import to_int8
from mnv2det.graphs.ops import onnx_translations, suppress_in_onnx
from mnv2det.graphs.split import split_channels
from mnv2det.io import import_optional
from mnv2det.models.head import Dense
from mnv2det.models.model import Model
from mnv2det.models.weight_file import HEADER_KEY, Header
from mnv2det.ops.nms import Suppress, suppress_greedily
from mnv2det.registry import HEADS

Form = Literal["raw", "complete"]
Stored = Literal["fp32", "fp16", "int8"]
OPSET = 20
INPUT = "image"  # name of the network's input
MIN_SIDE = 32  # pixels of an input's side: the stride of the whole backbone
MAX_SIZE = 16384  # pixels of a side, and pictures of a batch


@dataclass(frozen=True)
class ExportMetadata:
    """What an exported file says of itself.

    Attributes:
        KEYS: The keys under which a file's metadata holds the three fields.
        header: As in a weight file; its preprocessing holds for the raw form, too.
        form: ``raw``: the network's input in, the heads' tensors out. ``complete``: pictures of any size in,
            results out.
        precision: ``fp32``, ``int8``, or ``fp16``: weights in half precision.
    """

    KEYS: ClassVar[tuple[str, ...]] = (HEADER_KEY, "mnv2det_form", "mnv2det_precision")

    header: Header
    form: Form
    precision: Stored = "fp32"

    @property
    def any_size(self) -> bool:
        """Whether the traced graph takes inputs of any size: a complete one, and one of segmenters alone."""
        heads = [HEADS.get(head["name"], place=f"tasks.{task}.head") for task, head in self.header.heads.items()]
        return self.form == "complete" or all(issubclass(head, Dense) for head in heads)

    def entries(self) -> dict[str, str]:
        """The fields as text by key, for a file's metadata."""
        return dict(zip(self.KEYS, (self.header.to_json(), self.form, self.precision), strict=True))

    @classmethod
    def of(cls, entries: dict[str, str], *, where: str) -> ExportMetadata:
        """Reads what `entries` gave.

        Args:
            entries: A file's metadata; other keys are passed over.
            where: The file, for messages.

        Raises:
            WeightsError: A key is missing or its value wrong.
        """
        missing = [key for key in cls.KEYS if key not in entries]
        if missing:
            raise WeightsError(f"{where}: not exported by mnv2det (no '{missing[0]}' in its metadata)")
        header, form, precision = (entries[key] for key in cls.KEYS)
        if form not in get_args(Form) or precision not in get_args(Stored):
            raise WeightsError(f"{where}: exported by a newer mnv2det ({form}, {precision}); update mnv2det")
        return cls(Header.from_json(header, where=where), form, precision)  # type: ignore[arg-type]


class ExportProgram:
    """A model in the forms that a runtime may write: a plain module, a traced graph, ONNX.

    A form is made when it is first asked for. The graphs take any number of pictures, and pictures of any size
    where `ExportMetadata.any_size` says so.

    Args:
        model: Any; it is copied.
        metadata: What the file will say of itself, in float32.
        splits: Parts of the bottlenecks' expanded channels (paper, section 5.1); None leaves them whole.

    Attributes:
        metadata: What the file will say of itself.
        calibration: Inputs that `calibrate_on` made of pictures.
    """

    def __init__(self, model: Model, metadata: ExportMetadata, *, splits: int | None = None) -> None:
        self.model, self.metadata, self.splits = model, metadata, splits
        self.calibration: list[NDArray[np.uint8]] = []

    @property
    def example(self) -> Tensor:
        """An input to trace with: uint8 (2, H, W, 3), zeros of the model's input size."""
        return torch.zeros(2, *self.metadata.header.preprocess.input_size, 3, dtype=torch.uint8)

    def module(self, suppress: Suppress = suppress_greedily) -> Raw | Complete:
        """A module in evaluation mode that maps uint8 (B, H, W, 3) to tensors named ``task.name``; float32.

        Args:
            suppress: How a complete detector does non-maximum suppression.

        Raises:
            ConfigError: The form is complete and a head cannot be, or the backbone cannot be split.
        """
        module: Raw | Complete = Raw(self.model) if self.metadata.form == "raw" else Complete(self.model, suppress)
        if self.splits is not None:
            split_channels((module if isinstance(module, Raw) else module.raw).model, self.splits)
        return module.eval().to(memory_format=torch.channels_last)

    def trace(self, suppress: Suppress = suppress_greedily) -> ExportedProgram:
        """The graph of `module` as torch.export traces it.

        Raises:
            ConfigError: As `module`.
        """
        dimensions: dict[int, Dim] = {0: Dim("batch", min=1, max=MAX_SIZE)}
        if self.metadata.any_size:
            least = 1 if self.metadata.form == "complete" else MIN_SIDE
            dimensions |= {1: Dim("height", min=least, max=MAX_SIZE), 2: Dim("width", min=least, max=MAX_SIZE)}
        module = self.module(suppress)
        with torch.no_grad(), quiet_exporters():
            program = torch.export.export(module, (self.example,), dynamic_shapes=(dimensions,))
        for graph_module in program.graph_module.modules():
            for node in graph_module.graph.nodes if isinstance(graph_module, GraphModule) else ():
                node.meta.pop("stack_trace", None)  # paths of this machine
        return program

    @functools.cached_property
    def onnx(self) -> Any:
        """The network as an ``onnx.ModelProto`` that holds its metadata; int8 after `quantize`.

        Raises:
            ConfigError: As `module`, or ONNX is not installed.
        """
        import_optional("onnx", "export")
        import_optional("onnxscript", "export")
        program = self.trace(suppress_in_onnx)
        with torch.no_grad(), quiet_exporters():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                input_names=[INPUT],
                output_names=output_names(program),
                custom_translation_table=onnx_translations(),
            )
        assert exported is not None
        proto = exported.model_proto
        _tidy(proto)
        _set_metadata(proto, self.metadata)
        return proto

    def halve(self) -> ExportProgram:
        """The same program, for a runtime that writes its weights in half precision."""
        halved = copy.copy(self)
        halved.metadata = replace(self.metadata, precision="fp16")
        return halved

    def quantize(self, pictures: Iterable[NDArray[np.uint8]]) -> ExportProgram:
        """The same program in int8. Only its `onnx` is: runtimes that hold int8 networks read or convert that.

        Args:
            pictures: To calibrate on, uint8 (H, W, 3) each, RGB, of any size.

        Raises:
            ConfigError: As `onnx`, or onnxruntime is not installed.
        """
        quantized = copy.copy(self)
        quantized.metadata = replace(self.metadata, precision="int8")
        quantized.onnx = to_int8(self.onnx, map(self._input, pictures))
        _set_metadata(quantized.onnx, quantized.metadata)
        return quantized

    def calibrate_on(self, pictures: Iterable[NDArray[np.uint8]]) -> ExportProgram:
        """The same program, for a runtime that quantises its own files to int8 when it writes them.

        Args:
            pictures: As `quantize` takes them.
        """
        quantized = copy.copy(self)
        quantized.metadata = replace(self.metadata, precision="int8")
        quantized.calibration = [self._input(picture) for picture in pictures]
        return quantized

    def _input(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The program's input (1, H, W, 3) for a picture."""
        if self.metadata.form == "raw":
            preprocess = self.metadata.header.preprocess
            height, width = preprocess.input_size
            # of a picture larger than the input that may not be scaled, the top-left part
            picture = fit(picture, preprocess)[0][:height, :width]
        return np.ascontiguousarray(picture)[None]


def output_names(program: ExportedProgram) -> list[str]:
    """The keys of the dictionary that a traced graph returns, in its order."""
    assert program.call_spec.out_spec is not None
    return list(program.call_spec.out_spec.context)


def _tidy(proto: Any) -> None:
    """Names the open dimensions, and drops torch's notes on which line of source each node comes from."""
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    names = {size.dim_param: name for size, name in zip(shape, ("batch", "height", "width"), strict=False)}
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.dim_param)
    del proto.graph.value_info[:]
    for described in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del described.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("doc_string")


def _set_metadata(proto: Any, metadata: ExportMetadata) -> None:
    """Makes the metadata the only one that an ONNX file holds."""
    del proto.metadata_props[:]
    for key, value in metadata.entries().items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keeps torch's exporters from printing remarks about their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
