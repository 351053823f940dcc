"""labelme's json files, one per picture: rectangles, circles, polygons and masks (github.com/wkentaro/labelme)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mnv2det.data.formats.base import Format
from mnv2det.data.formats.coco_values import SIDES
from mnv2det.data.formats.problems import shown
from mnv2det.data.formats.records import Box, Records
from mnv2det.data.masks import whole
from mnv2det.errors import DataError
from mnv2det.io import evenly_spread, to_json
from mnv2det.labels.base import (
    LabelFormat,
    LabelledPart,
    LabelledPicture,
    Part,
    Placer,
    Recognised,
    Role,
    Tree,
    role_of,
)
from mnv2det.labels.labelme_shapes import Shape, encode_shapes, parse_shape
from mnv2det.labels.reading import ROLE_ORDER, EntryError, PictureFinder, add_picture, free_name, set_classes
from mnv2det.registry import LABELS

LARGEST_JSON = 256 * 2**20  # bytes; a json may hold its picture
SAMPLE = 20  # json files that are looked into before a folder is taken for labelme's
KEYS = frozenset({"imagePath", "imageData", "imageHeight", "version"})  # of which a json of labelme has one
VERSION = "5.5.0"  # of the form that is written


class _Document(NamedTuple):
    """What is kept of a json: the picture that it belongs to, its size as stated, and its shapes.

    ``kind`` and ``problem`` say why it cannot be used; both are empty where it can.
    """

    picture: str
    size: tuple[Any, Any] = (None, None)
    shapes: Sequence[Any] = ()
    kind: str = ""
    problem: str = ""


class LabelmeJsons:
    """All json files of a folder, read once for all of its splits.

    Args:
        tree: The folder.
        files: The json files.
    """

    def __init__(self, tree: Tree, files: Sequence[str]) -> None:
        self.tree, self.files = tree, files

    @cached_property
    def documents(self) -> dict[str, _Document]:
        """What each file holds. The pictures stay on the disk, as does what a json holds of them."""
        finder, documents = PictureFinder(self.tree), {}
        for file in self.files:
            try:
                data = load_document(self.tree.path(file))
                documents[file] = _Document(
                    _find_picture(finder, file, data), (data.get("imageHeight"), data.get("imageWidth")), data["shapes"]
                )
            except DataError as error:
                what = str(error).removeprefix(f"{self.tree.path(file)}: ")
                documents[file] = _Document("", kind="annotation_broken", problem=what)
            except EntryError as error:
                documents[file] = _Document("", kind=error.kind, problem=str(error))
        return documents


class LabelmeFiles(Format):
    """The json files of one split with their pictures.

    Args:
        jsons: All json files.
        role: Of the split.
        last: Whether pictures without a json are reported with this split where their folder names no other.

    Attributes:
        names: Class list to hold to; None takes the labels of the shapes, sorted.
    """

    def __init__(self, jsons: LabelmeJsons, role: Role, *, last: bool) -> None:
        self.jsons, self.role, self.last = jsons, role, last
        self.names: Sequence[str] | None = None

    def read(self) -> Records:
        """See `Format.read`; ``stated`` of a rectangle is its two corners as the json has them."""
        root, documents = self.jsons.tree.root, self.jsons.documents
        files = [file for file in self.jsons.files if role_of(file) == self.role]
        where = f"{root} ({self.role})"
        records = Records(root, where, f"labelme's json, {len(files)} files", ignored_as="difficult")
        records.box_place = "shape {id} '{name}': {numbers}"
        taken: dict[str, str] = {}
        for file in files:
            document, path = documents[file], root / file
            if document.problem:
                records.add_problem(document.kind, path, document.problem)
            elif document.picture in taken:
                what = f"{document.picture} is the picture of {taken[document.picture]} already"
                records.add_problem("image_twice", path, what)
            else:
                taken[document.picture] = file
                index = add_picture(records, document.picture, file)
                if (size := records.pictures[index].size) is not None:
                    _check_size(records, index, path, document.size, size)
                    _add_boxes(records, index, path, document.shapes, size)
        for picture in self._unlabelled():
            index = add_picture(records, picture, "")
            records.pictures[index] = records.pictures[index]._replace(boxed=False)
            records.add_problem("annotation_missing", root / picture, "no json of its name", index=index)
        records.picture_folders = sorted({records.path(picture.id).parent for picture in records.pictures})  # type: ignore[arg-type]
        if not records.pictures:
            raise DataError(records.problems[0].message if records.problems else f"{where}: no pictures in it")
        set_classes(records, None, self.names, needed=self.role in ("train", "all"))
        return records

    def _unlabelled(self) -> list[str]:
        """Pictures that no json belongs to, for this split to report."""
        known = {document.picture for document in self.jsons.documents.values()}
        roles = {role_of(file) for file in self.jsons.files}
        pictures = [picture for picture in self.jsons.tree.pictures if picture not in known]
        return [p for p in pictures if role_of(p) == self.role or (self.last and role_of(p) not in roles)]


def load_document(path: Path) -> dict[str, Any]:
    """A json of labelme: ``shapes`` is a list; what it holds is not looked at.

    Raises:
        DataError: The file is missing, huge, no json, or none of labelme's.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise DataError(f"{path}: {path.stat().st_size} bytes; expected the annotation of one image")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a json file ({shown(str(error), 120) or type(error).__name__})") from None
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list) or not data.keys() & KEYS:
        raise DataError(f"{path}: no json of labelme's; expected a list 'shapes' and an 'imagePath'")
    return data


