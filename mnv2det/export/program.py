"""A model as a file of another runtime, which says itself what it is."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from mnv2det.errors import ConfigError, WeightsError, near
from mnv2det.export.graph import Complete, Raw
from mnv2det.export.ops import onnx_translations, suppress_in_onnx
from mnv2det.export.split import split_channels
from mnv2det.io import import_optional
from mnv2det.models.head import Dense
from mnv2det.models.model import Model
from mnv2det.models.weight_file import HEADER_KEY, Header
from mnv2det.ops.nms import suppress_greedily

Format = Literal["onnx", "openvino", "torch"]
Form = Literal["raw", "complete"]
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
OPSET = 20
INPUT = "image"
LEAST = 32  # pixels of an input's side: the stride of the whole backbone
MOST = 16384  # pixels of a side, and pictures of a batch


@dataclass(frozen=True)
class ExportMetadata:
    """What an exported file says of itself.

    Attributes:
        KEYS: Of the file's metadata.
        header: As in a weight file; its preprocessing holds for the raw form, too.
        form: ``raw``: input of the input's size in, the heads' tensors out. ``complete``: pictures of
            any size in, results out.
        precision: ``fp32`` or ``int8``.
    """

    KEYS: ClassVar[tuple[str, ...]] = (HEADER_KEY, "mnv2det_form", "mnv2det_precision")

    header: Header
    form: Form
    precision: Literal["fp32", "int8"] = "fp32"

    def entries(self) -> dict[str, str]:
        """As text by key, for the file."""
        return dict(zip(self.KEYS, (self.header.to_json(), self.form, self.precision), strict=True))

    @classmethod
    def of(cls, entries: dict[str, str], *, where: str) -> ExportMetadata:
        """Reads what `entries` gave.

        Raises:
            WeightsError: A key is missing or its value wrong.
        """
        missing = [key for key in cls.KEYS if key not in entries]
        if missing:
            raise WeightsError(f"{where}: not exported by mnv2det (no '{missing[0]}' in its metadata)")
        header, form, precision = (entries[key] for key in cls.KEYS)
        if form not in get_args(Form) or precision not in ("fp32", "int8"):
            raise WeightsError(f"{where}: exported by a newer mnv2det ({form}, {precision}); update mnv2det")
        return cls(Header.from_json(header, where=where), form, precision)  # type: ignore[arg-type]


def format_of(path: str | os.PathLike[str], given: str | None = None) -> Format:
    """The format that a file's name and the user ask for.

    Raises:
        ConfigError: They disagree, or neither is known.
    """
    suffix = Path(path).suffix.lower()
    if given is not None and given not in get_args(Format):
        raise ConfigError(f"format '{given}'{near(given, get_args(Format))}")
    if suffix not in SUFFIXES:
        wanted = [end for end, name in SUFFIXES.items() if given in (None, name)]
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(wanted)}")
    if given not in (None, SUFFIXES[suffix]):
        raise ConfigError(f"{path}: ends in {suffix}, which is {SUFFIXES[suffix]}, but the format given is {given}")
    return SUFFIXES[suffix]


def to_program(model: Model, form: Form, *, for_onnx: bool = False, splits: int | None = None) -> ExportedProgram:
    """The traced graph: any number of pictures; of any size where complete or only segmenting.

    Args:
        model: Any; it is copied.
        form: As `ExportMetadata` has it.
        for_onnx: Whether operators may stand in it that only ONNX has.
        splits: Parts of the bottlenecks' expanded channels (paper, section 5.1); None leaves them whole.

    Raises:
        ConfigError: The form is complete and a head cannot be, or the backbone cannot be split.
    """
    suppress = suppress_in_onnx if for_onnx else suppress_greedily
    graph: Raw | Complete = Raw(model) if form == "raw" else Complete(model, suppress)
    if splits is not None:
        split_channels((graph if isinstance(graph, Raw) else graph.raw).model, splits)
    graph = graph.eval().to(memory_format=torch.channels_last)
    dimensions: dict[int, Dim] = {0: Dim("batch", min=1, max=MOST)}
    if form == "complete" or all(isinstance(head, Dense) for head in model.heads.values()):
        least = 1 if form == "complete" else LEAST
        dimensions |= {1: Dim("height", min=least, max=MOST), 2: Dim("width", min=least, max=MOST)}
    example = torch.zeros(2, *model.preprocess.input_size, 3, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes=(dimensions,))
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def to_onnx(model: Model, metadata: ExportMetadata, *, splits: int | None = None) -> Any:
    """An ``onnx.ModelProto``; ``splits`` as in `to_program`.

    Raises:
        ConfigError: As `to_program`, or ONNX is not installed.
    """
    import_optional("onnx", "export")
    import_optional("onnxscript", "export")
    program = to_program(model, metadata.form, for_onnx=True, splits=splits)
    with torch.no_grad(), _quiet():
        made = torch.onnx.export(
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
    assert made is not None
    proto = made.model_proto
    _tidy(proto)
    for key, value in metadata.entries().items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def write(model: Model, metadata: ExportMetadata, path: Path, *, splits: int | None = None) -> None:
    """Writes a file of the format that its suffix names; OpenVINO's weights lie beside it as .bin.

    ``splits`` as in `to_program`.

    Raises:
        ConfigError: As `to_onnx`.
    """
    kind = format_of(path)
    if kind == "torch":
        program = to_program(model, metadata.form, splits=splits)
        with _quiet():
            torch.export.save(program, path, extra_files=metadata.entries())
        return
    if kind == "openvino":
        import_optional("openvino", "openvino")
    proto = to_onnx(model, metadata, splits=splits)
    if kind == "onnx":
        path.write_bytes(proto.SerializeToString())
    else:
        write_openvino(
            import_optional("openvino", "openvino").Core().read_model(proto.SerializeToString()), metadata, path
        )


def write_openvino(network: Any, metadata: ExportMetadata, path: Path) -> None:
    """Writes an ``openvino.Model`` with its metadata, where its reader of ONNX puts metadata, too."""
    for key, value in metadata.entries().items():
        network.set_rt_info(value, ["framework", key])
    # half-precision weights, the default, would change results
    import_optional("openvino", "openvino").save_model(network, path, compress_to_fp16=False)


def quantized(metadata: ExportMetadata) -> ExportMetadata:
    """The metadata of the same model in int8."""
    return replace(metadata, precision="int8")


def output_names(program: ExportedProgram) -> list[str]:
    """The keys of the dictionary that a traced graph returns, in its order."""
    assert program.call_spec.out_spec is not None
    return list(program.call_spec.out_spec.context)


def _tidy(proto: Any) -> None:
    """Names the open dimensions, and drops what torch notes on where each node comes from in our source."""
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    names = {size.dim_param: name for size, name in zip(shape, ("batch", "height", "width"), strict=False)}
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.dim_param)
    del proto.graph.value_info[:], proto.metadata_props[:]
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("doc_string")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks, which are on torch's insides."""
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
