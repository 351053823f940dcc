"""What a folder holds, to compare it before and after an import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mnv2det.labels.recognise import recognise


def boxes(folder: Path) -> dict[str, list[tuple[str, list[float], bool]]]:
    """Boxes by the name of their picture without its folders, whatever format the folder is in."""
    result: dict[str, list[tuple[str, list[float], bool]]] = {}
    for part in recognise(folder).parts:
        records = part.format.read()
        for number, entry in enumerate(records.pictures):
            rows = np.flatnonzero(records.boxes.image == number)
            found = [
                (records.boxes.names[records.boxes.label[row]], records.boxes.corners[row].tolist(), bool(ignore))
                for row, ignore in zip(rows, records.boxes.ignore[rows], strict=True)
            ]
            # by whole pixels: in some formats 346 comes back as 345.99999999
            found.sort(key=lambda box: (box[0], [round(value) for value in box[1]]))
            result[os.path.splitext(os.path.basename(entry.file))[0]] = found
    return result


def assert_same_boxes(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, items in wanted.items():
        assert [entry[::2] for entry in found[name]] == [entry[::2] for entry in items]
        for (_, corners, _), (_, expected, _) in zip(found[name], items, strict=True):
            np.testing.assert_allclose(corners, expected, rtol=0, atol=0.01)
