"""Memory-efficient inference: the same results, less memory, as much as planned."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_same_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CLASSES, HEADS, picture, weights
from torch import Tensor

import mnv2det.models  # noqa: F401 - registers
from mnv2det.errors import ConfigError
from mnv2det.graphs.graph import Raw
from mnv2det.graphs.program import ExportMetadata
from mnv2det.graphs.split import split_channels
from mnv2det.models.build import assemble, from_file
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.model import Model
from mnv2det.paper.memory import blocks
from mnv2det.runtime.predictor import Predictor
from mnv2det.runtime.strips.backbone import StripBackbone, memory_efficient
from mnv2det.runtime.strips.plan import Plan
from mnv2det.runtime.strips.rows import Window
from mnv2det.runtime.torch_runtime import TorchSession
from mnv2det.structures import Preprocess
from mnv2det.testing import peak_memory

pytestmark = pytest.mark.heavy

ALL = ("stem", "block1", "block2.expand", "block4", "block7", "block14.expand", "block17", "last")
PLAIN = ("last",)
# `Raw` gives float32 whatever it computes in: the last digit of its outputs
OUTPUTS = {torch.float64: 1e-7, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(*tasks: str, size: tuple[int, int] = (64, 64), **backbone: Any) -> Model:
    """A model whose activations neither vanish nor are all clipped."""
    torch.manual_seed(1)
    model = assemble(
        {"name": "mobilenet_v2", "args": backbone},
        {task: HEADS[task] for task in tasks},
        classes={task: CLASSES[task] for task in tasks},
        preprocess=Preprocess(size),
    )
    for name, value in model.state_dict().items():
        if name.endswith("norm.weight"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("norm.bias"):
            value.uniform_(-0.3, 1.0)
    with torch.no_grad():
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model(torch.randn(2, 3, 96, 96))
    return model.eval()


@lru_cache(maxsize=2)
def folded(model: Model, dtype: torch.dtype) -> Raw:
    """Both types of the last model, for folding takes longer than computing."""
    return Raw(model, dtype)


def compare(model: Model, size: tuple[int, int], taps: tuple[str, ...], batch: int = 1, **way: Any) -> Plan:
    """Holds the memory-efficient features against those of the folded model.

    In float64, where they agree to the last digits, and in float32, whose kernels are others.
    """
    images = torch.randn(batch, 3, *size)
    for dtype in (torch.float64, torch.float32):
        plain = folded(model, dtype)
        strips = memory_efficient(plain, **way).model.backbone
        with torch.no_grad():
            found = strips(images.to(dtype), taps)
            wanted = plain.model.backbone(images.to(dtype), taps)
        assert list(found) == list(wanted)
        for tap, value in wanted.items():
            assert_same_numbers(found[tap], value, tap)
    assert isinstance(strips, StripBackbone)
    return strips.plan(size, taps, batch=batch)


def images_of(size: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 65), (64, 96)])
@pytest.mark.parametrize("budget", [1, 60_000, None])
def test_features_computed_in_strips_are_the_same(
    padding: str, output_stride: int, size: tuple[int, int], budget: int | None
) -> None:
    model = build("cls", width=0.5, padding=padding, output_stride=output_stride)
    compare(model, size, PLAIN, budget=budget)
    compare(model, size, ALL, batch=2, budget=budget)


@pytest.mark.parametrize("splits", [1, 2, 3, 5, 10_000])
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_channels_computed_in_parts_give_the_same_features(splits: int, strips: bool, padding: str) -> None:
    model = build("cls", width=0.35, padding=padding)
    plan = compare(model, (47, 33), PLAIN, budget=90_000 if strips else None, splits=splits, strips=strips)
    assert {step.splits for step in plan.steps} == {splits}
    if not strips:
        assert [step.rows for step in plan.steps][:2] == [24, 12]


@pytest.mark.parametrize("width", [0.35, 0.75, 1.0, 1.4])
def test_every_width_gives_the_same_features_at_224(width: float) -> None:
    compare(build("cls", width=width), (224, 224), PLAIN, budget=1_200_000)


@pytest.mark.parametrize("tasks", [("det",), ("seg",), ("det", "seg", "cls")])
def test_heads_compute_the_same_from_features_in_strips(tasks: tuple[str, ...]) -> None:
    model = build(*tasks, width=0.35, output_stride=16 if "seg" in tasks else 32, size=(96, 128))
    image = torch.from_numpy(np.stack([picture(96, 128, seed) for seed in (1, 2)]))
    for dtype, within in OUTPUTS.items():
        raw = Raw(model, dtype)
        with torch.no_grad():
            wanted, found = raw(image), memory_efficient(raw, 150_000)(image)
        assert list(found) == list(wanted)
        for name in wanted:
            assert_same_numbers(found[name], wanted[name], name, within=within)


def test_weights_are_not_changed() -> None:
    model = build("cls", width=0.35)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        memory_efficient(model, 50_000)(torch.randn(1, 3, 64, 64))
    assert isinstance(model.backbone, MobileNetV2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_bfloat16_in_strips_is_as_close_to_float32_as_the_plain_network() -> None:
    model, image = build("cls", width=1.0), torch.from_numpy(picture(96, 96)[None])
    raw = Raw(model, torch.bfloat16)
    with torch.no_grad():
        exact = Raw(model)(image)["cls.logits"]
        plain = raw(image)["cls.logits"] - exact
        found = memory_efficient(raw, 400_000)(image)["cls.logits"] - exact
    assert found.abs().max() < 2 * plain.abs().max() + 0.02 * exact.abs().max()


def test_truncated_backbones_give_the_same_features() -> None:
    for taps in (("stem",), ("block1",), ("block2.expand",), ("block3",), ("block6.expand", "block3")):
        model = build("cls", width=0.35)
        model.backbone.truncate(taps)
        compare(model, (33, 40), taps, budget=40_000)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    budget=st.integers(1, 600_000),
    padding=st.sampled_from(["symmetric", "same"]),
    batch=st.integers(1, 3),
)
def test_any_size_and_budget_gives_the_same_features(
    height: int, width: int, budget: int, padding: str, batch: int
) -> None:
    model = build("cls", width=0.35, padding=padding, output_stride=16)
    plan = compare(model, (height, width), ("block14.expand/16", "last/32"), batch=batch, budget=budget)
    assert max(plan.over.values(), default=0) == max(0, plan.peak - budget)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize(
    ("size", "taps", "output_stride"),
    [(97, PLAIN, 32), (224, PLAIN, 32), (224, ("block14.expand/16", "last/32"), 16), (193, ("block3", "block17"), 8)],
)
@pytest.mark.parametrize("budget", [200_000, 700_000, 1_500_000, None])
def test_the_plan_says_what_is_measured(
    padding: str, size: int, taps: tuple[str, ...], output_stride: int, budget: int | None
) -> None:
    model = memory_efficient(build("cls", padding=padding, output_stride=output_stride), budget)
    images = images_of(size)
    with torch.no_grad():
        model.backbone(images, taps)  # weights are packed
        measured = peak_memory(lambda: model.backbone(images, taps))
    assert isinstance(model.backbone, StripBackbone)
    planned = model.backbone.plan((size, size), taps).peak
    assert 0.9 * planned < measured <= planned * 1.01


def test_a_quarter_of_the_plain_memory_at_224() -> None:
    model, images = build("cls"), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        plain = peak_memory(lambda: model(images))
        for budget in (2_500_000, 1_000_000):
            saving = memory_efficient(model, budget)
            saving(images)
            assert peak_memory(lambda run=saving: run(images)) <= min(plain / 4, budget)


def test_a_budget_too_small_says_by_how_much() -> None:
    model = memory_efficient(build("cls"), 100_000)
    assert isinstance(model.backbone, StripBackbone)
    plan = model.backbone.plan((224, 224))
    assert plan.over
    assert max(plan.over.values()) == plan.peak - 100_000
    loose = memory_efficient(build("cls"), 4_000_000)
    assert isinstance(loose.backbone, StripBackbone)
    assert loose.backbone.plan((224, 224)).over == {}


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_memory_follows_section_5_1(splits: int) -> None:
    """A bottleneck in t parts takes its ends and, of a part, the expanded tensor and its neighbour."""
    model = memory_efficient(build("cls"), splits=splits, strips=False)
    assert isinstance(model.backbone, StripBackbone)
    plan = model.backbone.plan((224, 224))
    with torch.device("meta"):
        theirs = {step.name: step for step in blocks(MobileNetV2().eval(), 224, split=splits)}
    for name, step in zip(plan.names[1:], plan.steps[1:], strict=True):
        # 32 bits here, 16 there
        ends, inner = (theirs[name].inputs + theirs[name].outputs) * 4, theirs[name].inner * 4
        assert step.peak - step.work == ends
        # parts are whole registers
        assert inner <= step.work <= inner * 1.34


def test_windows_count_as_convolutions_do() -> None:
    for kernel, stride, dilation, length in ((3, 1, 1, 9), (3, 2, 1, 9), (3, 2, 1, 8), (3, 1, 4, 9)):
        reach = dilation * (kernel - 1)
        for pad in (reach // 2, None):
            window = Window(reach, stride, pad)
            assert window.size(length) == math.ceil(length / stride)
            rows = window.rows(0, window.size(length), length)
            before, after = window.sides(length)
            assert (rows.start, rows.above) == (0, before)
            assert (rows.inside + before + rows.below - reach - 1) // stride + 1 == window.size(length)
            assert rows.below <= after


def test_threads_share_a_memory_efficient_model() -> None:
    model = memory_efficient(build("cls", width=0.35), 80_000)
    batches = [torch.randn(1, 3, 64 + 8 * n, 64) for n in range(8)]
    with torch.no_grad():
        wanted = [model(batch)["cls"]["logits"] for batch in batches]

    def run(number: int) -> Tensor:
        with torch.no_grad():
            return model(batches[number % 8])["cls"]["logits"]

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(run, range(32))):
            torch.testing.assert_close(found, wanted[number % 8])


def test_a_memory_efficient_predictor_finds_the_same(tmp_path: Path) -> None:
    path = weights(tmp_path, "det", "seg")
    plain = Predictor(path, device="cpu")
    saving = Predictor(path, device="cpu")
    model, header = from_file(str(path))
    network = memory_efficient(Raw(model), 300_000)
    saving.session = TorchSession(network, ExportMetadata(header, "raw"), device=torch.device("cpu"))
    wanted, found = plain(picture(150, 140)), saving(picture(150, 140))
    torch.testing.assert_close(found["det"].scores, wanted["det"].scores, atol=1e-4, rtol=1e-4)
    assert len(wanted["det"].scores)
    assert (found["seg"].mask == wanted["seg"].mask).float().mean() > 0.999


@pytest.mark.parametrize("splits", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_the_split_graph_computes_the_same(splits: int, padding: str) -> None:
    model, image = build("det", width=0.5, padding=padding, size=(96, 128)), torch.from_numpy(picture(96, 128)[None])
    for dtype, within in OUTPUTS.items():
        split = Raw(model, dtype)
        split_channels(split.model, splits)
        wanted, found = Raw(model, dtype)(image), split(image)
        for name in wanted:
            assert_same_numbers(found[name], wanted[name], name, within=within)
    blocks = split.model.backbone.blocks  # type: ignore[union-attr]
    assert [hasattr(block, "parts") for block in blocks] == [number not in (0, 13) for number in range(17)]
    assert len(blocks[16].parts) == splits


def test_onnxruntime_runs_the_split_graph(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    split, image = Raw(build("cls", width=0.35)).eval(), torch.from_numpy(picture(64, 64)[None])
    wanted = split(image)["cls.logits"]
    split_channels(split.model, 3)
    torch.onnx.export(split, (image,), tmp_path / "split.onnx", dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "split.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert_same_numbers(torch.from_numpy(found), wanted)


def test_other_backbones_and_budgets_below_one_are_refused() -> None:
    model = assemble(
        {"name": "mobilenet_v1", "args": {"width": 0.25}},
        {"cls": HEADS["cls"]},
        classes={"cls": CLASSES["cls"]},
        preprocess=Preprocess((64, 64)),
    )
    with pytest.raises(ConfigError, match="mobilenet_v2, not MobileNetV1"):
        memory_efficient(model, 1000)
    with pytest.raises(ConfigError, match="memory budget: expected at least 1, got 0"):
        memory_efficient(build("cls", width=0.35), 0)


def ablated(args: dict[str, Any]) -> Model:
    return assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, **args}},
        {"cls": HEADS["cls"]},
        classes={"cls": CLASSES["cls"]},
        preprocess=Preprocess((64, 64)),
    )


@pytest.mark.parametrize(
    "args", [{"shortcut": "expansion"}, {"bottleneck_act": "relu6"}, {"act": "none"}, {"expansion": 1}]
)
def test_bottlenecks_of_ablations_are_refused(args: dict[str, Any]) -> None:
    model = ablated(args)
    with pytest.raises(ConfigError, match="memory budget: needs bottlenecks as published"):
        memory_efficient(model, 1000)
    with pytest.raises(ConfigError, match="splits: needs bottlenecks as published"):
        split_channels(Raw(model).model, 2)


@pytest.mark.parametrize("args", [{"shortcut": "none"}, {"act": "relu"}, {"expansion": 3}])
def test_other_shortcuts_activations_and_expansions_compute_the_same(args: dict[str, Any]) -> None:
    model = ablated(args).eval().double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        found = memory_efficient(model, 100_000)(image)["cls"]["logits"]
        assert_same_numbers(found, model(image)["cls"]["logits"])


def test_the_meter_counts_what_is_alive() -> None:
    def work() -> Tensor:
        first = torch.empty(1000, 1000)  # 4 MB
        second = torch.empty(500, 1000)  # 2 MB
        del first
        third = torch.empty(250, 1000)  # 1 MB, beside the second
        del second
        return third

    assert peak_memory(work) == pytest.approx(6_000_000, abs=4096)
    assert peak_memory(lambda: [torch.empty(250, 1000) for _ in range(3)]) == pytest.approx(3_000_000, abs=4096)
    kept = torch.empty(1000, 1000)
    assert peak_memory(lambda: kept.clamp_(0.0, 1.0)) < 4096
