"""Times `Predictor` beside what people run today: from a decoded picture to a list of detections, on one CPU.

    pip install 'mnv2det[export]'
    python benchmarks/peers.py RUN --images FOLDER --calibrate FOLDER

The peers are torchvision's ssdlite320_mobilenet_v3_large in eager mode (with random weights, and biases such that its
scores are distributed like the run's), torchvision's SSD class on the run's own network and weights, and a bare
onnxruntime session on the run's raw export with post-processing as one writes it by hand. All get the same pictures,
thresholds and threads, and run in turn in the same order. The table shows medians, and ratios to the first peer of the
same round.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD

from mnv2det import Predictor
from mnv2det.commands.export import CALIBRATION, read_some
from mnv2det.data.fit import fit
from mnv2det.data.images import list_images, read_image
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.models.build import from_file, weights_of
from mnv2det.models.depthwise import has_bf16_kernels
from mnv2det.runtime.base import writer

Run = Callable[[np.ndarray], int]


class Levels(nn.Module):
    """The run's backbone and extra levels, as torchvision's SSD reads them."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, (self.task,) = model, model.heads

    def forward(self, images):
        """Six levels by number."""
        head = self.model.heads[self.task]
        features = self.model.backbone(images, self.model.taps)
        levels = [features[tap] for tap in head.taps[1:]]
        for extra in head.extras:
            levels.append(extra(levels[-1]))
        return OrderedDict((str(number), level) for number, level in enumerate(levels))


class Predictors(nn.Module):
    """The run's predictors as the head of torchvision's SSD."""

    def __init__(self, head) -> None:
        super().__init__()
        self.head = head

    def forward(self, levels):
        """Logits and codes."""

        def flat(maps, values):
            return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)

        head = self.head
        return {
            "cls_logits": torch.cat(
                [flat(p(x), head.classes + 1) for p, x in zip(head.class_predictors, levels, strict=True)], 1
            ),
            "bbox_regression": torch.cat([flat(p(x), 4) for p, x in zip(head.box_predictors, levels, strict=True)], 1),
        }


class Anchors(nn.Module):
    """The run's anchors in place of torchvision's."""

    def __init__(self, head, size) -> None:
        super().__init__()
        self.register_buffer("boxes", head.constants(size)["anchors"])

    def forward(self, images, levels):
        """The same for each picture."""
        return [self.boxes for _ in images.image_sizes]


def torchvision_run(model) -> Run:
    """Eager mode, as its documentation shows."""
    model = model.eval()

    @torch.inference_mode()
    def run(image: np.ndarray) -> int:
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return len(model([tensor])[0]["scores"])

    return run


def torchvision_ssd(model, threshold: float, iou: float, most: int) -> nn.Module:
    """Torchvision's SSD class around the run's network."""
    (head,) = model.heads.values()
    size = model.preprocess.input_size
    return SSD(
        Levels(model),
        Anchors(head, size),
        (size[1], size[0]),
        head.classes + 1,
        head=Predictors(head),
        score_thresh=threshold,
        nms_thresh=iou,
        detections_per_img=most,
        image_mean=list(model.preprocess.mean),
        image_std=list(model.preprocess.std),
    )


