"""Pictures in a folder per class, as ImageNet and most collections for classification are kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mnv2det.config import BadData
from mnv2det.data.dataset import Arrays, Dataset
from mnv2det.data.images import EXTENSIONS, inside, read_image
from mnv2det.errors import ConfigError, DataError, near
from mnv2det.registry import DATASETS
from mnv2det.structures import Sample


@DATASETS.register("imagefolder")
class ImageFolder(Dataset):
    """``images/CLASS/**/*.jpg``: a folder's name is the class of all pictures below it.

    Args:
        root: The data root.
        bad_data: ``skip`` leaves out folders that are no class; ``stop`` refuses them.
        images: Folder of the classes' folders, below the root.
        names: Class names in order; None takes the folders', sorted, or those of ``synsets``.
        synsets: File with a line ``FOLDER NAME`` for each class in order (ImageNet's synset_words.txt),
            below the root, where folders are not called as their classes are.

    Raises:
        ConfigError: Names are not those of ``synsets``.
        DataError: A folder is missing, no class or without pictures.
    """

    def __init__(
        self,
        *,
        root: Path,
        bad_data: BadData = BadData.stop,
        images: str,
        names: tuple[str, ...] | None = None,
        synsets: str | None = None,
    ) -> None:
        self.problems = []
        self.root = inside(root, images, where="data set imagefolder: images")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; expected one folder per class in it")
        folders = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        called = _synsets(inside(root, synsets, where="data set imagefolder: synsets")) if synsets else None
        title = called or {folder: folder for folder in folders}
        classes = list(names) if names is not None else list(title.values())
        if called and names is not None and set(called.values()) - set(names):
            strange = sorted(set(called.values()) - set(names))[0]
            raise ConfigError(f"{synsets}: class '{strange}' is none of the {len(names)} given{near(strange, names)}")
        place = {name: number for number, name in enumerate(classes)}
        files: list[str] = []
        labels: list[int] = []
        for folder in folders:
            if title.get(folder) not in place:
                problem = f"{self.root / folder}: no class of that name{near(folder, title if called else classes)}"
                if bad_data is BadData.stop:
                    raise DataError(problem)
                self.problems.append(problem)
                continue
            found = _pictures(self.root, folder)
            if not found:
                self.problems.append(f"{self.root / folder}: no pictures in it")
            files += found
            labels += [place[title[folder]]] * len(found)
        if not files:
            raise DataError(
                f"{self.root}: no pictures in folders of classes (looked for {', '.join(sorted(EXTENSIONS))})"
            )
        self.classes = {"label": classes}
        # bytes in one array: workers share it
        self.files = np.array([os.fsencode(name) for name in files])
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def image_id(self, index: int) -> str:
        """The file's path below ``images``."""
        return os.fsdecode(self.files[index])

    def target(self, index: int) -> Arrays:
        """See `Dataset.target`: ``label``."""
        return {"label": self.labels[index]}

    def read(self, index: int) -> Sample:
        """See `Dataset.read`."""
        return Sample(read_image(self.root / self.image_id(index)), self.target(index), self.image_id(index))


def _pictures(root: Path, folder: str) -> list[str]:
    """Paths below the root of all pictures below a folder of it, sorted."""
    found = []
    for place, _, names in os.walk(root / folder):
        found += [
            os.path.relpath(os.path.join(place, name), root)
            for name in names
            if os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return sorted(found)


def _synsets(path: Path) -> dict[str, str]:
    """Folder to class name, in order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the list of classes ({error})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        folder, _, name = line.strip().partition(" ")
        if not folder:
            continue
        if not name.strip() or folder in found:
            raise DataError(f"{path}, line {number}: expected FOLDER NAME, each folder once, got '{line[:80]}'")
        found[folder] = name.strip()
    return found
