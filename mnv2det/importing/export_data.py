"""Writing a data set in the format of another tool (docs/import.md)."""

from __future__ import annotations

import os
from pathlib import Path

from mnv2det.errors import ConfigError
from mnv2det.importing.folder import check_apart, write_whole
from mnv2det.importing.gather import box_classes, label_pictures, mask_classes, read_labels
from mnv2det.labels.base import LabelFormat, LabelledPart, Placer
from mnv2det.labels.recognise import recognise
from mnv2det.registry import LABELS


def export_data(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    name: str,
    link: bool = False,
    workers: int = 1,
) -> list[str]:
    """Writes a data set in the format of another tool.

    Args:
        folder: What `import_data` wrote, or any folder that it reads.
        target: New folder.
        name: The label format.
        link: Make hard links to the pictures instead of copies.
        workers: Processes that read; 0 reads in this one.

    Returns:
        What could not be written, a line for each thing.

    Raises:
        ConfigError: There is no such format, it cannot hold what is to be written, or the target is not empty.
        DataError: The folder cannot be read.
    """
    folder, target = Path(os.path.normpath(folder)), Path(os.path.normpath(target))
    label_format: LabelFormat = LABELS.get(name, place="--format")()
    check_apart(folder, target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"-o {target}: exists and is not empty")
    parts, findings = read_labels(folder, recognise(folder), workers)
    labelled = label_pictures(parts, findings)
    names, _ = box_classes(parts, labelled)
    roles = {"all": "train"} if not labelled.get("train") else {}
    mask_names = mask_classes(parts)
    labels = any(kept[2].label for pictures in labelled.values() for kept in pictures)
    contents = {
        "boxes": (bool(names), label_format.boxes),
        "masks of class ids": (bool(mask_names), label_format.masks),
        "classes of whole pictures": (labels, label_format.labels),
    }
    lacking = [what for what, (has, can) in contents.items() if has and not can]
    if lacking and not any(has and can for has, can in contents.values()):
        raise ConfigError(f"--format {name}: cannot hold {lacking[0]}, which {folder} has")
    written: list[LabelledPart] = []
    for role, pictures in labelled.items():
        part = LabelledPart(roles.get(role, role), [kept[2] for kept in pictures], names, mask_names)  # type: ignore[arg-type]
        written.append(part)
    lines = [f"{name} cannot hold {what}: left out" for what in lacking]
    outlines = sum(bool(box.runs) for part in written for picture in part.pictures for box in picture.boxes)
    if outlines and label_format.boxes and not label_format.outlines:
        lines.append(f"{outlines} outlines left out: {name} is written with boxes alone")
    write_whole(target, lambda draft: lines.extend(label_format.write(written, draft, Placer(link=link))))
    errors = sum(finding.severity == "error" for finding in findings)
    return lines + ([f"{errors} errors of the source were left out: mnv2det data check {folder}"] if errors else [])
