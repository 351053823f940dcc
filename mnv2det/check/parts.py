"""From a config, or what a folder was recognised as, to the parts that a check reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv2det.check.coco import read_coco
from mnv2det.check.folder import Found
from mnv2det.check.split import CocoPart, Picture, Role, Split, VocList, VocPart
from mnv2det.check.voc import read_voc
from mnv2det.config import Component, Config, data_root
from mnv2det.data.formats.voc import list_file
from mnv2det.data.images import inside
from mnv2det.data.masks import VOC_NAMES
from mnv2det.engine.build import build_dataset
from mnv2det.errors import DataError, near
from mnv2det.registry import DATASETS
from mnv2det.structures import VOC_MASK_CLASSES


def read_parts(found: Sequence[Found], root: Path, workers: int) -> list[Split]:
    """Reads what `mnv2det.check.folder.recognise` found; all are held to the classes of the training part."""
    splits: list[Split] = []
    for name, role, part in found:
        names = _names(splits) if role != "train" else None
        if isinstance(part, CocoPart):
            splits.append(read_coco(part._replace(names=names), name=name, role=role, root=root))
        else:
            split = read_voc(part._replace(names=names), name=name, role=role, root=root, workers=workers)
            split.mask_guessed = part.mask_classes is None
            if part.mask_classes is not None:
                split.mask_names = [f"id {number}" for number in range(part.mask_classes)]
            splits.append(split)
    return splits


def _names(splits: Sequence[Split]) -> list[str] | None:
    """Box classes of the training part among those read."""
    for split in splits:
        if split.role == "train" and split.boxed:
            return list(split.names) if split.names is not None else sorted(split.boxes.names)
    return None


def config_splits(config: Config, workers: int) -> list[Split]:
    """Reads ``data.train`` and ``data.val``.

    Raises:
        ConfigError, DataError: There is no such data set.
    """
    root = Path(os.path.normpath(data_root(config)))
    splits: list[Split] = []
    for role, component in (("train", config.data.train), ("val", config.data.val)):
        splits.append(_config_split(config, role, component, root, splits, workers))  # type: ignore[arg-type]
    return splits


def _config_split(
    config: Config, role: Role, component: Component, root: Path, before: Sequence[Split], workers: int
) -> Split:
    args, _ = DATASETS.bind(component.name, component.args, place=f"data.{role}")
    held = args.get("names") or (_names(before) if role != "train" else None)
    if component.name == "coco":
        return _coco(role, args, root, held)
    if component.name == "voc":
        return _voc(role, args, root, held, workers)
    masked = {"mask": before[0].mask_names or []} if before and before[0].mask_names else {}
    boxed = {"labels": held} if held else {}
    dataset = build_dataset(config, role, {**boxed, **masked})
    about = f"data set {component.name}, read through itself: no files to look into"
    split = Split(role, role, root, None, about, dataset=dataset)
    split.names, split.mask_names = dataset.classes.get("labels"), dataset.classes.get("mask")
    split.boxed = "labels" in dataset.classes
    ids = [dataset.image_id(index) for index in range(len(dataset))]
    split.pictures = [Picture(f"{role}/{identifier}", identifier, None, boxed=split.boxed) for identifier in ids]
    return split


def _coco(role: Role, args: dict[str, Any], root: Path, names: Sequence[str] | None) -> Split:
    path = inside(root, args["annotations"], where="data set coco: annotations")
    folder = inside(root, args["images"], where="data set coco: images")
    if not folder.is_dir():
        known = [place.name for place in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise DataError(f"{folder}: no such image folder (data.{role}.args.images){near(folder.name, known)}")
    classes = frozenset(VOC_MASK_CLASSES) | frozenset(VOC_NAMES) if args["masks"] == "voc" else None
    part = CocoPart(path, folder, names, args["masks"] is not None, classes)
    return read_coco(part, name=role, role=role, root=root)


def _voc(role: Role, args: dict[str, Any], root: Path, names: Sequence[str] | None, workers: int) -> Split:
    devkit = inside(root, args["folder"], where="data set voc: folder")
    kind = args["lists"] or ("Main" if args["boxes"] == "required" else "Segmentation")
    lists = [
        VocList(home, path, args["boxes"], args["masks"])
        for home, path in (list_file(devkit, item, kind) for item in args["sets"])
    ]
    given = args["mask_names"]
    classes = list(VOC_MASK_CLASSES if given is None else given)
    part = VocPart(tuple(lists), args["suffix"], args["mask_folder"], names, len(classes))
    split = read_voc(part, name=role, role=role, root=root, workers=workers)
    if not split.pictures:
        raise DataError(f"{devkit} ({', '.join(args['sets'])}): no images in it")
    split.mask_names = classes if args["masks"] else None
    return split
