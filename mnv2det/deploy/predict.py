"""Predicting files and folders: annotated pictures, masks and a COCO-style json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mnv2det.data.images import EXTENSIONS, list_images, read_image
from mnv2det.deploy.predictor import Predictor, coco_results
from mnv2det.errors import DataError
from mnv2det.models.weights.files import write_atomically
from mnv2det.registry import HEADS
from mnv2det.report.draw import draw_detections, draw_mask, encode, encode_mask
from mnv2det.structures import Detections, Scores, Segmentation


def predict(
    source: str,
    inputs: Sequence[str],
    *,
    output: str,
    threshold: float = 0.3,
    batch_size: int = 8,
    pictures: bool = True,
    device: str | None = None,
) -> dict[str, Any]:
    """Predicts every picture and writes the results.

    A picture that cannot be read is listed and left out; the others are still done.

    Args:
        source: A run folder or a weight file.
        inputs: Files and folders.
        output: Folder for ``predictions.json``, the annotated pictures and, from a segmenter,
            ``masks/``: palette PNGs whose values are class ids.
        threshold: Least score that is drawn and written.
        batch_size: Pictures in one pass.
        pictures: Whether annotated pictures are written.
        device: As in `Predictor`.

    Returns:
        ``images`` done, ``detections`` written, ``output``, ``failed`` (one line each).

    Raises:
        DataError: No picture was given, or the folder cannot be written.
        WeightsError: As `Predictor`.
    """
    predictor = Predictor(source, device=device)
    files = [path for item in inputs for path in _expand(item)]
    folder = Path(output)
    names = _names(files)
    made = [folder / name for name in names if pictures] + [folder / "masks" / f"{name.stem}.png" for name in names]
    own = {path.resolve() for path in files} & {path.resolve() for path in made}
    if own:
        raise DataError(f"--out {output}: would overwrite the picture {sorted(own)[0]}; choose another folder")
    written: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories(predictor)}
    failed: list[str] = []
    bar = tqdm(total=len(files), unit="image", desc="predicting", disable=not sys.stderr.isatty())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chunk in _chunks(list(enumerate(files, 1)), batch_size):
            read = list(_readable(chunk, failed))
            for (number, path, image), found in zip(read, predictor.batch([image for *_, image in read]), strict=True):
                entry = {"id": number, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]}
                written["images"].append(entry)
                # masks lie below boxes
                for task, result in sorted(found.items(), key=lambda item: isinstance(item[1], Detections)):
                    if isinstance(result, Detections):
                        kept = result.scores >= threshold
                        result = Detections(result.boxes[kept], result.scores[kept], result.labels[kept])
                        written["annotations"] += coco_results(result, number)
                        if pictures:
                            image = draw_detections(image, result, predictor.classes[task])
                    elif isinstance(result, Segmentation):
                        mask = result.mask.cpu().numpy()
                        entry["mask"] = f"masks/{names[number - 1].stem}.png"
                        entry["pixels"] = _shares(mask, predictor.classes[task])
                        _write(folder / entry["mask"], encode_mask(mask))
                        if pictures:
                            image = draw_mask(image, mask, predictor.classes[task])
                    elif isinstance(result, Scores):
                        entry["classes"] = _best_classes(result, predictor.classes[task])
                if pictures:
                    _write(folder / names[number - 1], encode(image, names[number - 1].suffix))
            bar.update(len(chunk))
        _write(folder / "predictions.json", json.dumps(written).encode())
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot write ({error.strerror})") from None
    finally:
        bar.close()
    return {
        "images": len(written["images"]),
        "detections": len(written["annotations"]),
        "output": str(folder),
        "failed": failed,
        "classes": {entry["file_name"]: entry["classes"] for entry in written["images"] if "classes" in entry},
    }


def _expand(item: str) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        return list_images(path)
    if not path.is_file():
        raise DataError(f"{item}: no such image or folder")
    return [path]


def _names(files: Sequence[Path]) -> list[Path]:
    """Names of the annotated pictures: those of the files, with stems made different."""
    taken: set[str] = set()
    names = []
    for path in files:
        suffix = path.suffix.lower() if path.suffix.lower() in EXTENSIONS else ".png"
        stem, number = path.stem, 1
        while stem in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem)
        names.append(Path(stem + suffix))
    return names


def _readable(chunk: Sequence[tuple[int, Path]], failed: list[str]) -> Iterator[tuple[int, Path, Any]]:
    for number, path in chunk:
        try:
            yield number, path, read_image(path)
        except DataError as error:
            failed.append(str(error))


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _categories(predictor: Predictor) -> list[dict[str, Any]]:
    for task, head in predictor.header.heads.items():
        if HEADS.get(head["name"]).class_key == "labels":
            return [{"id": number, "name": name} for number, name in enumerate(predictor.classes[task], 1)]
    return []


def _shares(mask: NDArray[np.uint8], names: Sequence[str]) -> dict[str, float]:
    """Share of the picture's pixels that each class found there has."""
    counts = np.bincount(mask.ravel(), minlength=len(names))
    return {names[label]: round(float(counts[label] / mask.size), 5) for label in np.flatnonzero(counts).tolist()}


def _best_classes(result: Scores, names: Sequence[str]) -> list[dict[str, Any]]:
    best = result.probabilities.topk(min(5, len(names)))
    return [
        {"name": names[int(index)], "score": round(float(score), 5)}
        for score, index in zip(best.values, best.indices, strict=True)
    ]


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))
