from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import mnv2det.models  # noqa: F401 - registers
from mnv2det.config import Component, ModelConfig, TaskConfig
from mnv2det.errors import ConfigError
from mnv2det.models.build import assemble, from_config
from mnv2det.models.deeplab import MobileDeepLab
from mnv2det.models.model import Model
from mnv2det.models.weight_file import save_weights
from mnv2det.registry import HEADS as HEAD_REGISTRY
from mnv2det.structures import FeatureInfo, Frame, Preprocess, Target

FEATURES = {
    "image": FeatureInfo(3, 1),
    "block6": FeatureInfo(6, 8),
    "block13": FeatureInfo(8, 16),
    "block17": FeatureInfo(12, 16),
}
MF = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def model(width: float = 1.0, stride: int = 16, classes: int = 21, size: int = 513, **head: object) -> Model:
    return assemble(
        {"name": "mobilenet_v2", "args": {"width": width, "output_stride": stride}},
        {"seg": {"name": "mobile_deeplab", "args": head}},
        classes={"seg": [f"c{n}" for n in range(classes)]},
        preprocess=Preprocess((size, size), fit="pad"),
    )


def small_head(classes: int = 4, **hyper: object) -> MobileDeepLab:
    return MobileDeepLab(FEATURES, classes=classes, **{"channels": 16, **hyper})


