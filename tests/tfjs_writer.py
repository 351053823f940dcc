"""Writes arrays as the converter of TensorFlow.js does: batch norm folded, a model.json and shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]
LEVELS = {"uint8": 255, "uint16": 65535}
FOLDS = ("converter", "published", "biases")


def fold(arrays: Mapping[str, NDArray[np.generic]], style: str, eps: float = 1e-3) -> Arrays:
    """Folds batch norm as different programs did.

    ``converter`` is TensorFlow.js' converter since its version 1; ``published`` the form of its published SSDLite,
    where depthwise layers keep a factor and the box predictors their norms; ``biases`` plain convolutions.
    """
    folded: Arrays = {}
    scopes = {name.partition("/BatchNorm/")[0] for name in arrays if "/BatchNorm/" in name}
    if style == "published":
        scopes = {scope for scope in scopes if not scope.startswith("BoxPredictor")}
    for name, array in arrays.items():
        scope, _, part = name.rpartition("/")
        scope = scope.removesuffix("/BatchNorm")
        if scope not in scopes:
            folded[name] = array
        elif part in ("weights", "depthwise_weights"):
            norm = {key: arrays[f"{scope}/BatchNorm/{key}"] for key in ("gamma", "beta", "moving_mean")}
            scale = norm["gamma"] / np.sqrt(arrays[f"{scope}/BatchNorm/moving_variance"] + np.float32(eps))
            offset, depthwise = norm["beta"] - norm["moving_mean"] * scale, part == "depthwise_weights"
            scaled = array * (scale[:, None] if depthwise else scale)
            if style == "biases":
                folded |= {name: scaled, f"{scope}/biases": offset}
            elif style == "converter":
                kind = "depthwise" if depthwise else "Conv2D"
                folded |= {f"{scope}/{kind}_weights": scaled, f"{scope}/{kind}_bn_offset": offset}
            elif depthwise:
                rest = f"{scope}/BatchNorm/batchnorm"
                folded |= {name: array, f"{rest}/mul": scale, f"{rest}/sub": offset}
            else:
                folded |= {f"{scope}/Conv2D/merged_input": scaled, f"{scope}/BatchNorm/batchnorm/sub": offset}
    return folded


def write_tfjs(
    folder: Path, arrays: Mapping[str, NDArray[np.generic]], *, shards: int = 1, quantise: str = "", groups: int = 1
) -> Path:
    """A graph model with these weights and the nodes that tell the input's size and the score."""
    folder.mkdir(parents=True, exist_ok=True)
    size = "Preprocessor/map/while/ResizeImage/stack"
    arrays = {**arrays, size: np.array((96, 128), np.int32)}
    nodes = [
        {"name": "image_tensor", "op": "Placeholder", "attr": {"dtype": {"type": "DT_UINT8"}}},
        *({"name": name, "op": "Const", "input": [], "attr": {"dtype": {"type": 1}}} for name in arrays),
        {"name": "Preprocessor/map/while/ResizeImage/ResizeBilinear", "op": "ResizeBilinear", "input": ["x", size]},
        {"name": "Postprocessor/convert_scores", "op": "Sigmoid", "input": ["concat_1"], "attr": {}},
    ]
    manifest = [
        _group(folder, dict(list(arrays.items())[number::groups]), f"group{number + 1}", shards, quantise)
        for number in range(groups)
    ]
    model = {
        "format": "graph-model",
        "generatedBy": "2.21.0",
        "convertedBy": "TensorFlow.js Converter v4.22.0",
        "modelTopology": {"node": nodes, "library": {}, "versions": {"producer": 2}},
        "weightsManifest": manifest,
    }
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


def _group(folder: Path, arrays: Arrays, name: str, shards: int, quantise: str) -> dict[str, Any]:
    weights, content = [], b""
    for key, array in arrays.items():
        entry: dict[str, Any] = {"name": key, "shape": list(array.shape), "dtype": array.dtype.name}
        if quantise == "float16" and array.dtype == np.float32:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
            array = array.astype(np.float16)
        elif quantise and array.dtype == np.float32:
            low, high = float(array.min()), float(array.max())
            scale = (high - low) / LEVELS[quantise] or 1.0
            entry["quantization"] = {"dtype": quantise, "min": low, "scale": scale, "original_dtype": "float32"}
            array = ((array.astype(np.float64) - low) / scale).round().astype(quantise)
        weights.append(entry)
        content += array.tobytes()
    paths = [f"{name}-shard{number + 1}of{shards}.bin" for number in range(shards)]
    step = -(-len(content) // shards)
    for number, path in enumerate(paths):
        (folder / path).write_bytes(content[number * step : (number + 1) * step])
    return {"paths": paths, "weights": weights}
