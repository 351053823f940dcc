"""PASCAL VOC: an xml of boxes in 1-based inclusive pixels, a PNG of class ids, or both per image."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from defusedxml.ElementTree import tostring
from tqdm import tqdm

from mnv2det.data.classes import class_list, mask_list
from mnv2det.data.formats.base import Format
from mnv2det.data.formats.cleaning import Cleaning, copy_file, copy_pictures, copy_place
from mnv2det.data.formats.problems import quoted, shown
from mnv2det.data.formats.records import Box, Picture, Records
from mnv2det.data.formats.text import read_text
from mnv2det.data.formats.voc_xml import CORNERS, parse_xml, set_size, stated_object, stated_size
from mnv2det.data.images import EXTENSIONS, image_names, inside
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.io import is_watched
from mnv2det.registry import DATASETS
from mnv2det.structures import VOC_MASK_CLASSES

Need = Literal["required", "optional"]
USUAL = ".jpg"  # the suffix that is taken first
COLUMN = re.compile(r"\s+(-1|0|1)$")


class ImageList(NamedTuple):
    """A list of images and what is read for them.

    Attributes:
        home: Folder with JPEGImages.
        file: The list; None lists every picture of the folder.
        boxes: Whether every image needs an xml, or may have one; None reads none.
        masks: Whether every image needs a mask, or may have one; None reads none.
    """

    home: Path
    file: Path | None
    boxes: Need | None
    masks: Need | None


class VocLists(Format):
    """Lists of images in VOC's layout that make one part of a data set.

    An image's id is its path below JPEGImages, without suffix: ``north/000``. Where two homes have an image of one
    path, all ids begin with their home: ``VOC2007/000001``.

    Args:
        folder: Folder that all lists lie below.
        lists: In order. An image of two kinds of lists, such as Main and Segmentation, is one image.
        where: What is read, for messages.
        suffix: Suffix of the image files; None takes ``.jpg``, or else any other of a picture.
        mask_folder: Folder of the masks, beside JPEGImages.
        names: Class list to hold boxes to; None takes the names found, sorted.
        mask_names: Classes of the masks in the order of their ids; None leaves them open.
    """

    def __init__(
        self,
        folder: Path,
        lists: Sequence[ImageList],
        *,
        where: str,
        suffix: str | None = None,
        mask_folder: str = "SegmentationClass",
        names: Sequence[str] | None = None,
        mask_names: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.lists, self.where, self.suffix = folder, lists, where, suffix
        self.mask_folder, self.names, self.mask_names = mask_folder, names, mask_names
        self._ids_have_home = False
        self._suffixes: dict[str, dict[str, list[str]]] = {}  # by folder and stem

    def read(self) -> Records:
        """See `Format.read`; ``stated`` is xmin, ymin, xmax and ymax as the xml has them."""
        files = [images.file for images in self.lists if images.file]
        places = list(dict.fromkeys(images.home / "JPEGImages" for images in self.lists))
        records = Records(self.folder, self.where, self._about(), files, places)
        records.ignored_as, records.box_place = "difficult", "object {id} '{name}': box {numbers}"
        self._suffixes.clear()
        listed = [(images, self._stems(images)) for images in self.lists]
        distinct = {(images.home, stem) for images, stems in listed for stem in stems}
        self._ids_have_home = len({stem for _, stem in distinct}) < len(distinct)
        kinds: dict[str, str] = {}  # by id: the kind of list that names it
        for images, stems in listed:
            kind = images.file.parent.name if images.file else ""
            quiet = len(stems) < 2000 or not is_watched()
            for stem in tqdm(stems, desc="reading VOC", unit="image", disable=quiet, leave=False):
                identifier = self._id(images.home, stem)
                known = kinds.get(identifier)
                if known is None:
                    kinds[identifier] = kind
                    self._read_image(records, images, stem)
                elif known == kind:
                    what = f"image '{shown(stem)}' is listed twice"
                    records.add_problem("image_twice", images.file or images.home, what, image=shown(stem))
        if not records.pictures:
            raise DataError(f"{self.where}: no images left in it")
        self._read_classes(records)
        return records

    def _about(self) -> str:
        lists = ", ".join(str(images.file or images.home / "JPEGImages") for images in self.lists)
        what = ["boxes"] if any(images.boxes for images in self.lists) else []
        what += [f"masks ({self.mask_folder})"] if any(images.masks for images in self.lists) else []
        return f"VOC layout, {lists}: {' and '.join(what) or 'pictures alone'}"

    def _stems(self, images: ImageList) -> list[str]:
        """The images of a list: normal paths below JPEGImages, without suffix, with slashes."""
        folder = images.home / "JPEGImages"
        if images.file is None:
            files = [os.path.splitext(name) for name in image_names(folder)]
            return sorted({stem.replace(os.sep, "/") for stem, suffix in files if self.suffix in (None, suffix)})

        def exists(stem: str) -> bool:
            return bool(self._suffixes_of(folder, stem))

        stems = read_stems(images.file, exists)
        # as Windows writes paths
        stems = [stem.replace("\\", "/") if "\\" in stem and not exists(stem) else stem for stem in stems]
        return [posixpath.normpath(stem) for stem in stems]

    def _suffixes_of(self, folder: Path, stem: str) -> list[str]:
        """Suffixes of the pictures that a stem has; the first one is taken."""
        if self.suffix is not None:
            return [self.suffix] if os.path.isfile(folder / f"{stem}{self.suffix}") else []
        place, name = os.path.split(folder / stem)
        if place not in self._suffixes:
            table = self._suffixes[place] = defaultdict(list)
            for file in os.listdir(place) if os.path.isdir(place) else ():
                known, suffix = os.path.splitext(file)
                if suffix.lower() in EXTENSIONS:
                    table[known].append(suffix)
        return sorted(self._suffixes[place].get(name, ()), key=lambda suffix: (suffix != USUAL, suffix))

    def _id(self, home: Path, stem: str) -> str:
        return f"{os.path.relpath(home, self.folder)}/{stem}" if self._ids_have_home else stem

    def _read_image(self, records: Records, images: ImageList, stem: str) -> None:
        """Adds a picture with its boxes."""
        index = len(records.pictures)
        listed_in = images.file or images.home
        try:
            inside(images.home, stem, where=str(listed_in))
        except DataError as error:
            records.pictures.append(Picture(shown(stem), "", boxed=False))
            what = str(error).removeprefix(f"{listed_in}: ")
            records.add_problem("path_outside", listed_in, what, value=shown(stem), index=index)
            return
        home = os.path.relpath(images.home, self.folder)
        mask, xml = (
            os.path.normpath(os.path.join(home, folder, f"{stem}{suffix}"))
            for folder, suffix in ((self.mask_folder, ".png"), ("Annotations", ".xml"))
        )
        boxed = images.boxes == "required" or (images.boxes == "optional" and os.path.isfile(self.folder / xml))
        masked = images.masks is not None and os.path.isfile(self.folder / mask)
        suffixes = self._suffixes_of(images.home / "JPEGImages", stem) or [self.suffix or USUAL]
        file, *others = (os.path.normpath(os.path.join(home, "JPEGImages", f"{stem}{suffix}")) for suffix in suffixes)
        identifier = self._id(images.home, stem)
        records.pictures.append(Picture(identifier, file, None, mask if masked else "", xml if boxed else "", boxed))
        for other in others:
            what = f"{os.path.basename(file)} is read instead"
            records.add_problem("image_ambiguous", self.folder / other, what, index=index)
        if images.masks == "required" and not masked:
            others = [path.name for path in images.home.iterdir()]
            hint = "" if self.mask_folder in others else near(self.mask_folder, others)
            missing = str(images.home / self.mask_folder / f"{stem}.png")
            records.add_problem("mask_missing", self.folder / file, f"no such mask{hint}", where=missing, index=index)
        if boxed:
            self._read_xml(records, index, self.folder / xml)

    def _read_xml(self, records: Records, index: int, path: Path) -> None:
        """Adds the boxes of an annotation, and the size it states."""

        def report(kind: str, error: DataError | str, number: int | None = None, value: str = "") -> None:
            what = str(error).removeprefix(f"{path}: ")
            position = -1 if number is None else number - 1
            value = value or shown(what, 120)
            records.add_problem(kind, path, what, value=value, index=index, annotation=number, position=position)

        try:
            tree = parse_xml(path)
        except DataError as error:
            report("annotation_broken" if os.path.isfile(path) else "annotation_missing", error)
            return
        try:
            records.pictures[index] = records.pictures[index]._replace(size=stated_size(tree, path))
        except DataError as error:
            report("image_size", error)
        for number, item in enumerate(tree.findall("object"), 1):
            try:
                name, box, difficult = stated_object(item, number, path)
            except DataError as error:
                named = (item.findtext("name") or "").strip()
                report("box_malformed" if named else "annotation_broken", error, number)
                continue
            x1, y1, x2, y2 = box
            wrong = [(axis, a, b) for axis, a, b in (("x", x1, x2), ("y", y1, y2)) if a >= b]
            if wrong:
                axis, low, high = wrong[0]
                what = f"object {number} '{name}': {axis}min {low:g} {'>' if low > high else '='} {axis}max {high:g}"
                report("box_no_area", what, number, f"{quoted(name)} [{x1:g}, {y1:g}, {x2:g}, {y2:g}]")
                continue
            # VOC counts pixels from 1 and includes the last: here, and only here, that ends
            corners = (x1 - 1, y1 - 1, x2, y2)
            records.add_box(Box(index, name, corners, box, difficult, position=number - 1))

    def _read_classes(self, records: Records) -> None:
        """Sets the class lists; a box of an unexpected class is a problem of that box."""
        source = self.lists[0].file or self.folder
        if any(images.boxes for images in self.lists):
            boxes, kept = records.boxes, records.kept()[1]
            names = sorted({boxes.names[label] for label in boxes.label[kept].tolist()})
            records.classes["labels"], issues = class_list(names, self.names, where=self.where)
            records.add_class_issues([issue for issue in issues if issue.kind != "class_unknown"], source)
            records.add_unknown_classes(issues, "object")
        if any(images.masks for images in self.lists) and self.mask_names is not None:
            records.classes["mask"], issues = mask_list(self.mask_names, None, where=f"{self.where}: masks")
            records.add_class_issues(issues, source)

    def write_clean(self, records: Records, cleaning: Cleaning, root: Path, target: Path) -> None:
        """Writes the xml files and lists without what is left out, and copies pictures and masks."""
        left_out: dict[int, list[int]] = defaultdict(list)
        clipped: dict[int, dict[int, list[float]]] = defaultdict(dict)
        for index, position in cleaning.annotations:
            left_out[index].append(position)
        for (index, position), corners in cleaning.corners.items():
            clipped[index][position] = corners
        for index in copy_pictures(records, cleaning, root, target):
            xml = records.pictures[index].annotation
            if not xml:
                continue
            path = records.path(xml)
            if not (index in cleaning.sizes or left_out[index] or clipped[index]):
                copy_file(path, root, target)
                continue
            tree = parse_xml(path)
            if index in cleaning.sizes:
                set_size(tree, cleaning.sizes[index])
            items = tree.findall("object")
            for position, (x1, y1, x2, y2) in clipped[index].items():
                for tag, value in zip(CORNERS, (x1 + 1, y1 + 1, x2, y2), strict=True):
                    items[position].find(f"bndbox/{tag}").text = f"{value:g}"
            for position in left_out[index]:
                tree.remove(items[position])
            copy_place(path, root, target).write_bytes(tostring(tree, encoding="utf-8"))
        self._write_lists(records, cleaning, root, target)

    def _write_lists(self, records: Records, cleaning: Cleaning, root: Path, target: Path) -> None:
        kept = {picture.id for index, picture in enumerate(records.pictures) if index not in cleaning.pictures}
        written: set[tuple[str, str]] = set()
        for images in self.lists:
            if images.file is None:
                continue
            kind, stems = images.file.parent.name, []
            for stem in self._stems(images):
                identifier = self._id(images.home, stem)
                if identifier in kept and (kind, identifier) not in written:
                    written.add((kind, identifier))
                    stems.append(stem)
            text = "".join(f"{stem}\n" for stem in stems)
            copy_place(images.file, root, target).write_text(text, "utf-8")


@DATASETS.register("voc")
class VOC(VocLists):
    """Any folder laid out as VOCdevkit: ``JPEGImages``, ``ImageSets``, and ``Annotations`` or masks.

    Args:
        root: Data folder that no path leaves.
        sets: ``YEAR_OR_NAME/LIST`` below ``folder``, such as ``VOC2007/trainval``; several are joined.
        folder: The devkit, below ``root``.
        names: Class list to hold boxes to; null collects the names found, sorted.
        suffix: Of the image files; null takes ``.jpg``, or else any other of a picture.
        boxes: ``required`` reads an xml for every image, ``optional`` where there is one (the
            others are not annotated with boxes), null none.
        masks: ``required`` reads a mask for every image, ``optional`` where there is one, null none.
        mask_folder: Where the masks are: PNGs of class ids, named as the images.
        lists: Folder of the lists below ``ImageSets``; null is ``Main`` where boxes are required,
            else ``Segmentation``.
        mask_names: Classes of the masks in the order of their ids; null is VOC's 21.

    Raises:
        ConfigError: Neither boxes nor masks are wanted.
        DataError: A list is missing, or a path leaves the data folder.
    """

    def __init__(
        self,
        *,
        root: Path,
        sets: tuple[str, ...],
        folder: str = "VOCdevkit",
        names: tuple[str, ...] | None = None,
        suffix: str | None = None,
        boxes: Need | None = "required",
        masks: Need | None = None,
        mask_folder: str = "SegmentationClass",
        lists: str | None = None,
        mask_names: tuple[str, ...] | None = None,
    ) -> None:
        if boxes is None and masks is None:
            raise ConfigError("data set voc: boxes and masks are both null: nothing would be read")
        devkit = inside(root, folder, where="data set voc: folder")
        inside(devkit, mask_folder, where="data set voc: mask_folder")
        kind = lists or ("Main" if boxes == "required" else "Segmentation")
        files = [_list_file(devkit, item, kind) for item in sets]
        super().__init__(
            devkit,
            [ImageList(home, file, boxes, masks) for home, file in files],
            where=f"{devkit} ({', '.join(sets)})",
            suffix=suffix,
            mask_folder=mask_folder,
            names=names,
            mask_names=VOC_MASK_CLASSES if mask_names is None else mask_names,
        )
        self.boxes, self.masks = boxes, masks

    def read(self) -> Records:
        """See `VocLists.read`; what is optional must not be missing everywhere."""
        records = super().read()
        count, source = len(records.pictures), records.files[0]
        for kind, need, what, there in (
            ("annotation_missing", self.boxes, "an xml in Annotations", [p.annotation for p in records.pictures]),
            ("mask_missing", self.masks, f"a mask in {self.mask_folder}", [p.mask for p in records.pictures]),
        ):
            if need == "optional" and not any(there):
                text = f"none of {count} images has {what}"
                records.add_problem(kind, source, text, where=self.where, fatal=True)
        return records


def _list_file(devkit: Path, item: str, folder: str) -> tuple[Path, Path]:
    """The folder of images and the list file that one of ``sets`` names.

    Raises:
        DataError: It is no FOLDER/LIST, leaves the devkit, or there is no such list.
    """
    year, slash, name = item.partition("/")
    if not slash or year in ("", ".") or "/" in name:
        raise DataError(f"data set voc: set '{item}': expected FOLDER/LIST such as VOC2007/trainval")
    home = inside(devkit, year, where=f"data set voc: set '{item}'")
    path = inside(home, f"ImageSets/{folder}/{name}.txt", where=f"data set voc: set '{item}'")
    if not path.is_file():
        lists = [p.stem for p in path.parent.glob("*.txt")] if path.parent.is_dir() else []
        others = sorted(p.parent.name for p in home.glob("ImageSets/*/*.txt") if p.stem == name)
        hint = f"; ImageSets/{others[0]} has one (argument lists)" if others else near(name, lists)
        raise DataError(f"{path}: no such image list{hint}")
    return home, path


def read_stems(path: Path, exists: Callable[[str], bool]) -> list[str]:
    """The images that a list names, one a line; names may contain spaces.

    Where every line ends in -1, 0 or 1, that is a second column, as VOC's lists per class have, except in a line
    that is the name of a picture as it stands.

    Args:
        path: The list.
        exists: Whether there is a picture of a name.

    Raises:
        DataError: The file cannot be read.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not all(COLUMN.search(line) for line in lines):
        return lines
    return [line if exists(line) else COLUMN.sub("", line) for line in lines]
