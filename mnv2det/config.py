"""Configuration: the typed schema read from YAML, ``base:`` inheritance, dotted overrides, one-line errors.

Imports no torch, so that ``mnv2det config`` and ``--help`` answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnv2det.errors import ConfigError, near
from mnv2det.io import config_file
from mnv2det.keys import annotation_of, check_keys, holds_text, may_be_null, what_was_expected
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
    check_values,
)

__all__ = [
    "Amp",
    "BadData",
    "Component",
    "Config",
    "ConfigSource",
    "DataConfig",
    "Fit",
    "ModelConfig",
    "OptimConfig",
    "Overrides",
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

ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | Config  # what `load_config` reads
Overrides = Sequence[str] | Mapping[str, Any]

MAX_BASE_DEPTH = 2
# What the parser raises at damaged YAML: its own errors, and those of tags such as !!int ""
_DAMAGED = (yaml.YAMLError, OmegaConfBaseException, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def load_config(source: ConfigSource, overrides: Overrides = ()) -> Config:
    """Reads a config with its bases, applies overrides and checks every key, type and range.

    The arguments of components are checked later, by `mnv2det.engine.build.check`.

    Args:
        source: A YAML file, the name of a config that comes with the package, a folder with a config (a run, or
            imported data), nested keys with their values, or a `Config`. ``base:`` names files it starts from, relative
            to the file it is in; in nested keys, what `find_config` finds.
        overrides: Strings ``key.sub=value``: the value of a key that holds text is taken as it was typed, but for
            ``null`` where the key may be null; any other value is read as YAML. Or keys, dotted or nested, with their
            values: ``{"train.steps": 500}`` and ``{"train": {"steps": 500}}`` are the same.

    Returns:
        The merged configuration.

    Raises:
        ConfigError: A file is missing or is no YAML, its bases form a cycle or are more than two levels
            deep, a key is unknown, or a value has the wrong type or is out of range.

    Example:
        >>> config = load_config("ssdlite_shapes", {"train.steps": 500, "data": {"batch_size": 4}})
        >>> config.train.steps, config.data.batch_size
        (500, 4)
    """
    # The schema's default components are the lowest base: a file that names another component drops the args
    # written for the default one.
    if isinstance(source, Config):
        source = to_dict(source)
    if isinstance(source, Mapping):
        where, merged = "config", _from_mapping(source)
    else:
        path = find_config(config_file(source))
        where, merged = str(path), _read(path, (), _defaults())
    given = (
        (_keyed_override(key, value) for key, value in overrides.items())
        if isinstance(overrides, Mapping)
        else map(_parse_override, overrides)
    )
    for override in given:
        merged = merge(merged, override)
    return from_dict(merged, where=where)


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
    check_keys(data, Config, where, "")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.create(dict(data))))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {error.full_key}: missing; expected the name of a component") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{where}: {key}: {what_was_expected(data, key)}") from None
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
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.name if isinstance(value, Enum) else value


# Building these from the schema's classes takes most of the time of a load, and gives the same every time.


@functools.cache
def _defaults() -> dict[str, Any]:
    return to_dict(Config())  # `merge` does not change its arguments


@functools.cache
def _schema() -> Any:
    return OmegaConf.structured(Config)  # `OmegaConf.merge` works on a copy


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
    bases = _take_bases(own, str(path))
    check_keys(own, Config, str(path), "")
    for base in bases:
        data = _read(path.parent / base, (*parents, path), data)
    return merge(data, own)


def _from_mapping(given: Mapping[str, Any]) -> dict[str, Any]:
    """Lays nested keys over the bases that they name, and over the defaults."""
    own, data = typing.cast("dict[str, Any]", _plain(given)), _defaults()
    bases = _take_bases(own, "config")
    check_keys(own, Config, "config", "")
    for base in bases:
        data = _read(find_config(base), (), data)
    return merge(data, own)


def _take_bases(own: dict[str, Any], where: str) -> list[str]:
    """Takes ``base`` out of a config: the files that it starts from."""
    bases = own.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{where}: base: expected a file name or a list of them, got {bases!r}")
    return bases


def _keyed_override(key: str, value: Any) -> dict[str, Any]:
    """Nests the value of a dotted key."""
    result = _plain(value)
    for name in reversed(str(key).split(".")):
        result = {name: result}
    check_keys(result, Config, f"override '{key}'", "")
    return typing.cast("dict[str, Any]", result)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(f"override '{override}': expected key.sub=value")
    result = _override_value(annotation_of(names), text, override)
    for name in reversed(names):
        result = {name: result}
    check_keys(result, Config, f"override '{override}'", "")
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
    if holds_text(annotation) and text.strip() and not quoted:
        return None if text == "null" and may_be_null(annotation) else text
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except _DAMAGED as error:
        raise ConfigError(f"override '{override}': not a YAML value: {_one_line(error)}") from None
    value = typing.cast("dict[str, Any]", content)["value"]
    return text.strip() if isinstance(value, str) and not quoted and " #" in text else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


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
