from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv2det.commands.predict.outputs import ImageInfo, Outputs, choose_formats
from mnv2det.commands.predict.voc_xml import voc_xml
from mnv2det.data.formats.voc import VOC
from mnv2det.errors import ConfigError
from mnv2det.report.draw import encode
from mnv2det.runtime.forms import coco_results
from mnv2det.structures import Detections, Scores, Segmentation, TaskResult

NAMES = ["cat", 'dog, "big"', "Katze & <Hund>\n\x01"]
CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
ALL = frozenset({"json", "voc", "csv", "masks", "pictures"})


def found(*boxes: tuple[float, float, float, float], scores: list[float] | None = None) -> Detections:
    scores = [0.9 - 0.1 * number for number in range(len(boxes))] if scores is None else scores
    labels = torch.arange(len(boxes)) % len(NAMES)
    return Detections(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores), labels)


def outputs(folder: Path, formats: frozenset[str] = ALL, **options: Any) -> Outputs:
    classes = {"det": NAMES, "seg": ["background", "road"], "cls": NAMES}
    settings: dict[str, Any] = {"frame_formats": formats, "classes": classes, "threshold": 0.5}
    settings["targets"] = {"det": "labels", "seg": "mask", "cls": "label"}
    return Outputs(folder, formats=formats, **(settings | options))


def image(height: int = 40, width: int = 60) -> Any:
    return np.full((height, width, 3), 99, np.uint8)


