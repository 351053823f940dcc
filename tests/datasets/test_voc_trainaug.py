import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from scipy.io import savemat

from mnv2det.data.formats.voc import VOC

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "voc_trainaug.py"
TRAIN, VAL, MORE = ("2007_000001", "2007_000002"), ("2007_000003",), ("2008_000004", "2008_000005", "2008_000006")
SIZE = (12, 20)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("voc_trainaug", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own(stem: str) -> np.ndarray:
    """VOC's mask of an image; SBD's differs."""
    return np.random.default_rng(int(stem[-1])).choice(np.array([0, 7, 20, 255], np.uint8), SIZE)


def theirs(stem: str) -> np.ndarray:
    return np.random.default_rng(100 + int(stem[-1])).integers(0, 21, SIZE, np.uint8)


def mat(ids: Any, key: str = "GTcls") -> bytes:
    """As in SBD's release: a struct with the mask, the borders and the classes that occur."""
    found = io.BytesIO()
    savemat(found, {key: {"Segmentation": ids, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.unique(ids)}})
    return found.getvalue()


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    home = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True)
    for stem in (*TRAIN, *VAL, *MORE):
        Image.new("RGB", SIZE[::-1]).save(home / "JPEGImages" / f"{stem}.jpg")
    for stem in (*TRAIN, *VAL):
        Image.fromarray(own(stem)).save(home / "SegmentationClass" / f"{stem}.png")
    (home / "ImageSets/Segmentation/train.txt").write_text("\n".join(TRAIN))
    (home / "ImageSets/Segmentation/val.txt").write_text("\n".join(VAL))
    return home


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """The release has all images but one of VOC's train list."""
    folder = tmp_path / "benchmark_RELEASE" / "dataset" / "cls"
    folder.mkdir(parents=True)
    for stem in (TRAIN[0], *VAL, *MORE):
        (folder / f"{stem}.mat").write_bytes(mat(theirs(stem)))
    return tmp_path / "benchmark_RELEASE"


