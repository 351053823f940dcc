"""Small data sets to plant faults in."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mnv2det.check.findings import KINDS, Finding


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """uint8 (H, W, 3) with features of its own: no two seeds look alike."""
    coarse = np.random.default_rng(seed).integers(60, 200, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def save(path: Path, image: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


class Coco:
    """A COCO-style part below a folder: eight annotated pictures of two classes."""

    def __init__(self, root: Path, name: str = "train", first: int = 1) -> None:
        self.root, self.name = root, name
        self.folder, self.json = root / name, root / "annotations" / f"instances_{name}.json"
        self.images: list[Any] = []
        self.annotations: list[Any] = []
        self.categories: list[Any] = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]
        for number in range(first, first + 8):
            self.add(f"{number}.jpg", number)
            for offset, category in ((0, 1), (20, 7)):
                self.box(number, [5 + offset, 6, 18, 20], category_id=category)

    def add(self, file: str, number: int, image: np.ndarray | None = None, **other: Any) -> None:
        image = picture(number) if image is None else image
        save(self.folder / file, image, quality=90)
        height, width = image.shape[:2]
        self.images.append({"id": number, "file_name": file, "height": height, "width": width, **other})

    def box(self, image: Any, bbox: Any, **other: Any) -> int:
        identifier = len(self.annotations) + 1
        entry = {"id": identifier, "image_id": image, "category_id": 1, "bbox": bbox, **other}
        self.annotations.append(entry)
        return identifier

    def write(self) -> Path:
        self.json.parent.mkdir(parents=True, exist_ok=True)
        keys = ("images", "annotations", "categories")
        self.json.write_text(json.dumps({key: getattr(self, key) for key in keys}), "utf-8")
        return self.root


def item(name: str = "cat", box: tuple[Any, ...] = (11, 6, 30, 15), extra: str = "") -> str:
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def xml(*items: str, size: tuple[Any, Any] = (40, 60)) -> str:
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation>{stated}{''.join(items)}</annotation>"


class Voc:
    """A folder in VOC's layout: four pictures to train on, two to measure on, with boxes and masks."""

    def __init__(self, root: Path, *, masks: bool = False) -> None:
        self.root, self.home = root, root / "VOCdevkit" / "Mine"
        self.lists: dict[str, list[str]] = {"train": [], "val": []}
        self.masks = masks
        for number in range(6):
            self.add("train" if number < 4 else "val", f"p{number}", picture(100 + number))

    def add(self, split: str, stem: str, image: np.ndarray, text: str | None = None) -> None:
        save(self.home / "JPEGImages" / f"{stem}.jpg", image, quality=90)
        text = xml(item("cat"), item("dog", (31, 16, 50, 38)), size=image.shape[:2]) if text is None else text
        self.annotate(stem, text)
        self.lists[split].append(stem)
        if self.masks:
            self.mask(stem, np.indices(image.shape[:2]).sum(0) // 20 % 3)

    def annotate(self, stem: str, text: str) -> None:
        path = self.home / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def mask(self, stem: str, ids: np.ndarray) -> None:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
        path = self.home / "SegmentationClass" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)

    def write(self) -> Path:
        folder = self.home / "ImageSets" / "Main"
        folder.mkdir(parents=True, exist_ok=True)
        for name, stems in self.lists.items():
            (folder / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems), "utf-8")
        return self.root


# metrics over the whole of a data set, which a few boxes more may change
STATISTICS = frozenset({"class_rare", "class_imbalance", "anchor_gap", "class_unmeasured", "class_untrained"})


def kinds(findings: list[Finding], *severities: str) -> list[str]:
    """Kinds found, sorted, without those of statistics; of the severities given, or errors and warnings."""
    wanted = severities or ("error", "warning")
    return sorted(f.kind for f in findings if KINDS[f.kind].severity in wanted and f.kind not in STATISTICS)


def found(root: Path, *severities: str, **options: Any) -> list[str]:
    """`kinds` of what a check of a folder finds."""
    from mnv2det.check.run import check_data

    return kinds(check_data(root, workers=1, **options).findings, *severities)


def two_parts(root: Path) -> tuple[Coco, Coco]:
    return Coco(root, "train", 1), Coco(root, "val", 31)


def write(*parts: Coco | Voc) -> Path:
    *_, root = [part.write() for part in parts]
    return root


def cut(path: Path) -> None:
    """Truncates a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
