"""A folder per class of pictures, with or without folders of splits around them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnv2det.data.formats.imagefolder import ImageFolder
from mnv2det.labels.base import LabelFormat, LabelledPart, Part, Placer, Recognised, Tree, role_of
from mnv2det.registry import LABELS

# folders that hold pictures of all classes
COMMON = frozenset({"images", "image", "img", "imgs", "jpegimages", "pictures", "photos", "data", "masks", "labels"})


@LABELS.register("folders")
class ClassFolders(LabelFormat):
    """``CLASS/*.jpg``, or ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

    expected = "a folder of pictures for each class (CLASS/*.jpg or train/CLASS/*.jpg)"
    boxes, labels = False, True

    def recognise(self, tree: Tree) -> Recognised | str:
        """See `LabelFormat.recognise`."""
        if not tree.pictures:
            return "no pictures"
        loose = [file for file in tree.pictures if "/" not in file]
        if loose:
            return f"{len(loose)} pictures in no folder of a class, such as {loose[0]}"
        tops = sorted({file.split("/")[0] for file in tree.pictures})
        if any(role_of(top) == "all" for top in tops):
            return self._of(tree, {"": tops})  # "train" may be a class, too
        classes = {
            top: sorted({file.split("/")[1] for file in tree.pictures if file.startswith(f"{top}/")}) for top in tops
        }
        return self._of(tree, classes)

    def _of(self, tree: Tree, classes: dict[str, list[str]]) -> Recognised | str:
        names = sorted({name for group in classes.values() for name in group})
        if len(names) < 2:
            return f"pictures of one folder only ({names[0]})"
        plain = [name for name in names if name.lower() in COMMON or os.path.splitext(name)[1]]
        if plain:
            return f"{plain[0]} is no folder of a class"
        parts = []
        for top in classes:
            role = role_of(top) if top else "all"
            parts.append(Part(top or "all", role, ImageFolder(root=tree.root, images=top or ".")))
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        return Recognised("folders", f"a folder for each of {len(names)} classes: {shown}", parts)

    def write(self, parts: Sequence[LabelledPart], target: Path, place: Placer) -> list[str]:
        """Writes ``ROLE/CLASS/``; folders that a picture lay in become a part of its name."""
        for part in parts:
            taken: set[Path] = set()
            for picture in part.pictures:
                folder = target / part.role / picture.label
                inner = [name for name in picture.name.split("/") if name != picture.label and role_of(name) == "all"]
                path = folder / "_".join(inner)
                while path in taken:
                    path = path.with_stem(path.stem + "_")
                taken.add(path)
                place(picture.source, path)
        return []
