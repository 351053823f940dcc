"""A small ncnn writer: test networks as .param and .bin, and our own detector as Caffe's SSD would export it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnv2det.convert.ncnn.convert import convert_ncnn
from mnv2det.models.build import assemble
from mnv2det.models.layers import ConvNorm, InvertedResidual
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.model import Model
from mnv2det.models.ssdlite import SSDLite
from mnv2det.structures import Preprocess

Storage = Literal["float32", "float16", "int8"]
TAGS = {"float32": 0, "float16": 0x01306B47, "int8": 0x000D4B38}
HALF = (0.5, 0.5, 0.5)
EXTRAS = (64, 32, 32, 32)
LOWEST = ((0.2, 1.0), (0.2, 2.0), (0.2, 0.5))  # a PriorBox has one size for all its ratios
RELU6 = "9=3 -23310=2,0.000000,6.000000"


class Writer:
    """Collects layers; `finish` writes the two files."""

    def __init__(self, storage: Storage = "float32") -> None:
        self.storage = storage
        self.layers: list[list[Any]] = []  # kind, name, inputs, outputs, settings
        self.weights: list[bytes] = []

    def add(self, kind: str, name: str, inputs: Sequence[str], settings: str = "", outputs: Sequence[str] = ()) -> str:
        """Adds a layer whose only output, unless others are given, has its name; returns the last output."""
        outputs = list(outputs) or [name]
        self.layers.append([kind, name, list(inputs), outputs, settings])
        return outputs[-1]

    def conv(
        self,
        name: str,
        source: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        settings: str = "",
        *,
        depthwise: bool = False,
    ) -> str:
        """Adds a convolution with a weight in torch's layout."""
        outputs, kernel = len(weight), weight.shape[-1]
        words = [f"0={outputs} 1={kernel} 6={weight.size}", settings]
        words += ["5=1"] if bias is not None else []
        words += [f"7={outputs}"] if depthwise else []
        words += [f"8={1 if depthwise else 2}"] if self.storage == "int8" else []
        self.store(weight, bias)
        return self.add("ConvolutionDepthWise" if depthwise else "Convolution", name, [source], " ".join(words))

    def store(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
        tag = TAGS[self.storage].to_bytes(4, "little")
        scales: NDArray[np.float32] = 127 / np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-6)
        if self.storage == "int8":
            flat = weight.reshape(len(weight), -1) * scales[:, None]
            raw = np.round(flat).astype(np.int8).tobytes()
        else:
            raw = weight.astype(self.storage).tobytes()
        self.weights.append(tag + raw + bytes(-len(raw) % 4))
        if bias is not None:
            self.weights.append(bias.astype("<f4").tobytes())
        if self.storage == "int8":
            self.weights.append(np.append(scales, 20.0).astype("<f4").tobytes())

    def finish(self, path: Path) -> Path:
        """Writes ``path`` and the .bin beside it, with a Split behind each blob that is read more than once."""
        readers = Counter(blob for layer in self.layers for blob in layer[2])
        used: Counter[str] = Counter()
        lines, blobs = [], 0
        for kind, name, inputs, outputs, settings in self.layers:
            read = []
            for blob in inputs:
                read.append(f"{blob}_split{used[blob]}" if readers[blob] > 1 else blob)
                used[blob] += 1
            lines.append(f"{kind:<24} {name:<24} {len(read)} {len(outputs)} {' '.join([*read, *outputs])} {settings}")
            blobs += len(outputs)
            for blob in outputs:
                if (count := readers[blob]) > 1:
                    copies = " ".join(f"{blob}_split{n}" for n in range(count))
                    lines.append(f"{'Split':<24} {'split_' + blob:<24} 1 {count} {blob} {copies}")
                    blobs += count
        path.write_text("\n".join(["7767517", f"{len(lines)} {blobs}", *(line.rstrip() for line in lines), ""]))
        path.with_suffix(".bin").write_bytes(b"".join(self.weights))
        return path


