"""Writes our networks as TensorFlow's authors stored theirs: frozen graphs, saved models and checkpoints."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.structures import Preprocess

HALF = (0.5, 0.5, 0.5)
NORMS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
TYPES = {"float32": 1, "int32": 3, "int64": 9, "float16": 19}
MAGIC = 0xDB4775248B80FB57
Arrays = dict[str, NDArray[np.generic]]


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def shape_proto(shape: Sequence[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def tensor_proto(array: NDArray[np.generic]) -> bytes:
    """With its values as raw content, or one value that stands for all."""
    head = field(1, TYPES[array.dtype.name]) + field(2, shape_proto(array.shape))
    if array.dtype.name == "int32" and array.size < 4:
        return head + field(7, b"".join(varint(int(value)) for value in array.ravel()))
    if array.dtype.name == "float32" and array.size and (array == array.ravel()[0]).all():
        return head + varint(5 << 3 | 5) + struct.pack("<f", array.ravel()[0])
    return head + field(4, array.tobytes())


def node(name: str, kind: str, inputs: Sequence[str] = (), value: NDArray[np.generic] | None = None) -> bytes:
    data = field(1, name) + field(2, kind) + b"".join(field(3, read) for read in inputs)
    if value is not None:
        data += field(5, field(1, "dtype") + field(2, field(6, TYPES[value.dtype.name])))
        data += field(5, field(1, "value") + field(2, field(8, tensor_proto(value))))
    return field(1, data)


def frozen_graph(arrays: Mapping[str, NDArray[np.generic]], size: tuple[int, int], *, score: str = "Sigmoid") -> bytes:
    """The constants of a network, with what surrounds them in a frozen graph."""
    nodes = [node("image_tensor", "Placeholder")]
    nodes.append(node("Preprocessor/map/while/ResizeImage/stack", "Const", value=np.array(size, np.int32)))
    resize = "Preprocessor/map/while/ResizeImage/resize_images"
    reads = [f"{resize}/ExpandDims", "Preprocessor/map/while/ResizeImage/stack"]
    nodes.append(node(f"{resize}/ResizeBilinear", "ResizeBilinear", reads))
    for name, array in arrays.items():
        nodes.append(node(name, "Const", value=array))
        nodes.append(node(f"{name}/read", "Identity", [name]))
    nodes.append(node("Postprocessor/convert_scores", score, ["concat_1"]))
    thresholds = (
        "Postprocessor/BatchMultiClassNonMaxSuppression/map/while/MultiClassNonMaxSuppression/non_max_suppression"
    )
    for name, value in (("iou_threshold", 0.55), ("score_threshold", 1e-8)):
        nodes.append(node(f"{thresholds}/{name}", "Const", value=np.array(value, np.float32)))
    return b"".join(nodes)


def saved_model(graph: bytes) -> bytes:
    return field(1, 1) + field(2, field(1, field(1, "")) + field(2, graph))


def object_graph(names: Mapping[str, str]) -> bytes:
    """What TensorFlow 2 stores of its variables: by their keys in the checkpoint, their names."""
    root = field(1, b"".join(field(1, field(1, number) + field(2, "variable")) for number in range(1, len(names) + 1)))
    return root + b"".join(
        field(1, field(2, field(1, "VARIABLE_VALUE") + field(2, name) + field(3, key))) for key, name in names.items()
    )


def write_checkpoint_2(prefix: Path, arrays: Mapping[str, NDArray[np.generic]], **others: int) -> Path:
    """As Keras does: the keys tell nothing, the graph of objects tells the names."""
    keys = [f"_operations/{number}/_kernel/.ATTRIBUTES/VARIABLE_VALUE" for number in range(len(arrays))]
    graph = object_graph(dict(zip(keys, arrays, strict=True)))
    stored = dict(zip(keys, arrays.values(), strict=True))
    return write_checkpoint(prefix, {"_CHECKPOINTABLE_OBJECT_GRAPH": graph, **stored}, **others)


def write_checkpoint(
    prefix: Path, arrays: Mapping[str, NDArray[np.generic] | bytes], *, block: int = 4096, shards: int = 1
) -> Path:
    """An index as LevelDB's tables, in blocks with shared beginnings of keys, and raw values; bytes are a text."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    values = [b""] * shards
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for number, (name, array) in enumerate(sorted(arrays.items())):
        shard = number % shards
        if isinstance(array, bytes):
            data, entry = varint(len(array)) + b"\0\0\0\0" + array, field(1, 7)
        else:
            data, entry = array.tobytes(), field(1, TYPES[array.dtype.name]) + field(2, shape_proto(array.shape))
        entry += (field(3, shard) if shard else b"") + field(4, len(values[shard])) + field(5, len(data))
        entries.append((name.encode(), entry + varint(6 << 3 | 5) + b"\0\0\0\0"))
        values[shard] += data
    table, index, rows, size = b"", [], [], 0
    for position, (key, value) in enumerate(entries):
        rows.append((key, value))
        size += len(key) + len(value)
        if size >= block or position == len(entries) - 1:
            data = _block(rows)
            index.append((rows[-1][0], varint(len(table)) + varint(len(data))))
            table += data + b"\0" + b"\0\0\0\0"
            rows, size = [], 0
    meta = _block([])
    handles = varint(len(table)) + varint(len(meta))
    table += meta + b"\0" + b"\0\0\0\0"
    last = _block(index)
    handles += varint(len(table)) + varint(len(last))
    table += last + b"\0" + b"\0\0\0\0"
    table += handles + b"\0" * (40 - len(handles)) + struct.pack("<Q", MAGIC)
    Path(f"{prefix}.index").write_bytes(table)
    for shard, data in enumerate(values):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
    return prefix


