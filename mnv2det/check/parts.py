"""From a config, or what a folder was recognised as, to the parts that a check reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnv2det.check.split import Role, Split
from mnv2det.config import Config, data_root
from mnv2det.data.dataset import Dataset
from mnv2det.data.formats.base import Format
from mnv2det.data.formats.records import Picture, Records
from mnv2det.engine.build import build_source
from mnv2det.errors import DataError, near
from mnv2det.labels.base import Part
from mnv2det.registry import HEADS


def read_parts(parts: Sequence[Part], root: Path) -> list[Split]:
    """Reads what `mnv2det.check.folder.recognise` found; all are held to the classes of the training part."""
    splits: list[Split] = []
    names: list[str] | None = None
    for part in parts:
        if part.role != "train" and names is not None:
            part.format.names = names  # type: ignore[attr-defined]  # of every format of boxes
        split = Split(part.name, part.role, root, part.format.read(), part.format)
        if part.role == "train" and names is None:
            names = split.records.classes.get("labels") or None
        splits.append(split)
    return splits


def config_splits(config: Config) -> list[Split]:
    """Reads ``data.train`` and ``data.val``.

    Raises:
        ConfigError, DataError: There is no such data set.
    """
    root = Path(os.path.normpath(data_root(config)))
    train = _config_split(config, "train", root, {})
    val = _config_split(config, "val", root, {key: names for key, names in train.records.classes.items() if names})
    for key in {HEADS.get(task.head.name).target_key for task in config.tasks.values()}:
        learned, measured = (split.records.classes.get(key) for split in (train, val))
        if learned and measured and learned != measured and val.format is not None:
            what = f"classes {measured[:8]} are not train's {learned[:8]} in order"
            val.records.add_problem("class_broken", val.records.folder, what, fatal=True)
    return [train, val]


def _config_split(config: Config, role: Role, root: Path, classes: dict[str, list[str]]) -> Split:
    source = build_source(config, role, classes)
    if isinstance(source, Format):
        records = source.read()
        for folder in records.picture_folders:
            if not folder.is_dir():
                known = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
                raise DataError(f"{folder}: no such image folder (data.{role}.args){near(folder.name, known)}")
        return Split(role, role, root, records, source)
    name = getattr(config.data, role).name
    return Split(role, role, root, _dataset_records(source, role, name, root), dataset=source)


def _dataset_records(dataset: Dataset, role: Role, name: str, root: Path) -> Records:
    """Pictures and classes of a registered data set; its boxes come when its images are read."""
    about = f"data set {name}, read through itself: no files to look into"
    ids = [dataset.image_id(index) for index in range(len(dataset))]
    pictures = [Picture(identifier, f"{role}/{identifier}", boxed="labels" in dataset.classes) for identifier in ids]
    classes = {key: list(names) for key, names in dataset.classes.items()}
    return Records(root, name, about, classes=classes, pictures=pictures)
