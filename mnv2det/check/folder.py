"""Finding out what a plain folder holds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mnv2det.check.findings import Finding, shown
from mnv2det.check.split import CocoPart, Role, Split, VocList, VocPart, relative
from mnv2det.check.voc import suffix_of
from mnv2det.data.formats.coco import load_json
from mnv2det.data.images import EXTENSIONS, inside
from mnv2det.errors import DataError

ROLES: tuple[tuple[Role, str], ...] = (("train", r"train"), ("val", r"val"), ("test", r"test"))
EXPECTED = (
    "expected a config (.yaml), VOC's layout (JPEGImages with Annotations or SegmentationClass, and"
    " ImageSets/Main/train.txt and val.txt), or json files with COCO's images, annotations and categories"
    " in it or in annotations/"
)
MOST_JSONS = 64
SAMPLE = 50  # file names by which a json's image folder is found

Found = tuple[str, Role, CocoPart | VocPart]


def recognise(folder: Path, mask_classes: int | None = None) -> tuple[list[Found], list[Finding]]:
    """The parts of a data set that a folder holds.

    Args:
        folder: In VOC's layout at up to two levels below, or with COCO-style json files.
        mask_classes: Number of classes of the masks, where it is known.

    Returns:
        Name, role and place of each part, and findings on what was left aside.

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
        homes = sorted(path for path in places if (path / "JPEGImages").is_dir())
        if homes:
            return homes
    return []


def _voc(folder: Path, homes: Sequence[Path], mask_classes: int | None) -> tuple[list[Found], list[Finding]]:
    lists: dict[str, list[VocList]] = {}
    findings = []
    for home in homes:
        xmls = (home / "Annotations").is_dir() and any((home / "Annotations").glob("*.xml"))
        masks = (home / "SegmentationClass").is_dir()
        for kind in ("Main", "Segmentation"):
            found = {path.stem: path for path in (home / "ImageSets" / kind).glob("*.txt")}
            usual = [name for name in ("train", "val", "test") if name in found]
            for name in usual or found.keys() & {"trainval"}:
                strict = kind == "Main"
                boxes = ("required" if strict else "optional") if xmls else None
                wanted = ("optional" if strict and xmls else "required") if masks else None
                lists.setdefault(name, []).append(VocList(home, found[name], boxes, wanted))  # type: ignore[arg-type]
        if not any(one.home == home for group in lists.values() for one in group):
            place = relative(home, folder)
            findings.append(
                Finding(
                    "lists_missing", "all", place, "no train, val or trainval in ImageSets", "all pictures were checked"
                )
            )
            optional = "optional" if masks else None
            lists.setdefault("all", []).append(
                VocList(home, None, "required" if xmls else None, optional)  # type: ignore[arg-type]
            )
    roles: dict[str, Role] = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
    return [
        (name, roles.get(name, "all"), VocPart(tuple(group), suffix_of(group[0].home), mask_classes=mask_classes))
        for name, group in lists.items()
    ], findings


def _coco(folder: Path) -> tuple[list[Found], list[Finding]]:
    jsons = sorted({*folder.glob("*.json"), *folder.glob("*/*.json")})[:MOST_JSONS]
    parts: list[Found] = []
    findings = []
    reasons = []
    for path in jsons:
        try:
            images = _image_folder(path, folder, load_json(path)["images"])
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
            reasons.append(f"{relative(path, folder)}: {reason}")
            findings.append(Finding("json_skipped", "all", relative(path, folder), shown(reason, 160)))
            continue
        role = role_of(path, folder)
        taken = {name for name, _, _ in parts}
        parts.append((role if role not in taken else relative(path, folder), role, CocoPart(path, images)))
    if not parts:
        why = f" ({reasons[0]})" if reasons else ""
        raise DataError(f"{folder}: no data set recognised{why}; {EXPECTED}")
    order = [role for role, _ in ROLES]
    parts.sort(key=lambda part: order.index(part[1]) if part[1] in order else len(order))
    return parts, findings


def _image_folder(path: Path, folder: Path, entries: Sequence[Any]) -> Path:
    """The folder below which a json's file names are found.

    Raises:
        DataError: None has one of them.
    """
    names = [entry["file_name"] for entry in entries if isinstance(entry, dict) and _usable(entry.get("file_name"))]
    below = [Path(base) / name for base, names, _ in islice(os.walk(folder), 200) for name in sorted(names)]
    best, most = None, 0
    # where several fit, the one that is called as the json is
    places = sorted([path.parent, folder, *below], key=lambda place: place.name not in path.stem)
    for place in places:
        hits = sum(os.path.isfile(place / name) for name in names[:SAMPLE])
        if hits > most:
            best, most = place, hits
    if best is None:
        example = f", such as '{shown(names[0])}'," if names else ""
        raise DataError(f"{path}: none of its images{example} is in a folder here")
    return best


def _usable(name: object) -> bool:
    try:
        return isinstance(name, str) and bool(name) and bool(inside(Path("x"), name, where=""))
    except DataError:
        return False


def unlisted(splits: Sequence[Split]) -> list[Finding]:
    """Pictures beside those of a data set that no entry names."""
    folders: dict[Path, tuple[Split, set[Path]]] = {}
    for split in splits:
        if isinstance(split.part, CocoPart):
            places = {split.part.images}
        elif isinstance(split.part, VocPart):
            places = {one.home / "JPEGImages" for one in split.part.lists}
        else:
            continue
        listed = {picture.file for picture in split.pictures if picture.file}
        for place in places:
            folders.setdefault(place, (split, set()))[1].update(listed)
    findings = []
    for place, (split, listed) in folders.items():
        # images below a folder of another part belong to that
        inner = [other for other in folders if other != place and place in other.parents]
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() not in EXTENSIONS or path in listed or any(other in path.parents for other in inner):
                continue
            if "SegmentationClass" not in path.parts and path.is_file():
                findings.append(Finding("image_unlisted", split.name, relative(path, split.root), "no entry"))
    return findings
