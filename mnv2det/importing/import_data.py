"""Bringing the pictures and labels of any labelling tool into a folder to train on (docs/import.md)."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mnv2det.check.findings import KINDS, Finding
from mnv2det.check.folder import unlisted
from mnv2det.check.run import Part, judge
from mnv2det.check.split import Split
from mnv2det.config import load_config
from mnv2det.data.duplicates import Fingerprints
from mnv2det.data.formats.records import Records
from mnv2det.data.formats.voc import VocLists
from mnv2det.engine.estimate import seconds_per_step
from mnv2det.errors import ConfigError, DataError, WeightsError, near
from mnv2det.importing.data_config import Speed, Start, Task, detector_args, suggest_config
from mnv2det.importing.split import group_pictures, split_groups
from mnv2det.io import CONFIG, write_json
from mnv2det.labels.base import LabelFormat, LabelledBox, LabelledPart, LabelledPicture, Placer, Recognised, Role
from mnv2det.labels.mask_pairs import MaskPairs
from mnv2det.labels.recognise import recognise
from mnv2det.models.loading import open_weights
from mnv2det.models.torchvision_weights import is_cached
from mnv2det.models.weight_file import read_header
from mnv2det.registry import LABELS
from mnv2det.schema import NAMED_WEIGHTS, is_download

RECORD = "import.json"  # what was imported and what was left out
WEIGHTS = "weights"  # folder of the working directory in which weights to start from are looked for
RECORDED = ("about", "counts", "classes", "left_out", "remarks", "config_lines")
ROLES: tuple[Role, ...] = ("train", "val", "test")
VERSION = 1


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
    elif weights is not None and not os.path.isfile(weights):
        raise ConfigError(f"--weights {weights}: no such file{near(str(weights), NAMED_WEIGHTS)}")
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
    labelled, left_out = label_pictures(parts, findings), _left_out(findings)
    names, dropped = box_classes(parts, labelled)
    if not any(labelled.values()):
        first = f", such as {left_out[0]['file']}: {left_out[0]['reason']}" if left_out else ""
        raise DataError(f"{source}: no picture is left to train on; {len(left_out)} problems{first}")
    written, drawn = _split(labelled, parts, {"train": 1 - val - test, "val": val, "test": test}, seed)
    masks = mask_classes(parts)
    counts = {role: _count(pictures) for role, pictures in written.items()}
    counts["source"] = {
        "pictures": sum(len(part.split.records.pictures) for part in parts),
        "boxes": sum(_annotated(part.split.records) for part in parts),
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


def read_labels(source: Path, recognised: Recognised, workers: int) -> tuple[list[Part], list[Finding]]:
    """Reads all pictures and labels of a folder, and judges them as `mnv2det.check.run.check_data` does.

    Raises:
        DataError: A class list is wrong.
    """
    splits = [Split(part.name, part.role, source, part.format.read(), part.format) for part in recognised.parts]
    parts, findings = judge(splits, workers)
    fatal = next((finding for finding in findings if finding.kind == "class_broken"), None)
    if fatal is not None:
        raise DataError(f"{source}: {fatal.file}: {fatal.value}; {KINDS['class_broken'].advice}")
    return parts, findings


def _name_masks(recognised: Recognised, names: Sequence[str]) -> None:
    for part in recognised.parts:
        if not isinstance(part.format, VocLists | MaskPairs):
            raise ConfigError(f"--mask-names: {recognised.format} has no masks of class ids")
        part.format.mask_names = tuple(names)


def mask_classes(parts: Sequence[Part]) -> list[str]:
    """Classes of the masks; empty where no picture has a mask of its own."""
    masked = [part for part in parts if any(picture.mask for picture in part.split.records.pictures)]
    if not masked:
        return []
    names = list(masked[0].split.mask_names or ())
    if masked[0].split.mask_guessed:
        # as many as the largest id that occurs needs
        used = {name for part in masked for name, pixels in part.pixels.items() if pixels}
        count = 1 + max((number for number, name in enumerate(names) if name in used), default=0)
        names = ["background", *(f"class {number}" for number in range(1, count))]
    return names


def find_weights() -> Start:
    """Weights to start from that lie on this machine: in the folder ``weights``, or ImageNet's, downloaded before."""
    files = sorted(Path(WEIGHTS).glob("*.safetensors")) if os.path.isdir(WEIGHTS) else []
    usable = []
    for file in files:
        try:
            header = read_header(file)
        except WeightsError:
            continue
        if header.trainable and header.backbone["name"] == "mobilenet_v2":
            usable.append(str(file.resolve()))
    detector = next((file for file in usable if detector_args(file)), None)
    others = [file for file in usable if not detector_args(file)]
    others += [name for name in NAMED_WEIGHTS if is_cached(name)]
    return Start(others[0] if others else detector, detector)


