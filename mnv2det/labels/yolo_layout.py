"""Where the pictures, label files, class names and splits of a data set in YOLO's form lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from mnv2det.data.formats.problems import shown
from mnv2det.data.images import EXTENSIONS
from mnv2det.errors import DataError
from mnv2det.labels.base import ROLES, Remark, Role, Tree, role_of
from mnv2det.labels.reading import ROLE_ORDER, EntryError, PictureFinder, is_text, read_text, text_lines

LARGEST_YAML = 2**20  # bytes
LARGEST_LIST = 64 * 2**20  # bytes of a list of pictures or classes
MOST_YAMLS = 64
NAME_FILES = frozenset({"classes.txt", "obj.names", "classes.names", "_darknet.labels", "predefined_classes.txt"})
NO_LABELS = frozenset({*NAME_FILES, "notes.txt", "requirements.txt", "readme.txt"})  # besides lists of pictures
Paths = tuple[str, ...]  # ways to read one path of a yaml: below its key path, or as it is


class YoloSplit(NamedTuple):
    """The files of one split.

    Attributes:
        role: What it is for.
        pairs: Each picture and its label file, an empty string where it has none.
        missing: Pictures that a list names and that are not there: the list, the line from 1, and the name.
        orphans: Label files without a picture.
    """

    role: Role
    pairs: list[tuple[str, str]]
    missing: list[tuple[str, int, str]]
    orphans: list[str]


@dataclass
class YoloLayout:
    """A data set in YOLO's form.

    Attributes:
        classes: Class names by number; None where there is no list of them.
        names_file: The file that lists them.
        splits: Its splits, in the order train, val, test, all.
        remarks: What was left aside.
    """

    classes: Mapping[int, str] | None = None
    names_file: str = ""
    splits: list[YoloSplit] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)


def label_path(picture: str) -> str:
    """Where ultralytics looks for the labels of a picture: the last ``images`` of its folders becomes ``labels``."""
    stem = "/" + os.path.splitext(picture)[0]
    start = stem.lower().rfind("/images/")
    if start >= 0:
        stem = f"{stem[:start]}/labels/{stem[start + len('/images/') :]}"
    return f"{stem[1:]}.txt"


def pair_labels(tree: Tree) -> dict[str, str]:
    """The label file of every picture; an empty string where it has none."""
    texts = {file.lower(): file for file in tree.with_suffix(".txt")}
    return {picture: _label_of(picture, texts) for picture in tree.pictures}


def has_class_list(tree: Tree) -> bool:
    """Whether there is a file whose name is that of YOLO's class lists."""
    names = {os.path.basename(file).lower() for file in tree.files}
    return bool(names & {*NAME_FILES, "data.yaml", "obj.data"})


def read_layout(tree: Tree, labels: Mapping[str, str]) -> YoloLayout:
    """Finds classes and splits.

    Args:
        tree: The folder.
        labels: From `pair_labels`.

    Raises:
        DataError: ``data.yaml`` is broken or for keypoints, or lists of class names contradict each other.
    """
    layout = YoloLayout()
    declared, layout.names_file, layout.classes = _declared(tree, layout.remarks)
    if layout.classes is None:
        layout.names_file, layout.classes = _listed_names(tree)
    finder = PictureFinder(tree)
    groups: dict[Role, list[str]] = {}
    missing: dict[Role, list[tuple[str, int, str]]] = {}
    for role, (file, values) in declared.items():
        pictures, lacking = _pictures_of(tree, finder, file, values, role, layout.remarks)
        if pictures and any(set(pictures) == set(other) for other in groups.values()):
            what = f"{role} has the pictures of another split; it was left out"
            layout.remarks.append(Remark("image_leak", file, what))
        elif pictures or lacking:
            groups[role], missing[role] = pictures, lacking
    # a declared split that is not there may lie in a folder of its name
    _add_undeclared(tree, labels, groups, set(groups), layout.remarks)
    orphans = _orphans(tree, set(labels.values()))
    for role in ROLE_ORDER:
        if role in groups:
            own = [text for text in orphans if role_of(text) == role]
            orphans = [text for text in orphans if role_of(text) != role]
            pairs = [(picture, labels[picture]) for picture in groups[role]]
            layout.splits.append(YoloSplit(role, pairs, missing.get(role, []), own))
    if layout.splits:
        layout.splits[-1].orphans.extend(orphans)
    return layout


