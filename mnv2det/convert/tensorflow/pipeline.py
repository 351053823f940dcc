"""Reads ``pipeline.config``, the text that the Object Detection API keeps beside the checkpoints of a detector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv2det.convert.graph import read_bounded
from mnv2det.errors import WeightsError
from mnv2det.ops.anchors import Shape, level_shapes

NAME = "pipeline.config"
LARGEST = 2**20  # bytes
DEEPEST = 50  # messages within each other
MOST_LEVELS, MOST_RATIOS = 20, 20
TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)|(?P<name>[A-Za-z_]\w*)|(?P<mark>[{}:\[\],;])"""
    r"""|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<number>[-+]?[\d.][\w.+-]*)"""
)
SCORES = {"SIGMOID": "sigmoid", "SOFTMAX": "softmax"}

Message = dict[str, list[Any]]  # values by the name of their field: texts, or messages


class Pipeline(NamedTuple):
    """What a configuration says of a detector; None where it does not.

    Attributes:
        size: (H, W) of the input.
        levels: The (scale, ratio) pairs of every level.
        score: ``sigmoid`` or ``softmax``.
        suppression: The head's ``nms_iou``, ``score_threshold`` and ``max_detections``, as far as they are stated.
    """

    size: tuple[int, int] | None
    levels: list[list[Shape]] | None
    score: str | None
    suppression: dict[str, float]


def read_pipeline(folder: Path) -> Pipeline | None:
    """Reads the configuration in a folder; None where there is none, or it is of no SSD.

    Raises:
        WeightsError: It is damaged, or states anchors of a kind that the head has not.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        text = read_bounded(path, LARGEST, kind=NAME).decode("utf-8")
        root = _parse(text)
        ssd = _first(root, "ssd")
        if ssd is None:
            return None
        return Pipeline(_size(ssd), _levels(ssd), _score(ssd), _suppression(ssd))
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: not UTF-8 text") from None
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def _parse(text: str) -> Message:
    """Fields by name. Only what is needed of protocol buffers' text format: no extensions, no joined texts."""
    tokens = [*_tokens(text), "", "", ""]
    root: Message = {}
    open_messages, position = [root], 0
    while token := tokens[position]:
        if token in (",", ";"):
            position += 1
        elif token == "}":
            if len(open_messages) == 1:
                raise ValueError("a brace too many")
            open_messages.pop()
            position += 1
        elif not (token[0].isalpha() or token[0] == "_"):
            raise ValueError(f"'{token[:40]}' where the name of a field is expected")
        else:
            values = open_messages[-1].setdefault(token, [])
            position += 1 + (tokens[position + 1] == ":")
            if tokens[position] == "{":
                values.append({})
                open_messages.append(values[-1])
                if len(open_messages) > DEEPEST:
                    raise ValueError(f"more than {DEEPEST} messages within each other")
            elif tokens[position] == "[":
                while tokens[position] not in ("]", ""):
                    position += 1
                    if tokens[position] not in (",", "]"):
                        values.append(tokens[position])
            elif tokens[position] in ("", "}", "]", ":", ",", ";"):
                raise ValueError(f"field '{token[:40]}' has no value")
            else:
                values.append(tokens[position])
            position += 1
    if len(open_messages) > 1:
        raise ValueError("it ends within a message")
    return root


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"line {text.count(chr(10), 0, position) + 1} cannot be read")
        position = match.end()
        if match.lastgroup != "skip":
            yield match[0]


def _first(message: Message, name: str) -> Message | None:
    """The first message of a name, wherever it lies within another."""
    waiting = [message]
    while waiting:
        fields = waiting.pop(0)
        for key, values in fields.items():
            inner = [value for value in values if isinstance(value, dict)]
            if key == name and inner:
                return inner[0]
            waiting += inner
    return None


def _number(message: Message, name: str, default: float | None, low: float, high: float) -> float:
    """A number of a message.

    Raises:
        ValueError: It is none, or out of range.
    """
    values = message.get(name)
    if not values:
        if default is None:
            raise ValueError(f"no {name}")
        return default
    return _real(values[-1], name, low, high)


def _real(value: Any, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not low <= number <= high:
        raise ValueError(f"{name} {str(value)[:40]}: expected a number from {low:g} to {high:g}")
    return number


def _size(ssd: Message) -> tuple[int, int] | None:
    resizer = _first(ssd, "fixed_shape_resizer")
    if resizer is None:
        return None
    height, width = (int(_number(resizer, side, 300, 32, 8192)) for side in ("height", "width"))
    return height, width


def _levels(ssd: Message) -> list[list[Shape]] | None:
    generator = _first(ssd, "ssd_anchor_generator")
    if generator is None:
        return None
    if generator.get("scales") or _number(generator, "interpolated_scale_aspect_ratio", 1, 0, 100) != 1:
        raise ValueError("anchors with scales or interpolated_scale_aspect_ratio, which cannot be imported")
    low = _number(generator, "min_scale", 0.2, 1e-3, 100)
    ratios = [_real(value, "aspect_ratios", 1e-3, 1e3) for value in generator.get("aspect_ratios", [])[:MOST_RATIOS]]
    # the API adds square ones of a smaller scale on the finest level
    reduced = generator.get("reduce_boxes_in_lowest_layer", ["true"])[-1] in ("true", "1")
    shapes = level_shapes(
        int(_number(generator, "num_layers", 6, 1, MOST_LEVELS)),
        min_scale=low,
        max_scale=_number(generator, "max_scale", 0.95, 1e-3, 100),
        ratios=ratios,
        lowest=((0.1, 1.0), (low, 2.0), (low, 0.5)) if reduced else None,
    )
    return [list(level) for level in shapes]


def _score(ssd: Message) -> str | None:
    processing = _first(ssd, "post_processing") or {}
    return SCORES.get(str(processing.get("score_converter", [""])[-1]))


def _suppression(ssd: Message) -> dict[str, float]:
    stated = _first(ssd, "batch_non_max_suppression") or {}
    found: dict[str, float] = {}
    for name, ours in (("iou_threshold", "nms_iou"), ("score_threshold", "score_threshold")):
        if name in stated:
            found[ours] = _number(stated, name, None, 0, 1)
    if "max_total_detections" in stated:
        found["max_detections"] = int(_number(stated, "max_total_detections", None, 1, 10_000))
    return found
