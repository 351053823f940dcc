"""Measures whether the authors' NMS of .99 among hard-negative candidates changes which negatives are chosen.

    python benchmarks/mining_nms.py RUN [key=value ...] [--batches 5]

Chooses hard negatives on a run's validation pictures with its weights, with and without that NMS, and prints how many
of them are the same and how much time the NMS takes.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torchvision.ops import nms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnv2det.config import load_config
from mnv2det.data.loader import eval_loader
from mnv2det.engine.build import build_dataset
from mnv2det.models.build import from_file, weights_of
from mnv2det.models.ssdlite import SSDLite
from mnv2det.ops.boxes import decode
from mnv2det.ops.losses import anchor_class_loss, hardest
from mnv2det.ops.matcher import NEGATIVE, match, pad_targets


@torch.no_grad()
def main() -> None:
    """Prints how many negatives are the same, and the time of the NMS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of its config")
    parser.add_argument("--batches", type=int, default=5, help="number of batches of 8 pictures (default: %(default)s)")
    given = parser.parse_args()
    config = load_config(Path(given.run) / "config.yaml", given.overrides)
    model, _ = from_file(str(weights_of(given.run)))
    task, head = next((name, head) for name, head in model.heads.items() if isinstance(head, SSDLite))
    data = build_dataset(config, "val", model.classes[task])
    loader = eval_loader(data, model.preprocess.input_size, batch_size=8, workers=0, bad_data=config.data.bad_data)
    chosen = same = 0
    seconds = []
    for _, batch in zip(range(given.batches), loader, strict=False):
        raw = model(model.normalize(batch.images))[task]
        boxes, labels, ignore, valid = pad_targets(batch.targets, torch.device("cpu"))
        matched = match(raw["anchors"], boxes, valid, ignore, threshold=head.match_iou)
        positive, negative = matched >= 0, matched == NEGATIVE
        classes = torch.where(positive, labels.gather(1, matched.clamp(min=0)) + 1, 0)
        loss = anchor_class_loss(raw["logits"], classes, softmax=head.softmax)
        count = (positive.sum(1) * head.negatives).long().clamp(min=head.min_negatives)
        plain, found = hardest(loss, negative, count), decode(raw["codes"], raw["anchors"])
        started = time.perf_counter()
        kept = torch.zeros_like(negative)
        for image in range(len(found)):
            kept[image, nms(found[image], loss[image], 0.99)] = True
        seconds.append(time.perf_counter() - started)
        mined = hardest(loss, negative & kept, count)
        chosen, same = chosen + int(plain.sum()), same + int((plain & mined).sum())
    print(f"{same} of {chosen} negatives are the same; the NMS takes {min(seconds) * 1e3:.0f} ms a batch of 8 at best")


if __name__ == "__main__":
    main()
