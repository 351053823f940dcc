from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from closeness import assert_same_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import mnv2det.models  # noqa: F401 - registers
from mnv2det.data.fit import fit
from mnv2det.data.loader import stack
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.models.windows import windows
from mnv2det.structures import Detections, Fit, Frame, Preprocess, Segmentation

pytestmark = pytest.mark.heavy

SIZE = 65
HEADS = {
    "det": {"name": "ssdlite", "args": {"extras": [16, 16], "init_std": None, "prior": None}},
    "seg": {"name": "mobile_deeplab", "args": {"channels": 16}},
}
CLASSES = {"det": ["a", "b"], "seg": ["background", "a", "b", "c", "d"]}


def build(
    *tasks: str, stride: int = 16, fit: Fit = "pad", padding: str = "same", size: tuple[int, int] = (SIZE, SIZE)
) -> Model:
    """A model whose masks show several classes.

    In float64, so that no rounding decides on a pixel: masks computed in two ways are equal.
    """
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": stride, "padding": padding}},
        {task: HEADS[task] for task in tasks},
        classes={task: CLASSES[task] for task in tasks},
        preprocess=Preprocess(size, fit=fit),
    ).eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.8, 1.6)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
        if "seg" in tasks:
            head = model.heads["seg"]
            head.classify.weight.normal_(0, 0.5)
            logits = model(model.normalize(pixels(size, size)))["seg"]["logits"]
            head.classify.bias -= logits.mean(dim=(0, 2, 3))
    return model.double()


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Patches of colour with some noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 255, (-(-size[0] // 16), -(-size[1] // 16), 3)).repeat(16, axis=0).repeat(16, axis=1)
    noisy = patches[: size[0], : size[1]] + rng.integers(-20, 20, (*size, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def pixels(*sizes: tuple[int, int]) -> Tensor:
    return torch.stack([torch.from_numpy(picture(size, seed)).permute(2, 0, 1) for seed, size in enumerate(sizes)])


def batch(model: Model, pictures: Sequence[np.ndarray]) -> tuple[Tensor, list[Frame]]:
    fitted = [fit(image, model.preprocess) for image in pictures]
    return stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in fitted]), [frame for _, frame in fitted]


def segment(model: Model, pictures: Sequence[np.ndarray], **options: object) -> list[Tensor]:
    images, frames = batch(model, pictures)
    found = model.predict(images, frames, **options)["seg"]
    assert [tuple(result.mask.shape) for result in found] == [image.shape[:2] for image in pictures]
    return [result.mask for result in found]


def shares(mask: Tensor) -> list[float]:
    return (mask.flatten().long().bincount() / mask.numel()).tolist()


def same(first: Tensor, second: Tensor) -> float:
    return float((first == second).float().mean())


@settings(max_examples=300, deadline=None)
@given(length=st.integers(1, 3000), window=st.integers(2, 700), axis=st.integers(0, 1))
def test_windows_cover_everything_and_overlap_by_a_third(length: int, window: int, axis: int) -> None:
    size, part = (1, length)[:: 2 * axis - 1], (1, window)[:: 2 * axis - 1]
    found = [parts[axis] for parts in windows((size[0], size[1]), (part[0], part[1]))]
    assert found[0].start == 0
    assert found[-1].stop == length
    assert all(shown.stop - shown.start == min(length, window) for shown in found)
    assert all(one.stop - two.start >= window / 3 for one, two in itertools.pairwise(found))
    steps = [two.start - one.start for one, two in itertools.pairwise(found)]
    assert max(steps, default=0) - min(steps, default=0) <= 2, "evenly spread"
    if len(found) > 1:
        assert (len(found) - 2) * (window * 2 // 3) < length - window, "no more than it takes"


def test_windows_go_row_by_row() -> None:
    found = list(windows((5, 9), (5, 6)))
    assert found == [(slice(0, 5), slice(0, 6)), (slice(0, 5), slice(3, 9))]
    assert list(windows((6, 9), (6, 9))) == list(windows((6, 9), (60, 90))) == [(slice(0, 6), slice(0, 9))]
    assert len(list(windows((12, 12), (6, 6)))) == 9


def by_hand(
    model: Model, inputs: Tensor, scales: Sequence[float], flip: bool, *, window: int | None = None, of: str = "p"
) -> Tensor:
    """Mean probabilities (or logits) of all looks at one picture (1, 3, H, W); its windows one by one."""
    size, total, looks = inputs.shape[-2:], torch.zeros(()), 0
    for scale, mirrored in itertools.product(scales, (False, True) if flip else (False,)):
        side = [round((n - 1) * scale) + 1 for n in size]
        seen = F.interpolate(inputs, side, mode="bilinear", align_corners=True)
        seen = seen.flip(-1) if mirrored else seen
        part = side if window is None else [round((window - 1) * scale) + 1] * 2
        sums, counts = torch.zeros(1, len(CLASSES["seg"]), *side), torch.zeros(side)
        for rows, columns in windows((side[0], side[1]), (part[0], part[1])):
            maps = model(seen[..., rows, columns])["seg"]["logits"]
            shown = (rows.stop - rows.start, columns.stop - columns.start)
            maps = F.interpolate(maps, shown, mode="bilinear", align_corners=True)
            sums[..., rows, columns] += maps.softmax(dim=1) if of == "p" else maps
            counts[rows, columns] += 1
        maps = (sums / counts).flip(-1) if mirrored else sums / counts
        total = total + F.interpolate(maps, size, mode="bilinear", align_corners=True)
        looks += 1
    return total / looks


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75), (0.75,)])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_averaged_over_scales_and_mirror_images(scales: tuple[float, ...], flip: bool) -> None:
    model, image = build("seg", fit="stretch"), picture((SIZE, SIZE))
    (found,) = segment(model, [image], scales=scales, flip=flip)
    inputs = model.normalize(pixels((SIZE, SIZE)))
    with torch.no_grad():
        wanted = by_hand(model, inputs, scales, flip)[0]
        logits = by_hand(model, inputs, scales, flip, of="logits")[0]
    assert sorted(shares(found))[-2] > 0.1, "two classes at least"
    assert same(found, wanted.argmax(dim=0)) > 0.998
    assert_close(wanted.sum(dim=0), torch.ones(SIZE, SIZE))
    if len(scales) > 1:
        assert same(found, logits.argmax(dim=0)) < 0.998, "an average of logits would look alike"


