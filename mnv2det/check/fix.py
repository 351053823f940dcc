"""Writing a cleaned copy: the same files without what can be put right by rule."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mnv2det.check.findings import KINDS, Finding
from mnv2det.check.split import CocoPart, Split, VocPart
from mnv2det.data.formats.coco import load_json
from mnv2det.data.formats.voc import parse_xml, read_stems
from mnv2det.data.masks import foreign, read_ids
from mnv2det.errors import ConfigError
from mnv2det.structures import IGNORE

# kinds that leave a picture out, and those that leave an annotation out
NO_PICTURE = frozenset({"path_outside", "image_missing", "image_broken", "image_leak", "annotation_missing"})
NO_ROW = frozenset(
    {"box_malformed", "box_no_area", "box_outside", "box_duplicate", "annotation_orphan", "annotation_broken"}
)


class Plan:
    """What is done to one part.

    Attributes:
        pictures: Indices of those left out.
        rows: (picture, position) of annotations left out; the picture is -1 where it is not known.
        clipped: Rows of the box table to clip.
        sizes: Pictures whose stated size is corrected.
        masks: Pictures whose mask is.
    """

    def __init__(self, split: Split, findings: Iterable[Finding]) -> None:
        mine = [finding for finding in findings if finding.split == split.name]
        # an xml that cannot be read costs its picture, an entry of a json only itself
        lost = {f.index for f in mine if f.kind == "annotation_broken" and f.position < 0 and f.index >= 0}
        self.pictures = {f.index for f in mine if f.kind in NO_PICTURE and f.index >= 0} | lost
        self.rows = {(f.index, f.position) for f in mine if f.kind in NO_ROW and f.position >= 0}
        self.sizes = {f.index for f in mine if f.kind == "image_size"}
        self.masks = {f.index for f in mine if f.kind == "mask_foreign"}
        beyond = {(f.index, f.position) for f in mine if f.kind == "box_beyond"}
        places = zip(split.boxes.image.tolist(), split.boxes.position.tolist(), strict=True)
        self.clipped = {place: row for row, place in enumerate(places) if place in beyond}

    def action(self, finding: Finding) -> str:
        """What is done about a finding; empty where that takes a person."""
        if finding.index in self.pictures and finding.kind != "image_leak":
            return KINDS["image_broken"].fix
        return KINDS[finding.kind].fix


def check_target(target: Path, root: Path, splits: Sequence[Split]) -> None:
    """Refuses to write where something is, or into what is read.

    Raises:
        ConfigError: The folder is not empty, or it and the data lie in one another.
    """
    if not any(split.part for split in splits):
        raise ConfigError(f"--fix {target}: there are no files to copy ({splits[0].about})")
    places = Counter(place for split in splits for place in _files_of(split))
    for place, times in places.items():
        if times > 1:
            raise ConfigError(f"--fix {target}: two parts are read from {place}; give each its own file")
    real = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--fix {target}: exists and is not empty")
    files = {picture.file.parent for split in splits for picture in split.pictures if picture.file}
    for source in sorted({root.resolve(), *(folder.resolve() for folder in files)}):
        if real == source or source in real.parents or real in source.parents:
            raise ConfigError(f"--fix {target}: lies in the data it would copy, or the other way round ({source})")


def _files_of(split: Split) -> list[Path]:
    """The json or lists of a part."""
    if isinstance(split.part, CocoPart):
        return [split.part.json]
    return [one.file for one in split.part.lists if one.file] if split.part else []


def write_fixed(
    splits: Sequence[Split], findings: Sequence[Finding], sizes: Sequence[NDArray[np.int64]], target: Path
) -> list[tuple[Finding, str]]:
    """Writes a cleaned copy of what was checked.

    It is written beside ``target`` and renamed at the end. Files are copied, never linked.

    Args:
        splits: What was read; those without files are not copied.
        findings: Of all of them.
        sizes: From `mnv2det.check.pictures.check_pictures`.
        target: A new or empty folder.

    Returns:
        Each error and warning, and what was done; empty where it takes a person.

    Raises:
        ConfigError: As `check_target`.
        OSError: Something cannot be written.
    """
    root = splits[0].root
    check_target(target, root, splits)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{os.getpid()}.part"
    draft.mkdir()
    plans = {split.name: Plan(split, findings) for split in splits}
    try:
        for split, size in zip(splits, sizes, strict=True):
            plan = plans[split.name]
            if isinstance(split.part, CocoPart):
                _write_coco(split, split.part, plan, size, draft)
            elif isinstance(split.part, VocPart):
                _write_voc(split, split.part, plan, size, draft)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return [
        (finding, plans[finding.split].action(finding) if finding.split in plans else "")
        for finding in findings
        if finding.severity != "note"
    ]


def _place(path: Path, root: Path, draft: Path) -> Path:
    place = draft / path.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _copy(path: Path, root: Path, draft: Path) -> None:
    place = _place(path, root, draft)
    if not place.exists():
        shutil.copyfile(path, place)


def _kept(split: Split, plan: Plan) -> Iterable[int]:
    kept = [index for index in range(len(split.pictures)) if index not in plan.pictures]
    return tqdm(kept, desc=f"{split.name}: copying", unit="image", leave=False, disable=None)


def _clip(corners: NDArray[np.float64], size: NDArray[np.int64]) -> list[float]:
    return np.clip(corners, 0, np.tile(size[::-1], 2)).tolist()


def _write_coco(split: Split, part: CocoPart, plan: Plan, sizes: NDArray[np.int64], draft: Path) -> None:
    data: dict[str, Any] = dict(load_json(part.json))
    images = []
    for index in _kept(split, plan):
        picture = split.pictures[index]
        assert picture.file is not None
        _copy(picture.file, split.root, draft)
        entry = data["images"][picture.entry]
        if index in plan.sizes:
            entry = {**entry, "height": int(sizes[index][0]), "width": int(sizes[index][1])}
        images.append(entry)
    dropped = {position for _, position in plan.rows}
    clipped = {position: row for (_, position), row in plan.clipped.items()}
    known = {entry["id"] for entry in images}
    annotations = []
    for position, entry in enumerate(data["annotations"]):
        if position in dropped or entry["image_id"] not in known:
            continue
        if position in clipped:
            row = clipped[position]
            x1, y1, x2, y2 = _clip(split.boxes.corners[row], sizes[split.boxes.image[row]])
            entry = {**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotations.append(entry)
    data |= {"images": images, "annotations": annotations}
    _place(part.json, split.root, draft).write_text(json.dumps(data), "utf-8")


def _write_voc(split: Split, part: VocPart, plan: Plan, sizes: NDArray[np.int64], draft: Path) -> None:
    faults: dict[int, set[int]] = defaultdict(set)
    clips: dict[int, dict[int, int]] = defaultdict(dict)
    for index, position in plan.rows:
        faults[index].add(position)
    for (index, position), row in plan.clipped.items():
        clips[index][position] = row
    for index in _kept(split, plan):
        picture = split.pictures[index]
        assert picture.file is not None
        _copy(picture.file, split.root, draft)
        if picture.mask is not None:
            place = _place(picture.mask, split.root, draft)
            if index not in plan.masks:
                _copy(picture.mask, split.root, draft)
            elif not place.exists():
                _clean_mask(picture.mask, place, len(split.mask_names or ()))
        if picture.xml is None:
            continue
        if not (index in plan.sizes or faults[index] or clips[index]):
            _copy(picture.xml, split.root, draft)
            continue
        tree = parse_xml(picture.xml)
        if index in plan.sizes:
            _set_size(tree, sizes[index])
        items = tree.findall("object")
        for position, row in clips[index].items():
            x1, y1, x2, y2 = _clip(split.boxes.corners[row], sizes[index])
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
                items[position].find(f"bndbox/{tag}").text = f"{value:g}"
        for position in faults[index]:
            tree.remove(items[position])
        _write_xml(tree, _place(picture.xml, split.root, draft))
    _write_lists(split, part, plan, draft)


def _write_lists(split: Split, part: VocPart, plan: Plan, draft: Path) -> None:
    left = {(picture.file, picture.id) for index, picture in enumerate(split.pictures) if index not in plan.pictures}
    written: set[tuple[str, str]] = set()
    for one in part.lists:
        if one.file is None:
            continue
        stems = []
        for stem in read_stems(one.file):
            key = (one.file.parent.name, stem)
            if (one.home / "JPEGImages" / f"{stem}{part.suffix}", stem) in left and key not in written:
                written.add(key)
                stems.append(stem)
        _place(one.file, split.root, draft).write_text("".join(f"{stem}\n" for stem in stems), "utf-8")


def _set_size(tree: Any, size: NDArray[np.int64]) -> None:
    for tag, value in zip(("height", "width"), size.tolist(), strict=True):
        parent = tree.find("size")
        if parent is None:
            parent = tree.makeelement("size", {})
            tree.append(parent)
        found = parent.find(tag)
        if found is None:
            found = parent.makeelement(tag, {})
            parent.append(found)
        found.text = str(value)


def _write_xml(tree: Any, place: Path) -> None:
    from defusedxml.ElementTree import tostring

    place.write_bytes(tostring(tree, encoding="utf-8"))


def _clean_mask(source: Path, place: Path, classes: int) -> None:
    """Copies a mask with 255 where its id is no class's, palette and all."""
    ids = read_ids(source, classes)
    clean = np.where(foreign(ids, classes), IGNORE, ids).astype(np.uint8)
    picture = Image.fromarray(clean)
    with Image.open(source) as old:
        palette = old.getpalette() if old.mode == "P" else None
    if palette:
        picture = picture.convert("L")
        picture.putpalette(palette)
    picture.save(place, "PNG")