def torchvision_v3(classes: int, share: float, threshold: float, iou: float, most: int) -> nn.Module:
    """Torchvision's own model; a share of its scores lies above the threshold."""
    model = ssdlite320_mobilenet_v3_large(
        weights=None,
        weights_backbone=None,
        num_classes=classes + 1,
        score_thresh=threshold,
        nms_thresh=iou,
        detections_per_img=most,
    ).eval()
    found = []
    listening = model.head.classification_head.register_forward_hook(lambda module, inputs, out: found.append(out))
    noise = torch.rand(4, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train(False)
        model(list(noise))
        listening.remove()
        logits = torch.cat([output.flatten(0, 1) for output in found])
        # noise of its own per anchor and class, scaled so that the wanted share passes
        spread = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        want = float(np.log(threshold / (1 - threshold)))
        top = float(torch.quantile(spread[:, 1:].flatten()[:1000000], 1 - share))
        offset = spread[: len(found[0][0])] + (want - top)
        offset[:, 0] = 0.0
    model.head.classification_head.register_forward_hook(lambda module, inputs, output: output * 0 + offset)
    return model


def by_hand(path: Path, header, head, threshold: float, iou: float, threads: int) -> Run:
    """A bare onnxruntime session, all scores and boxes computed, then a loop over the classes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    anchors = head.constants(header.preprocess.input_size)["anchors"].numpy()
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + sizes / 2

    def run(image: np.ndarray) -> int:
        pixels, frame = fit(image, header.preprocess)
        found = dict(zip(names, session.run(names, {"image": pixels[None]}), strict=True))
        logits, codes = (next(v[0] for k, v in found.items() if k.endswith(part)) for part in ("logits", "codes"))
        if head.softmax:
            scores = np.exp(logits - logits.max(1, keepdims=True))
            scores /= scores.sum(1, keepdims=True)
        else:
            scores = 1 / (1 + np.exp(-logits))
        middle = centres + codes[:, :2] / 10 * sizes
        half = sizes * np.exp(codes[:, 2:] / 5) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        factor = np.array([frame.size[1] / frame.used[1], frame.size[0] / frame.used[0]] * 2, np.float32)
        boxes = (boxes * factor).astype(np.float32)
        kept = []
        private = scores.shape[1] - head.classes  # the background, where the export has it
        for label in range(private, scores.shape[1]):
            rows = np.flatnonzero(scores[:, label] > threshold)
            if len(rows) == 0:
                continue
            wide = np.concatenate([boxes[rows, :2], boxes[rows, 2:] - boxes[rows, :2]], axis=1)
            chosen = cv2.dnn.NMSBoxes(wide.tolist(), scores[rows, label].tolist(), threshold, iou)
            kept += [(scores[row, label], label - private, boxes[row]) for row in rows[np.asarray(chosen, int)]]
        kept.sort(key=lambda item: -item[0])
        return len(kept[: head.detection_settings.max_detections])

    return run


def main() -> None:
    """Prints a table for each threshold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a run folder or weight file with a detector")
    parser.add_argument("--images", required=True, help="folder of pictures; they are resized to 640x480")
    parser.add_argument("--calibrate", help="folder of pictures to calibrate int8 on; without it int8 is left out")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.01, 0.3], help="default: 0.01 0.3")
    parser.add_argument("--iou", type=float, default=0.6, help="of NMS (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="predictions in a round (default: %(default)s)")
    parser.add_argument("--json", help="also write the tables to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    files = list_images(given.images)[:16]
    pictures = [cv2.resize(read_image(file), (640, 480), interpolation=cv2.INTER_AREA) for file in files]
    weights = weights_of(given.source)
    with tempfile.TemporaryDirectory() as folder:
        model, header = from_file(str(weights))
        if len(model.heads) != 1:
            sys.exit("this benchmark takes a model with a detector alone")
        paths = {"fp32": Path(folder) / "m.onnx", "int8": Path(folder) / "m8.onnx"}
        program, runtime = ExportProgram(model, ExportMetadata(header, "raw")), writer(paths["fp32"])
        runtime.write(program, paths["fp32"])
        if given.calibrate:
            problems: list[str] = []
            runtime.write(program.quantize(read_some(given.calibrate, CALIBRATION, problems)), paths["int8"])
            for problem in problems:
                print(problem, file=sys.stderr)
        report = [measure(given, weights, paths, pictures, threshold) for threshold in given.thresholds]
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=2))


