from typing import Any, Literal

import pytest

from mnv2det.errors import ConfigError
from mnv2det.registry import INJECTED, Registry


class Thing:
    def __init__(
        self,
        given: str = "",
        *,
        count: int,
        scale: float = 1.0,
        shape: tuple[int, int] = (1, 1),
        names: tuple[str, ...] | None = None,
        on: bool = False,
        mode: Literal["a", "b"] = "a",
        classes: int = 0,
    ) -> None:
        self.made_of = (given, count, scale, shape, names, on, mode, classes)


def plain(*, rate: float = 0.5) -> float:
    return rate


@pytest.fixture
def things() -> Registry[Any]:
    registry: Registry[Any] = Registry("thing")
    registry.register("thing")(Thing)
    registry.register("plain")(plain)
    return registry


def problems(registry: Registry[Any], **args: Any) -> list[str]:
    return registry.bind("thing", {"count": 1, **args}, place="x")[1]


def test_register_returns_the_component_and_files_it():
    registry: Registry[Any] = Registry("thing")
    assert registry.register("b")(Thing) is Thing
    registry.register("a")(plain)
    assert registry.get("b") is Thing
    assert registry.names() == ["a", "b"]


def test_duplicate_name_raises(things: Registry[Any]):
    with pytest.raises(ValueError, match=r"^thing 'plain' is registered twice$"):
        things.register("plain")(Thing)
    assert things.get("plain") is plain


def test_unknown_name_says_where_and_what_was_meant(things: Registry[Any]):
    with pytest.raises(ConfigError, match=r"^data\.train\.name: no thing 'plane'; did you mean 'plain'\?$"):
        things.get("plane", place="data.train")


def test_unknown_name_with_nothing_near_lists_all(things: Registry[Any]):
    with pytest.raises(ConfigError, match=r"^no thing 'zzz'; expected one of plain, thing$"):
        things.get("zzz")


def test_bind_of_good_args_has_no_problems(things: Registry[Any]):
    args = {"count": 3, "scale": 2, "shape": [4, 5], "names": ["a"], "on": True, "mode": "b"}
    bound, wrong = things.bind("thing", args, place="x")
    assert wrong == []
    assert bound == {"count": 3, "scale": 2.0, "shape": (4, 5), "names": ("a",), "on": True, "mode": "b"}


def test_bind_leaves_out_what_was_not_given(things: Registry[Any]):
    assert things.bind("thing", {"count": 3}, place="x") == ({"count": 3}, [])


def test_bind_reports_all_problems_at_once(things: Registry[Any]):
    _, wrong = things.bind("thing", {"scal": 1, "on": 1, "mode": "c"}, place="data.val")
    assert wrong == [
        "data.val.args.scal: thing 'thing' has no such argument; did you mean 'scale'?",
        "data.val.args.on: Input should be a valid boolean, got 1",
        "data.val.args.mode: Input should be 'a' or 'b', got 'c'",
        "data.val.args.count: missing, thing 'thing' requires it",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", "3"),
        ("count", True),
        ("count", 3.0),
        ("count", None),
        ("scale", "0.5"),
        ("scale", False),
        ("on", "true"),
        ("on", 0),
        ("shape", [1]),
        ("shape", [1, 2, 3]),
        ("shape", "12"),
        ("names", "abc"),
        ("names", {"a": 1}),
        ("mode", 1),
    ],
)
def test_types_are_strict(things: Registry[Any], key: str, value: Any):
    found = problems(things, **{key: value})
    assert len(found) == 1
    assert found[0].startswith(f"x.args.{key}")
    assert found[0].endswith(f", got {value!r}")


def test_wrong_element_of_a_list_is_named_by_its_place(things: Registry[Any]):
    assert problems(things, shape=[1, "2"])[0].startswith("x.args.shape[1]: Input should be a valid integer")


def test_null_where_none_is_declared(things: Registry[Any]):
    assert things.bind("thing", {"count": 1, "names": None}, place="x") == ({"count": 1, "names": None}, [])


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_is_not_plain_data_is_a_problem(things: Registry[Any], value: Any):
    assert problems(things, scale=value) == [f"x.args.scale: not plain data, got {value!r}"]


@pytest.mark.parametrize("key", ["classes", "given"])
def test_injected_and_positional_arguments_cannot_be_set_from_a_config(things: Registry[Any], key: str):
    assert problems(things, **{key: 3})[0].startswith(f"x.args.{key}: thing 'thing' has no such argument")


def test_data_root_and_bad_data_are_injected():
    assert {"classes", "root", "bad_data"} <= INJECTED


def test_build_passes_given_bound_and_injected(things: Registry[Any]):
    made = things.build("thing", {"count": 3, "shape": [1, 2]}, "first", place="x", classes=7)
    assert made.made_of == ("first", 3, 1.0, (1, 2), None, False, "a", 7)


def test_build_of_a_function_calls_it(things: Registry[Any]):
    assert things.build("plain", {"rate": 0.25}, place="x") == 0.25


def test_build_raises_all_problems_in_one_line(things: Registry[Any]):
    with pytest.raises(ConfigError) as error:
        things.build("thing", {"on": 1}, place="x")
    expected = "x.args.on: Input should be a valid boolean, got 1; x.args.count: missing, thing 'thing' requires it"
    assert str(error.value) == expected
