"""Bringing the pictures and labels of any labelling tool into a folder to train on (docs/import.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnv2det.check.folder import unlisted
from mnv2det.config import load_config
from mnv2det.data.formats.voc import VocLists
from mnv2det.engine.estimate import seconds_per_step
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.importing.data_config import Speed, Task, suggest_config
from mnv2det.importing.folder import RECORD, VERSION, check_apart, read_record, write_whole
from mnv2det.importing.gather import (
    box_classes,
    count_boxes,
    label_pictures,
    list_left_out,
    mask_classes,
    read_labels,
)
from mnv2det.importing.split import ROLES, keep_or_draw
from mnv2det.importing.start import find_weights, given_weights
from mnv2det.io import CONFIG, write_json
from mnv2det.labels.base import LabelFormat, LabelledPart, LabelledPicture, Placer, Recognised
from mnv2det.labels.mask_pairs import MaskPairs
from mnv2det.labels.recognise import recognise
from mnv2det.models.build import weights_of
from mnv2det.models.loading import open_weights
from mnv2det.models.releases import RELEASES
from mnv2det.registry import LABELS
from mnv2det.schema import NAMED_WEIGHTS, is_download

RECORDED = ("about", "counts", "classes", "left_out", "remarks", "config_lines")


@dataclass
class Imported:
    """What an import did.

    Attributes:
        folder: Where the data lies now.
        about: What the source was recognised as.
        counts: Pictures and boxes of each split, and of the source.
        classes: Box classes, or classes of pictures.
        left_out: Everything that was left out, with its reason.
        remarks: Lines that the user should know.
        config_lines: What was chosen for the config, a line for each.
        done_before: Whether the same import was found done, so that nothing was written.
    """

    folder: Path
    about: str
    counts: dict[str, dict[str, int]]
    classes: list[str]
    left_out: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    config_lines: list[str] = field(default_factory=list)
    done_before: bool = False


def import_data(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    name: str | None = None,
    val: float = 0.2,
    test: float = 0.1,
    seed: int = 0,
    link: bool = False,
    mask_names: Sequence[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    tasks: Sequence[Task] = (),
    speed: Speed = "balanced",
    estimate: bool = False,
    workers: int = 1,
) -> Imported:
    """Reads labelled pictures of any known format and writes them as a data set to train on.

    The source is not changed. What cannot be trained on is left out and listed. Splits of the source are kept.

    Args:
        source: Folder with pictures and labels.
        target: New folder for the data set.
        name: The label format; None recognises it.
        val: Share of the pictures that are kept for validation, where the source has no such split.
        test: Share kept for a test; 0 makes no such split.
        seed: Of the drawing of splits.
        link: Make hard links to the pictures instead of copies.
        mask_names: Classes of masks in the order of their ids, where the source has no list of them.
        weights: Weights that the written config starts from: a file, or a name as in ``model.weights``; None takes what
            it finds in ``weights/``, or else ImageNet's if they were downloaded before.
        tasks: What the config is for; empty takes boxes where there are any, else masks, else classes of pictures.
        speed: Whether the config aims at a short training or a better model.
        estimate: Time a few training steps, so that the config says how many minutes a training takes here.
        workers: Processes that read; 0 reads in this one.

    Raises:
        ConfigError: The target holds something else, or lies in the source.
        DataError: No labels are recognised, or none can be used.
        WeightsError: The weights cannot be downloaded.
    """
    source, target = Path(os.path.normpath(source)), Path(os.path.normpath(target))
    if weights is not None and is_download(str(weights)):
        open_weights(str(weights))  # fetches them, or says where to put them, before anything is read
    elif weights is not None and not os.path.isfile(weights_of(weights)):
        raise ConfigError(f"--weights {weights}: no such file{near(str(weights), [*NAMED_WEIGHTS, *RELEASES])}")
    options = {
        "format": name,
        "val": val,
        "test": test,
        "seed": seed,
        "mask_names": list(mask_names or ()),
        "weights": None if weights is None else str(weights),
        "tasks": list(tasks),
        "speed": speed,
    }
    if (before := _done_before(source, target, options)) is not None:
        return before
    recognised = recognise(source, name)
    if mask_names:
        _name_masks(recognised, mask_names)
    remarks = [
        f"{remark.file or source}: {remark.what}" + (f"; {remark.expected}" if remark.expected else "")
        for remark in recognised.remarks
    ]
    parts, findings = read_labels(source, recognised, workers)
    findings += unlisted([part.split for part in parts])
    labelled, left_out = label_pictures(parts, findings), list_left_out(findings)
    names, dropped = box_classes(parts, labelled)
    if not any(labelled.values()):
        first = f", such as {left_out[0]['file']}: {left_out[0]['reason']}" if left_out else ""
        raise DataError(f"{source}: no picture is left to train on; {len(left_out)} problems{first}")
    written, drawn = keep_or_draw(labelled, parts, {"train": 1 - val - test, "val": val, "test": test}, seed)
    masks = mask_classes(parts)
    counts = {role: _count(pictures) for role, pictures in written.items()}
    counts["source"] = {
        "pictures": sum(len(part.split.records.pictures) for part in parts),
        "boxes": sum(count_boxes(part.split.records) for part in parts),
    }
    labels = sorted({picture.label for pictures in written.values() for picture in pictures if picture.label})
    result = Imported(target, recognised.about, counts, names or labels or masks, left_out, remarks + dropped + drawn)
    labelled_parts = [LabelledPart(role, written[role], names, masks) for role in ROLES if role in written]
    label_format: LabelFormat = LABELS.get(native_format(labelled_parts))()

    start = find_weights() if weights is None else given_weights(str(weights))
    suggestion = suggest_config(labelled_parts, target.resolve(), tasks=tasks, speed=speed, start=start)
    result.config_lines = suggestion.lines

    def write(draft: Path) -> None:
        label_format.write(labelled_parts, draft, Placer(link=link))
        (draft / CONFIG).write_text(suggestion.text, "utf-8")
        if estimate:
            config = load_config(draft / CONFIG, [f"data.root={draft}"])
            suggestion.add_minutes(seconds_per_step(config) * (config.train.steps or 0) / 60)
            (draft / CONFIG).write_text(suggestion.text, "utf-8")
        record = {"version": VERSION, "source": str(source.resolve()), "options": options}
        write_json(draft / RECORD, record | {key: getattr(result, key) for key in RECORDED})

    write_whole(target, write)
    return result


def _name_masks(recognised: Recognised, names: Sequence[str]) -> None:
    for part in recognised.parts:
        if not isinstance(part.format, VocLists | MaskPairs):
            raise ConfigError(f"--mask-names: {recognised.format} has no masks of class ids")
        part.format.mask_names = tuple(names)


def native_format(parts: Sequence[LabelledPart]) -> str:
    """The label format in which a data set is written to be trained on."""
    if any(part.mask_names for part in parts):
        return "voc"
    return "coco" if any(part.names for part in parts) else "folders"


def _done_before(source: Path, target: Path, options: Mapping[str, Any]) -> Imported | None:
    """The record of the same import done before; None where there is nothing yet.

    Raises:
        ConfigError: The target holds something else, or it and the source lie in one another.
    """
    check_apart(source, target)
    if not target.exists():
        return None
    record = read_record(target)
    if record is None:
        if target.is_dir() and not any(target.iterdir()):
            return None
        raise ConfigError(f"-o {target}: exists and is no import; choose a new folder")
    if record["source"] != str(source.resolve()) or record["options"] != dict(options):
        raise ConfigError(
            f"-o {target}: holds another import (of {record['source']}); choose a new folder, or delete it"
        )
    return Imported(target, **{key: record[key] for key in RECORDED}, done_before=True)


def _count(pictures: Sequence[LabelledPicture]) -> dict[str, int]:
    return {"pictures": len(pictures), "boxes": sum(len(picture.boxes) for picture in pictures)}