def archive(sbd: Path, *, more: dict[str, bytes] | None = None) -> Path:
    path = sbd.parent / "benchmark.tgz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(sbd, sbd.name)
        for name, data in (more or {}).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The message of a run that must fail and leave everything as it was."""
    before = content(voc.parents[1])
    assert script.main([str(voc), str(sbd), "--expect", "5", *options]) == 2
    assert content(voc.parents[1]) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("voc_trainaug: ")
    assert captured.err.count("\n") == 1
    return captured.err.strip().removeprefix("voc_trainaug: ").replace(f"{voc}/", "").replace(str(sbd), "SBD")


@pytest.mark.parametrize("packed", [False, True])
def test_the_list_and_the_masks_are_those_of_both_releases(script: ModuleType, voc: Path, sbd: Path, packed: bool):
    assert script.main([str(voc), str(archive(sbd) if packed else sbd), "--expect", "5"]) == 0
    stems = (voc / "ImageSets/Segmentation/trainaug.txt").read_text().splitlines()
    assert stems == sorted((*TRAIN, *MORE))
    assert {path.stem for path in (voc / "SegmentationClassAug").iterdir()} == set(stems)
    assert not [path for path in voc.iterdir() if path.name.startswith(".")]
    arguments: dict[str, Any] = {"boxes": None, "masks": "required", "mask_folder": "SegmentationClassAug"}
    data = VOC(root=voc.parents[1], sets=("VOC2012/trainaug",), **arguments).dataset()
    for index in range(len(data)):
        stem = data.image_id(index)
        # VOC's own masks have the exact outlines: they win
        assert_array_equal(data.read(index).target["mask"], own(stem) if stem in TRAIN else theirs(stem))


def test_masks_have_vocs_colours(script: ModuleType, voc: Path, sbd: Path):
    script.build(voc, sbd, expect=5)
    with Image.open(voc / "SegmentationClassAug" / f"{MORE[0]}.png") as picture:
        assert picture.mode == "P"
        palette = np.array(picture.getpalette()).reshape(-1, 3)
    # aeroplane, bicycle, dog, person, tvmonitor, the border
    colors = [[128, 0, 0], [0, 128, 0], [64, 0, 128], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert palette[[1, 2, 12, 15, 20, 255]].tolist() == colors


@pytest.mark.parametrize("depth", ["", "dataset", "dataset/cls"])
def test_folder_may_be_named_at_any_depth(script: ModuleType, voc: Path, sbd: Path, depth: str):
    folder = sbd / depth if depth != "dataset/cls" else sbd.parent
    assert script.build(voc, folder, expect=5) == 5


def test_second_run_needs_force(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    script.build(voc, sbd, expect=5)
    assert refused(script, voc, sbd, capsys) == "SegmentationClassAug: is there already; --force replaces it"
    before = content(voc)
    path = voc / "SegmentationClassAug" / f"{MORE[0]}.png"
    path.write_bytes(b"old")
    (path.parent / "2009_000009.png").write_bytes(b"old")
    script.build(voc, sbd, expect=5, force=True)
    assert content(voc) == before
    for name in os.listdir(path.parent):
        (path.parent / name).unlink()
    path.parent.rmdir()
    start = "ImageSets/Segmentation/trainaug.txt: is there already"
    assert refused(script, voc, sbd, capsys).startswith(start)


def test_failed_run_with_force_keeps_what_was_there(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]
):
    script.build(voc, sbd, expect=5)
    (sbd / "dataset/cls" / f"{MORE[2]}.mat").write_bytes(b"broken")
    assert "no readable GTcls.Segmentation" in refused(script, voc, sbd, capsys, "--force")


def test_interrupted_run_leaves_nothing(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = set(voc.rglob("*"))
    monkeypatch.setattr(script, "_segmentation", interrupt)
    assert script.main([str(voc), str(sbd), "--expect", "5"]) == 130
    assert set(voc.rglob("*")) == before
    assert capsys.readouterr().err == "voc_trainaug: interrupted; nothing was written\n"


def test_number_of_images_is_checked(script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]):
    expected = "SBD: with VOC's train list it gives 5 images, expected 10582"
    assert refused(script, voc, sbd, capsys, "--expect", "10582") == expected
    assert script.TRAINAUG == 10582


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (mat(theirs(MORE[0])[:, :19]), "JPEGImages/2008_000004.jpg: the image is 20x12, its mask 19x12"),
        (mat(np.full(SIZE, 21)), "id 21 in 240 pixels; expected rows and columns of 0 ... 20 or 255"),
        (mat(np.full(SIZE, 1.5)), "id 1.5 in 240 pixels; expected rows and columns of 0 ... 20 or 255"),
        (mat(np.zeros(7)), "shape (7,); expected rows and columns of 0 ... 20 or 255"),
        (mat("what"), "; expected rows and columns of 0 ... 20 or 255"),
        (mat(theirs(MORE[0]), "GTinst"), "no readable GTcls.Segmentation in it ('GTcls')"),
        (b"", "no readable GTcls.Segmentation in it ("),
        (mat(theirs(MORE[0]))[:-60], "no readable GTcls.Segmentation in it ("),
    ],
)
def test_broken_mask_is_named(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str], data: bytes, expected: str
):
    (sbd / "dataset/cls" / f"{MORE[0]}.mat").write_bytes(data)
    found = refused(script, voc, sbd, capsys)
    assert f"{MORE[0]}" in found
    assert expected in found


def test_a_broken_mask_of_voc_itself_is_named(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]
):
    path = voc / "SegmentationClass" / f"{TRAIN[1]}.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    assert refused(script, voc, sbd, capsys).startswith(f"SegmentationClass/{TRAIN[1]}.png: colours (RGB) where class")


def test_a_mask_without_its_image_is_named(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]
):
    (voc / "JPEGImages" / f"{MORE[1]}.jpg").unlink()
    assert refused(script, voc, sbd, capsys).startswith(f"JPEGImages/{MORE[1]}.jpg: cannot read the image of mask")


def test_an_image_in_both_train_and_val_is_named(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]
):
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join((*VAL, TRAIN[1])))
    assert refused(script, voc, sbd, capsys).endswith(f"image '{TRAIN[1]}' is in the train list and in the val list")


def test_a_missing_list_is_named(script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]):
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    expected = "ImageSets/Segmentation/val.txt: cannot read the image list (No such file or directory)"
    assert refused(script, voc, sbd, capsys) == expected


def test_list_cannot_leave_the_folder(script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]):
    (voc / "ImageSets/Segmentation/train.txt").write_text("../../evil")
    assert "'../../evil' is no image name" in refused(script, voc, sbd, capsys)


# archives


def test_members_beside_the_masks_are_not_touched(script: ModuleType, voc: Path, sbd: Path, tmp_path: Path):
    more = {"../outside.mat": b"x", "/tmp/outside.mat": b"x", "benchmark_RELEASE/dataset/inst/a.mat": b"x"}
    packed = archive(sbd, more=more)
    before = set(tmp_path.rglob("*"))
    assert script.build(voc, packed, expect=5) == 5
    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.parent.name for path in written} == {"SegmentationClassAug", "Segmentation"}
    assert len(written) == 6


@pytest.mark.parametrize("name", ["x/cls/..mat", "../cls/a b.mat", "/cls/a\nb.mat"])
def test_a_member_with_a_strange_name_is_refused(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str], name: str
):
    found = refused(script, voc, archive(sbd, more={name: b"x"}), capsys)
    assert "is no image name" in found


def test_a_member_that_occurs_twice_is_refused(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str]
):
    found = refused(script, voc, archive(sbd, more={f"other/cls/{MORE[0]}.mat": mat(theirs(MORE[1]))}), capsys)
    assert found == f"SBD: cls/{MORE[0]}.mat occurs twice"


@pytest.mark.parametrize("length", [0, 100, 900])
def test_a_truncated_archive_is_refused(
    script: ModuleType, voc: Path, sbd: Path, capsys: pytest.CaptureFixture[str], length: int
):
    path = archive(sbd)
    path.write_bytes(path.read_bytes()[:length])
    assert refused(script, voc, path, capsys).startswith("SBD: cannot read SBD's release, folder or .tgz (")


@pytest.mark.parametrize("kind", ["missing", "empty folder"])
def test_what_is_no_release_is_refused(
    script: ModuleType, voc: Path, sbd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    path = tmp_path / "nothing"
    if kind == "empty folder":
        path.mkdir()
    assert refused(script, voc, path, capsys).startswith("SBD: ")


@pytest.mark.process
def test_the_command_line_writes_the_list_and_the_masks(voc: Path, sbd: Path):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=voc, check=False)

    shown = run("--help")
    assert shown.returncode == 0
    assert "SegmentationClassAug" in shown.stdout
    assert run(voc).returncode == 2
    done = run(voc, sbd, "--expect", 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("5 images: ")
