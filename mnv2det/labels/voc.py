"""PASCAL VOC's xml, in VOC's layout or anywhere beside or apart from the pictures (labelImg, CVAT, Roboflow)."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from mnv2det.data.formats.records import Picture, Records
from mnv2det.data.formats.voc import ImageList, VocLists
from mnv2det.data.formats.voc_xml import CORNERS, parse_xml
from mnv2det.errors import DataError
from mnv2det.labels.base import (
    ROLES,
    LabelFormat,
    LabelledPart,
    LabelledPicture,
    Part,
    Placer,
    Recognised,
    Remark,
    Role,
    Tree,
    pair_by_stem,
    role_of,
)
from mnv2det.labels.reading import read_names
from mnv2det.registry import LABELS

HOME = "data"  # the folder below VOCdevkit that is written
MASK_NAMES = "SegmentationClass.txt"  # lists the classes of the masks beside it
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
OTHER_LISTS: dict[str, Role] = {"trainval": "train", "default": "all"}  # taken where no list is for a split


class VocPairs(VocLists):
    """Pictures and xml files that lie anywhere below a folder.

    Args:
        folder: The folder.
        pairs: A picture and its xml, or an empty string, by paths below the folder.
        orphans: Files of xml without a picture.
    """

    def __init__(self, folder: Path, pairs: Sequence[tuple[str, str]], orphans: Sequence[str] = ()) -> None:
        super().__init__(folder, [ImageList(folder, None, "optional", None)], where=str(folder))
        self.pairs, self.orphans = pairs, orphans

    def read(self) -> Records:
        """See `Format.read`."""
        folders = sorted({(self.folder / picture).parent for picture, _ in self.pairs})
        about = f"VOC's xml, {sum(bool(xml) for _, xml in self.pairs)} files for {len(self.pairs)} pictures"
        records = Records(self.folder, self.where, about, [], folders)
        records.ignored_as, records.box_place = "difficult", "object {id} '{name}': box {numbers}"
        for picture, xml in self.pairs:
            index = len(records.pictures)
            records.pictures.append(Picture(picture, picture, None, "", xml, bool(xml)))
            if xml:
                self._read_xml(records, index, self.folder / xml)
            else:
                records.add_problem("annotation_missing", self.folder / picture, "no xml of its name", index=index)
        for xml in self.orphans:
            records.add_problem("annotation_orphan", self.folder / xml, "no picture of its name")
        self._read_classes(records)
        return records


@LABELS.register("voc")
class VocLabels(LabelFormat):
    """``JPEGImages``, ``Annotations`` and ``ImageSets`` as in VOCdevkit, or xml files anywhere."""

    expected = "VOC's xml (JPEGImages with Annotations or SegmentationClass, or xml files of the pictures' names)"
    masks = True

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        homes = sorted({path[: path.index("JPEGImages/")] for path in tree.pictures if "JPEGImages/" in path})
        homes = [home for home in homes if _labelled(tree, home)]
        if homes and not (any(file.endswith("labelmap.txt") for file in tree.files) and not tree.with_suffix(".xml")):
            return _devkit(tree, homes)
        xmls = tree.with_suffix(".xml")
        if not xmls:
            return "no xml"
        if not any(_is_voc(tree.path(xml)) for xml in (xmls[0], xmls[len(xmls) // 2], xmls[-1])):
            return f"{xmls[0]}: no xml of VOC's form (annotation with objects in it)"
        return _pairs(tree, xmls)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``VOCdevkit/data`` with lists; names in them have the pictures' folders in front."""
        home = target / "VOCdevkit" / HOME
        stems: set[str] = set()
        boxed = any(part.names for part in parts)
        for part in parts:
            names = []
            for picture in part.pictures:
                stem, suffix = os.path.splitext(picture.name)
                # a picture of the same name but for its suffix
                while stem in stems:
                    stem += suffix.replace(".", "_")
                stems.add(stem)
                names.append(stem)
                place(picture.source, home / "JPEGImages" / (stem + suffix))
                if boxed:
                    xml = home / "Annotations" / f"{stem}.xml"
                    xml.parent.mkdir(parents=True, exist_ok=True)
                    xml.write_bytes(annotation_xml(os.path.basename(stem) + suffix, picture.size, _objects(picture)))
                if picture.mask is not None:
                    mask = home / "SegmentationClass" / f"{stem}.png"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(picture.mask, mask)
            kinds = ["Main"] if boxed else []
            if part.mask_names:
                kinds.append("Segmentation")
            for kind in kinds:
                (home / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
                text = "".join(f"{name}\n" for name in names)
                (home / "ImageSets" / kind / f"{part.role}.txt").write_text(text, "utf-8")
        if names := next((part.mask_names for part in parts if part.mask_names), []):
            (home / MASK_NAMES).write_text("".join(f"{name}\n" for name in names), "utf-8")
        return []


class VocObject(NamedTuple):
    """An object of an annotation: class, ``xmin ymin xmax ymax`` as VOC counts them, flag, and score if it has one."""

    name: str
    bounds: Sequence[float]
    difficult: bool = False
    score: float | None = None


def annotation_xml(file: str, size: tuple[int, int], objects: Iterable[VocObject]) -> bytes:
    """An annotation file as PASCAL VOC's tools and our data set ``voc`` read it.

    Args:
        file: Name of the picture's file; characters that xml cannot hold become question marks.
        size: (H, W) of the picture.
        objects: What is on it.
    """
    lines = [
        f"<annotation>\n  <filename>{_xml_text(file)}</filename>",
        f"  <size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for item in objects:
        bounds = "".join(
            f"<{tag}>{f'{value:.4f}'.rstrip('0').rstrip('.')}</{tag}>"
            for tag, value in zip(CORNERS, item.bounds, strict=True)
        )
        score = "" if item.score is None else f"<score>{item.score:.6f}</score>"
        lines.append(
            f"  <object><name>{_xml_text(item.name)}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>{int(item.difficult)}</difficult>{score}<bndbox>{bounds}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>\n"]).encode()


def _xml_text(text: str) -> str:
    return escape(NOT_XML.sub("?", text))


def _objects(picture: LabelledPicture) -> list[VocObject]:
    """VOC counts pixels from 1, and the last is inside; parts of a pixel are kept."""
    return [
        VocObject(box.name, (box.corners[0] + 1, box.corners[1] + 1, box.corners[2], box.corners[3]), box.ignore)
        for box in picture.boxes
    ]


def _labelled(tree: Tree, home: str) -> bool:
    folders = (f"{home}Annotations/", f"{home}SegmentationClass/")
    return any(file.startswith(folders) for file in tree.files)


def _devkit(tree: Tree, homes: Sequence[str]) -> Recognised:
    """Lists of VOC's layout that are of the same name in several homes (VOC2007, VOC2012) make one split."""
    lists: dict[str, list[ImageList]] = {}
    remarks = []
    for home in homes:
        path = tree.path(home) if home else tree.root
        xmls = any(file.startswith(f"{home}Annotations/") and file.lower().endswith(".xml") for file in tree.files)
        masks = any(file.startswith(f"{home}SegmentationClass/") for file in tree.files)
        files = {
            kind: {
                Path(file).stem: tree.path(file) for file in tree.files if file.startswith(f"{home}ImageSets/{kind}/")
            }
            for kind in ("Main", "Segmentation")
        }
        listed = False
        for kind, of_kind in files.items():
            names = [name for name in of_kind if name.lower() in ROLES]
            for name in names or [name for name in OTHER_LISTS if name in of_kind]:
                main = kind == "Main"
                boxes = ("required" if main else "optional") if xmls else None
                mask = ("optional" if main and xmls else "required") if masks else None
                lists.setdefault(name, []).append(ImageList(path, of_kind[name], boxes, mask))  # type: ignore[arg-type]
                listed = True
        if not listed:
            what, expected = "no train, val or trainval in ImageSets", "all pictures were taken"
            remarks.append(Remark("lists_missing", home.rstrip("/"), what, expected))
            images = ImageList(path, None, "required" if xmls else None, "optional" if masks else None)
            lists.setdefault("all", []).append(images)
    mask_names = next(
        (read_names(tree.path(file)) for home in homes if (file := home + MASK_NAMES) in tree.files), None
    )
    parts = []
    for name, group in lists.items():
        voc = VocLists(tree.root, group, where=f"{tree.root} ({name})", mask_names=mask_names)
        parts.append(Part(name, OTHER_LISTS.get(name) or ROLES.get(name.lower(), "all"), voc))
    about = f"VOC's layout in {', '.join(home.rstrip('/') or '.' for home in homes)}: {', '.join(lists)}"
    return Recognised("voc", about, parts, remarks)


def _pairs(tree: Tree, xmls: Sequence[str]) -> Recognised:
    """Every picture with the xml of its name: the one in its folder, or else the only one of that name."""
    by_stem = pair_by_stem(xmls)
    taken: set[str] = set()
    groups: dict[Role, list[tuple[str, str]]] = {}
    for picture in tree.pictures:
        stem = os.path.splitext(os.path.basename(picture))[0].lower()
        candidates = by_stem.get(stem, [])
        beside = [xml for xml in candidates if os.path.dirname(xml) == os.path.dirname(picture)]
        role = role_of(picture)
        same_role = [xml for xml in candidates if role_of(xml) == role]
        chosen = next((found[0] for found in (beside, same_role, candidates) if len(found) == 1), "")
        taken.add(chosen)
        groups.setdefault(role, []).append((picture, chosen))
    orphans = [xml for xml in xmls if xml not in taken]
    parts = []
    for role in ("train", "val", "test", "all"):
        if role in groups:
            own = [xml for xml in orphans if role_of(xml) == role]
            orphans = [xml for xml in orphans if xml not in own]
            parts.append(Part(role, role, VocPairs(tree.root, groups[role], own)))
    if orphans and parts:
        last = parts[-1].format
        assert isinstance(last, VocPairs)
        last.orphans = [*last.orphans, *orphans]
    if not parts:
        raise DataError(f"{tree.root}: VOC's xml, but no picture")
    return Recognised("voc", f"VOC's xml beside or apart from the pictures: {len(xmls)} files", parts)


def _is_voc(path: Path) -> bool:
    try:
        tree = parse_xml(path)
    except DataError:
        return False
    return tree.tag == "annotation" and (tree.find("object") is not None or tree.find("size") is not None)
