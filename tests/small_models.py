"""Tiny models whose results are not all alike, and pictures for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mnv2det.models  # noqa: F401 - registers
from mnv2det.models.build import assemble
from mnv2det.models.weight_file import save_weights
from mnv2det.structures import Fit, Preprocess

HEADS: dict[str, dict[str, Any]] = {
    "det": {
        "name": "ssdlite",
        "args": {"extras": [16, 16], "init_std": None, "prior": None, "score_threshold": 0.3, "nms_iou": 0.5},
    },
    "seg": {"name": "mobile_deeplab", "args": {"channels": 16}},
    "cls": {"name": "classifier", "args": {}},
}
CLASSES = {
    "det": ["cat", "dog"],
    "seg": ["background", "road", "sky", "tree"],
    "cls": ["one", "two", "three"],
}


def weights(folder: Path, *tasks: str, fit: Fit = "stretch", size: tuple[int, int] = (96, 128)) -> Path:
    """A weight file of a model with these tasks."""
    torch.manual_seed(0)
    model = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 16 if "seg" in tasks else 32}},
        {task: HEADS[task] for task in tasks},
        classes={task: CLASSES[task] for task in tasks},
        preprocess=Preprocess(size, fit=fit),
    )
    with torch.no_grad():
        # statistics as of real inputs, so that what deep layers say depends on the picture
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.5
        for seed in range(6):
            images = torch.stack([torch.from_numpy(picture(*size, 4 * seed + n)).permute(2, 0, 1) for n in range(4)])
            raw = model(model.normalize(images))
        model.eval()
        if "seg" in tasks:
            head = model.heads["seg"]
            nn.init.normal_(head.classify.weight)  # type: ignore[union-attr,arg-type]
            raw = model(model.normalize(images))
            head.classify.bias -= raw["seg"]["logits"].mean(dim=(0, 2, 3))  # type: ignore[union-attr,operator]
    path = folder / f"{'_'.join(tasks)}_{fit}.safetensors"
    save_weights(path, model.state_dict(), model.header())
    return path


def scramble(module: nn.Module) -> None:
    """Batch norms with statistics of their own, as after training."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.8, 1.6)
            nn.init.normal_(layer.bias, std=0.3)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of colour with some noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 220, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    blocks = small.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return blocks + rng.integers(0, 30, (height, width, 3), dtype=np.uint8)