def _label_of(picture: str, texts: Mapping[str, str]) -> str:
    """The label file of a picture; empty without one."""
    for path in (label_path(picture), f"{os.path.splitext(picture)[0]}.txt"):
        if (text := texts.get(path.lower())) is not None and os.path.basename(text).lower() not in NAME_FILES:
            return text
    return ""


def _add_undeclared(
    tree: Tree, labels: Mapping[str, str], groups: dict[Role, list[str]], declared: set[Role], remarks: list[Remark]
) -> None:
    """Adds the pictures that no list or yaml names by the words of their folders."""
    known = {picture for pictures in groups.values() for picture in pictures}
    folders = {os.path.dirname(picture) for picture, text in labels.items() if text}
    left: list[str] = []
    for picture in tree.pictures:
        role = role_of(picture)
        if picture in known:
            continue
        if (declared and role in ("all", *declared)) or os.path.dirname(picture) not in folders:
            left.append(picture)
        else:
            groups.setdefault(role, []).append(picture)
    if left:
        what = f"{len(left)} pictures are in no split, or in folders without label files; they were left out"
        remarks.append(Remark("image_unlisted", left[0], what))


def _orphans(tree: Tree, used: set[str]) -> list[str]:
    """Label files without a picture: text files in folders of label files, or in any folder ``labels``."""
    folders = {os.path.dirname(text) for text in used if text}
    orphans = []
    for text in tree.with_suffix(".txt"):
        name, folder = os.path.basename(text).lower(), os.path.dirname(text)
        if text in used or name in NO_LABELS or os.path.splitext(name)[0] in ROLES:
            continue
        if "labels" in folder.lower().split("/") or (folder in folders and _has_row(tree, text)):
            orphans.append(text)
    return orphans


def _has_row(tree: Tree, text: str) -> bool:
    """Whether a text file begins with a line of five numbers or more."""
    try:
        lines = text_lines(read_text(tree.path(text), LARGEST_LIST))
        cells = next((line.split() for line in lines if line.strip()), [])
        return len(cells) >= 5 and bool([float(cell) for cell in cells])
    except (DataError, ValueError):
        return False


def _declared(
    tree: Tree, remarks: list[Remark]
) -> tuple[dict[Role, tuple[str, list[Paths]]], str, Mapping[int, str] | None]:
    """The splits that a yaml, obj.data or lists at the top declare: their file and values; and the class names."""
    for file, data in _yamls(tree):
        if "kpt_shape" in data:
            raise DataError(f"{tree.path(file)}: keypoints (kpt_shape); only boxes and polygons are read")
        classes = _yaml_names(tree, file, data)
        count = data.get("nc")
        if classes is not None and isinstance(count, str) and count != str(len(classes)):
            what = f"nc {shown(count, 20)}, but {len(classes)} names; the names were taken"
            remarks.append(Remark("class_broken", file, what))
        base = data.get("path")
        base = base if isinstance(base, str) else ""
        splits = {ROLES[key]: (file, _paths(value, base)) for key, value in data.items() if key in ROLES}
        splits = {role: split for role, split in splits.items() if split[1]}
        return splits, file if classes is not None else "", classes
    for file in tree.with_suffix(".data"):
        try:
            pairs = [line.partition("=") for line in _list_lines(tree, file)]
        except DataError:
            continue  # another program's
        values = {key.strip().lower(): value.strip() for key, _, value in pairs if value.strip()}
        if values.keys() & ROLES.keys() and "names" in values:
            named = {ROLES[key]: (file, _paths(value, "")) for key, value in values.items() if key in ROLES}
            return named, "", None
    lists = {
        ROLES[os.path.splitext(file)[0].lower()]: (file, _paths(file, ""))
        for file in tree.with_suffix(".txt")
        if "/" not in file and os.path.splitext(file)[0].lower() in ROLES and _is_picture_list(tree, file)
    }
    return lists, "", None