def _block(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
    out, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(rows):
        shared = 0
        if number % 16 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(before), len(key)) and before[shared] == key[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return (
        out + b"".join(struct.pack("<I", offset) for offset in restarts or [0]) + struct.pack("<I", len(restarts) or 1)
    )


def random_model(
    task: str,
    *,
    classes: int = 3,
    size: int = 96,
    extras: Sequence[int] = (64, 32, 32, 32),
    head_args: Mapping[str, object] | None = None,
    backbone_name: str = "mobilenet_v2",
    **backbone: object,
) -> Model:
    """Ours, with random weights and norms that do something."""
    torch.manual_seed(0)
    head = {
        "det": {"name": "ssdlite", "args": {"extras": list(extras), "padding": "same"}},
        "cls": {"name": "classifier", "args": {}},
        "seg": {"name": "mobile_deeplab", "args": {}},
    }[task]
    head["args"] |= head_args or {}  # type: ignore[operator]
    model = assemble(
        {"name": backbone_name, "args": {"width": 0.35, "padding": "same", **backbone}},
        {task: head},
        classes={task: [str(number) for number in range(classes)]},
        preprocess=Preprocess((size, size), HALF, HALF),
    ).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (".norm.weight" in name):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "norm.bias", ".bias")):
            tensor.normal_(0, 0.2)
    return model


def arrays_of(model: Model, task: str) -> Arrays:
    """The model's tensors by their names in TensorFlow, and in its layouts."""
    network = {"mobilenet_v1": "MobilenetV1", "mobilenet_v2": "MobilenetV2"}[model.spec["backbone"]["name"]]
    scope = f"FeatureExtractor/{network}" if task == "det" else network
    arrays: Arrays = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked") or name.endswith("class_weights"):
            continue
        layer, _, part = name.rpartition(".")
        layer, kind = (
            (layer.rpartition(".")[0], layer.rpartition(".")[2]) if layer.endswith((".conv", ".norm")) else (layer, "")
        )
        theirs, array = _scope(layer, scope, model), tensor.numpy()
        if kind == "norm":
            arrays[f"{theirs}/BatchNorm/{NORMS[part]}"] = array
            continue
        if "box_predictors" in name and not kind:
            array = array.reshape(-1, 4, *array.shape[1:])[:, [1, 0, 3, 2]].reshape(array.shape)
        if part == "bias":
            arrays[f"{theirs}/biases"] = array
        elif array.ndim == 2:
            arrays[f"{theirs}/weights"] = array.T[None, None]
        elif array.shape[1] == 1 and array.shape[2] == 3 and kind:
            arrays[f"{theirs}/depthwise_weights"] = array.transpose(2, 3, 0, 1)
        else:
            arrays[f"{theirs}/weights"] = array.transpose(2, 3, 1, 0)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _scope(layer: str, scope: str, model: Model) -> str:
    parts = layer.split(".")
    if parts[0] == "backbone":
        if scope.endswith("V1"):
            return f"{scope}/Conv2d_0" if parts[1] == "stem" else f"{scope}/Conv2d_{int(parts[2]) + 1}_{parts[3]}"
        if parts[1] == "blocks":
            return f"{scope}/expanded_conv{f'_{parts[2]}' if parts[2] != '0' else ''}/{parts[3]}"
        return f"{scope}/{'Conv' if parts[1] == 'stem' else 'Conv_1'}"
    if parts[1] == "cls":
        return f"{scope}/Logits/Conv2d_1c_1x1"
    if parts[1] == "seg":
        if parts[2] == "branches":
            return "_".join([f"aspp{parts[3]}", *parts[4:]])
        return {"pool": "image_pooling", "join": "concat_projection"}.get(parts[2], "logits/semantic")
    number = int(parts[3])
    if parts[2] == "extras":
        level = model.heads["det"].extras[number]
        channels, first = level[-1].conv.out_channels, "Conv2d_13_pointwise" if scope.endswith("V1") else "layer_19"
        if parts[4] == "0":
            return f"{scope}/{first}_1_Conv2d_{number + 2}_1x1_{channels // 2}"
        depthwise = "_depthwise" if parts[4] == "1" and len(level) == 3 else ""
        return f"{scope}/{first}_2_Conv2d_{number + 2}_3x3_s2_{channels}{depthwise}"
    kind = "BoxEncodingPredictor" if parts[2] == "box_predictors" else "ClassPredictor"
    return f"BoxPredictor_{number}/{kind}{'_depthwise' if parts[4:] == ['0'] else ''}"


def keras_names(arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """A classifier's arrays by the names that Keras gives them."""
    named: Arrays = {}
    for name, array in arrays.items():
        scope, part = re.fullmatch(r"MobilenetV2/(.*?)/((?:BatchNorm/)?\w+)", name).groups()
        if scope.startswith("Logits"):
            named[f"predictions/{'bias' if part == 'biases' else 'kernel'}"] = (
                array[0, 0] if part == "weights" else array
            )
            continue
        norm, part = part.startswith("BatchNorm"), part.removeprefix("BatchNorm/")
        if "/" in scope:
            layer = re.sub(r"^expanded_conv_(\d+)", r"block_\1", scope).replace("/", "_") + ("_BN" if norm else "")
        elif scope == "Conv":
            layer = "bn_Conv1" if norm else "Conv1"
        else:
            layer = "Conv_1_bn" if norm else "Conv_1"
        named[f"{layer}/{part if norm else 'kernel'}"] = array
    return named
