from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mnv2det.config import BadData
from mnv2det.data.fit import fit
from mnv2det.data.formats.base import RecordsDataset
from mnv2det.data.formats.imagefolder import ImageFolder
from mnv2det.data.transforms import inception
from mnv2det.errors import ConfigError, DataError
from mnv2det.registry import AUGMENTATIONS
from mnv2det.structures import Preprocess
from mnv2det.testing import assert_dataset


def collection(root: Path) -> Path:
    for number, name in enumerate(("dog/1.png", "cat/a.png", "cat/deep/b.png", "dog/2.PNG")):
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path.with_suffix(".png")), np.full((20 + number, 30, 3), 40 * number, np.uint8))
        path.with_suffix(".png").rename(path)
    (root / "pictures" / "cat" / "notes.txt").write_text("x")
    return root


def labels_of(data: RecordsDataset) -> list[int]:
    return [int(data.target(index)["label"]) for index in range(len(data))]


def test_a_folder_is_a_class(tmp_path: Path):
    data = ImageFolder(root=collection(tmp_path), images="pictures").dataset()
    assert data.classes == {"label": ["cat", "dog"]}
    assert [data.image_id(index) for index in range(len(data))] == [
        "cat/a.png",
        "cat/deep/b.png",
        "dog/1.png",
        "dog/2.PNG",
    ]
    assert labels_of(data) == [0, 0, 1, 1]
    assert data.read(1).image.shape == (22, 30, 3)
    assert data.problems == []
    assert_dataset(data)


def test_names_say_the_order_and_synsets_what_folders_are_called(tmp_path: Path):
    root = collection(tmp_path)
    data = ImageFolder(root=root, images="pictures", names=("dog", "bird", "cat")).dataset()
    assert sorted(labels_of(data)) == [0, 0, 2, 2]
    (root / "synsets.txt").write_text("dog a good one\ncat tabby, tabby cat\n")
    data = ImageFolder(root=root, images="pictures", synsets="synsets.txt").dataset()
    assert data.classes == {"label": ["a good one", "tabby, tabby cat"]}
    assert sorted(labels_of(data)) == [0, 0, 1, 1]
    names = ("x", "tabby, tabby cat", "a good one")
    data = ImageFolder(root=root, images="pictures", synsets="synsets.txt", names=names).dataset()
    assert sorted(labels_of(data)) == [1, 1, 2, 2]
    with pytest.raises(ConfigError, match="class 'a good one' is none of the 1 given"):
        ImageFolder(root=root, images="pictures", synsets="synsets.txt", names=("tabby, tabby cat",)).dataset()


def test_mistakes_name_the_folder_and_the_file(tmp_path: Path):
    root = collection(tmp_path)
    with pytest.raises(DataError, match=r"pictures/dog: no class of that name; did you mean 'dogs'"):
        ImageFolder(root=root, images="pictures", names=("cat", "dogs")).dataset()
    data = ImageFolder(root=root, images="pictures", names=("cat", "dogs")).dataset(BadData.skip)
    assert len(data) == 2
    assert "dog: no class of that name" in data.problems[0]
    with pytest.raises(DataError, match="nowhere: no such folder; expected one folder per class"):
        ImageFolder(root=root, images="nowhere").dataset()
    with pytest.raises(DataError, match="imagefolder: images"):
        ImageFolder(root=root, images="../..").dataset()
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in folders of classes"):
        ImageFolder(root=root, images="empty").dataset()
    for text in ("dog\n", "dog a\ndog b\n"):
        (root / "synsets.txt").write_text(text)
        with pytest.raises(DataError, match=r"synsets\.txt, line \d: expected FOLDER NAME"):
            ImageFolder(root=root, images="pictures", synsets="synsets.txt").dataset()
    (root / "pictures" / "cat" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cat/a\.png: not an image"):
        ImageFolder(root=root, images="pictures").dataset().read(0)


def test_hidden_folders_are_no_classes_and_hold_no_pictures(tmp_path: Path):
    root = collection(tmp_path)
    before = ImageFolder(root=root, images="pictures").dataset()
    picture = next((root / "pictures" / "cat").glob("**/*.*"))
    for place in (".ipynb_checkpoints", "@eaDir", "__MACOSX/cat", "cat/.thumbnails", "cat/@eaDir/x"):
        (root / "pictures" / place).mkdir(parents=True)
        (root / "pictures" / place / "a.png").write_bytes(picture.read_bytes())
    (root / "pictures" / "cat" / "._a.png").write_bytes(b"not a picture")
    data = ImageFolder(root=root, images="pictures").dataset()
    assert data.classes == before.classes
    assert [data.image_id(index) for index in range(len(data))] == [before.image_id(n) for n in range(len(before))]
    assert data.problems == [
        f"{root}/pictures/{name}: a hidden folder is no class" for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX")
    ]


@pytest.mark.parametrize("size", [(480, 640), (300, 200), (50, 50), (1, 400)])
def test_the_middle_is_shown(size: tuple[int, int]):
    ramp = np.zeros((*size, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, size[0])[:, None]
    ramp[..., 1] = np.linspace(0, 255, size[1])
    shown, frame = fit(ramp, Preprocess((224, 224), fit="crop"))
    assert shown.shape == (224, 224, 3)
    assert frame.size == size
    shorter = int(np.argmin(size))
    if size[shorter] > 1:
        edge = 255 * 0.0625
        lines = shown[..., shorter].mean(axis=1 - shorter)
        assert lines[0] == pytest.approx(edge, abs=3)
        assert lines[-1] == pytest.approx(255 - edge, abs=3)
        assert shown[..., 1 - shorter].mean() == pytest.approx(127.5, abs=2)


def test_augmentation_is_a_function_of_the_seed(tmp_path: Path):
    sample = ImageFolder(root=collection(tmp_path), images="pictures").dataset().read(0)
    sample.image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    transform = inception(Preprocess((32, 48)))
    first, again, other = (transform(sample, seed) for seed in (1, 1, 2))
    assert first[0].shape == (32, 48, 3)
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()
    assert int(first[1]["label"]) == 0
    problems = AUGMENTATIONS.bind("inception", {"area": [0.5, 2.0], "ratio": [1, 2, 3]}, place="data.augment")[1]
    assert problems == [
        "data.augment.args.area[1]: expected a number > 0 and <= 1, got 2.0",
        "data.augment.args.ratio: expected a list of 2, each a number > 0, got [1, 2, 3]",
    ]