def _find_picture(finder: PictureFinder, file: str, data: Mapping[str, Any]) -> str:
    """The picture of a json: at its ``imagePath``, else of its own name beside it, else by the end of the path."""
    stated, (stem, folder) = data.get("imagePath"), (os.path.splitext(file)[0], os.path.dirname(file))
    stated = stated if isinstance(stated, str) else ""
    if stated and (picture := finder.beside(stated, folder)):
        return picture
    if picture := finder.of_stem(stem):
        return picture
    try:
        return finder.find(stated or os.path.basename(stem), stem=not stated)
    except EntryError as error:
        if data.get("imageData"):
            what = f"no picture '{shown(stated)}'; imageData holds one: save it beside the json"
            raise EntryError("image_missing", what) from None
        raise error from None


def _check_size(records: Records, index: int, path: Path, stated: tuple[Any, Any], size: tuple[int, int]) -> None:
    """Reports a stated (H, W) that is not the picture's own; null states none."""
    if stated == (None, None) or stated == size:
        return
    height, width = (shown(side, 20) if isinstance(side, int | float | str) else "none" for side in stated)
    known = all(whole(side) and side in SIDES for side in stated)
    what = f"imageHeight {height}, imageWidth {width}: the picture is {size[1]}x{size[0]}"
    records.add_problem("image_size", path, what, index=index, expected="" if known else "whole numbers of pixels")


def _add_boxes(records: Records, index: int, path: Path, shapes: Sequence[Any], size: tuple[int, int]) -> None:
    """Adds the objects of a picture: shapes of one label and ``group_id`` are one object."""
    objects: dict[tuple[str, str, str], list[Shape]] = {}
    for position, entry in enumerate(shapes):
        try:
            shape = parse_shape(entry, position)
            if shape is not None:
                group = entry.get("group_id")
                if not (group is None or isinstance(group, int | str)):
                    raise EntryError("annotation_broken", "group_id: expected a whole number or null")
                key = (shape.label, str(position), "") if group is None else (shape.label, "", str(group))
                objects.setdefault(key, []).append(shape)
        except RecursionError:
            _report(records, index, path, position, EntryError("annotation_broken", "lists nested too deeply"))
        except EntryError as error:
            _report(records, index, path, position, error)
    for group in objects.values():
        first = group[0]
        across = [x for shape in group for x in shape.outline[::2]]
        down = [y for shape in group for y in shape.outline[1::2]]
        corners = (min(across), min(down), max(across), max(down))
        plain = len(group) == 1 and first.plain
        runs, pixels, area = b"", 0, math.nan
        if not plain:
            try:
                runs, pixels = encode_shapes(group, size)
                area = float(pixels)
            except DataError as error:
                _report(records, index, path, first.position, EntryError("segmentation_broken", str(error)))
                continue
        ignore = any(shape.difficult for shape in group)
        stated = first.stated if plain else None
        records.add_box(Box(index, first.label, corners, stated, ignore, area, None, first.position, runs, pixels))


def _report(records: Records, index: int, path: Path, position: int, error: EntryError) -> None:
    place = f"shape {position + 1}"
    records.add_problem(
        error.kind, path, str(error), place=place, index=index, annotation=position + 1, position=position
    )


@LABELS.register("labelme")
class LabelmeLabels(LabelFormat):
    """A json beside each picture, or apart from it with its path in ``imagePath``."""

    expected = "labelme's json files (a json with shapes for each picture)"

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        files = tree.with_suffix(".json")
        if not files:
            return "no json"
        reason = ""
        for file in evenly_spread(files, SAMPLE):
            try:
                load_document(tree.path(file))
                break
            except DataError as error:
                reason = reason or f"{file}: {str(error).removeprefix(f'{tree.path(file)}: ')}"
        else:
            return reason
        if not tree.pictures:
            raise DataError(f"{tree.root}: labelme's json, but no picture; those in imageData are not read")
        jsons, roles = LabelmeJsons(tree, files), {role_of(file) for file in files}
        ordered = [role for role in ROLE_ORDER if role in roles]
        parts = [Part(role, role, LabelmeFiles(jsons, role, last=role == ordered[-1])) for role in ordered]
        return Recognised("labelme", f"labelme's json: {len(files)} files for {len(tree.pictures)} pictures", parts)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``train``, ``val`` and ``test``, a json beside each picture; outlines are written as rectangles.

        An ignored box has the flag ``difficult``.
        """
        for part in parts:
            taken: set[str] = set()
            (target / part.role).mkdir(parents=True, exist_ok=True)
            for picture in part.pictures:
                file = target / part.role / free_name(picture.name, taken)
                place(picture.source, file)
                text = to_json(_document(picture, file.name), indent=2)
                file.with_suffix(".json").write_text(f"{text}\n", "utf-8")
        return []


def _document(picture: LabelledPicture, file: str) -> dict[str, Any]:
    """A picture's json."""
    shapes = []
    for box in picture.boxes:
        x1, y1, x2, y2 = box.corners
        shapes.append(
            {
                "label": box.name,
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "description": "",
                "shape_type": "rectangle",
                "flags": {"difficult": True} if box.ignore else {},
                "mask": None,
            }
        )
    height, width = picture.size
    sizes = {"imageData": None, "imageHeight": height, "imageWidth": width}
    return {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": file, **sizes}