class Layers(Writer):
    """Writer of detectors; keeps the current blob and its height (= width)."""

    def __init__(self, size: int, storage: Storage = "float32") -> None:
        super().__init__(storage)
        self.current = self.image = self.add("Input", "data", [], f"0={size} 1={size} 2=3")
        self.size, self.margins = size, list[str]()

    def norm(self, layer: ConvNorm, *, bgr: bool = False) -> str:
        """Adds one of our layers, its batch norm folded; SAME on even sizes by padding 2 and cutting 1."""
        conv, norm, name = layer.conv, layer.norm, f"conv{len(self.layers)}"
        slope = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        weight = (conv.weight.detach() * slope.view(-1, 1, 1, 1)).numpy()
        bias = (norm.bias - norm.running_mean * slope).detach().numpy()
        cuts = conv.pads_by_size and self.size % 2 == 0
        settings = f"3={conv.stride[0]} 4={2 if cuts else conv.kernel_size[0] // 2}"
        active = hasattr(layer, "act")
        if bgr:
            weight = np.ascontiguousarray(weight[:, ::-1])
        if active and not cuts:
            settings += f" {RELU6}"
        self.current = self.conv(name, self.current, weight, bias, settings, depthwise=conv.groups > 1)
        if cuts:
            for axis in (1, 2):
                margin, rest = f"{name}/margin{axis}", f"{name}/cut{axis}"
                self.current = self.add("Slice", "slice", [self.current], f"-23300=2,1,-233 1={axis}", [margin, rest])
                self.margins.append(margin)
            if active:
                self.current = self.add("Clip", f"{name}/relu", [self.current], "0=0.000000 1=6.000000")
        self.size = -(-self.size // conv.stride[0])
        return self.current

    def eltwise(self, other: str) -> None:
        self.current = self.add("Eltwise", f"sum{len(self.layers)}", [other, self.current], "0=1")


def prior(head: SSDLite, level: int, size: int) -> tuple[str, list[int]]:
    """A level's PriorBox, and the place of each of its anchors in our order."""
    shapes = head.shapes[level]
    least = f"-23300=1,{shapes[0][0] * size:.6f}"
    flips = [ratio for _, ratio in shapes if ratio > 1]
    ratios = ",".join([str(len(flips)), *(f"{ratio:.6f}" for ratio in flips)])
    rest = f"-23302={ratios} 9=-233 10=-233 13=0.500000"
    if len(shapes) == 1 + 2 * len(flips):
        return f"{least} {rest}", list(range(len(shapes)))
    greatest = (shapes[-1][0] * size) ** 2 / (shapes[0][0] * size)
    return f"{least} -23301=1,{greatest:.6f} {rest}", [0, len(shapes) - 1, *range(1, len(shapes) - 1)]


def write_detector(model: Model, path: Path, storage: Storage = "float32") -> Path:
    """Our SSDLite as an ncnn file that takes BGR and orders anchors as Caffe's PriorBox does.

    Args:
        model: MobileNetV2 with head ``det``, of square input.
        path: The .param; the .bin goes beside it.
        storage: Of the weights.
    """
    size = model.preprocess.input_size[0]
    net, backbone, head = Layers(size, storage), model.backbone, model.heads["det"]
    assert isinstance(backbone, MobileNetV2)
    assert isinstance(head, SSDLite)
    assert backbone.last is not None
    net.norm(backbone.stem, bgr=True)
    levels: list[tuple[str, int]] = []
    for number, block in enumerate(backbone.blocks):
        assert isinstance(block, InvertedResidual)
        entry = net.current
        if block.expand is not None:
            net.norm(block.expand)
        if number == 13:
            levels.append((net.current, net.size))
        net.norm(block.depthwise)
        net.norm(block.project)
        if block.shortcut:
            net.eltwise(entry)
    levels.append((net.norm(backbone.last), net.size))
    for extra in head.extras:
        for layer in extra:
            net.norm(layer)
        levels.append((net.current, net.size))
    if net.margins:
        net.layers.append(["Noop", "silence", net.margins, [], ""])
    write_head(net, head, levels, size)
    return net.finish(path)


def write_head(net: Layers, head: SSDLite, levels: Sequence[tuple[str, int]], size: int) -> None:
    ends: dict[str, list[str]] = {"loc": [], "conf": [], "priorbox": []}
    for number, (level, side) in enumerate(levels):
        settings, order = prior(head, number, size)
        for branch, module in (("loc", head.box_predictors[number]), ("conf", head.class_predictors[number])):
            net.current, net.size = level, side
            net.norm(module[0])
            count = len(order)
            weight = module[1].weight.detach().unflatten(0, (count, -1))[order].flatten(0, 1).numpy()
            bias = module[1].bias.detach().unflatten(0, (count, -1))[order].flatten(0, 1).numpy()
            blob = net.conv(f"{branch}{number}", net.current, weight, bias)
            blob = net.add("Permute", f"{branch}{number}_perm", [blob], "0=3")
            ends[branch].append(net.add("Flatten", f"{branch}{number}_flat", [blob]))
        ends["priorbox"].append(net.add("PriorBox", f"prior{number}", [level, net.image], settings))
    boxes, scores = (net.add("Concat", f"mbox_{name}", ends[name], "0=0") for name in ("loc", "conf"))
    priors = net.add("Concat", "mbox_priorbox", ends["priorbox"], "0=1")
    rows = head.classes + 1
    scores = net.add("Reshape", "mbox_conf_reshape", [scores], f"0={rows} 1=-1")
    kind, settings = ("Softmax", "0=1 1=1") if head.softmax else ("Sigmoid", "")
    scores = net.add(kind, "mbox_conf_score", [scores], settings)
    scores = net.add("Flatten", "mbox_conf_flatten", [scores])
    limits = head.detection_settings
    settings = f"0={rows} 1={limits.nms_iou:.6f} 2=100 3={limits.max_detections} 4=0.350000"
    net.add("DetectionOutput", "detection_out", [boxes, scores, priors], settings)


def random_detector(width: float = 0.35, size: int = 96, classes: int = 4, padding: str = "same", **head: Any) -> Model:
    """A detector whose norms are far from the identity and whose outputs spread."""
    torch.manual_seed(0)
    names = [f"c{n}" for n in range(classes)]
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": width, "padding": padding, "norm_eps": 1e-3}},
        {"det": {"name": "ssdlite", "args": {"extras": EXTRAS, "padding": padding, "lowest": LOWEST, **head}}},
        classes={"det": names},
        preprocess=Preprocess((size, size), HALF, HALF),
    )
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0.3, 0.5)
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.3, 2)
            elif isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    layer.bias.normal_()
    return model.eval()


def load_detector(path: Path) -> Model:
    tensors, header = convert_ncnn(path)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    model.load_state_dict(tensors)
    return model.eval()