def _yamls(tree: Tree) -> Iterable[tuple[str, dict[str, Any]]]:
    """The files that ultralytics would take as a data set, ``data.yaml`` first."""
    files = [file for file in tree.with_suffix(".yaml", ".yml") if file.count("/") < 3]
    files.sort(key=lambda file: (os.path.basename(file).lower() != "data.yaml", file.count("/"), file))
    for file in files[:MOST_YAMLS]:
        try:
            # BaseLoader keeps every value as the text it is: a class may be called no, on or 007
            data = yaml.load(read_text(tree.path(file), LARGEST_YAML), Loader=yaml.BaseLoader)
        except (DataError, yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
            if os.path.basename(file).lower() == "data.yaml":
                reason = " ".join(str(error).split())[:120]
                raise DataError(f"{tree.path(file)}: cannot read the data set's yaml ({shown(reason, 120)})") from None
            continue
        if isinstance(data, dict) and data.keys() & {"names", "nc"} and data.keys() & {*ROLES, "path"}:
            yield file, {key: value for key, value in data.items() if isinstance(key, str)}


def _yaml_names(tree: Tree, file: str, data: Mapping[str, Any]) -> Mapping[int, str] | None:
    """Class names by number, from a list or a mapping of numbers."""
    names = data.get("names", [])
    try:
        pairs = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else [names])
        classes = {int(number): name for number, name in pairs}
    except (ValueError, TypeError):
        classes = {-1: ""}
    if not all(number >= 0 and isinstance(name, str) and is_text(name) for number, name in classes.items()):
        raise DataError(f"{tree.path(file)}: names: expected a list of class names, or names by number from 0")
    return classes or None


def _listed_names(tree: Tree) -> tuple[str, Mapping[int, str] | None]:
    """The longest list of class names in the folder, a name to a line."""
    files = [
        file for file in tree.files if os.path.basename(file).lower() in NAME_FILES or file.lower().endswith(".names")
    ]
    lists = {file: [line.strip() for line in _list_lines(tree, file)] for file in files}
    longest = max(lists, key=lambda file: len(lists[file]), default="")
    for file, names in lists.items():
        # labelImg appends to its list as it meets new classes
        if names != lists[longest][: len(names)]:
            raise DataError(f"{tree.path(file)}: its class names are not those of {longest}; expected one list")
    if not longest or not lists[longest]:
        return "", None
    if not all(is_text(name) for name in lists[longest]):
        raise DataError(f"{tree.path(longest)}: expected class names in UTF-8, one to a line")
    return longest, dict(enumerate(lists[longest]))


def _list_lines(tree: Tree, file: str) -> list[str]:
    """The lines of a list, without blank ones."""
    return [line for line in text_lines(read_text(tree.path(file), LARGEST_LIST)) if line.strip()]


def _is_picture_list(tree: Tree, file: str) -> bool:
    try:
        lines = _list_lines(tree, file)
    except DataError:
        return False
    return bool(lines) and os.path.splitext(lines[0].strip())[1].lower() in EXTENSIONS


def _paths(value: Any, base: str) -> list[Paths]:
    """The paths of a split: one, or several in a list; each below ``base``, or else as it is."""
    values = value if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    return [(f"{base}/{text}", text) if base else (text,) for text in texts]


def _pictures_of(
    tree: Tree, finder: PictureFinder, file: str, values: Sequence[Paths], role: Role, remarks: list[Remark]
) -> tuple[list[str], list[tuple[str, int, str]]]:
    """The pictures of a declared split, and those that a list names and that are not there."""
    pictures: dict[str, None] = {}
    missing: list[tuple[str, int, str]] = []
    folders = {picture[:end] for picture in tree.pictures for end in range(len(picture)) if picture[end] == "/"}
    lists = set(tree.with_suffix(".txt"))
    for paths in values:
        is_list = paths[0].lower().endswith(".txt")
        known = lists if is_list else folders
        path = next((path for text in paths if (path := _resolve(known, os.path.dirname(file), text))), "")
        if not path:
            remarks.append(
                Remark("lists_missing", file, f"{role}: '{shown(paths[-1])}' is not there or has no pictures")
            )
        elif not is_list:
            pictures |= dict.fromkeys(picture for picture in tree.pictures if picture.startswith(f"{path}/"))
        else:
            for number, line in enumerate(text_lines(read_text(tree.path(path), LARGEST_LIST)), 1):
                try:
                    if line.strip():
                        pictures[finder.find(line.strip(), os.path.dirname(path))] = None
                except EntryError:
                    missing.append((path, number, line.strip()))
    return list(pictures), missing


def _resolve(known: set[str], folder: str, value: str) -> str:
    """The file or folder that a yaml means: as stated below its own folder or the top, or the end of that path.

    Roboflow writes ``../train/images`` into a file beside ``train``; others write paths of another machine. A single
    last name is only taken where it is that of a split or list, since ``images`` may be any folder.
    """
    names = [name for name in value.replace("\\", "/").split("/") if name not in ("", ".", "..")]
    for start in range(len(names)):
        if start and start == len(names) - 1 and not (names[-1].lower() in ROLES or names[-1].lower().endswith(".txt")):
            break
        end = "/".join(names[start:])
        for path in (f"{folder}/{end}" if folder else end, end):
            if path in known:
                return path
    return ""
