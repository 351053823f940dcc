"""COCO's json: one file or one per split, as COCO, Roboflow, CVAT and Label Studio write it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv2det.data.formats.coco import CocoJson
from mnv2det.data.formats.coco_values import load_json
from mnv2det.data.formats.problems import shown
from mnv2det.errors import DataError
from mnv2det.io import to_json
from mnv2det.labels.base import LabelFormat, LabelledPart, Part, Placer, Recognised, Remark, Tree, role_of
from mnv2det.registry import LABELS

MOST_JSONS = 64
SAMPLE = 50  # file names by which the folder of pictures is chosen


@LABELS.register("coco")
class CocoLabels(LabelFormat):
    """``annotations/train.json`` and ``val.json`` with pictures in ``images/``, or any other place for either."""

    expected = "COCO's json (images, annotations, categories)"
    outlines = True

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        parts: list[Part] = []
        jsons: list[str] = []
        remarks = []
        for file in tree.with_suffix(".json")[:MOST_JSONS]:
            path = tree.path(file)
            try:
                data = load_json(path)
                folder = picture_folder(tree, file, data["images"])
            except DataError as error:
                remarks.append(Remark("json_skipped", file, shown(str(error).removeprefix(f"{path}: "), 160)))
                continue
            role = role_of(file)
            name = role if role not in {part.name for part in parts} else file
            parts.append(Part(name, role, CocoJson(path, folder, masks="coco" if _outlined(data) else None)))
            jsons.append(file)
        if not parts:
            return f"{remarks[0].file}: {remarks[0].what}" if remarks else "no json"
        order = ["train", "val", "test", "all"]
        parts.sort(key=lambda part: order.index(part.role))
        return Recognised("coco", f"COCO's json: {', '.join(jsons)}", parts, remarks)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``annotations/ROLE.json`` and ``images/``; all boxes and segmentations can be expressed."""
        (target / "annotations").mkdir()
        for part in parts:
            for picture in part.pictures:
                place(picture.source, target / "images" / picture.name)
            (target / "annotations" / f"{part.role}.json").write_text(to_json(coco_json(part)) + "\n", "utf-8")
        return []


def coco_json(part: LabelledPart) -> dict[str, Any]:
    """A split as COCO's json; ids of images, annotations and categories count from 1."""
    numbers = {name: number for number, name in enumerate(part.names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(part.pictures, 1):
        height, width = picture.size
        images.append({"id": number, "file_name": picture.name, "height": height, "width": width})
        for box in picture.boxes:
            x1, y1, x2, y2 = box.corners
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": numbers[box.name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": box.area,
                "iscrowd": int(box.ignore),
            }
            if box.runs:
                entry["segmentation"] = {"size": [height, width], "counts": box.runs.decode("ascii")}
            annotations.append(entry)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _outlined(data: dict[str, Any]) -> bool:
    """Whether most annotations have an outline beside their box."""
    entries = [entry for entry in data["annotations"] if isinstance(entry, dict)]
    return 2 * sum(bool(entry.get("segmentation")) for entry in entries) > len(entries)


def picture_folder(tree: Tree, file: str, entries: Sequence[Any]) -> Path:
    """The folder below which a json's file names lie.

    Args:
        tree: All files.
        file: The json, below the tree's root.
        entries: Its ``images``.

    Raises:
        DataError: No folder has one of them.
    """
    stated = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    names = [name for name in stated if isinstance(name, str) and name][:SAMPLE]
    there = set(tree.files)
    own = os.path.dirname(file)
    folders = sorted({own, "", *(os.path.dirname(picture) for picture in tree.pictures), *_above(tree.pictures)})
    stem = os.path.splitext(os.path.basename(file))[0]
    best, most = "", 0
    # where several have all names, the one beside the json or called as the json is
    for folder in sorted(folders, key=lambda folder: (folder != own, os.path.basename(folder) not in stem)):
        count = sum(_path(folder, name) in there or _path(folder, name.replace("\\", "/")) in there for name in names)
        if count > most:
            best, most = folder, count
    if not most:
        example = f", such as '{shown(names[0])}'," if names else ""
        raise DataError(f"{tree.path(file)}: none of its images{example} is in a folder here")
    return tree.path(best) if best else tree.root


def _above(files: Sequence[str]) -> set[str]:
    """All folders that files lie below."""
    folders: set[str] = set()
    for file in files:
        folder = os.path.dirname(file)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return folders


def _path(folder: str, name: str) -> str:
    """A file name below a folder, as a path below the tree's root."""
    return os.path.normpath(f"{folder}/{name}" if folder else name)
