"""``--accuracy`` of export and bench measures what ``eval`` measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import HEADS
from torch import nn

import mnv2det.models  # noqa: F401 - registers
from mnv2det.commands.accuracy import LabelledSet
from mnv2det.commands.evaluate import evaluate_source
from mnv2det.data.fit import fit
from mnv2det.data.shapes import Shapes
from mnv2det.errors import ConfigError, DataError
from mnv2det.models.build import assemble, from_file
from mnv2det.models.weight_file import save_weights
from mnv2det.structures import Preprocess, Sample, TaskResult

CONFIG = """
model: {input_size: [64, 80]}
tasks:
  seg: {head: {name: mobile_deeplab, args: {channels: 16}}, evaluator: {name: miou}}
data:
  train: {name: shapes, args: {count: 4}}
  val: {name: shapes, args: {count: 6, size: [60, 90], split: val}}
  batch_size: 4
  workers: 1
optim: {optimizer: {name: sgd, args: {lr: 0.1}}}
train: {steps: 1}
"""
LOOKS = ["test.scales=[0.75,1.0,1.25]", "test.flip=true"]


class TorchPredictor:
    """A model whose `batch` is called as that of `Predictor` is."""

    def __init__(self, path: Path) -> None:
        self.model, _ = from_file(str(path))
        self.heads, self.classes = dict(self.model.heads.items()), self.model.classes

    def batch(
        self, pictures: list[NDArray[np.uint8]], *, scales: tuple[float, ...] = (1.0,), flip: bool = False
    ) -> list[dict[str, TaskResult]]:
        (picture,) = pictures
        pixels, frame = fit(picture, self.model.preprocess)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        found = self.model.predict(images, [frame], scales=scales, flip=flip)
        return [{task: results[0] for task, results in found.items()}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained segmenter whose predictions change with scale and mirroring."""
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 16}},
        {"seg": HEADS["seg"]},
        classes={"seg": Shapes(count=1).classes["mask"]},
        preprocess=Preprocess((64, 80)),
    )
    data, head = Shapes(count=4, size=(64, 80)), model.heads["seg"]
    images = torch.stack([torch.from_numpy(data.read(index).image).permute(2, 0, 1) for index in range(4)])
    with torch.no_grad():
        # statistics of real inputs, and classes of equal frequency, so that predictions depend on the picture
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # averages
        model.train()(model.normalize(images))
        nn.init.normal_(head.classify.weight)
        head.classify.bias -= model.eval()(model.normalize(images))["seg"]["logits"].mean(dim=(0, 2, 3))
    path = tmp_path_factory.mktemp("weights") / "seg.safetensors"
    save_weights(path, model.state_dict(), model.header())
    (path.parent / "config.yaml").write_text(CONFIG)
    return path


@pytest.mark.heavy
def test_scales_and_mirror_images_of_the_config_count_as_in_eval(weights: Path) -> None:
    config, predictor = weights.parent / "config.yaml", TorchPredictor(weights)
    metrics = {}
    for looks in ([], LOOKS):
        labelled = LabelledSet(config, looks, predictor)  # type: ignore[arg-type]
        evaluated = evaluate_source(config, looks, weights=weights, device="cpu")["metrics"]
        metrics[len(looks)] = labelled.measure(predictor.batch)
        # batches of another size are rounded otherwise, by which single pixels change their class
        assert metrics[len(looks)] == pytest.approx(evaluated, abs=2e-3)
    assert abs(metrics[0]["seg/mIoU"] - metrics[2]["seg/mIoU"]) > 5e-3, "else this test could not fail"
    assert labelled.main_metrics() == ["seg/mIoU"]


def test_a_config_of_other_tasks_is_refused(weights: Path) -> None:
    other = ["tasks={det: {head: {name: ssdlite}, evaluator: {name: coco}}}"]
    with pytest.raises(ConfigError, match=r"the model: has heads \['seg'\], the config has tasks \['det', 'seg'\]"):
        LabelledSet(weights.parent / "config.yaml", other, TorchPredictor(weights))  # type: ignore[arg-type]


def test_a_set_of_which_nothing_can_be_read_measures_nothing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Shapes, index: int) -> Sample:
        raise DataError(f"image {index} is broken")

    monkeypatch.setattr(Shapes, "read", broken)
    predictor = TorchPredictor(weights)
    config = weights.parent / "config.yaml"
    skipping = LabelledSet(config, ["data.bad_data=skip"], predictor)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"config\.yaml: data\.val: not one picture can be read"):
        skipping.measure(predictor.batch)
    with pytest.raises(DataError, match=r"^image 0 is broken$"):
        LabelledSet(config, [], predictor).measure(predictor.batch)  # type: ignore[arg-type]
