"""Configuration: the typed schema read from YAML, ``base:`` inheritance, dotted overrides, one-line errors.

Imports no torch, so that ``mnv2det config`` and ``--help`` answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnv2det.errors import ConfigError, near
from mnv2det.ranges import describe
from mnv2det.schema import (
    Amp,
    BadData,
    Component,
    Config,
    DataConfig,
    Fit,
    ModelConfig,
    OptimConfig,
    TaskConfig,
    TestConfig,
    TrainConfig,
    annotations_of,
    check_values,
)

__all__ = [
    "Amp",
    "BadData",
    "Component",
    "Config",
    "DataConfig",
    "Fit",
    "ModelConfig",
    "OptimConfig",
    "TaskConfig",
    "TestConfig",
    "TrainConfig",
    "check_warmup",
    "data_root",
    "find_config",
    "from_dict",
    "load_config",
    "merge",
    "to_dict",
    "to_yaml",
]

MAX_BASE_DEPTH = 2
# What the parser raises at damaged YAML: its own errors, and those of tags such as !!int ""
_DAMAGED = (yaml.YAMLError, OmegaConfBaseException, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML with its bases, applies overrides and checks every key, type and range.

    The arguments of components are checked later, by `mnv2det.engine.build.check`.

    Args:
        path: A YAML file, or what `find_config` finds; ``base:`` names files it starts from, relative to itself.
        overrides: ``key.sub=value`` strings. The value of a key that holds text is taken as it was typed, but for
            ``null`` where the key may be null; any other value is read as YAML.

    Returns:
        The merged configuration.

    Raises:
        ConfigError: A file is missing or is no YAML, its bases form a cycle or are more than two levels
            deep, a key is unknown, or a value has the wrong type or is out of range.
    """
    # The schema's default components are the lowest base: a file that names another component drops the args
    # written for the default one.
    path = find_config(path)
    merged = _read(path, (), _defaults())
    for override in overrides:
        merged = merge(merged, _parse_override(override))
    return from_dict(merged, where=str(path))


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file that a config's path or bare name means.

    Args:
        name: A path, or the bare name of a config that comes with the package, such as ``ssdlite_bccd``. A file of the
            same name in the current folder wins over it.

    Returns:
        The path as it was given, unless it is no file and a config of that name comes with the package.
    """
    path = Path(name)
    if os.path.isfile(path) or path.name != str(name):
        return path
    shipped = _shipped_configs() / (path.name if path.suffix == ".yaml" else f"{path.name}.yaml")
    return shipped if os.path.isfile(shipped) else path


def _shipped_configs() -> Path:
    """The folder of the configs that come with the package: inside it in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def from_dict(data: Mapping[str, Any], *, where: str) -> Config:
    """Turns plain nested data into a checked `Config`.

    Args:
        data: Keys as in the schema.
        where: Name of the source, for messages.

    Raises:
        ConfigError: A key is unknown, or a value missing, of the wrong type or out of range.
    """
    _check_keys(data, Config, where, "")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.create(dict(data))))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {error.full_key}: missing; expected the name of a component") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{where}: {key}: {_what_was_expected(data, key)}") from None
    assert isinstance(config, Config)
    check_values(config, where)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested data that YAML and JSON can hold; enums are given by name."""
    return typing.cast("dict[str, Any]", _plain(config))


def to_yaml(config: Config) -> str:
    """The configuration as YAML text that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


# Building these from the schema's classes takes most of the time of a load, and gives the same every time.


@functools.cache
def _defaults() -> dict[str, Any]:
    return to_dict(Config())  # `merge` does not change its arguments


@functools.cache
def _schema() -> Any:
    return OmegaConf.structured(Config)  # `OmegaConf.merge` works on a copy


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lays ``top`` over ``base``; a component given another ``name`` starts from empty ``args``."""
    result = dict(base)
    renamed = "name" in top and base.get("name", MISSING) not in (MISSING, top["name"])
    if renamed:
        result["args"] = {}
    for key, value in top.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _read(path: Path, parents: tuple[Path, ...], data: dict[str, Any]) -> dict[str, Any]:
    """Lays the bases of a file, in their order, and then the file itself over ``data``.

    Args:
        path: The file.
        parents: The files that led here: the first one names the second as its base, and so on.
        data: What was read before; the file's keys win over it.
    """
    here = f"base of {parents[-1]}: " if parents else ""
    if not os.path.isfile(path):  # Path.is_file raises an OSError if a name is too long
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        if not parents and path.parent == Path():  # a bare name
            siblings += [shipped.stem for shipped in _shipped_configs().glob("*.yaml")]
        raise ConfigError(f"{here}{path}: no such config file{near(path.name, siblings)}")
    if path.resolve() in [parent.resolve() for parent in parents]:
        raise ConfigError(f"{here}{path}: bases form a cycle")
    if len(parents) > MAX_BASE_DEPTH:
        raise ConfigError(f"{here}{path}: more than {MAX_BASE_DEPTH} levels of base")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (*_DAMAGED, OSError) as error:
        raise ConfigError(f"{path}: not a YAML config: {_one_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: a mapping of keys was expected at the top")
    own = typing.cast("dict[str, Any]", content)
    bases = own.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base: expected a file name or a list of them, got {bases!r}")
    _check_keys(own, Config, str(path), "")
    for base in bases:
        data = _read(path.parent / base, (*parents, path), data)
    return merge(data, own)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(f"override '{override}': expected key.sub=value")
    result = _override_value(_annotation_of(names), text, override)
    for name in reversed(names):
        result = {name: result}
    _check_keys(result, Config, f"override '{override}'", "")
    return typing.cast("dict[str, Any]", result)


def _override_value(annotation: Any, text: str, override: str) -> Any:
    """Reads the value of an override.

    YAML would turn ``yard #2`` into ``yard``, ``007`` into 7 and ``on`` into true. Text is therefore kept as it was
    typed where a key holds text. Where the type is not known here, as with the arguments of components, only text
    that YAML would shorten is kept. Text in quotes is read as YAML.

    Args:
        annotation: The type of the key, or None where the schema states none.
        text: The value as typed.
        override: The whole override, for the message.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if _holds_text(annotation) and text.strip() and not quoted:
        return None if text == "null" and _may_be_null(annotation) else text
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except _DAMAGED as error:
        raise ConfigError(f"override '{override}': not a YAML value: {_one_line(error)}") from None
    value = typing.cast("dict[str, Any]", content)["value"]
    return text.strip() if isinstance(value, str) and not quoted and " #" in text else value


