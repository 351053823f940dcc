"""Trains a peer of configs/deeplabv3_camvid.yaml: segmentation_models_pytorch's DeepLabV3, same data, same minutes.

    pip install segmentation_models_pytorch
    python benchmarks/smp_deeplab.py configs/deeplabv3_camvid.yaml data.root=DATA --minutes 12

Its mobilenet_v2 encoder gets the config's weights, with their padding and epsilon. Pictures, their order, crops,
optimizer, precision, weight average and loss (cross-entropy) are the config's; the schedule covers the steps that fit
into the minutes. As everywhere in this project, minutes leave out evaluation.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnv2det.config import load_config
from mnv2det.data.loader import ResumableSampler, eval_loader, train_loader
from mnv2det.engine.average import average_of
from mnv2det.engine.build import build_augmentation, build_dataset, build_model, task_classes
from mnv2det.engine.optim import build_optimizer
from mnv2det.evaluation.miou import MeanIoU
from mnv2det.models.layers import Conv, ConvNorm, Padding
from mnv2det.models.mobilenet_v2 import MobileNetV2
from mnv2det.models.weight_file import read_weights
from mnv2det.structures import IGNORE, Segmentation


class Peer(nn.Module):
    """The peer's model, with the attribute names by which the optimizer groups parameters."""

    def __init__(self, classes: int, stride: int) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        model = smp.DeepLabV3("mobilenet_v2", encoder_weights=None, classes=classes, encoder_output_stride=stride)
        self.backbone, self.heads = model.encoder, nn.Sequential(model.decoder, model.segmentation_head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) at the size of the images."""
        maps = self.heads[1](self.heads[0](self.backbone(images)))
        size = (images.shape[-2], images.shape[-1])
        return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def whole_backbone(path: str) -> MobileNetV2:
    """Builds the backbone of a weight file up to its 1280 channels, which the peer reads."""
    tensors, header = read_weights(path)
    args = {key: header.backbone["args"][key] for key in ("width", "padding", "norm_eps")}
    backbone = MobileNetV2(**args)
    start = "backbone."
    backbone.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    return backbone


def load_backbone(peer: Peer, ours: MobileNetV2) -> None:
    """Copies convolutions and norms with padding and epsilon; both models list them in the order of the network."""
    mine = [module for module in ours.modules() if isinstance(module, ConvNorm)]
    convs = [(name, module) for name, module in peer.backbone.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in peer.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(mine) == len(convs) == len(norms)
    for block, (name, conv), norm in zip(mine, convs, norms, strict=True):
        conv.weight.data.copy_(block.conv.weight.data)
        norm.load_state_dict(block.norm.state_dict())
        norm.eps, norm.momentum = block.norm.eps, block.norm.momentum
        if conv.stride != (1, 1) and block.conv.pads_by_size:
            pad: Padding = "same"
            padded = Conv(conv.in_channels, conv.out_channels, 3, stride=2, groups=conv.groups, pad=pad)
            padded.weight = conv.weight
            peer.backbone.set_submodule(name, padded)


@torch.no_grad()
def measure(model: nn.Module, ours, dataset, config) -> dict[str, float]:
    """Computes the mIoU in the original size of the pictures."""
    evaluator = MeanIoU(classes=dataset.classes["mask"])
    loader = eval_loader(dataset, ours.preprocess, batch_size=8, workers=2, bad_data=config.data.bad_data)
    model.eval()
    for batch in loader:
        logits = model(ours.normalize(batch.images)).float()
        for image_id, frame, maps, truth in zip(batch.image_ids, batch.frames, logits, batch.truths, strict=True):
            height, width = frame.used
            maps = F.interpolate(maps[None, :, :height, :width], frame.size, mode="bilinear", align_corners=False)
            evaluator.update(image_id, Segmentation(maps[0].argmax(0).to(torch.uint8)), truth)
    return evaluator.compute()


def main() -> None:
    """Trains the peer and prints its metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the YAML of the segmenter")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    parser.add_argument("--minutes", type=float, default=12, help="of training (default: %(default)s)")
    parser.add_argument("--output-stride", type=int, default=8, choices=(8, 16), help="the peer's own default is 8")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: the config's")
    parser.add_argument("--steps", type=int, help="only time this many steps")
    given = parser.parse_args()
    config = load_config(given.config, given.overrides)
    torch.manual_seed(config.seed)
    data = build_dataset(config, "train")
    ours = build_model(config, task_classes(config, data))
    peer = Peer(len(data.classes["mask"]), given.output_stride)
    load_backbone(peer, whole_backbone(str(config.model.weights)))
    peer = peer.to(memory_format=torch.channels_last)
    weights = config.tasks["seg"].head.args.get("class_weights")
    weights = None if weights is None else torch.tensor(weights)
    name = given.precision or config.train.amp.value
    precision = torch.bfloat16 if name == "bf16" else torch.float32

    def run(steps: int, seconds: float) -> tuple[nn.Module, int, float]:
        sampler = ResumableSampler(len(data), config.data.batch_size, seed=config.seed, start=0, stop=steps)
        transform = build_augmentation(config, ours)
        loader = train_loader(data, transform, sampler, workers=config.data.workers, bad_data=config.data.bad_data)
        optimizer, schedule = build_optimizer(peer, config.optim, steps)
        average = average_of(peer, config.train.ema_decay or 0.99, warmup=True)
        peer.train()
        done, started = 0, time.perf_counter()
        for batch in loader:
            inputs = ours.normalize(batch.images).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
                logits = peer(inputs)
            masks = torch.stack([target["mask"] for target in batch.targets])
            F.cross_entropy(logits.float(), masks, weights, ignore_index=IGNORE).backward()
            nn.utils.clip_grad_norm_(peer.parameters(), config.optim.clip_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            average.update_parameters(peer)
            done += 1
            if time.perf_counter() - started > seconds:
                break
        return average.module, done, time.perf_counter() - started

    state = {name: value.clone() for name, value in peer.state_dict().items()}
    run(3, 1e9)  # the first steps are slower
    _, steps, seconds = run(given.steps or 10, 1e9)  # to know how many steps fit into the minutes
    print(f"{name}, output stride {given.output_stride}: {seconds / steps:.2f} s/step", file=sys.stderr)
    if given.steps:
        return
    peer.load_state_dict(state)
    steps = max(10, int(given.minutes * 60 / (seconds / steps)))
    model, done, seconds = run(steps, given.minutes * 60)
    metrics = measure(model, ours, build_dataset(config, "val", data.classes), config)
    print(
        json.dumps({"steps": done, "minutes": round(seconds / 60, 2), **{k: round(v, 4) for k, v in metrics.items()}})
    )


if __name__ == "__main__":
    main()
