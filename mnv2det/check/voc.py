"""Reading lists and xml files in VOC's layout to the end, whatever is wrong in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnv2det.check.findings import shown
from mnv2det.check.pool import Crash, parallel
from mnv2det.check.split import Boxes, Picture, Role, Row, Split, VocList, VocPart, leaves, quoted, relative
from mnv2det.data.formats.voc import parse_xml, read_stems, stated_object, stated_size
from mnv2det.data.images import EXTENSIONS, inside
from mnv2det.errors import DataError, near

LARGEST_XML = 64 * 2**20  # bytes


class Stated(NamedTuple):
    """What an xml says.

    Attributes:
        faults: (kind, number of the object or 0, value, expected).
        size: (H, W), None where it is missing or wrong.
        objects: (number, name, four numbers, difficult).
    """

    faults: list[tuple[str, int, str, str]]
    size: tuple[int, int] | None = None
    objects: Sequence[tuple[int, str, list[float], bool]] = ()


def read_xml(path: Path) -> Stated:
    """All of an annotation that can be read, and what cannot."""
    if not os.path.isfile(path):
        return Stated([("annotation_missing", 0, "no such file", "an xml for every image of the list")])
    try:
        if path.stat().st_size > LARGEST_XML:
            raise DataError(f"{path}: {path.stat().st_size} bytes")
        tree = parse_xml(path)
    except DataError as error:
        return Stated([("annotation_broken", 0, _short(error, path), "a VOC xml")])
    faults: list[tuple[str, int, str, str]] = []
    objects = []
    size = None
    try:
        size = stated_size(tree, path)
    except DataError as error:
        faults.append(("image_size", 0, _short(error, path), "size/width and size/height in pixels"))
    for number, item in enumerate(tree.findall("object"), 1):
        try:
            name, box, difficult = stated_object(item, number, path)
            objects.append((number, name, box, difficult))
        except DataError as error:
            named = (item.findtext("name") or "").strip()
            kind, expected = ("box_malformed", "four numbers") if named else ("annotation_broken", "a class name")
            faults.append((kind, number, _short(error, path), expected))
    return Stated(faults, size, objects)


def _short(error: DataError, path: Path) -> str:
    return shown(str(error).removeprefix(f"{path}: "), 120)


def read_voc(part: VocPart, *, name: str, role: Role, root: Path, workers: int) -> Split:
    """Lists in VOC's layout as a `Split`; what stops `mnv2det.data.formats.voc.VOC` is a finding here.

    Args:
        part: What to read.
        name: Of the split.
        role: Of the split.
        root: Data folder, for paths in reports.
        workers: Processes that read the xml files.
    """
    split = Split(name, role, root, part, _about(part, root))
    split.boxed = any(one.boxes for one in part.lists)
    # an image of two kinds of lists, as of Main and Segmentation, is one image
    seen: dict[tuple[Path, str], str] = {}
    homes: dict[str, Path] = {}
    for one in part.lists:
        place = relative(one.file, root) if one.file else relative(one.home, root)
        for stem in _stems(one, part.suffix):
            kind = one.file.parent.name if one.file else ""
            if seen.get((one.home, stem)) == kind or homes.setdefault(stem, one.home) != one.home:
                split.find("image_twice", place, shown(stem), "each image once", image=shown(stem))
                continue
            if (one.home, stem) in seen:
                continue
            seen[one.home, stem] = kind
            _add(split, part, one, stem, place)
    for home in {one.home for one in part.lists}:
        _links(split, home)
    _annotate(split, workers)
    split.names = list(part.names) if part.names is not None else None
    return split


def _about(part: VocPart, root: Path) -> str:
    lists = ", ".join(relative(one.file or one.home / "JPEGImages", root) for one in part.lists)
    what = ["boxes"] if any(one.boxes for one in part.lists) else []
    what += [f"masks ({part.mask_folder})"] if any(one.masks for one in part.lists) else []
    return f"VOC layout, {lists}: {' and '.join(what) or 'pictures alone'}"


def _stems(one: VocList, suffix: str) -> list[str]:
    if one.file is not None:
        return read_stems(one.file)
    return sorted(path.stem for path in (one.home / "JPEGImages").iterdir() if path.suffix == suffix)


def _add(split: Split, part: VocPart, one: VocList, stem: str, place: str) -> None:
    index = len(split.pictures)
    try:
        inside(one.home, stem, where="")
    except DataError:
        expected = f"a name below {relative(one.home / 'JPEGImages', split.root)}"
        split.find("path_outside", place, shown(stem), expected, image=shown(stem), index=index)
        split.pictures.append(Picture(shown(stem), shown(stem), None, boxed=False))
        return
    file = one.home / "JPEGImages" / f"{stem}{part.suffix}"
    xml, mask = one.home / "Annotations" / f"{stem}.xml", one.home / part.mask_folder / f"{stem}.png"
    boxed = one.boxes == "required" or (one.boxes == "optional" and os.path.isfile(xml))
    masked = one.masks is not None and os.path.isfile(mask)
    name = relative(file, split.root)
    split.pictures.append(
        Picture(name, stem, file, mask=mask if masked else None, xml=xml if boxed else None, boxed=boxed)
    )
    if one.masks == "required" and not masked:
        folder, known = part.mask_folder, [path.name for path in one.home.iterdir()]
        hint = "" if folder in known else near(folder, known)
        split.findings.append(split.of_picture("mask_missing", index, f"no {folder}/{shown(stem)}.png{hint}", "a PNG"))


def _links(split: Split, home: Path) -> None:
    """Notes files that are links out of the folder of images."""
    folder = os.path.realpath(home)
    for index, picture in enumerate(split.pictures):
        files = [path for path in (picture.file, picture.xml, picture.mask) if path and path.is_relative_to(home)]
        for path in files:
            if leaves(path, folder):
                split.findings.append(split.of_picture("link_outside", index, relative(path, split.root)))


def _annotate(split: Split, workers: int) -> None:
    """Reads the xml files of all pictures that have one."""
    boxed = [(index, picture.xml) for index, picture in enumerate(split.pictures) if picture.xml]
    rows: list[Row] = []
    found = parallel(read_xml, [xml for _, xml in boxed], workers, desc=f"{split.name}: annotations", unit="file")
    for (index, xml), stated in zip(boxed, found, strict=True):
        picture = split.pictures[index]
        file = relative(xml, split.root)
        if isinstance(stated, Crash):
            stated = Stated([("annotation_broken", 0, stated.reason, "a VOC xml")])
        for kind, number, value, expected in stated.faults:
            place = {"annotation": number, "position": number - 1} if number else {}
            split.find(kind, file, value, expected, image=picture.id, index=index, **place)
        split.pictures[index] = picture._replace(size=stated.size)
        for number, name, box, difficult in stated.objects:
            corners = (box[0] - 1, box[1] - 1, box[2], box[3])
            empty = box[0] >= box[2] or box[1] >= box[3]
            rows.append(Row(index, name, box, corners, empty, difficult, number, number - 1))
            if difficult:
                split.find(
                    "difficult",
                    file,
                    quoted(name),
                    image=picture.id,
                    annotation=number,
                    index=index,
                    position=number - 1,
                )
    split.boxes = Boxes(rows)


def suffix_of(home: Path) -> str:
    """The commonest suffix among a folder's pictures; ``.jpg`` where there are none."""
    counts: dict[str, int] = {}
    for path in (home / "JPEGImages").iterdir():
        if path.suffix.lower() in EXTENSIONS:
            counts[path.suffix] = counts.get(path.suffix, 0) + 1
    return max(counts, key=lambda suffix: counts[suffix], default=".jpg")
