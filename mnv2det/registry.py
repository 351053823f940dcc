"""Registries: a name in a YAML becomes a class, its ``args`` are checked before anything is built."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

from mnv2det.errors import ConfigError, near

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Maps names to classes or functions whose configurable arguments are keyword-only."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files a component under ``name``.

        Raises:
            ValueError: The name is taken.
        """

        def file(component: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = component
            return component

        return file

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def get(self, name: str, *, place: str = "") -> T:
        """The component called ``name``.

        Raises:
            ConfigError: There is none; names the nearest.
        """
        if name not in self._entries:
            where = f"{place}.name: " if place else ""
            raise ConfigError(f"{where}no {self.kind} '{name}'{near(name, self._entries)}")
        return self._entries[name]

    def bind(self, name: str, args: Mapping[str, Any], *, place: str) -> tuple[dict[str, Any], list[str]]:
        """Checks ``args`` against the component's signature without building it.

        Only keyword-only parameters can be set from a config; values are read as their annotation
        says (a YAML list becomes a tuple where one is declared).

        Args:
            name: A registered name.
            args: From the config.
            place: Dotted key of the component, for messages.

        Returns:
            The converted arguments, and one line for each thing that is wrong.
        """
        from pydantic import TypeAdapter, ValidationError

        component = self.get(name, place=place)
        target = component.__init__ if inspect.isclass(component) else component
        hints = get_type_hints(target)
        keywords = {
            key: parameter
            for key, parameter in inspect.signature(target).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in INJECTED
        }
        bound: dict[str, Any] = {}
        problems: list[str] = []
        for key, value in args.items():
            if key not in keywords:
                problems.append(f"{place}.args.{key}: {self.kind} '{name}' has no such argument{near(key, keywords)}")
                continue
            try:
                # JSON's strict mode: no "3" for 3, but a list where a tuple is declared
                bound[key] = TypeAdapter(hints[key]).validate_json(json.dumps(value), strict=True)
            except TypeError:
                problems.append(f"{place}.args.{key}: not plain data, got {value!r}")
            except ValidationError as error:
                first = error.errors()[0]
                inside = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
                problems.append(f"{place}.args.{key}{inside}: {first['msg']}, got {value!r}")
        for key, parameter in keywords.items():
            if parameter.default is inspect.Parameter.empty and key not in args:
                problems.append(f"{place}.args.{key}: missing, {self.kind} '{name}' requires it")
        return bound, problems

    def complete(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """``args`` with the defaults of all that it leaves out."""
        component = self.get(name)
        target = component.__init__ if inspect.isclass(component) else component
        defaults = {
            key: parameter.default
            for key, parameter in inspect.signature(target).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is not inspect.Parameter.empty
        }
        return {**defaults, **args}

    def build(self, name: str, args: Mapping[str, Any], *given: Any, place: str, **injected: Any) -> Any:
        """Builds a component from config arguments and what the framework injects.

        Raises:
            ConfigError: An argument is unknown, missing or of the wrong type.
        """
        bound, problems = self.bind(name, args, place=place)
        if problems:
            raise ConfigError("; ".join(problems))
        return self.get(name, place=place)(*given, **bound, **injected)


# Keyword arguments that the framework supplies and a config cannot.
INJECTED = frozenset({"classes", "root", "bad_data"})

BACKBONES: Registry[Any] = Registry("backbone")
HEADS: Registry[Any] = Registry("head")
DATASETS: Registry[Any] = Registry("dataset")
AUGMENTATIONS: Registry[Any] = Registry("augmentation")
EVALUATORS: Registry[Any] = Registry("evaluator")
OPTIMIZERS: Registry[Any] = Registry("optimizer")
SCHEDULES: Registry[Any] = Registry("schedule")
RUNTIMES: Registry[Any] = Registry("runtime")


def component_modules() -> list[str]:
    """Names of the modules outside this package that registered a component, for a new process to import."""
    registries = (BACKBONES, HEADS, DATASETS, AUGMENTATIONS, EVALUATORS, OPTIMIZERS, SCHEDULES, RUNTIMES)
    modules = {registry.get(name).__module__ for registry in registries for name in registry.names()}
    return sorted(module for module in modules if module.split(".")[0] != "mnv2det")
