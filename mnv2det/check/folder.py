"""Finding out what a plain folder holds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mnv2det.check.findings import Finding
from mnv2det.check.split import Role, Split, leaves, relative
from mnv2det.data.formats.coco import CocoJson, file_below, load_json
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.voc import ImageList, VocLists
from mnv2det.data.images import image_names, is_hidden
from mnv2det.errors import DataError

ROLES: tuple[tuple[Role, str], ...] = (("train", r"train"), ("val", r"val"), ("test", r"test"))
EXPECTED = (
    "expected a config (.yaml), VOC's layout (JPEGImages with Annotations or SegmentationClass, and"
    " ImageSets/Main/train.txt and val.txt), or json files with COCO's images, annotations and categories"
    " in it or in annotations/"
)
MOST_JSONS = 64
SAMPLE = 50  # file names by which a json's image folder is found


class FolderPart(NamedTuple):
    """A part of a data set that a folder holds: its name in reports, what it is for, and how it is read."""

    name: str
    role: Role
    format: CocoJson | VocLists


def recognise(folder: Path, mask_classes: int | None = None) -> tuple[list[FolderPart], list[Finding]]:
    """The parts of a data set that a folder holds.

    Args:
        folder: In VOC's layout at up to two levels below, or with COCO-style json files.
        mask_classes: Number of classes of the masks, where it is known.

    Returns:
        The parts, and findings on what was left aside.

    Raises:
        DataError: It holds neither.
    """
    homes = _homes(folder)
    if homes:
        return _voc(folder, homes, mask_classes)
    return _coco(folder)


def role_of(path: Path, folder: Path) -> Role:
    """What a file is for, by its name, or else by its folder's."""
    for text in (path.stem, *(part.name for part in path.parents if part != folder and folder in part.parents)):
        for role, pattern in ROLES:
            if re.search(pattern, text.lower()):
                return role
    return "all"


def _homes(folder: Path) -> list[Path]:
    for places in ([folder], folder.glob("*"), folder.glob("*/*")):
        homes = sorted(path for path in places if (path / "JPEGImages").is_dir() and not _hidden(path, folder))
        if homes:
            return homes
    return []


def _hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder lies in a hidden one, or is hidden itself."""
    return any(is_hidden(name) for name in path.relative_to(folder).parts)


def _voc(folder: Path, homes: Sequence[Path], mask_classes: int | None) -> tuple[list[FolderPart], list[Finding]]:
    lists: dict[str, list[ImageList]] = {}
    findings = []
    for home in homes:
        xmls = (home / "Annotations").is_dir() and any((home / "Annotations").rglob("*.xml"))
        masks = (home / "SegmentationClass").is_dir()
        listed = False
        for kind in ("Main", "Segmentation"):
            files = {path.stem: path for path in (home / "ImageSets" / kind).glob("*.txt")}
            usual = [name for name in ("train", "val", "test") if name in files]
            strict = kind == "Main"
            for name in usual or files.keys() & {"trainval"}:
                images = ImageList(home, files[name], None, None)
                if xmls:
                    images = images._replace(boxes="required" if strict else "optional")
                if masks:
                    images = images._replace(masks="optional" if strict and xmls else "required")
                lists.setdefault(name, []).append(images)
                listed = True
        if not listed:
            value, expected = "no train, val or trainval in ImageSets", "all pictures were checked"
            findings.append(Finding("lists_missing", "all", relative(home, folder), value, expected))
            images = ImageList(home, None, "required" if xmls else None, "optional" if masks else None)
            lists.setdefault("all", []).append(images)
    roles: dict[str, Role] = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
    mask_names = None if mask_classes is None else [f"id {number}" for number in range(mask_classes)]
    parts = []
    for name, group in lists.items():
        voc = VocLists(folder, group, where=f"{folder} ({name})", mask_names=mask_names)
        parts.append(FolderPart(name, roles.get(name, "all"), voc))
    return parts, findings


def _coco(folder: Path) -> tuple[list[FolderPart], list[Finding]]:
    jsons = sorted(path for path in {*folder.glob("*.json"), *folder.glob("*/*.json")} if not _hidden(path, folder))
    parts: list[FolderPart] = []
    findings = []
    reasons = []
    for path in jsons[:MOST_JSONS]:
        try:
            images = _image_folder(path, folder, load_json(path)["images"])
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
            reasons.append(f"{relative(path, folder)}: {reason}")
            findings.append(Finding("json_skipped", "all", relative(path, folder), shown(reason, 160)))
            continue
        role = role_of(path, folder)
        taken = {part.name for part in parts}
        parts.append(FolderPart(role if role not in taken else relative(path, folder), role, CocoJson(path, images)))
    if not parts:
        why = f" ({reasons[0]})" if reasons else ""
        raise DataError(f"{folder}: no data set recognised{why}; {EXPECTED}")
    order = [role for role, _ in ROLES]
    parts.sort(key=lambda part: order.index(part.role) if part.role in order else len(order))
    return parts, findings


def _image_folder(path: Path, folder: Path, entries: Sequence[Any]) -> Path:
    """The folder below which a json's file names are found.

    Raises:
        DataError: None has one of them.
    """
    stated = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    names = [name for name in stated if isinstance(name, str) and name]
    below = [Path(base) / name for base, names, _ in islice(os.walk(folder), 200) for name in sorted(names)]
    below = [place for place in below if not _hidden(place, folder)]
    best, most = None, 0
    # where several fit, the one that is called as the json is
    places = sorted([path.parent, folder, *below], key=lambda place: place.name not in path.stem)
    for place in places:
        hits = sum(_is_there(place, name) for name in names[:SAMPLE])
        if hits > most:
            best, most = place, hits
    if best is None:
        example = f", such as '{shown(names[0])}'," if names else ""
        raise DataError(f"{path}: none of its images{example} is in a folder here")
    return best


def _is_there(images: Path, name: str) -> bool:
    try:
        return os.path.isfile(images / file_below(images, name))
    except DataError:
        return False


def unlisted(splits: Sequence[Split]) -> list[Finding]:
    """Pictures beside those of a data set that no entry names."""
    folders: dict[Path, tuple[Split, set[Path]]] = {}
    for split in splits:
        records = split.records
        listed = {
            records.path(file)
            for picture in records.pictures
            for file in (picture.file, picture.mask, picture.annotation)
            if file
        }
        for folder in records.picture_folders:
            folders.setdefault(folder, (split, set()))[1].update(listed)
    findings = []
    for folder, (split, listed) in folders.items():
        # images below a folder of another part belong to that
        inner = [other for other in folders if other != folder and folder in other.parents]
        for path in (folder / name for name in image_names(folder)):
            if path in listed or any(other in path.parents for other in inner):
                continue
            if "SegmentationClass" not in path.parts and path.is_file():
                findings.append(Finding("image_unlisted", split.name, relative(path, split.root), "no entry"))
    return findings


def outside_links(split: Split) -> list[Finding]:
    """Files that are links out of the folder of images."""
    records, folder = split.records, os.path.realpath(split.records.folder)
    findings = []
    for index, picture in enumerate(records.pictures):
        files = [records.path(file) for file in (picture.file, picture.annotation, picture.mask) if file]
        findings += [
            split.of_picture("link_outside", index, relative(file, split.root))
            for file in files
            if leaves(file, folder)
        ]
    return findings
