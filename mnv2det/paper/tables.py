"""The paper's tables, computed from this code's networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

import mnv2det.models  # noqa: F401 - registers
from mnv2det.errors import ConfigError, near
from mnv2det.models.backbone import Backbone
from mnv2det.models.build import assemble
from mnv2det.models.counting import multiply_adds, parameters
from mnv2det.models.layers import ConvNorm, InvertedResidual
from mnv2det.models.model import Model
from mnv2det.paper import values as paper
from mnv2det.paper.format import Column, Table
from mnv2det.paper.memory import Operator, blocks, convolutions, image, largest, peak
from mnv2det.registry import BACKBONES
from mnv2det.structures import Preprocess

M = TypeVar("M", bound=nn.Module)

V1, V2 = "mobilenet_v1", "mobilenet_v2"
WIDTHS = (1.4, 1.3, 1.0, 0.75, 0.5, 0.35)
SPLITS = (2, 3, 5)  # "t being a small constant between 2 and 5" (section 5.1)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # "MF": the picture at six scales
CLASSES = {"classifier": 1000, "ssdlite": 80, "mobile_deeplab": 21}
CLASSIFIERS = {"MobileNetV1": (V1, 1.0), "MobileNetV2": (V2, 1.0), "MobileNetV2 (1.4)": (V2, 1.4)}
# MobileNetV1's taps are those of Huang et al. (arXiv 1611.10012): Conv2d_11_pointwise and Conv2d_13_pointwise
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "MNet V1 + SSDLite": (V1, {"taps": ["block11/16", "last/32"]}),
    "MNet V2 + SSDLite": (V2, {}),
}
SEGMENTERS = {"MNet V1": (V1, "last"), "MNet V2": (V2, "block17")}


def build(backbone: str, head: str, size: int, head_args: Mapping[str, Any] | None = None, **args: Any) -> Model:
    """Builds a network with one task, ``task``, on the meta device (without numbers), in eval mode.

    Args:
        backbone: Registered name of the backbone.
        head: Registered name of the head.
        size: Side of the square input, pixels.
        head_args: Arguments of the head.
        args: Arguments of the backbone.
    """
    with torch.device("meta"):
        model = assemble(
            {"name": backbone, "args": args},
            {"task": {"name": head, "args": dict(head_args or {})}},
            classes={"task": [str(number) for number in range(CLASSES[head])]},
            preprocess=Preprocess((size, size)),
        )
    return model.eval()


def build_backbone(name: str, **args: Any) -> Backbone:
    """Builds a backbone alone, on the meta device, in eval mode."""
    with torch.device("meta"):
        backbone: Backbone = BACKBONES.build(name, args, place="backbone")
    return backbone.eval()


def bare(module: M) -> M:
    """Takes norms and activations out of a module, in place: they do not count, and counting is faster without."""
    for block in module.modules():
        if isinstance(block, ConvNorm):
            block.fold = False
            for name in ("norm", "act"):
                if hasattr(block, name):
                    setattr(block, name, nn.Identity())
    return module


def classifier_costs(backbone: str, width: float, sizes: Sequence[int]) -> tuple[int, int, list[int]]:
    """Parameters of an ImageNet classifier with and without batch norm's, and multiply-adds at each input size."""
    model = build(backbone, "classifier", sizes[0], width=width)
    total, folded = parameters(model), parameters(model, norms=False)
    return total, folded, [multiply_adds(bare(model), image(size)) for size in sizes]