@pytest.mark.parametrize("size", [(SIZE, SIZE), (40, 50), (100, 150), (30, 129)], ids=str)
def test_a_mirrored_picture_has_the_mirrored_mask(size: tuple[int, int]) -> None:
    # a narrower one that is padded has its fill at the right in either case
    model, image = build("seg", fit="stretch" if size[1] < SIZE else "pad"), picture(size)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    (one,), (two,) = segment(model, [image], flip=True), segment(model, [mirrored], flip=True)
    assert same(one.flip(-1), two) > 0.999
    (one,), (two,) = segment(model, [image]), segment(model, [mirrored])
    assert same(one.flip(-1), two) < 0.99, "so would the mask without a look at the mirror image"


def test_one_look_is_the_plain_prediction() -> None:
    model, image = build("seg"), picture((50, 60))
    (plain,), (looked) = segment(model, [image]), segment(model, [image], scales=(1.0,), flip=False)
    assert_close(plain, looked[0], rtol=0, atol=0)
    with torch.no_grad():
        wanted = by_hand(model, model.normalize(batch(model, [image])[0]), (1.0,), False)[0].argmax(dim=0)
    assert same(plain, wanted[:50, :60]) > 0.998


@pytest.mark.parametrize("size", [(66, SIZE), (100, 150), (30, 200), (200, 30)], ids=str)
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.25)])
def test_a_picture_larger_than_the_input_is_seen_in_windows(size: tuple[int, int], scales: tuple[float, ...]) -> None:
    model, image = build("seg"), picture(size)
    (found,) = segment(model, [image], scales=scales)
    images, (frame,) = batch(model, [image])
    assert images.shape[-2:] == (max(size[0], SIZE), max(size[1], SIZE))
    with torch.no_grad():
        wanted = by_hand(model, model.normalize(images), scales, False, window=SIZE)[0].argmax(dim=0)
        whole = by_hand(model, model.normalize(images), scales, False)[0].argmax(dim=0)
    assert same(found, wanted[: frame.used[0], : frame.used[1]]) > 0.998
    if max(size) > 66:
        assert same(found, whole[: frame.used[0], : frame.used[1]]) < 0.99, "one pass over all of it would look alike"