def small_features(batch: int = 2, height: int = 33, width: int = 49) -> dict[str, Tensor]:
    side = (-(-height // 16), -(-width // 16))
    return {
        "image": torch.zeros(batch, 3, height, width),
        "block6": torch.randn(batch, 6, -(-height // 8), -(-width // 8)),
        "block13": torch.randn(batch, 8, *side),
        "block17": torch.randn(batch, 12, *side),
    }


def masks(batch: int = 2, classes: int = 4, height: int = 33, width: int = 49) -> list[Target]:
    """Random, a tenth of the pixels without a class."""
    found = torch.randint(0, classes, (batch, height, width))
    found[torch.rand(found.shape) < 0.1] = 255
    return [{"mask": mask} for mask in found]


def raw_of(head: MobileDeepLab, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Raw tensors whose maps ask for their gradient."""
    raw = {key: value.detach() for key, value in head.train()(features).items()}
    return {key: value.requires_grad_() if key in ("logits", "auxiliary") else value for key, value in raw.items()}


@pytest.mark.parametrize(
    ("aspp", "parameters", "millions", "billions"), [(False, 2_113_557, 2.114, 2.741), (True, 4_523_541, 4.524, 5.363)]
)
def test_parameters_and_multiply_adds_are_the_papers(
    aspp: bool, parameters: int, millions: float, billions: float
) -> None:
    with torch.device("meta"):
        built, images = model(aspp=aspp).eval(), torch.zeros(1, 3, 513, 513)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        raw = built(images)["seg"]
    assert raw["logits"].shape == (1, 21, 33, 33)
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert parameters / 1e6 == pytest.approx(millions, abs=5e-4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=6e-4)


@pytest.mark.heavy
def test_multiply_adds_of_many_scales_and_mirror_images_are_the_papers() -> None:
    with torch.device("meta"):
        built, images = model(stride=8).eval(), torch.zeros(1, 3, 513, 513, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        (found,) = built.predict(images, [Frame((513, 513), (513, 513))], scales=MF, flip=True)["seg"]
    assert found.mask.shape == (513, 513)
    assert counter.get_total_flops() / 2e9 == pytest.approx(152.3, abs=0.05)


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_any_width_runs(width: float) -> None:
    with torch.device("meta"):
        raw = model(width, classes=5)(torch.zeros(2, 3, 65, 65))["seg"]
    assert raw["logits"].shape == (2, 5, 5, 5)


@pytest.mark.parametrize("size", [(1, 1), (33, 33), (64, 96), (127, 50)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_input_size_and_stride(size: tuple[int, int], stride: int) -> None:
    built = model(0.35, stride, 3, channels=8, aspp=True, auxiliary=0.4).eval()
    images = torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        raw = built(built.normalize(images))["seg"]
    assert raw["logits"].shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))
    assert raw["size"].tolist() == list(size)
    frames = [Frame((50, 70), size), Frame((size[0], 9), size)]
    results = built.heads["seg"].decode(raw, frames)
    assert [tuple(result.mask.shape) for result in results] == [(50, 70), (size[0], 9)]
    assert all(int(result.mask.max()) < 3 for result in results)


def test_atrous_rates_follow_the_stride() -> None:
    for stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36]), (32, [3, 6, 9])):
        head = model(0.35, stride, 3, aspp=True).heads["seg"]
        assert [branch.conv.dilation for branch in head.branches] == [(1, 1), *((rate, rate) for rate in rates)]
        assert [branch.conv.padding for branch in head.branches] == [(0, 0), *((rate, rate) for rate in rates)]


def test_the_pooled_branch_sees_the_whole_map() -> None:
    head = small_head().eval()
    for branch in head.branches:
        nn.init.zeros_(branch.conv.weight)
    nn.init.normal_(head.classify.weight)
    features = small_features(1)
    with torch.no_grad():
        found = head(features)["logits"]
        features["block17"][..., 0, 0] += 10
        moved = head(features)["logits"]
    assert_close(found, found[..., :1, :1].expand_as(found))
    assert (moved - found).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(33, 49), (16, 16)], ids=["map", "one position"])
def test_a_batch_of_one_trains(size: tuple[int, int]) -> None:
    head = small_head(auxiliary=0.4, aspp=True).train()
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in head.parameters()]
    for _ in range(2):
        features = small_features(1, *size)
        losses = head.loss(head(features), masks(1, 4, *size))
        torch.stack(list(losses.values())).sum().backward()
        assert all(value.isfinite() for value in losses.values())
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert all(buffer.isfinite().all() for buffer in head.buffers())
    moved = [not torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize(
    "options",
    [{}, {"aspp": True}, {"auxiliary": 0.4}, {"hardest": 0.25}, {"detail_tap": "block6"}, {"loss_stride": 4}],
    ids=str,
)
def test_gradients_reach_every_parameter(options: dict[str, object]) -> None:
    built = model(0.35, 16, 4, channels=16, dropout=0.0, **options).train()
    losses = built.loss(built(torch.randn(3, 3, 65, 49)), masks(3, 4, 65, 49), {"seg": 2.0})
    torch.stack(list(losses.values())).sum().backward()
    idle = [name for name, p in built.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []
    still = [name for name, p in built.named_parameters() if not p.grad.any()]
    assert still == []


def plain_loss(logits: Tensor, targets: list[Target], weights: Tensor | None = None) -> Tensor:
    """Every labelled pixel by itself, in float64."""
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for image, target in enumerate(targets):
        if "mask" not in target:
            continue
        mask = target["mask"]
        maps = F.interpolate(logits[image : image + 1].double(), mask.shape, mode="bilinear", align_corners=True)
        log = maps[0].log_softmax(dim=0)
        for label in range(logits.shape[1]):
            weight = 1.0 if weights is None else float(weights[label])
            total -= weight * log[label][mask == label].sum()
            count += weight * (mask == label).sum()
    return total / count


@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 2.5, 0.1)])
@pytest.mark.parametrize("absent", [None, 0, 1])
def test_the_loss_agrees_with_a_plain_one(weights: tuple[float, ...] | None, absent: int | None) -> None:
    head = small_head(class_weights=weights, auxiliary=0.4)
    raw, targets = raw_of(head, small_features()), masks()
    if absent is not None:
        del targets[absent]["mask"]
    given = None if weights is None else torch.tensor(weights)
    losses = head.loss(raw, targets)
    assert set(losses) == {"seg", "auxiliary"}
    assert_close(losses["seg"], plain_loss(raw["logits"], targets, given).float(), rtol=1e-5, atol=1e-6)
    assert_close(losses["auxiliary"], 0.4 * plain_loss(raw["auxiliary"], targets, given).float(), rtol=1e-5, atol=1e-6)
    losses["seg"].backward()
    for image, target in enumerate(targets):
        assert bool(raw["logits"].grad[image].any()) == ("mask" in target)


@pytest.mark.parametrize("step", [2, 4, 100])
def test_the_loss_may_read_every_nth_row_and_column(step: int) -> None:
    head = small_head(loss_stride=step, auxiliary=0.4, class_weights=(1.0, 2.0, 3.0, 4.0))
    raw, targets = raw_of(head, small_features()), masks()
    for target in targets:
        target["mask"][0, 0] = 1  # the one pixel that the largest step leaves
    whole = F.interpolate(raw["logits"], (33, 49), mode="bilinear", align_corners=True)
    mask = torch.stack([target["mask"] for target in targets])
    wanted = F.cross_entropy(
        whole[..., ::step, ::step], mask[:, ::step, ::step], torch.tensor([1.0, 2, 3, 4]), ignore_index=255
    )
    assert_close(head.loss(raw, targets)["seg"], wanted, rtol=1e-4, atol=1e-5)


def test_details_are_added_at_their_own_stride() -> None:
    head, features = small_head(detail_tap="block6").eval(), small_features()
    with torch.no_grad():
        nn.init.normal_(head.detail[1].weight)
        found = head(features)["logits"]
        detail = head.detail(features["block6"])
        nn.init.zeros_(head.detail[1].weight)
        coarse = head(features)["logits"]
        plain = small_head()
        plain.load_state_dict({name: t for name, t in head.state_dict().items() if not name.startswith("detail")})
        wanted = plain.eval()(features)["logits"]
    assert found.shape[-2:] == features["block6"].shape[-2:]
    assert_close(coarse, F.interpolate(wanted, detail.shape[-2:], mode="bilinear", align_corners=True))
    assert_close(found, coarse + detail)
    assert detail.std() > 0.1
    assert "detail.1.weight" in head.class_rows()


@pytest.mark.parametrize("share", [0.25, 0.9, 1e-6])
def test_only_the_hardest_pixels_count(share: float) -> None:
    head = small_head(hardest=share)
    raw, targets = raw_of(head, small_features()), masks()
    mask = torch.stack([target["mask"] for target in targets])
    maps = F.interpolate(raw["logits"], mask.shape[1:], mode="bilinear", align_corners=True)
    each = F.cross_entropy(maps, mask, ignore_index=255, reduction="none")[mask != 255]
    wanted = each.sort(descending=True).values[: max(1, int(len(each) * share))].mean()
    assert_close(head.loss(raw, targets)["seg"], wanted)
    assert wanted > each.mean()


def test_the_hardest_pixels_are_a_weighted_mean_too() -> None:
    weights = (1.0, 2.0, 3.0, 4.0)
    features, targets = small_features(), [{"mask": torch.randint(0, 4, (33, 49))} for _ in range(2)]
    losses = []
    for scale in (1.0, 5.0):
        torch.manual_seed(1)
        head = small_head(hardest=0.3, class_weights=tuple(scale * weight for weight in weights)).eval()
        losses.append(head.loss(head(features), targets)["seg"])
    # only how they compare matters, as with all pixels
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0, 2.0, 3.0, 4.0)}, {"hardest": 0.5}], ids=str)
@pytest.mark.parametrize("targets", ["ignored", "absent", "weightless"])
def test_nothing_to_learn_is_zero_with_a_zero_gradient(options: dict[str, object], targets: str) -> None:
    if targets == "weightless":
        options = {**options, "class_weights": (0.0, 1.0, 1.0, 1.0)}
    head = small_head(auxiliary=0.4, **options).train()
    fill = 0 if targets == "weightless" else 255
    given: list[Target] = [{}, {}] if targets == "absent" else [{"mask": torch.full((33, 49), fill)} for _ in range(2)]
    losses = head.loss(head(small_features()), given)
    torch.stack(list(losses.values())).sum().backward()
    assert [float(value.detach()) for value in losses.values()] == [0, 0]
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


def test_the_loss_under_bfloat16_is_computed_in_float32() -> None:
    head = small_head()
    raw, targets = raw_of(head, small_features()), masks()
    rounded = {**raw, "logits": raw["logits"].detach().bfloat16()}
    found = head.loss(rounded, targets)["seg"]
    assert found.dtype == torch.float32
    assert_close(found, plain_loss(rounded["logits"], targets).float(), rtol=1e-5, atol=1e-6)


def test_dropout_is_for_training_alone() -> None:
    head, features = small_head(dropout=0.5), small_features()
    nn.init.normal_(head.classify.weight)
    torch.testing.assert_close(head.eval()(features)["logits"], head(features)["logits"], rtol=0, atol=0)
    for layer in head.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0
    assert not torch.equal(head.train()(features)["logits"], head(features)["logits"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 0},
        {"classes": 256},
        {"class_weights": (1.0, 1.0)},
    ],
    ids=str,
)
def test_what_contradicts_the_number_of_classes_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="mobile_deeplab") as caught:
        small_head(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", 0),
        ("dropout", 1.0),
        ("auxiliary", -1.0),
        ("hardest", 0.0),
        ("hardest", 1.5),
        ("loss_stride", 0),
        ("class_weights", [1.0, -1.0]),
        ("class_weights", [1.0, float("nan")]),
        ("class_weights", [1.0, float("inf")]),
        ("class_weights", [0.0, 0.0]),
    ],
)
def test_hyperparameters_out_of_range_are_refused(key: str, value: object) -> None:
    problems = HEAD_REGISTRY.bind("mobile_deeplab", {key: value}, place="head")[1]
    assert len(problems) == 1
    assert problems[0].startswith(f"head.args.{key}")


NAMES = ["background", "cat", "cow", "dog"]
HEADS = {"seg": Component("mobile_deeplab", {"auxiliary": 0.4}), "cls": Component("classifier")}


@pytest.mark.parametrize("classes", [["dog", "bus", "background"], ["cow", "dog", "cat", "background"], ["a", "b"]])
@pytest.mark.parametrize("task", list(HEADS))
def test_classes_of_the_same_name_keep_their_rows(task: str, classes: list[str], tmp_path: Path) -> None:
    head = {"name": HEADS[task].name, "args": HEADS[task].args}
    saved = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 8}},
        {task: head},
        classes={task: NAMES},
        preprocess=Preprocess((33, 33), fit="pad"),
    )
    for parameter in saved.heads.parameters():
        nn.init.normal_(parameter)  # fresh biases are zero, in whichever row
    save_weights(tmp_path / "w.safetensors", saved.state_dict(), saved.header())
    config = ModelConfig(input_size=[33, 33], weights=str(tmp_path / "w.safetensors"))
    started, notes = from_config(config, {task: TaskConfig(head=HEADS[task])}, {task: classes})
    assert started.preprocess.fit == "pad"
    assert started.backbone.features["block17"].stride == 8
    same = [name for name in classes if name in NAMES]
    said = f"{', '.join(same)} keep theirs" if same else "none keeps its own"
    assert any(f"{len(classes) - len(same)} of {len(classes)} start anew, {said}" in note for note in notes)
    rows = started.heads[task].class_rows()
    assert len(rows) == (4 if task == "seg" else 2)
    old, new = saved.heads[task].state_dict(), started.heads[task].state_dict()
    for name, tensor in new.items():
        if name not in rows:
            assert_close(tensor, old[name], rtol=0, atol=0)
            continue
        for place, label in enumerate(classes):
            if label in NAMES:
                assert_close(tensor[place], old[name][NAMES.index(label)], rtol=0, atol=0)
            else:
                assert not any(torch.equal(tensor[place], row) for row in old[name])
