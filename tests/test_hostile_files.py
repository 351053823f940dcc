"""Files made to harm are refused in one line; benchmarks/fuzz.py looks for more of them."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from mnv2det.data.formats.coco import COCO
from mnv2det.data.formats.voc import VOC
from mnv2det.data.images import read_image
from mnv2det.engine.checkpoint import load_checkpoint
from mnv2det.errors import DataError, Mnv2detError, WeightsError
from mnv2det.models.weight_file import read_weights


class Bomb:
    """What a pickle could do."""

    def __reduce__(self):
        return (Path("/tmp/mnv2det_bomb").touch, ())


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_json_cannot_name_files_outside_its_folder(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for name in ("../../etc/passwd", "/etc/passwd", "a/../../../x.jpg"):
        image = {"id": 1, "file_name": name, "width": 4, "height": 4}
        data = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "a.json").write_text(json.dumps(data))
        with pytest.raises(DataError, match=r"a\.json.*outside|leaves|absolute|climbs"):
            COCO(root=tmp_path, annotations="a.json", images="images").dataset().read(0)


def test_an_entity_bomb_is_not_expanded(tmp_path: Path):
    home = tmp_path / "VOCdevkit" / "X"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / part).mkdir(parents=True)
    (home / "ImageSets/Main/val.txt").write_text("a\n")
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "boom" * 10}">' for n in range(10))
    text = f"<?xml version='1.0'?><!DOCTYPE a [{entities}]><annotation><filename>&e9;</filename></annotation>"
    (home / "Annotations/a.xml").write_text(text)
    before = peak()
    with pytest.raises(DataError, match=r"a\.xml: "):
        VOC(root=tmp_path, sets=["X/val"]).dataset().target(0)
    assert peak() - before < 50e6


def test_a_header_of_a_giant_picture_takes_no_memory(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(data)
    before = peak()
    with pytest.raises(DataError, match=r"a\.png: "):
        read_image(tmp_path / "a.png")
    assert peak() - before < 100e6


def test_a_pickle_is_neither_weights_nor_a_checkpoint(tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "last.pt").write_bytes(pickle.dumps({"format": 1, "x": Bomb()}))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_weights(tmp_path / "w.safetensors")
    with pytest.raises(Mnv2detError, match=r"last\.pt"):
        load_checkpoint(tmp_path / "last.pt")
    assert not Path("/tmp/mnv2det_bomb").exists()


def test_a_safetensors_header_of_exabytes_takes_no_memory(tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes(np.uint64(2**62).tobytes() + b"{}")
    before = peak()
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_weights(tmp_path / "w.safetensors")
    assert peak() - before < 50e6