def given_weights(weights: str) -> Start:
    """The weights that the user names."""
    if is_download(weights):
        return Start(weights)
    file = str(Path(weights).resolve())
    return Start(file, file if detector_args(file) else None)


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


def check_apart(source: Path, target: Path) -> None:
    """Refuses to write into what is read, or around it."""
    real, here = target.resolve(), source.resolve()
    if real == here or here in real.parents or real in here.parents:
        raise ConfigError(f"-o {target}: lies in the folder that is read, or the other way round ({source})")


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What an import wrote about itself into a folder; None where the folder is no import."""
    try:
        record = json.loads((Path(folder) / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("version") == VERSION else None


Kept = tuple[int, int, LabelledPicture]  # number of the part, of the picture in it, and what is kept of it


def label_pictures(parts: Sequence[Part], findings: Sequence[Finding]) -> dict[str, list[Kept]]:
    """What is kept of every part, by its role."""
    labelled: dict[str, list[Kept]] = {}
    above = _common_folder(parts)
    for number, part in enumerate(parts):
        records, boxes = part.split.records, part.split.records.boxes
        errors = [f for f in findings if f.split == part.split.name and f.severity == "error" and f.index >= 0]
        # where an annotation states no size, the picture's own counts
        dropped = {
            f.index
            for f in errors
            if f.position < 0 and not (f.kind == "image_size" and records.pictures[f.index].size is None)
        }
        # a box may be good although its outline is not
        wrong = {(f.index, f.position) for f in errors if f.position >= 0 and f.kind != "segmentation_broken"}
        limits = np.tile(part.sizes[boxes.image][:, ::-1], 2)
        corners = np.clip(boxes.corners, 0, limits)
        areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        of_picture: dict[int, list[LabelledBox]] = {}
        for row in np.flatnonzero(part.good).tolist():
            index = int(boxes.image[row])
            if (index, int(boxes.position[row])) not in wrong:
                x1, y1, x2, y2 = corners[row].tolist()
                area = float(areas[row] if np.isnan(boxes.area[row]) else boxes.area[row])
                name = boxes.names[boxes.label[row]]
                of_picture.setdefault(index, []).append(
                    LabelledBox(name, (x1, y1, x2, y2), bool(boxes.ignore[row]), area, boxes.runs[row])
                )
        labels = records.classes.get("label", [])
        for index, picture in enumerate(records.pictures):
            if index in dropped or not picture.file:
                continue
            path = records.path(picture.file)
            height, width = (int(side) for side in part.sizes[index])
            kept = LabelledPicture(
                path,
                path.relative_to(above).as_posix(),
                (height, width),
                of_picture.get(index, []),
                records.path(picture.mask) if picture.mask else None,
                labels[picture.label] if picture.label >= 0 else "",
            )
            labelled.setdefault(part.split.role, []).append((number, index, kept))
    return labelled


def _common_folder(parts: Sequence[Part]) -> str:
    """The deepest folder that holds all pictures, so that their names in the copy are short."""
    folders = {
        os.path.dirname(part.split.records.path(picture.file))
        for part in parts
        for picture in part.split.records.pictures
        if picture.file
    }
    return os.path.commonpath(folders) if folders else ""


def _left_out(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Everything that an error names, and pictures that no label names."""
    return [
        {
            "kind": f.kind,
            "split": f.split,
            "file": f.file,
            "image": f.image,
            "annotation": f.annotation,
            "reason": f.value + (f"; expected {f.expected}" if f.expected else ""),
        }
        for f in findings
        if f.severity == "error" or f.kind == "image_unlisted"
    ]


