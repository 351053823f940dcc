"""Pictures in a folder per class, as ImageNet and most collections for classification are kept."""

from __future__ import annotations

import os
from pathlib import Path

from mnv2det.data.classes import ClassIssue, class_list, meant
from mnv2det.data.formats.base import Format
from mnv2det.data.formats.cleaning import Cleaning, copy_file, copy_pictures
from mnv2det.data.formats.problems import quoted
from mnv2det.data.formats.records import Picture, Records
from mnv2det.data.formats.text import read_text
from mnv2det.data.images import EXTENSIONS, image_names, inside, is_hidden
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.registry import DATASETS


@DATASETS.register("imagefolder")
class ImageFolder(Format):
    """``images/CLASS/**/*.jpg``: a folder's name is the class of all pictures below it.

    Args:
        root: The data root.
        images: Folder of the classes' folders, below the root.
        names: Class names in order; None takes the folders', sorted, or those of ``synsets``.
        synsets: File with a line ``FOLDER NAME`` for each class in order (ImageNet's synset_words.txt),
            below the root, where folders are not called as their classes are.

    Raises:
        DataError: A path leaves the data root.
    """

    def __init__(
        self,
        *,
        root: Path,
        images: str,
        names: tuple[str, ...] | None = None,
        synsets: str | None = None,
    ) -> None:
        self.folder = inside(root, images, where="data set imagefolder: images")
        self.names = names
        self.synsets = inside(root, synsets, where="data set imagefolder: synsets") if synsets else None

    def read(self) -> Records:
        """See `Format.read`.

        Raises:
            ConfigError: Names are not those of ``synsets``.
            DataError: The folder is missing or has no pictures, or ``synsets`` cannot be read.
        """
        folder = self.folder
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected one folder per class in it")
        there = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        folders = [name for name in there if not is_hidden(name)]
        titles = _read_synsets(self.synsets) if self.synsets else {name: name for name in folders}
        classes, issues = self._classes(titles)
        files = [self.synsets] if self.synsets else []
        records = Records(folder, str(folder), f"folders of classes in {folder}", files, [folder], {"label": classes})
        records.add_class_issues(issues, folder)
        for name in there:
            if is_hidden(name):
                records.add_problem("folder_hidden", folder / name, "a hidden folder is no class")
        if classes == list(titles.values()):
            # by folder, because ImageNet has two classes called crane
            labels = {name: label for label, name in enumerate(titles)}
        else:
            labels = {name: classes.index(title) for name, title in titles.items() if title in classes}
        for name in folders:
            if name not in labels:
                known = titles if self.synsets else classes
                what, expected = f"no class of that name{near(name, known)}", meant(name, known)
                records.add_problem("class_unknown", folder / name, what, value=quoted(name), expected=expected)
                continue
            files_of_class = [os.path.join(name, file) for file in image_names(folder / name)]
            if not files_of_class:
                records.add_problem("folder_empty", folder / name, "no pictures in it")
            records.pictures += [Picture(file, file, boxed=False, label=labels[name]) for file in files_of_class]
        if not records.pictures and not any(problem.severity == "error" for problem in records.problems):
            raise DataError(f"{folder}: no pictures in folders of classes (looked for {', '.join(sorted(EXTENSIONS))})")
        return records

    def _classes(self, titles: dict[str, str]) -> tuple[list[str], list[ClassIssue]]:
        """The class list and what is wrong with it.

        Args:
            titles: Class name by folder, from ``synsets`` or of the folders there are.
        """
        listed = list(titles.values())
        if self.names is None or list(self.names) == listed:
            return listed, []
        unknown = sorted(set(listed) - set(self.names)) if self.synsets else []
        if unknown:
            hint = near(unknown[0], self.names)
            raise ConfigError(f"{self.synsets}: class '{unknown[0]}' is none of the {len(self.names)} given{hint}")
        # folders without a class are named one by one
        return class_list([], self.names, where=str(self.folder))

    def write_clean(self, records: Records, cleaning: Cleaning, root: Path, target: Path) -> None:
        """Copies the pictures that are kept, and ``synsets``."""
        for _ in copy_pictures(records, cleaning, root, target):
            pass
        for file in records.files:
            copy_file(file, root, target)


def _read_synsets(path: Path) -> dict[str, str]:
    """Folder to class name, in order."""
    titles: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        folder, _, name = line.strip().partition(" ")
        if not folder:
            continue
        if not name.strip() or folder in titles:
            raise DataError(f"{path}, line {number}: expected FOLDER NAME, each folder once, got '{line[:80]}'")
        titles[folder] = name.strip()
    return titles
