import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import mnv2det.models  # noqa: F401 - registers
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.boxes import encode
from mnv2det.ops.matcher import match, pad_targets
from mnv2det.registry import HEADS
from mnv2det.structures import FeatureInfo, Frame, Preprocess, Target

FEATURES = {"a": FeatureInfo(16, 16), "b": FeatureInfo(24, 32)}


def model(classes: int = 80, width: float = 1.0, **head: object) -> Model:
    return assemble(
        {"name": "mobilenet_v2", "args": {"width": width}},
        {"det": {"name": "ssdlite", "args": head}},
        classes={"det": [f"c{n}" for n in range(classes)]},
        preprocess=Preprocess(),
    )


def small_head(**hyper: object) -> SSDLite:
    return SSDLite(FEATURES, **{"classes": 3, "taps": ("a", "b"), "extras": (16, 16), **hyper})


def small_features(height: int = 96, width: int = 128, batch: int = 2) -> dict[str, torch.Tensor]:
    return {
        "image": torch.zeros(batch, 3, height, width),
        "a": torch.randn(batch, 16, height // 16, width // 16),
        "b": torch.randn(batch, 24, height // 32, width // 32),
    }


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> Target:
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "ignore": torch.tensor(ignore or [False] * len(labels), dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("lite", "head_millions", "billions", "anchors", "total"),
    [(True, 2.113, 0.789, 2034, 4.337), (False, 14.777, None, 2034, 17.0)],
)
def test_parameters_and_multiply_adds_are_the_papers(lite, head_millions, billions, anchors, total):
    built = model(lite=lite).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        raw = built(torch.zeros(1, 3, 320, 320))["det"]
    assert raw["anchors"].shape == (anchors, 4)
    assert raw["logits"].shape == (1, anchors, 81)
    assert sum(p.numel() for p in built.heads.parameters()) / 1e6 == pytest.approx(head_millions, abs=5e-4)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(total, abs=1e-3)
    if billions:
        assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.parametrize("size", [(320, 320), (256, 384), (193, 331), (32, 32)])
def test_any_input_size(size: tuple[int, int]):
    built = model(classes=2, width=0.35).eval()
    images = torch.randint(0, 255, (1, 3, *size), dtype=torch.uint8)
    found = built.predict(images, [Frame((480, 640), size)])["det"][0]
    assert 0 < len(found.boxes) <= 100
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([640.0, 480, 640, 480])).all()


@pytest.mark.parametrize("lite", [True, False])
@pytest.mark.parametrize(("score", "private"), [("sigmoid", 0), ("softmax", 1)])
def test_a_folded_head_has_no_background_that_nobody_reads(score: str, private: int, lite: bool):
    head, features = small_head(score=score, lite=lite, prior=None).eval(), small_features()
    before = head.forward_export(features)
    head.drop_training_parts()
    head.drop_training_parts()
    after = head.forward_export(features)
    assert after["logits"].shape[-1] == 3 + private
    assert_close(after["logits"], before["logits"][..., 1 - private :])
    assert_close(after["codes"], before["codes"])


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_loss_agrees_with_a_plain_loop(score: str):
    head = small_head(score=score, negatives=3.0, min_negatives=3)
    raw = head(small_features())
    targets = [
        target([[5.0, 5, 60, 60], [40, 20, 90, 90]], [0, 2]),
        target([], []),
    ]
    cls, box, matches = 0.0, 0.0, 0
    for image, wanted in enumerate(targets):
        padded = pad_targets([wanted], torch.device("cpu"))
        boxes, labels, ignore, valid = padded
        matched = match(raw["anchors"], boxes, valid, ignore)[0]
        negatives = []
        for anchor, index in enumerate(matched.tolist()):
            logits = raw["logits"][image, anchor]
            label = int(labels[0, index]) + 1 if index >= 0 else 0
            if score == "sigmoid":
                loss = F.binary_cross_entropy_with_logits(
                    logits, F.one_hot(torch.tensor(label), 4).float(), reduction="sum"
                )
            else:
                loss = F.cross_entropy(logits, torch.tensor(label))
            if index >= 0:
                matches += 1
                cls += loss
                code = encode(boxes[0, index], raw["anchors"][anchor])
                box += F.smooth_l1_loss(raw["codes"][image, anchor], code, reduction="sum")
            else:
                negatives.append(loss)
        positives = int((matched >= 0).sum())
        cls += sum(sorted(negatives, reverse=True)[: max(3, 3 * positives)])
    found = head.loss(raw, targets)
    assert matches > 2
    assert_close(found["cls"], torch.as_tensor(cls / matches), rtol=1e-4, atol=1e-4)
    assert_close(found["box"], torch.as_tensor(box / matches), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "targets",
    [
        [target([], []), target([], [])],
        [target([[5.0, 5, 60, 60]], [1], [True]), target([], [])],
        [target([[5.0, 5, 5, 5], [9, 9, 3, 3]], [1, 0]), target([], [])],
        [{}, {}],
        [{}, target([[5.0, 5, 60, 60]], [1])],
    ],
    ids=["no objects", "only a crowd", "degenerate boxes", "not annotated", "half annotated"],
)
def test_loss_is_finite_and_has_gradients(targets):
    head = small_head()
    losses = head.loss(head(small_features()), targets)
    total = losses["cls"] + losses["box"]
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_images_that_are_not_annotated_add_nothing():
    head = small_head().eval()
    features = small_features()
    wanted = target([[5.0, 5, 60, 60]], [1])
    alone = head.loss(head({key: value[:1] for key, value in features.items()}), [wanted])
    both = head.loss(head(features), [wanted, {}])
    assert_close(both["cls"], alone["cls"])
    assert_close(both["box"], alone["box"])


def test_a_crowd_takes_its_anchors_out_of_the_negatives():
    head = small_head(min_negatives=10_000)
    raw = head(small_features(batch=1))
    whole = target([[0.0, 0, 128, 96]], [0], [True])
    assert head.loss(raw, [whole])["cls"].item() < head.loss(raw, [target([], [])])["cls"].item()


def test_decode_finds_what_the_codes_say_in_original_pixels():
    head = small_head(score_threshold=0.5)
    raw = head(small_features(batch=1))
    anchors = raw["anchors"]
    wanted = torch.tensor([30.0, 20, 90, 70])
    logits = torch.full_like(raw["logits"], -10)
    logits[0, 40, 1 + 2] = 4
    codes = torch.zeros_like(raw["codes"])
    codes[0, 40] = encode(wanted, anchors[40])
    (found,) = head.decode({**raw, "logits": logits, "codes": codes}, [Frame((192, 64), (96, 128))])
    assert found.labels.tolist() == [2]
    assert_close(found.boxes, wanted[None] * torch.tensor([0.5, 2, 0.5, 2]), rtol=1e-4, atol=1e-3)
    assert_close(found.scores, torch.tensor([4.0]).sigmoid())


def test_background_is_never_a_detection():
    head = small_head(score_threshold=0.5)
    raw = head(small_features(batch=1))
    logits = torch.full_like(raw["logits"], -10)
    logits[..., 0] = 10
    assert len(head.decode({**raw, "logits": logits}, [Frame((96, 128), (96, 128))])[0].boxes) == 0


def test_prior_is_what_fresh_predictors_say():
    head = small_head(prior=0.01, init_std=1e-6)
    scores = head(small_features())["logits"].sigmoid()
    assert_close(scores[..., 1:], torch.full_like(scores[..., 1:], 0.01), rtol=0.01, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"taps": ()}, {"extras": (1,)}, {"min_scale": 0.0}, {"ratios": ()}, {"lowest": ()}, {"prior": 2.0}),
        *({"nms_iou": 6}, {"match_iou": -1}, {"negatives": -2}, {"norm_momentum": 9}, {"max_detections": -1}),
        *({"box_beta": -1}, {"min_scale": 0.99}, {"anchors": [[[0.1, 1.0]]]}, {"anchors": [[[0.1, 0.0]]] * 6}),
    ],
    ids=str,
)
def test_wrong_hyperparameters_are_refused(wrong: dict):
    problems = HEADS.bind("ssdlite", wrong, place="head")[1]
    assert len(problems) == 1
    assert problems[0].startswith(f"head.args.{next(iter(wrong))}")


def test_bfloat16_gradients_repeat_bit_for_bit_on_maps_smaller_than_a_window():
    """oneDNN leaves weight gradients of depthwise layers on 1x1 maps uninitialised: not with us."""
    built = model(classes=3, width=0.35, extras=[32, 32, 32, 32]).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    targets = [target([[10.0, 10, 40, 40]], [1]) for _ in range(4)]
    seen: list[dict[str, torch.Tensor]] = []
    for _ in range(4):
        for layer in built.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.reset_running_stats()
        built.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            raw = built(images)
        losses = built.loss(raw, targets, {})
        dirt = [torch.full((size,), torch.nan) for size in (16, 64, 256, 1024, 4096, 16384) for _ in range(30)]
        del dirt
        torch.stack(list(losses.values())).sum().backward()
        seen.append({name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None})
    assert [name for name in seen[0] for other in seen[1:] if not torch.equal(seen[0][name], other[name])] == []
