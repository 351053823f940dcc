"""Reading a COCO-style json to the end, whatever is wrong in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnv2det.check.findings import Finding, shown
from mnv2det.check.split import Boxes, CocoPart, Picture, Role, Row, Split, leaves, quoted, relative
from mnv2det.data.formats.coco import load_json, real, stated_box
from mnv2det.data.images import inside
from mnv2det.data.masks import encode, whole
from mnv2det.errors import DataError, near

UNSIZED = (1, 1)


def read_coco(part: CocoPart, *, name: str, role: Role, root: Path) -> Split:
    """One json as a `Split`.

    What stops `mnv2det.data.formats.coco.COCO` is a finding here (tests/check/test_readers.py holds the two together).

    Args:
        part: What to read.
        name: Of the split.
        role: Of the split.
        root: Data folder, for paths in reports.

    Raises:
        DataError: The file is missing, no json, or not COCO's.
    """
    data = load_json(part.json)
    place = relative(part.json, root)
    about = f"COCO json {place}, images in {relative(part.images, root)}"
    split = Split(name, role, root, part, about)
    places = _pictures(split, part, data["images"], place)
    categories = _categories(split, data["categories"], part.names, place)
    if not split.pictures:
        raise DataError(f"{part.json}: no images in it")
    split.boxes = Boxes(_rows(split, part, data["annotations"], places, categories))
    if part.masks:
        split.about += ", masks from segmentations"
    return split


def _pictures(split: Split, part: CocoPart, entries: list[Any], place: str) -> dict[int, int]:
    """Fills in the pictures; gives the place of each id among them."""
    places: dict[int, int] = {}
    folder = os.path.realpath(part.images)
    for position, entry in enumerate(entries):
        where = f"images[{position}]"
        if not isinstance(entry, dict) or not whole(entry.get("id")):
            split.find("annotation_broken", place, f"{where}: {shown(entry)}", "an id that is a whole number")
            continue
        identifier, stated = entry["id"], entry.get("file_name")
        if identifier in places:
            expected = "each id once"
            split.find("image_twice", place, f"{where}: id {identifier}", expected, image=identifier)
            continue
        file, shown_as = None, place
        if not isinstance(stated, str):
            value = f"{where}: file_name {shown(stated)}"
            split.find("annotation_broken", place, value, "a file name", image=identifier, index=len(split.pictures))
        else:
            try:
                file = inside(part.images, stated, where="")
                shown_as = relative(file, split.root)
            except DataError:
                shown_as = shown(stated, 200)
                expected = f"a path below {relative(part.images, split.root)}"
                value = f"{where}: file_name {shown(stated)}"
                split.find("path_outside", place, value, expected, image=identifier, index=len(split.pictures))
        size: tuple[Any, Any] = (entry.get("height"), entry.get("width"))
        sized = all(whole(n) and 0 < n < 1e6 for n in size)
        stated_size = (int(size[0]), int(size[1])) if sized else None
        picture = Picture(shown_as, identifier, file, stated_size, entry=position)
        places[identifier] = len(split.pictures)
        split.pictures.append(picture)
        if not sized:
            value = f"height {shown(size[0], 20)}, width {shown(size[1], 20)}"
            split.findings.append(
                split.of_picture("image_size", places[identifier], value, "two whole numbers of pixels")
            )
        if file is not None and leaves(file, folder):
            split.findings.append(split.of_picture("link_outside", places[identifier], "a link"))
    return places


def _categories(split: Split, entries: list[Any], given: Sequence[str] | None, place: str) -> dict[int, str]:
    """Names by id; sets the class list as `mnv2det.data.formats.coco.COCO` would."""
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        where = f"categories[{position}]"
        if not isinstance(entry, dict) or not whole(entry.get("id")) or not isinstance(entry.get("name"), str):
            split.find("class_broken", place, f"{where}: {shown(entry)}", "an id and a name")
        elif entry["id"] in names:
            split.find("class_broken", place, f"{where}: id {entry['id']} again", "each id once")
        elif not entry["name"] or entry["name"] in names.values():
            split.find("class_broken", place, f"{where}: name {quoted(entry['name'])} again or empty", "each once")
            names[entry["id"]] = entry["name"]
        else:
            names[entry["id"]] = entry["name"]
    if not names and given is None:
        split.find("class_broken", place, "no categories", "at least one")
    found = list(dict.fromkeys(name for _, name in sorted(names.items())))
    split.names = list(given) if given is not None else found
    for name in found:
        if name not in split.names:
            split.find("class_unknown", place, f"category {quoted(name)}", _expected(name, split.names))
    return names


def _expected(name: str, names: Sequence[str]) -> str:
    return f"one of {len(names)} classes{near(name, names)}" if len(names) > 12 else near(name, names).lstrip("; ")


def _rows(
    split: Split, part: CocoPart, entries: list[Any], places: Mapping[int, int], names: Mapping[int, str]
) -> list[Row]:
    place = relative(part.json, split.root)
    rows: list[Row] = []
    for position, entry in enumerate(entries):
        found = _row(split, part, entry, position, places, names)
        if isinstance(found, Row):
            rows.append(found)
            if found.ignore:
                value = f"{quoted(found.name)} [{', '.join(f'{number:g}' for number in found.stated)}]"
                finding = split.of_picture("crowd", found.image, value)
                split.findings.append(_at(finding, found.id, position))
            continue
        kind, index, value, expected = found
        if index is None:
            finding = Finding(kind, split.name, place, value, expected)
        else:
            finding = split.of_picture(kind, index, value, expected)
        split.findings.append(_at(finding, _id_of(entry, position), position))
    return rows


def _id_of(entry: Any, position: int) -> int | str:
    """An annotation's id or, where it has no proper one, its place."""
    identifier: Any = entry.get("id") if isinstance(entry, dict) else None
    return identifier if whole(identifier) else f"[{position}]"