def architecture(backbone: Backbone, size: int) -> list[tuple[tuple[Any, ...], tuple[int, int]]]:
    """Describes a backbone as Table 2 does, from the layers themselves.

    Args:
        backbone: MobileNetV2; its norms are taken out.
        size: Side of the square input, pixels.

    Returns:
        For each run of equal layers (input, operator, t, c, n, s), and its parameters and multiply-adds.
    """
    rows: list[tuple[tuple[Any, ...], tuple[int, int]]] = []
    x = image(size)
    for _, stage in backbone.stages():
        spent = parameters(stage), multiply_adds(bare(stage), x)
        with torch.no_grad():
            y = stage(x)
        stride = x.shape[-1] // y.shape[-1]
        kind: tuple[Any, ...]
        if isinstance(stage, InvertedResidual):
            kind = ("bottleneck", stage.depthwise.conv.in_channels // x.shape[1], y.shape[1])
        else:
            assert isinstance(stage, ConvNorm)
            kind = ("conv2d" if stage.conv.kernel_size[0] > 1 else "conv2d 1x1", None, y.shape[1])
        if rows and rows[-1][0][1:4] == kind and stride == 1:
            (before, *_, repeats, first), so_far = rows[-1]
            rows[-1] = (before, *kind, repeats + 1, first), (so_far[0] + spent[0], so_far[1] + spent[1])
        else:
            rows.append(((f"{x.shape[-1]} x {x.shape[1]}", *kind, 1, stride), spent))
        x = y
    return rows


def table_2() -> Iterator[Table]:
    """The architecture, as built; and its channels at every width."""
    columns = [*(Column(name, exact=True) for name in "tcns"), Column("params K", 1e3, 1), Column("MAdds M", 1e6, 2)]
    table = Table("2", "Table 2: MobileNetV2 at 224, 1000 classes", ("input", "operator"), columns)
    rows = architecture(build_backbone(V2), 224)
    for (*_, t, c, n, s), ((side, operator, *built), costs) in zip(paper.TABLE_2, rows, strict=True):
        table.add(side, operator, paper=[None if t == "-" else t, c, n, s], here=[*built, *costs])
    total, _, (work,) = classifier_costs(V2, 1.0, [224])
    rest = total - sum(costs[0] for _, costs in rows), work - sum(costs[1] for _, costs in rows)
    table.add("1 x 1280", "classifier", here=[None] * 4 + [*rest])
    table.add("", "all", here=[None] * 4 + [total, work])
    yield table
    heads = [Column(f"{operator} {c}") for _, operator, _, c, *_ in paper.TABLE_2]
    widths = Table("2.1", "Channels of Table 2's rows at every width multiplier", ("width",), heads)
    for width in WIDTHS:
        built = architecture(build_backbone(V2, width=width), 224)
        widths.add(f"{width}", here=[row[3] for row, _ in built])
    yield widths


def table_3() -> Iterator[Table]:
    """The largest tensors at every resolution."""
    names = ("V1", "V2", "ShuffleNet")
    columns = [c for name in names for c in (Column(f"{name} channels", exact=True), Column(f"{name} KB", 1e3, 1))]
    title = "Table 3: the most channels and memory materialised at each resolution, 16 bit, 224"
    table = Table("3", title, ("side",), columns)
    computed = [largest(blocks(bare(build_backbone(name)), 224)) for name in (V1, V2)]
    for side, published in paper.TABLE_3.items():
        table.add(str(side), paper=[*chain(*published)], here=[*chain(*(network[side] for network in computed))])
    maxima = [max(memory for _, memory in network.values()) for network in computed]
    table.add(
        "max",
        paper=[*chain(*((None, value) for value in paper.TABLE_3_MAX))],
        here=[*chain(*((None, value) for value in maxima))],
    )
    yield table


def section_5_1() -> Iterator[Table]:
    """Equation 2 on the plain graph, and on that of whole bottlenecks."""
    title = "Section 5.1, equation 2: inputs, outputs and inside of the largest operator, 16 bit, 224"
    columns = [Column("V1 KB", 1e3, 1), Column("V2 KB", 1e3, 1)]
    table = Table("5.1", title, ("operators", "V1's largest", "V2's largest"), columns)
    networks = [bare(build_backbone(name)) for name in (V1, V2)]
    graphs: dict[str, Callable[[Backbone, int], list[Operator]]] = {
        "every convolution": convolutions,
        "whole layers, inside not counted": blocks,
        **{f"whole layers in {n} parts": partial(blocks, split=n) for n in SPLITS},
        "whole layers, channel by channel": partial(blocks, split=10_000),
    }
    for name, graph in graphs.items():
        peaks = [peak(graph(network, 224)) for network in networks]
        table.add(name, *(step.name for step in peaks), here=[step.memory for step in peaks])
    yield table


def table_4() -> Iterator[Table]:
    """ImageNet: the paper's selection, and every released width and resolution."""
    params, madds = Column("params M", 1e6, 2), Column("MAdds M", 1e6, 1)
    columns = [Column("top-1 %"), params, madds, Column("Pixel 1 ms")]
    table = Table("4", "Table 4: ImageNet, 1000 classes, 224", ("network",), columns)
    for name, published in paper.TABLE_4.items():
        here: list[float | None] = []
        if name in CLASSIFIERS:
            total, _, (work,) = classifier_costs(*CLASSIFIERS[name], [224])
            here = [None, total, work]
        table.add(name, paper=published, here=here)
    yield table
    title = "Every released width and input (paper: the authors' figures in tensorflow/models)"
    columns = [Column("top-1 %"), Column("params M without batch norm", 1e6, 3), Column("params M", 1e6, 3), madds]
    columns += [Column("largest tensor KB", 1e3, 1), Column("equation 2 KB", 1e3, 1)]
    released = Table("4.1", title, ("width", "input"), columns)
    for width in WIDTHS:
        size, published_costs = paper.CHECKPOINTS[width]
        total, folded, works = classifier_costs(V2, width, list(published_costs))
        network = bare(build_backbone(V2, width=width))
        for (side, (cost, accuracy)), work in zip(published_costs.items(), works, strict=True):
            graph = blocks(network, side)
            memory = max(step.tensor for step in graph), peak(graph).memory
            numbers = [accuracy, size, None, cost]
            released.add(f"{width}", f"{side}", paper=numbers, here=[None, folded, total, work, *memory])
    yield released


def table_5() -> Iterator[Table]:
    """The heads alone."""
    columns = [Column("params M", 1e6, 3), Column("MAdds B", 1e9, 3)]
    table = Table("5", "Table 5: heads on MobileNetV2, 80 classes, 320", ("head",), columns)
    for name, published in paper.TABLE_5.items():
        model = build(V2, "ssdlite", 320, {"lite": name == "SSDLite"})
        total = parameters(model.heads)
        features = bare(model).backbone(image(320), model.taps)
        table.add(name, paper=published, here=[total, multiply_adds(model.heads["task"], features)])
    yield table


def table_6() -> Iterator[Table]:
    """Detectors on COCO."""
    columns = [Column("mAP %"), Column("params M", 1e6, 3), Column("MAdds B", 1e9, 3), Column("Pixel 1 ms")]
    table = Table("6", "Table 6: COCO test-dev, 80 classes; both MobileNets at 320", ("network",), columns)
    for name, published in paper.TABLE_6.items():
        here: list[float | None] = []
        if name in DETECTORS:
            backbone, args = DETECTORS[name]
            model = build(backbone, "ssdlite", 320, args)
            here = [None, parameters(model), multiply_adds(bare(model), image(320))]
        table.add(name, paper=published, here=here)
    yield table


def table_7() -> Iterator[Table]:
    """Segmenters on PASCAL VOC; each dilated convolution counted as it is, and as TensorFlow computes it."""
    columns = [Column("mIoU %"), Column("params M", 1e6, 3), Column("MAdds B", 1e9, 2)]
    columns.append(Column("MAdds B as TensorFlow", 1e9, 2))
    title = "Table 7: PASCAL VOC 2012 val, 21 classes; the MobileNets at 513"
    table = Table("7", title, ("network", "OS", "head and test"), columns)
    for (name, stride, aspp, many), published in paper.TABLE_7.items():
        here: list[float | None] = []
        if name in SEGMENTERS:
            backbone, tap = SEGMENTERS[name]
            model = build(backbone, "mobile_deeplab", 513, {"tap": tap, "aspp": aspp}, output_stride=stride)
            # mirrored pictures double the work; the sizes are those of `segment` (models/windows.py)
            sides, looks = ([round(512 * scale) + 1 for scale in SCALES], 2) if many else ([513], 1)
            here = [None, parameters(model)]
            here += [
                looks * sum(multiply_adds(bare(model), image(side), space_to_batch=padded) for side in sides)
                for padded in (False, True)
            ]
        table.add(name, str(stride), " ".join(["ASPP"] * aspp + ["MF"] * many), paper=published, here=here)
    yield table


TABLES: dict[str, Callable[[], Iterator[Table]]] = {
    "2": table_2, "3": table_3, "4": table_4, "5": table_5, "5.1": section_5_1, "6": table_6, "7": table_7,
}  # fmt: skip


def choose(keys: Sequence[str]) -> list[str]:
    """Puts the keys of tables into the paper's order; all keys if none is given.

    Raises:
        ConfigError: There is no such table.
    """
    for key in keys:
        if key not in TABLES:
            raise ConfigError(f"table '{key}'{near(key, TABLES)}")
    return [key for key in TABLES if key in keys or not keys]


def compute(key: str) -> list[Table]:
    """Computes the table of a key and those that belong to it, with the notes on what differs."""
    tables = list(TABLES[key]())
    for table in tables:
        table.notes = {(row, column): note for (of, row, column), note in paper.NOTES.items() if of == table.key}
    return tables