@pytest.mark.parametrize("options", [{}, {"scales": (0.75, 1.0), "flip": True}], ids=str)
def test_neighbours_in_a_batch_do_not_matter(options: dict[str, object]) -> None:
    model = build("seg")
    pictures = [picture(size, seed) for seed, size in enumerate([(40, 50), (100, 70), (SIZE, SIZE), (20, 140)])]
    alone = [segment(model, [image], **options)[0] for image in pictures]
    for found, wanted in zip(segment(model, pictures, **options), alone, strict=True):
        assert_close(found, wanted, rtol=0, atol=0)
    for found, wanted in zip(segment(model, pictures[::2], **options), alone[::2], strict=True):
        assert same(found, wanted) > 0.998
    # what fills up a smaller picture in the batch is never looked at
    images, frames = batch(model, pictures)
    images[0, :, SIZE:], images[0, :, :, SIZE:] = 255, 255
    assert_close(model.predict(images, frames, **options)["seg"][0].mask, alone[0], rtol=0, atol=0)


@pytest.mark.parametrize("fits", ["stretch", "letterbox"])
def test_scaled_pictures_are_never_seen_in_windows(fits: Fit) -> None:
    model, image = build("seg", fit=fits), picture((200, 150))
    images, (frame,) = batch(model, [image])
    assert images.shape[-2:] == (SIZE, SIZE)
    (found,) = segment(model, [image])
    with torch.no_grad():
        maps = by_hand(model, model.normalize(images), (1.0,), False, of="logits")
    maps = F.interpolate(maps[..., : frame.used[0], : frame.used[1]], (200, 150), mode="bilinear", align_corners=False)
    assert same(found, maps[0].argmax(dim=0)) > 0.998


def part_of(joint: Model, task: str, stride: int, padding: str) -> Model:
    """A model of one task with the joint one's weights."""
    preprocess = joint.preprocess
    alone = build(task, stride=stride, padding=padding, fit=preprocess.fit, size=preprocess.input_size)
    alone.load_state_dict({name: tensor for name, tensor in joint.state_dict().items() if name in alone.state_dict()})
    return alone.eval()


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("fits", ["stretch", "pad"])
def test_a_joint_model_finds_what_models_of_one_task_find(padding: str, stride: int, fits: Fit) -> None:
    # maps of an even and an odd size: with SAME padding they are read at other positions
    joint = build("det", "seg", stride=stride, padding=padding, fit=fits, size=(64, SIZE))
    boxes, masks = part_of(joint, "det", 32, padding), part_of(joint, "seg", stride, padding)
    assert masks.backbone.last is None
    images, frames = batch(joint, [picture((100, 90) if fits == "stretch" else (60, 50), seed) for seed in (1, 2)])
    with torch.no_grad():
        ours, theirs = joint(joint.normalize(images))["det"], boxes(boxes.normalize(images))["det"]
    assert ours["logits"].std() > 0.1
    for key in ("logits", "codes", "anchors"):
        assert_same_numbers(ours[key], theirs[key], key)
    found, alone = joint.predict(images, frames), boxes.predict(images, frames)["det"]
    for mine, other, frame in zip(found["det"], alone, frames, strict=True):
        assert isinstance(mine, Detections)
        assert len(mine.boxes) > 5
        sides = torch.tensor(frame.size[::-1] * 2)
        assert_close(mine.boxes / sides, other.boxes / sides, rtol=1e-5, atol=1e-5)
        assert_close(mine.scores, other.scores, rtol=1e-5, atol=1e-5)
        assert_close(mine.labels, other.labels, rtol=0, atol=0)
    for mine, other in zip(found["seg"], masks.predict(images, frames)["seg"], strict=True):
        assert isinstance(mine, Segmentation)
        assert_close(mine.mask, other.mask, rtol=0, atol=0)
    again = joint.predict(images, frames, scales=(0.75, 1.0), flip=True)
    assert_close(again["det"][0].boxes, found["det"][0].boxes, rtol=0, atol=0)
    again["det"] = boxes.predict(images, frames, scales=(0.75, 1.0), flip=True)["det"]
    assert_close(again["det"][0].boxes, alone[0].boxes, rtol=0, atol=0)
    several = masks.predict(images, frames, scales=(0.75, 1.0), flip=True)
    assert_close(again["seg"][1].mask, several["seg"][1].mask, rtol=0, atol=0)


def test_a_joint_model_sees_a_larger_picture_in_windows_for_its_masks_alone() -> None:
    joint = build("det", "seg")
    masks, image = part_of(joint, "seg", 16, "same"), picture((100, 150))
    images, frames = batch(joint, [image, picture((30, 30), 1)])
    found = joint.predict(images, frames)
    assert list(found) == ["det", "seg"]
    assert_close(found["seg"][0].mask, segment(masks, [image])[0], rtol=0, atol=0)
    for result, (height, width) in zip(found["det"], [(100, 150), (30, 30)], strict=True):
        assert len(result.boxes) > 0
        assert (result.boxes <= torch.tensor([width, height, width, height])).all()