def measure(given, weights: Path, paths: dict[str, Path], pictures: list[np.ndarray], threshold: float) -> dict:
    """One table."""
    model, header = from_file(str(weights))
    (task,), (head,) = model.heads.keys(), model.heads.values()
    heads = {task: {"score_threshold": threshold, "nms_iou": given.iou, "max_detections": 100}}
    share = candidates(model, pictures, threshold)
    ours = {"torch, fp32": Predictor(weights, threads=given.threads, heads=heads)}
    for kind, path in paths.items():
        for backend in ("onnxruntime", "openvino") if path.is_file() else ():
            ours[f"{backend}, {kind}"] = Predictor(path, backend=backend, threads=given.threads, heads=heads)
    if has_bf16_kernels():
        ours["openvino, bf16"] = Predictor(
            paths["fp32"], backend="openvino", threads=given.threads, precision="bf16", heads=heads
        )
    head.detection_settings = dataclasses.replace(head.detection_settings, max_detections=100)
    runs: dict[str, Run] = {
        "torchvision ssdlite320_mobilenet_v3_large": torchvision_run(
            torchvision_v3(head.classes, share, threshold, given.iou, 100)
        ),
        "torchvision SSD class, this network": torchvision_run(torchvision_ssd(model, threshold, given.iou, 100)),
        "onnxruntime, post-processing by hand": by_hand(
            paths["fp32"], header, head, threshold, given.iou, given.threads
        ),
        **{f"mnv2det {name}": lambda image, p=p: len(p.batch([image])[0][task].scores) for name, p in ours.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    around: list[float] = []
    bare = bare_network(paths["fp32"], ours["openvino, fp32"])
    found = {}
    for turn in range(given.rounds):
        for name, run in runs.items():
            spent = []
            started = time.perf_counter()
            run(pictures[0])
            # of what takes seconds there are fewer
            few = int(2 / (time.perf_counter() - started))
            for number in range(-min(5, few), max(3, min(given.repeats, few))):
                picture = pictures[number % len(pictures)]
                started = time.perf_counter()
                count = run(picture)
                if number >= 0:
                    spent.append(time.perf_counter() - started)
                    found.setdefault(name, []).append(count)
            times[name].append(statistics.median(spent) * 1e3)
        around += surroundings(ours["openvino, fp32"], bare, pictures, given.repeats)
        print(f"round {turn + 1} of {given.rounds}", file=sys.stderr)
    peer = times["torchvision ssdlite320_mobilenet_v3_large"]
    print(f"\nscores above {threshold}, NMS {given.iou}, 100 detections, {given.threads} threads, 640x480")
    print(f"{'':44}{'ms':>8}{'ratio':>8}{'boxes':>8}")
    rows = {}
    for name, each in times.items():
        ratio = statistics.median(p / t for p, t in zip(peer, each, strict=True))
        rows[name] = {"ms": statistics.median(each), "ratio": ratio, "boxes": statistics.mean(found[name])}
        print(f"{name:44}{rows[name]['ms']:8.2f}{ratio:8.1f}{rows[name]['boxes']:8.1f}")
    print(f"{'all but the network (mnv2det openvino, fp32)':44}{statistics.median(around):8.2f}")
    print(f"share of scores above the threshold: {share:.5f}")
    return {"threshold": threshold, "rows": rows, "around_ms": statistics.median(around), "share": share}


def candidates(model, pictures: list[np.ndarray], threshold: float) -> float:
    """Share of the run's scores above the threshold."""
    (head,) = model.heads.values()
    passed = []
    with torch.no_grad():
        for picture in pictures:
            pixels, _ = fit(picture, model.preprocess)
            images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
            (raw,) = model(model.normalize(images)).values()
            logits = raw["logits"]
            scores = (logits.softmax(-1) if head.softmax else logits.sigmoid())[..., 1:]
            passed.append((scores > threshold).float().mean().item())
    return statistics.mean(passed)


def bare_network(path: Path, predictor: Predictor) -> Run:
    """The raw export in OpenVINO as the predictor sets it up, given what the network sees and nothing taken out."""
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    network.reshape([1, *predictor.preprocess.input_size, 3])
    request = core.compile_model(network, "CPU", predictor.session.settings).create_infer_request()

    def run(pixels: np.ndarray) -> int:
        request.infer({"image": pixels}, share_inputs=True, share_outputs=True)
        return 0

    return run


def surroundings(predictor: Predictor, bare: Run, pictures: list[np.ndarray], repeats: int) -> list[float]:
    """Milliseconds by which a prediction takes longer than the bare network does, in turns."""
    spent = []
    for number in range(-5, repeats):
        picture = pictures[number % len(pictures)]
        pixels, _ = predictor.prepare(picture)
        started = time.perf_counter()
        bare(pixels[None])
        ran = time.perf_counter()
        predictor.batch([picture])
        if number >= 0:
            spent.append((time.perf_counter() - ran - (ran - started)) * 1e3)
    return spent


if __name__ == "__main__":
    main()
