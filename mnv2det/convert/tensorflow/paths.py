"""Recognises files of TensorFlow by their names; imports no torch."""

from __future__ import annotations

from pathlib import Path

GRAPHS = ("frozen_inference_graph.pb", "saved_model.pb", "model.json")  # in a folder, the first one there is


def is_tensorflow(source: str) -> bool:
    """Whether a path is one of TensorFlow's: a ``.pb`` or ``.json``, a checkpoint's prefix or file, a folder of one."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).is_file() for name in GRAPHS) or any(path.glob("*.index"))
    return (
        path.suffix in (".pb", ".json", ".index", ".meta")
        or path.with_name(f"{path.name}.index").is_file()
        or (".data-" in path.name)
    )
