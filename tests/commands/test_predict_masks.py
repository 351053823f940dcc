from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import mnv2det.models  # noqa: F401 - registers
from mnv2det.commands.predict.run import predict
from mnv2det.data.images import read_image
from mnv2det.errors import DataError
from mnv2det.models.build import assemble
from mnv2det.models.weight_file import save_weights
from mnv2det.report.draw import draw_detections, draw_mask, encode, palette
from mnv2det.runtime.predictor import Predictor
from mnv2det.structures import Detections, Preprocess

HEADS = {
    "det": {"name": "ssdlite", "args": {"extras": [16, 16], "init_std": None, "prior": None}},
    "seg": {"name": "mobile_deeplab", "args": {"channels": 16}},
}
CLASSES = {"det": ["cat", "dog"], "seg": ["background", "road", "sky", "tree"]}


def weights(folder: Path, *tasks: str) -> Path:
    """A tiny model of these tasks whose masks show several classes."""
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 16}},
        {task: HEADS[task] for task in tasks},
        classes={task: CLASSES[task] for task in tasks},
        preprocess=Preprocess((65, 65), fit="pad"),
    ).eval()
    if "seg" in tasks:
        head = model.heads["seg"]
        with torch.no_grad():
            nn.init.normal_(head.classify.weight)
            images = torch.from_numpy(picture(65, 65)).permute(2, 0, 1)[None]
            head.classify.bias -= model(model.normalize(images))["seg"]["logits"].mean(dim=(0, 2, 3))
    path = folder / f"{'_'.join(tasks)}.safetensors"
    save_weights(path, model.state_dict(), model.header())
    return path


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return small.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(weights(tmp_path_factory.mktemp("weights"), "seg"))


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(weights(tmp_path_factory.mktemp("weights"), "seg", "det"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Of several sizes and suffixes; one stem twice, one larger than the input."""
    folder = tmp_path / "pictures"
    sizes = {"a/x.png": (50, 60), "b/x.bmp": (65, 65), "b/x_2.png": (30, 100), "large.png": (120, 110)}
    for seed, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture(*size, seed), Path(name).suffix))
    return folder


def written(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def run(source: str, inputs: Path, out: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    summary = predict(source, [str(inputs)], output=str(out), **options)
    return summary, json.loads((out / "predictions.json").read_text())


def test_masks_are_palette_pictures_of_class_ids(segmenter: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary, found = run(segmenter, pictures, out, batch_size=3)
    assert (summary["images"], summary["detections"], summary["failed"]) == (4, 0, [])
    names = ["x.png", "x_2.bmp", "x_2_2.png", "large.png"]
    masks = [f"masks/{Path(name).stem}.png" for name in names]
    assert written(out) == {"predictions.json", *names, *masks}
    assert (found["annotations"], found["categories"]) == ([], [])
    predictor, seen = Predictor(segmenter), set()
    for entry, name, mask in zip(found["images"], names, masks, strict=True):
        image = read_image(entry["file_name"])
        wanted = predictor(entry["file_name"])["seg"].mask.numpy()
        assert entry["mask"] == mask
        assert (entry["height"], entry["width"]) == image.shape[:2]
        with PIL.Image.open(out / mask) as file:
            assert file.mode == "P"
            assert file.getpalette() == palette().ravel().tolist()
            # a batch rounds otherwise than a picture by itself
            assert (np.array(file) == wanted).mean() > 0.998
            shown = np.array(file)
        drawn = read_image(out / name)
        np.testing.assert_array_equal(drawn, draw_mask(image, shown, CLASSES["seg"]))
        assert not np.array_equal(drawn, image)
        assert sum(entry["pixels"].values()) == pytest.approx(1, abs=1e-4)
        shares = {CLASSES["seg"][label]: (shown == label).mean() for label in np.unique(shown)}
        assert entry["pixels"] == pytest.approx(shares, abs=1e-5)
        seen |= set(entry["pixels"])
    assert len(seen) > 2


def test_a_joint_model_draws_boxes_over_masks(joint: str, pictures: Path, tmp_path: Path) -> None:
    image, result = read_image(pictures / "a/x.png"), Predictor(joint)(pictures / "a/x.png", threshold=0)
    boxes, mask = result["det"], result["seg"].mask.numpy()
    assert isinstance(boxes, Detections)
    out, threshold = tmp_path / "out", float(boxes.scores.median())
    summary, found = run(joint, pictures / "a", out, threshold=threshold)
    assert written(out) == {"predictions.json", "x.png", "masks/x.png"}
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    kept = boxes.scores >= threshold
    assert 0 < summary["detections"] == len(found["annotations"]) == int(kept.sum()) < len(boxes.scores)
    (entry,) = found["images"]
    assert {row["image_id"] for row in found["annotations"]} == {entry["id"]}
    assert sum(entry["pixels"].values()) == pytest.approx(1, abs=1e-4)
    with PIL.Image.open(out / "masks/x.png") as file:
        np.testing.assert_array_equal(np.array(file), mask)
    tinted = draw_mask(image, mask, CLASSES["seg"])
    drawn = draw_detections(tinted, boxes, CLASSES["det"], threshold=threshold)
    assert not np.array_equal(drawn, tinted)
    np.testing.assert_array_equal(read_image(out / "x.png"), drawn)


def test_without_pictures_the_masks_are_still_written(segmenter: str, pictures: Path, tmp_path: Path) -> None:
    _, found = run(segmenter, pictures / "b", tmp_path / "out", pictures=False)
    assert written(tmp_path / "out") == {"predictions.json", "masks/x.png", "masks/x_2.png"}
    assert [entry["mask"] for entry in found["images"]] == ["masks/x.png", "masks/x_2.png"]


def test_a_broken_picture_leaves_the_others_their_names(segmenter: str, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a/y.png").write_bytes(b"\x89PNG but no more")
    summary, found = run(segmenter, pictures, tmp_path / "out", batch_size=2)
    assert len(summary["failed"]) == 1
    assert "y.png" in summary["failed"][0]
    assert [entry["mask"] for entry in found["images"]] == [f"masks/{n}.png" for n in ("x", "x_2", "x_2_2", "large")]
    for entry in found["images"]:
        with PIL.Image.open(tmp_path / "out" / entry["mask"]) as file:
            assert file.size == (entry["width"], entry["height"])
    assert "y.png" not in written(tmp_path / "out")


@pytest.mark.parametrize(
    ("inputs", "out", "options"),
    [
        ("a", "a", {}),
        ("a/x.png", "b/../a", {}),
        ("masks", ".", {}),
        ("masks/z.png", ".", {"pictures": False}),
        ("masks/link.png", "a", {}),
    ],
    ids=["its own folder", "by another way", "the folder of masks", "masks alone", "through a link"],
)
def test_pictures_are_never_overwritten(
    segmenter: str, pictures: Path, inputs: str, out: str, options: dict[str, bool]
) -> None:
    (pictures / "masks").mkdir()
    for name in ("z.png", "link.png"):
        (pictures / "masks" / name).write_bytes((pictures / "a/x.png").read_bytes())
    if inputs.endswith("link.png"):
        (pictures / "masks/link.png").unlink()
        (pictures / "a/masks").mkdir()
        (pictures / "a/masks/link.png").write_bytes((pictures / "a/x.png").read_bytes())
        (pictures / "masks/link.png").symlink_to(pictures / "a/masks/link.png")
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="would overwrite the picture") as caught:
        predict(segmenter, [str(pictures / inputs)], output=str(pictures / out), **options)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_named(segmenter: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").write_text("in the way")
    with pytest.raises(DataError, match="masks: cannot write") as caught:
        predict(segmenter, [str(pictures / "a")], output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_a_mask_is_not_written_over_a_picture_that_is_read(segmenter: str, tmp_path: Path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(encode(picture(40, 60), ".png"))
    with pytest.raises(DataError, match=r"would overwrite the picture .*masks/a\.png"):
        predict(segmenter, [str(tmp_path / "masks")], output=str(tmp_path))
    assert predict(segmenter, [str(tmp_path / "masks")], output=str(tmp_path), formats=["json"])["images"] == 1


def test_tasks_of_a_kind_have_ids_and_folders_of_their_own(tmp_path: Path):
    parts = {"one": "det", "two": "det", "low": "seg", "high": "seg"}
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 16}},
        {task: HEADS[kind] for task, kind in parts.items()},
        classes={task: CLASSES[kind] for task, kind in parts.items()},
        preprocess=Preprocess((65, 65)),
    ).eval()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), model.header())
    (tmp_path / "a.png").write_bytes(encode(picture(40, 60), ".png"))
    predict(str(tmp_path / "w.safetensors"), [str(tmp_path / "a.png")], output=str(tmp_path / "out"), threshold=0.0)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in found["categories"]] == [
        (1, "cat"),
        (2, "dog"),
        (3, "cat"),
        (4, "dog"),
    ]
    assert {row["category_id"] for row in found["annotations"]} == {1, 2, 3, 4}
    assert found["mask_classes"] == {"low": CLASSES["seg"], "high": CLASSES["seg"]}
    for task in ("low", "high"):
        assert found["images"][0][task]["mask"] == f"masks/{task}/a.png"
        assert (tmp_path / "out" / "masks" / task / "a.png").is_file()