def rows(folder: Path) -> list[list[str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


# the choice of formats


@pytest.mark.parametrize(
    ("formats", "kinds", "wanted"),
    [
        (None, {"labels"}, {"json", "pictures"}),
        (None, {"label"}, {"json", "pictures"}),
        (None, {"mask"}, {"json", "pictures", "masks"}),
        (None, {"mask", "labels"}, {"json", "pictures", "masks"}),
        (["voc", "csv", "csv"], {"labels"}, {"voc", "csv"}),
        (["csv"], {"label"}, {"csv"}),
        (["masks"], {"mask", "labels"}, {"masks"}),
    ],
)
def test_formats_that_fit_the_model(formats: Any, kinds: set[str], wanted: set[str]) -> None:
    assert choose_formats(formats, kinds) == wanted


@pytest.mark.parametrize(
    ("formats", "kinds", "message"),
    [
        (["jsn"], {"labels"}, "formats: no format 'jsn'; did you mean 'json'?"),
        ([""], {"labels"}, "formats: no format ''; expected one of csv, json, masks, pictures, voc"),
        (["json", "masks"], {"labels"}, "formats: nothing to write as masks: this model finds boxes"),
        (
            ["voc"],
            {"mask", "label"},
            "formats: nothing to write as voc: this model finds masks and classes of pictures",
        ),
        (["csv"], {"mask"}, "formats: nothing to write as csv: this model finds masks"),
    ],
)
def test_formats_without_content_are_refused(formats: list[str], kinds: set[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_formats(formats, kinds)
    assert str(caught.value) == message


def test_pictures_cannot_be_both_named_and_unwanted() -> None:
    assert choose_formats(None, {"labels"}, pictures=False) == {"json"}
    with pytest.raises(ConfigError, match="formats: names pictures, but no pictures are wanted"):
        choose_formats(["json", "pictures"], {"labels"}, pictures=False)


# what is written


def test_coco_results_have_width_and_height_and_the_json_ids() -> None:
    detections = Detections(torch.tensor([[1.0, 2, 11, 22]]), torch.tensor([0.5]), torch.tensor([1]))
    assert list(coco_results(detections, 7, [10, 20])) == [
        {"image_id": 7, "category_id": 20, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5}
    ]


def test_json_is_coco_and_frames_know_their_time(tmp_path: Path) -> None:
    with outputs(tmp_path, frozenset({"json"})) as out:
        assert (
            out.add(ImageInfo("in/a.png", "a"), picture := image(), {"det": found((1, 2, 11, 22), (0, 0, 5, 5))})
            is picture
        )
        out.add(ImageInfo("clip.mp4", "clip/000007", 7, 0.28), image(), {"det": found()})
        out.add(ImageInfo("clip.mp4", "clip/000008", 8, 0.32), image(), {"det": found((0, 0, 60, 40), scores=[0.4])})
        out.finish()
    assert (out.images, out.detections) == (3, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    written = json.loads((tmp_path / "predictions.json").read_text())
    size = {"height": 40, "width": 60}
    assert written == {
        "images": [
            {"id": 1, "file_name": "in/a.png", **size},
            {"id": 2, "file_name": "clip.mp4", **size, "frame": 7, "time_s": 0.28},
            {"id": 3, "file_name": "clip.mp4", **size, "frame": 8, "time_s": 0.32},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "score": pytest.approx(0.9)},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "score": pytest.approx(0.8)},
        ],
        "categories": CATEGORIES,
        "mask_classes": {"seg": ["background", "road"]},
    }


def test_a_run_without_pictures_writes_valid_files(tmp_path: Path) -> None:
    with outputs(tmp_path) as out:
        out.finish()
    empty = {"images": [], "annotations": [], "categories": CATEGORIES, "mask_classes": {"seg": ["background", "road"]}}
    assert json.loads((tmp_path / "predictions.json").read_text()) == empty
    assert (tmp_path / "predictions.csv").read_bytes() == b"file,frame,class,score,x1,y1,x2,y2\r\n"


def test_csv_quotes_what_it_must_and_has_rows_for_boxes_and_classes(tmp_path: Path) -> None:
    probabilities = torch.tensor([0.125, 0.625, 0.25])
    with outputs(tmp_path, frozenset({"csv"})) as out:
        out.add(ImageInfo("a,b\udcff.png", "x"), image(), {"det": found((1, 2, 11.5, 22), (0, 0, 5, 5), (3, 3, 4, 4))})
        out.add(ImageInfo("clip.mp4", "clip/000003", 3, 0.12), image(), {"cls": Scores(probabilities)})
        out.finish()
    head, *body = rows(tmp_path)
    assert head == ["file", "frame", "class", "score", "x1", "y1", "x2", "y2"]
    assert [(row[0], row[1], row[2], float(row[3]), row[4:]) for row in body] == [
        ("a,b\udcff.png", "", NAMES[0], 0.9, ["1.0", "2.0", "11.5", "22.0"]),
        ("a,b\udcff.png", "", NAMES[1], 0.8, ["0.0", "0.0", "5.0", "5.0"]),
        ("a,b\udcff.png", "", NAMES[2], 0.7, ["3.0", "3.0", "4.0", "4.0"]),
        ("clip.mp4", "3", NAMES[1], 0.625, ["", "", "", ""]),
        ("clip.mp4", "3", NAMES[2], 0.25, ["", "", "", ""]),
        ("clip.mp4", "3", NAMES[0], 0.125, ["", "", "", ""]),
    ]
    assert (tmp_path / "predictions.csv").read_bytes().count(b"\r\n") == 7


def test_best_classes_are_kept_of_pictures_not_of_frames(tmp_path: Path) -> None:
    probabilities: dict[str, TaskResult] = {"cls": Scores(torch.tensor([0.125, 0.625, 0.25]))}
    with outputs(tmp_path) as out:
        for frame in (None, 1, 2):
            out.add(ImageInfo(f"{frame}.png", f"{frame}", frame), image(), probabilities)
    assert list(out.best_classes) == ["None.png"]
    assert out.best_classes["None.png"][0] == {"name": NAMES[1], "score": 0.625}


def test_masks_and_xml_of_frames_are_files_where_they_are_wanted(tmp_path: Path) -> None:
    results: dict[str, TaskResult] = {
        "seg": Segmentation(torch.zeros(40, 60, dtype=torch.uint8)),
        "det": found((1, 2, 11, 22)),
    }
    frame_formats = frozenset({"json", "pictures", "voc"})
    with outputs(tmp_path, frame_formats=frame_formats) as out:
        drawn = out.add(ImageInfo("a.jpg", "a"), image(), results)
        out.add(ImageInfo("c.mp4", "c/000001", 1, 0.1), image(), results)
        out.finish()
    assert not np.array_equal(drawn, image())
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"predictions.json", "predictions.csv", "masks/a.png", "voc/a.xml", "voc/c/000001.xml"}
    first, second = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert (first["mask"], first["pixels"]) == ("masks/a.png", {"background": 1.0})
    assert ("mask" in second, second["pixels"]) == (False, {"background": 1.0})
    with PIL.Image.open(tmp_path / "masks/a.png") as file:
        assert (file.mode, file.size) == ("P", (60, 40))


def test_an_error_leaves_no_spools(tmp_path: Path) -> None:
    with pytest.raises(KeyError), outputs(tmp_path) as out:
        out.add(ImageInfo("a", "a"), image(), {"unknown": found()})
    assert list(tmp_path.iterdir()) == []


# VOC xml


def read_back(folder: Path, xml: bytes, size: tuple[int, int]) -> tuple[Any, list[str]]:
    """Boxes and names as our own data set reads them."""
    home = folder / "VOCdevkit" / "Mine"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / part).mkdir(parents=True, exist_ok=True)
    (home / "JPEGImages/a.png").write_bytes(encode(image(*size), ".png"))
    (home / "Annotations/a.xml").write_bytes(xml)
    (home / "ImageSets/Main/all.txt").write_text("a\n")
    data = VOC(root=folder, sets=("Mine/all",), suffix=".png").dataset()
    target = data.read(0).target
    return target["boxes"], [data.classes["labels"][label] for label in target["labels"]]


def test_voc_xml_is_what_our_data_set_reads(tmp_path: Path) -> None:
    boxes = [(0, 0, 60, 40), (9, 19, 21, 30), (3.4, 4.6, 10.4, 10.6)]
    xml = voc_xml("dir/a & b\x02.png", (40, 60), [(found(*boxes), NAMES)])
    assert b"<xmin>10</xmin><ymin>20</ymin><xmax>21</xmax><ymax>30</ymax>" in xml
    assert b"<filename>a &amp; b?.png</filename>" in xml
    read, names = read_back(tmp_path, xml, (40, 60))
    np.testing.assert_array_equal(read, [(0, 0, 60, 40), (9, 19, 21, 30), (3, 5, 10, 11)])
    assert names == ["cat", 'dog, "big"', "Katze & <Hund>\n?"]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 50), st.integers(2, 50), st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_any_box_survives_the_way_through_xml(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, ends: list[float]
) -> None:
    x1, x2 = sorted((ends[0] * width, ends[1] * width))
    y1, y2 = sorted((ends[2] * height, ends[3] * height))
    xml = voc_xml("a", (height, width), [(found((x1, y1, x2, y2)), NAMES)])
    read, _ = read_back(tmp_path_factory.mktemp("voc"), xml, (height, width))
    # rounded to pixels; a sliver is made two wide
    np.testing.assert_allclose(read, [(x1, y1, x2, y2)], atol=2.01)
    if min(x2 - x1, y2 - y1) >= 3:
        np.testing.assert_allclose(read, [(x1, y1, x2, y2)], atol=0.501)
    assert (read[0, 2:] - read[0, :2] >= 2).all()
    assert (read >= 0).all()
    assert (read <= [width, height, width, height]).all()


def test_a_picture_of_one_pixel_has_a_box_of_one(tmp_path: Path) -> None:
    xml = voc_xml("a", (1, 1), [(found((0, 0, 1, 1)), NAMES)])
    assert b"<xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax>" in xml


def test_a_picture_without_boxes_is_an_annotation_without_objects(tmp_path: Path) -> None:
    xml = voc_xml("a", (40, 60), [(found(), NAMES)])
    assert b"<object>" not in xml
    assert b"<size><width>60</width><height>40</height><depth>3</depth></size>" in xml
