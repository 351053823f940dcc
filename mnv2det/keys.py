"""Configuration keys beside the schema: which there are, what type each has, and what was expected in its place."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from mnv2det.errors import ConfigError, near
from mnv2det.ranges import describe
from mnv2det.schema import Config, annotations_of


def check_keys(data: Any, schema: Any, where: str, prefix: str) -> None:
    """Compares data with the schema; the first unknown key is named with its nearest match.

    A list where keys belong, or keys where a list belongs, is refused here: OmegaConf's error would name no key.

    Args:
        data: A part of the configuration.
        schema: The type that this part must have.
        where: Name of the source, for messages.
        prefix: Dotted keys that lead to this part, each with a dot behind it.
    """
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin in (typing.Union, types.UnionType):  # ``list[float] | None`` and the like
        check_keys(data, arguments[0], where, prefix)
    if origin is list and isinstance(data, Mapping):
        raise ConfigError(f"{where}: {prefix[:-1]}: expected a list, got {data!r}")
    if origin is list and isinstance(data, list):
        for index, value in enumerate(data):
            if isinstance(value, Mapping | list):
                raise ConfigError(f"{where}: {prefix[:-1]}[{index}]: expected a number, got {value!r}")
    if holds_text(schema) and isinstance(data, bool | int | float):
        raise ConfigError(f"{where}: {prefix[:-1]}: expected text, got {data!r}; text that looks so goes in quotes")
    has_keys = dataclasses.is_dataclass(schema)
    if (has_keys and not isinstance(data, Mapping)) or (origin is dict and isinstance(data, list)):
        raise ConfigError(f"{where}: {prefix[:-1]}: expected keys below it, got {data!r}")
    if origin is dict and dataclasses.is_dataclass(arguments[1]) and isinstance(data, Mapping):
        for key, value in data.items():
            check_keys(value, arguments[1], where, f"{prefix}{key}.")
    if has_keys:
        hints = _hints(typing.cast("type", schema))
        for key, value in data.items():
            if key not in hints:
                raise ConfigError(f"{where}: unknown key '{prefix}{key}'{near(str(key), hints)}")
            check_keys(value, hints[key], where, f"{prefix}{key}.")


def annotation_of(names: Sequence[str]) -> Any:
    """The type that the schema states for a dotted key, with its range; None where it states none."""
    annotation: Any = Config
    for name in names:
        if dataclasses.is_dataclass(annotation):
            annotation = annotations_of(typing.cast("type", annotation)).get(name)
        elif typing.get_origin(annotation) is dict:
            annotation = typing.get_args(annotation)[1]
        else:
            return None
    return None if annotation is Any else annotation


def what_was_expected(data: Mapping[str, Any], key: str) -> str:
    """Says in this project's words what a value of the wrong type should have been.

    Args:
        data: The whole configuration.
        key: Dotted key of the value, with ``[index]`` behind it for an element of a list.
    """
    names = key.partition("[")[0].split(".")
    value: Any = data
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, str) and "${" in value:
        return f"{value!r} refers to a key that is not there; expected ${{KEY}} with a key of the config"
    annotation = annotation_of(names)
    if annotation is None:
        return f"expected a name with a value below '{'.'.join(names[:-1])}', got {names[-1]}"
    if typing.get_origin(annotation) is dict:
        return f"expected keys below it, got {value!r}"
    enum = next((kind for kind in _alternatives(annotation) if isinstance(kind, type) and issubclass(kind, Enum)), None)
    expected = f"one of {', '.join(enum.__members__)}" if enum else describe(annotation)
    return f"expected {expected}, got {value!r}"


def holds_text(annotation: Any) -> bool:
    """Whether the values of a key are text: any text, or one of several words."""
    kinds = [kind for kind in _alternatives(annotation) if kind is not type(None)]
    return bool(kinds) and all(
        kind is str or typing.get_origin(kind) is typing.Literal or (isinstance(kind, type) and issubclass(kind, Enum))
        for kind in kinds
    )


def may_be_null(annotation: Any) -> bool:
    """Whether null is one of the values of a key."""
    return type(None) in _alternatives(annotation)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)