def _at(finding: Finding, annotation: int | str, position: int) -> Finding:
    return replace(finding, annotation=annotation, position=position)


def _row(
    split: Split,
    part: CocoPart,
    entry: Any,
    position: int,
    places: Mapping[int, int],
    names: Mapping[int, str],
) -> Row | tuple[str, int | None, str, str]:
    """The box, or the kind, picture, value and expectation of what is wrong, in the loader's order."""
    if not isinstance(entry, dict):
        return "annotation_broken", None, shown(entry), "keys"
    image: Any = entry.get("image_id")
    category: Any = entry.get("category_id")
    if not whole(image) or image not in places:
        return "annotation_orphan", None, f"image_id {shown(image, 30)}", "an id of images"
    index = places[image]
    if not whole(category) or category not in names:
        return "class_unknown", index, f"category_id {shown(category, 30)}", "an id of categories"
    size = split.pictures[index].size
    try:
        x, y, w, h = stated_box(entry, size or UNSIZED, "")
    except DataError as error:
        return "box_malformed", index, str(error).removeprefix(": "), "[x, y, width, height]"
    area, crowd = entry.get("area", w * h), entry.get("iscrowd", 0)
    if not real(area):
        return "annotation_broken", index, f"area {shown(area, 30)}", "a number"
    if crowd not in (0, 1):
        return "annotation_broken", index, f"iscrowd {shown(crowd, 30)}", "0 or 1"
    wanted = part.masks and (part.mask_classes is None or names[category] in part.mask_classes)
    if wanted and size is not None:
        try:
            if not entry.get("segmentation"):
                raise DataError("no segmentation")
            encode(entry["segmentation"], size, "")
        except DataError as error:
            value = str(error).removeprefix(": ")
            # the box itself may be good
            finding = split.of_picture("segmentation_broken", index, value, "polygons or run lengths")
            split.findings.append(_at(finding, _id_of(entry, position), position))
    corners, empty, known = (x, y, x + w, y + h), w <= 0 or h <= 0, _id_of(entry, position)
    return Row(index, names[category], (x, y, w, h), corners, empty, bool(crowd), known, position)
