"""Registries: a name in a YAML becomes a component, whose ``args`` are checked before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from mnv2det.errors import ConfigError, near
from mnv2det.ranges import convert

T = TypeVar("T", bound=Callable[..., Any])
# Looks at arguments that depend on each other, all of them completed; yields "key: expected ..., got ..." for what
# is wrong.
Check = Callable[[Mapping[str, Any]], Iterable[str]]

# Keyword arguments that the framework supplies and a config cannot.
INJECTED = frozenset({"classes", "root", "bad_data"})


class Registry(Generic[T]):
    """Maps names to classes or functions whose configurable arguments are keyword-only.

    An argument's annotation states its type and range: ``nms_iou: Share = 0.6`` (`mnv2det.ranges`).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._components: dict[str, T] = {}
        self._checks: dict[str, Check] = {}

    def register(self, name: str, *, check: Check | None = None) -> Callable[[T], T]:
        """Returns a decorator that files a component under ``name``.

        Args:
            name: As configs write it.
            check: Says what is wrong with arguments that are each in their range, but do not go together. It is
                given all of them, the defaults included, and yields a line ``key: expected ..., got ...`` for each
                problem.

        Raises:
            ValueError: The name is taken.
        """

        def file(component: T) -> T:
            if name in self._components:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._components[name] = component
            if check is not None:
                self._checks[name] = check
            return component

        return file

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._components)

    def get(self, name: str, *, place: str = "") -> T:
        """The component called ``name``.

        Raises:
            ConfigError: There is none; names the nearest.
        """
        if name not in self._components:
            where = f"{place}.name: " if place else ""
            raise ConfigError(f"{where}no {self.kind} '{name}'{near(name, self._components)}")
        return self._components[name]

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The arguments that a config can set: keyword-only ones that the framework does not supply."""
        signature = inspect.signature(self.get(name), eval_str=True)
        return {
            key: parameter
            for key, parameter in signature.parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in INJECTED
        }

    def bind(
        self, name: str, args: Mapping[str, Any], *, place: str, partial: bool = False
    ) -> tuple[dict[str, Any], list[str]]:
        """Checks arguments against the component's signature without building it, and completes them.

        Args:
            name: A registered name.
            args: From the config: plain data, read as the annotations say (a list becomes a tuple where one is
                declared).
            place: Dotted key of the component, for messages.
            partial: Whether arguments that are left out may yet come from a weight file: checks across several
                arguments would be made with the wrong ones, and are left out.

        Returns:
            All arguments, with the defaults of those left out, and one line for each thing that is wrong.
        """
        try:
            self.get(name, place=place)
        except ConfigError as error:
            return {}, [str(error)]
        parameters = self.parameters(name)
        bound: dict[str, Any] = {}
        problems = [
            f"{place}.args.{key}: {self.kind} '{name}' has no such argument{near(key, parameters)}"
            for key in args
            if key not in parameters
        ]
        for key, parameter in parameters.items():
            if key in args:
                try:
                    bound[key] = convert(parameter.annotation, args[key], f"{place}.args.{key}")
                except ConfigError as error:
                    problems.append(str(error))
            elif parameter.default is inspect.Parameter.empty:
                problems.append(f"{place}.args.{key}: missing, {self.kind} '{name}' requires it")
            else:
                bound[key] = parameter.default
        if name in self._checks and not problems and not partial:
            problems = [f"{place}.args.{line}" for line in self._checks[name](bound)]
        return bound, problems

    def build(self, name: str, args: Mapping[str, Any], *positional: Any, place: str, **injected: Any) -> Any:
        """Builds a component from config arguments and what the framework supplies.

        Raises:
            ConfigError: An argument is unknown, missing, of the wrong type or out of its range.
        """
        (bound,) = bind_all([ComponentArgs(self, name, args, place)])
        return self.get(name)(*positional, **bound, **injected)


class ComponentArgs(NamedTuple):
    """What a config says of one component; the fields are those of `Registry.bind`."""

    registry: Registry[Any]
    name: str
    args: Mapping[str, Any]
    place: str
    partial: bool = False


def bind_all(components: Iterable[ComponentArgs]) -> list[dict[str, Any]]:
    """Checks and completes the arguments of several components.

    Returns:
        All arguments of each component.

    Raises:
        ConfigError: Something is wrong; all problems of all components in one line.
    """
    bindings = [
        registry.bind(name, args, place=place, partial=partial) for registry, name, args, place, partial in components
    ]
    problems = [problem for _, lines in bindings for problem in lines]
    if problems:
        raise ConfigError("; ".join(problems))
    return [bound for bound, _ in bindings]


BACKBONES: Registry[Any] = Registry("backbone")
HEADS: Registry[Any] = Registry("head")
DATASETS: Registry[Any] = Registry("dataset")
AUGMENTATIONS: Registry[Any] = Registry("augmentation")
EVALUATORS: Registry[Any] = Registry("evaluator")
OPTIMIZERS: Registry[Any] = Registry("optimizer")
SCHEDULES: Registry[Any] = Registry("schedule")
RUNTIMES: Registry[Any] = Registry("runtime")
LABELS: Registry[Any] = Registry("label format")


def component_modules() -> list[str]:
    """Names of the modules outside this package that registered a component, for a new process to import."""
    registries = (BACKBONES, HEADS, DATASETS, AUGMENTATIONS, EVALUATORS, OPTIMIZERS, SCHEDULES, RUNTIMES, LABELS)
    modules = {registry.get(name).__module__ for registry in registries for name in registry.names()}
    return sorted(module for module in modules if module.split(".")[0] != "mnv2det")