def box_classes(parts: Sequence[Part], labelled: Mapping[str, Sequence[Kept]]) -> tuple[list[str], list[str]]:
    """The box classes that some picture has, in the order of the source's lists, and remarks on the others."""
    listed = dict.fromkeys(name for part in parts for name in part.split.records.classes.get("labels", []))
    used = {box.name for pictures in labelled.values() for *_, picture in pictures for box in picture.boxes}
    unused = [name for name in listed if name not in used]
    remarks = []
    if unused and used:
        names = ", ".join(f"'{name}'" for name in unused[:8]) + (" ..." if len(unused) > 8 else "")
        remarks.append(f"{len(unused)} classes without a box go: {names}")
    return [name for name in listed if name in used], remarks


def _split(
    labelled: Mapping[str, list[Kept]], parts: Sequence[Part], shares: Mapping[str, float], seed: int
) -> tuple[dict[str, list[LabelledPicture]], list[str]]:
    """The pictures of each split, those of the source where it has them, and remarks.

    Without any split, all are drawn; without a validation split, it is drawn from the training pictures, and a test
    split that the source has stays as it is.
    """
    pools: dict[str, list[Kept]] = {role: list(labelled.get(role, [])) for role in (*ROLES, "all")}
    remarks = []
    if not pools["train"]:
        pools["train"], pools["all"] = pools["all"], []
    if not pools["train"]:
        only = max(("val", "test"), key=lambda role: len(pools[role]))
        remarks.append(f"the source has no pictures to train on but those of '{only}': splits were drawn from them")
        pools["train"], pools[only] = pools[only], []
    if pools["all"]:
        remarks.append(f"{len(pools['all'])} pictures of no split of the source went to train")
        pools["train"] += pools["all"]
    wanted = {role: share for role, share in shares.items() if role != "train" and share > 0 and not pools[role]}
    if any(pools[role] for role in ("val", "test")) and "test" in wanted:
        del wanted["test"]  # the source decided that there is none
    if wanted:
        wanted = {"train": 1 - sum(wanted.values()), **wanted}
        drawn = _draw(pools["train"], parts, wanted, seed, remarks)
        pools |= {
            role: [kept for kept, own in zip(pools["train"], drawn, strict=True) if own == role] for role in wanted
        }
    return {role: [kept[2] for kept in pools[role]] for role in ROLES if pools[role]}, remarks


def _draw(
    pool: Sequence[Kept], parts: Sequence[Part], shares: Mapping[str, float], seed: int, remarks: list[str]
) -> list[str]:
    """A split for each picture of a pool."""
    names = [picture.name for *_, picture in pool]
    prints = Fingerprints([parts[number].facts[index].fingerprint for number, index, _ in pool])
    groups = group_pictures(names, prints)
    classes = [{box.name for box in picture.boxes} | ({picture.label} - {""}) for *_, picture in pool]
    drawn = split_groups(groups, classes, shares, seed)
    together = Counter(groups.tolist())
    several = [count for count in together.values() if count > 1]
    if several:
        remarks.append(
            f"{sum(several)} pictures are nearly the same as another one, or frames of one clip;"
            f" they make {len(several)} groups, each of which stays in one split"
        )
    missing = [role for role in shares if role not in drawn]
    if missing and len(pool) >= len(shares):
        # one clip makes most of the pictures: its end is the least like its beginning
        order = sorted(range(len(pool)), key=lambda index: names[index])
        bounds = np.cumsum([0, *(round(share * len(pool)) for share in list(shares.values())[:-1])]).tolist()
        for role, first, last in zip(shares, bounds, [*bounds[1:], len(pool)], strict=True):
            for index in order[first:last]:
                drawn[index] = role
        remarks.append("most pictures are of one clip: they were split in the order of their names, so metrics flatter")
    return drawn


def _annotated(records: Records) -> int:
    """The number of boxes in the files, those that could not be read among them."""
    boxes = records.boxes
    read = set(zip(boxes.image.tolist(), boxes.position.tolist(), strict=True))
    unread = {(p.index, p.position) for p in records.problems if p.position >= 0} - read
    return len(read) + len(unread)


def _count(pictures: Sequence[LabelledPicture]) -> dict[str, int]:
    return {"pictures": len(pictures), "boxes": sum(len(picture.boxes) for picture in pictures)}


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder beside its place and moves it there when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name[:100]}.{os.getpid()}.part"
    draft.mkdir()
    try:
        write(draft)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
