"""Ranges of numbers, stated in the annotation of an argument or key, and the check of a value against it.

``nms_iou: Share = 0.6`` says all there is to say: `convert` refuses what lies outside and names the range in words.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mnv2det.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
NormEpsilon = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[float, Field(gt=0, le=10)]

_FINITE = ConfigDict(allow_inf_nan=False)
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length")


def convert(annotation: Any, value: Any, key: str) -> Any:
    """Reads plain data as an annotation says.

    Types are strict (no ``"3"`` for 3), but a list may stand where a tuple is declared. Numbers must be finite.

    Args:
        annotation: A type, with ranges as `pydantic.Field` states them inside ``Annotated``.
        value: As read from YAML or JSON.
        key: Dotted key of the value, for the message.

    Raises:
        ConfigError: The value has another type or lies out of its range; names the key, the range and the value.
    """
    try:
        # only JSON's strict mode takes a list for a tuple
        return TypeAdapter(annotation, config=_FINITE).validate_json(json.dumps(value), strict=True)
    except TypeError:
        raise ConfigError(f"{key}: not plain data, got {value!r}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = first["loc"][:-1] if first["type"] == "missing" else first["loc"]
        annotation, value, inside = _follow(annotation, value, path)
        expected = describe(annotation)
        raise ConfigError(f"{key}{inside}: expected {expected}, got {_shortened(value)}") from None


def describe(annotation: Any) -> str:
    """What an annotation accepts, in words: ``a number from 0 to 1``, ``a list of 2, each a whole number >= 1``.

    A ``description`` in its `pydantic.Field` is taken as it stands; that it may be null is not said.
    """
    if description := _description(annotation):
        return description
    kinds = _alternatives(annotation)
    if kinds != (annotation,):
        return " or ".join(map(describe, kinds))
    limits = limits_of(annotation)
    kind = _bare(annotation)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        least, most = limits.get("min_length", 0), limits.get("max_length")
        length = f" of {least}" if least == most else f" of at least {least}" if least else ""
        return f"a list{length}, each {describe(inner[0])}"
    if origin is tuple:
        if all(element == inner[0] for element in inner):
            return f"a list of {len(inner)}, each {describe(inner[0])}"
        return f"a list of {len(inner)}: {'; '.join(map(describe, inner))}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind))) + _interval(limits)


def check_order(args: Mapping[str, Any], *keys: str) -> Iterator[str]:
    """Names the pairs among the arguments whose first number is the larger one."""
    for key in keys:
        low, high = args[key]
        if low > high:
            yield f"{key}: expected the smaller number first, got [{low}, {high}]"


def numbers_in(annotation: Any) -> Iterator[Any]:
    """The annotations of all numbers within an annotation: ``Share`` twice for ``tuple[Share, Share] | None``."""
    kind = _bare(annotation)
    if kind in (int, float):
        yield annotation
    for inner in get_args(kind):
        yield from numbers_in(inner)


def limits_of(annotation: Any) -> dict[str, Any]:
    """The limits that an annotation states (``ge``, ``gt``, ``le``, ``lt``, ``min_length``, ``max_length``)."""
    limits: dict[str, Any] = {}
    for stated in getattr(annotation, "__metadata__", ()):
        # a pydantic.Field holds one object for every limit
        for limit in getattr(stated, "metadata", [stated]):
            limits |= {name: getattr(limit, name) for name in _LIMITS if getattr(limit, name, None) is not None}
    return limits


def _interval(limits: dict[str, Any]) -> str:
    if limits.keys() == {"ge", "le"}:
        return f" from {limits['ge']:g} to {limits['le']:g}"
    if limits.keys() == {"gt", "lt"}:
        return f" between {limits['gt']:g} and {limits['lt']:g}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    stated = [f"{sign} {limits[name]:g}" for name, sign in signs.items() if name in limits]
    return f" {' and '.join(stated)}" if stated else ""


def _follow(annotation: Any, value: Any, path: Sequence[int | str]) -> tuple[Any, Any, str]:
    """Goes along an error's path into nested lists: annotation and value of the wrong element, and its ``[index]``."""
    kinds = _alternatives(annotation)
    if not path or len(kinds) != 1 or _description(kinds[0]):
        return annotation, value, ""
    inner = get_args(_bare(kinds[0]))
    index = path[0]
    if not isinstance(index, int) or not isinstance(value, list | tuple) or not inner:
        return annotation, value, ""
    element = inner[index] if len(inner) > index and inner[-1] is not Ellipsis else inner[0]
    annotation, value, inside = _follow(element, value[index], path[1:])
    return annotation, value, f"[{index}]{inside}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union without null, or the annotation alone."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return (annotation,)
    return tuple(kind for kind in get_args(annotation) if kind is not type(None))


def _bare(annotation: Any) -> Any:
    """The type without its ranges."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _description(annotation: Any) -> str | None:
    stated = getattr(annotation, "__metadata__", ())
    return next((field.description for field in stated if getattr(field, "description", None)), None)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