def _holds_text(annotation: Any) -> bool:
    """Whether the values of a key are text: any text, or one of several words."""
    kinds = [kind for kind in _alternatives(annotation) if kind is not type(None)]
    return bool(kinds) and all(
        kind is str or typing.get_origin(kind) is typing.Literal or (isinstance(kind, type) and issubclass(kind, Enum))
        for kind in kinds
    )


def _may_be_null(annotation: Any) -> bool:
    return type(None) in _alternatives(annotation)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _annotation_of(names: Sequence[str]) -> Any:
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


def _what_was_expected(data: Mapping[str, Any], key: str) -> str:
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
    annotation = _annotation_of(names)
    if annotation is None:
        return f"expected a name with a value below '{'.'.join(names[:-1])}', got {names[-1]}"
    if typing.get_origin(annotation) is dict:
        return f"expected keys below it, got {value!r}"
    enum = next((kind for kind in _alternatives(annotation) if isinstance(kind, type) and issubclass(kind, Enum)), None)
    expected = f"one of {', '.join(enum.__members__)}" if enum else describe(annotation)
    return f"expected {expected}, got {value!r}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_keys(data: Any, schema: Any, where: str, prefix: str) -> None:
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
        _check_keys(data, arguments[0], where, prefix)
    if origin is list and isinstance(data, Mapping):
        raise ConfigError(f"{where}: {prefix[:-1]}: expected a list, got {data!r}")
    if origin is list and isinstance(data, list):
        for index, value in enumerate(data):
            if isinstance(value, Mapping | list):
                raise ConfigError(f"{where}: {prefix[:-1]}[{index}]: expected a number, got {value!r}")
    if _holds_text(schema) and isinstance(data, bool | int | float):
        raise ConfigError(f"{where}: {prefix[:-1]}: expected text, got {data!r}; text that looks so goes in quotes")
    has_keys = dataclasses.is_dataclass(schema)
    if (has_keys and not isinstance(data, Mapping)) or (origin is dict and isinstance(data, list)):
        raise ConfigError(f"{where}: {prefix[:-1]}: expected keys below it, got {data!r}")
    if origin is dict and dataclasses.is_dataclass(arguments[1]) and isinstance(data, Mapping):
        for key, value in data.items():
            _check_keys(value, arguments[1], where, f"{prefix}{key}.")
    if has_keys:
        hints = _hints(typing.cast("type", schema))
        for key, value in data.items():
            if key not in hints:
                raise ConfigError(f"{where}: unknown key '{prefix}{key}'{near(str(key), hints)}")
            _check_keys(value, hints[key], where, f"{prefix}{key}.")


def data_root(config: Config) -> Path:
    """The folder that data set paths are relative to: ``data.root``, else $MNV2DET_DATA, else ``datasets``.

    A ``~`` at its start stands for the home folder.
    """
    root = config.data.root or os.environ.get("MNV2DET_DATA") or "datasets"
    return Path(os.path.expanduser(root))


def check_warmup(config: Config, steps: int) -> None:
    """Checks that the learning rate of a new run reaches its peak.

    Runs that were begun by an earlier version may go on without, so this is no part of `load_config`.

    Args:
        config: Of the run.
        steps: Optimizer steps of the whole run.

    Raises:
        ConfigError: The warm-up takes as many steps as the run, or more.
    """
    warmup = config.optim.warmup_steps
    if warmup >= steps:
        raise ConfigError(
            f"optim.warmup_steps: {warmup}, but the run has {steps} steps and would end before the learning rate"
            f" reaches its peak; expected fewer, such as {steps // 10}, or more steps"
        )
