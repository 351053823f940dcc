from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from mnv2det.errors import ConfigError
from mnv2det.ranges import Share
from mnv2det.registry import INJECTED, ComponentArgs, Registry, bind_all


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


def check_span(args: Mapping[str, Any]) -> Iterator[str]:
    if args["low"] > args["high"]:
        yield f"low: expected at most high, got {args['low']}"


def span(
    *,
    low: Share = 0.0,
    high: Annotated[float, Field(gt=0, le=1)] = 1.0,
    seed: Annotated[int, Field(ge=0)] = 0,
    open: Annotated[float, Field(gt=0, lt=1)] | None = None,
    steps: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5,),
    pairs: tuple[tuple[Share, Annotated[int, Field(ge=1, lt=9)]], ...] | None = None,
    size: Annotated[tuple[int, int], Field(description="[height, width]")] = (1, 1),
    any_number: float = 0.0,
) -> tuple[float, float]:
    return low, high


@pytest.fixture
def things() -> Registry[Any]:
    registry: Registry[Any] = Registry("thing")
    registry.register("thing")(Thing)
    registry.register("plain")(plain)
    registry.register("span", check=check_span)(span)
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
    with pytest.raises(ConfigError, match=r"^no thing 'zzz'; expected one of plain, span, thing$"):
        things.get("zzz")


def test_bind_of_good_args_has_no_problems(things: Registry[Any]):
    args = {"count": 3, "scale": 2, "shape": [4, 5], "names": ["a"], "on": True, "mode": "b"}
    bound, wrong = things.bind("thing", args, place="x")
    assert wrong == []
    assert bound == {"count": 3, "scale": 2.0, "shape": (4, 5), "names": ("a",), "on": True, "mode": "b"}


def test_bind_completes_arguments_with_their_defaults(things: Registry[Any]):
    defaults = {"scale": 1.0, "shape": (1, 1), "names": None, "on": False, "mode": "a"}
    assert things.bind("thing", {"count": 3}, place="x") == ({"count": 3, **defaults}, [])


def test_bind_of_an_unknown_name_is_a_problem_like_others(things: Registry[Any]):
    assert things.bind("thin", {}, place="x")[1] == ["x.name: no thing 'thin'; did you mean 'thing'?"]


def test_bind_reports_all_problems_at_once(things: Registry[Any]):
    _, wrong = things.bind("thing", {"scal": 1, "on": 1, "mode": "c"}, place="data.val")
    assert wrong == [
        "data.val.args.scal: thing 'thing' has no such argument; did you mean 'scale'?",
        "data.val.args.count: missing, thing 'thing' requires it",
        "data.val.args.on: expected true or false, got 1",
        "data.val.args.mode: expected one of a, b, got 'c'",
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
def test_value_of_another_type_is_refused(things: Registry[Any], key: str, value: Any):
    found = problems(things, **{key: value})
    assert len(found) == 1
    assert found[0].startswith(f"x.args.{key}")
    assert found[0].endswith(f", got {value!r}")


def test_wrong_element_of_a_list_is_named_by_its_place(things: Registry[Any]):
    assert problems(things, shape=[1, "2"]) == ["x.args.shape[1]: expected a whole number, got '2'"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("low", 6, "low: expected a number from 0 to 1, got 6"),
        ("low", -0.1, "low: expected a number from 0 to 1, got -0.1"),
        ("low", float("nan"), "low: expected a number from 0 to 1, got nan"),
        ("high", 0, "high: expected a number > 0 and <= 1, got 0"),
        ("seed", -1, "seed: expected a whole number >= 0, got -1"),
        ("seed", 1.5, "seed: expected a whole number >= 0, got 1.5"),
        ("open", 1, "open: expected a number between 0 and 1, got 1"),
        ("steps", [], "steps: expected a list of at least 1, each a number from 0 to 1, got []"),
        ("steps", [0, 0.5, 2], "steps[2]: expected a number from 0 to 1, got 2"),
        ("pairs", [[0, 1], [0, 9]], "pairs[1][1]: expected a whole number >= 1 and < 9, got 9"),
        (
            "pairs",
            [[0]],
            "pairs[0]: expected a list of 2: a number from 0 to 1; a whole number >= 1 and < 9, got [0]",
        ),
        ("size", [1, "a"], "size: expected [height, width], got [1, 'a']"),
        ("any_number", float("inf"), "any_number: expected a number, got inf"),
    ],
)
def test_value_out_of_its_range_is_refused_in_words(things: Registry[Any], key: str, value: Any, expected: str):
    assert things.bind("span", {key: value}, place="x")[1] == [f"x.args.{expected}"]


@pytest.mark.parametrize(
    "args", [{"low": 0}, {"low": 1, "high": 1}, {"high": 1e-9}, {"open": None}, {"pairs": [[1, 8]]}]
)
def test_limits_of_a_range_are_within_it(things: Registry[Any], args: dict[str, Any]):
    assert things.bind("span", args, place="x")[1] == []


def test_arguments_that_do_not_go_together_are_refused_with_defaults_in_mind(things: Registry[Any]):
    problem = ["x.args.low: expected at most high, got 0.7"]
    assert things.bind("span", {"low": 0.7, "high": 0.5}, place="x")[1] == problem
    assert things.bind("span", {"low": 0.7}, place="x")[1] == []


def test_arguments_are_not_held_to_each_other_while_some_may_come_from_a_file(things: Registry[Any]):
    assert things.bind("span", {"low": 0.7, "high": 0.5}, place="x", partial=True)[1] == []
    assert len(things.bind("span", {"low": 7}, place="x", partial=True)[1]) == 1


def test_long_values_are_shortened(things: Registry[Any]):
    assert len(problems(things, names=[1.5] * 1000)[0]) < 80
    assert len(problems(things, shape=[1] * 1000)[0]) < 300


def test_null_is_taken_where_none_is_declared(things: Registry[Any]):
    bound, wrong = things.bind("thing", {"count": 1, "names": None}, place="x")
    assert (bound["names"], wrong) == (None, [])


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_is_not_plain_data_is_a_problem(things: Registry[Any], value: Any):
    assert problems(things, scale=value) == [f"x.args.scale: not plain data, got {value!r}"]


@pytest.mark.parametrize("key", ["classes", "given"])
def test_injected_and_positional_arguments_cannot_be_set_from_a_config(things: Registry[Any], key: str):
    assert problems(things, **{key: 3})[0].startswith(f"x.args.{key}: thing 'thing' has no such argument")


def test_data_root_and_bad_data_are_injected():
    assert {"classes", "root", "bad_data"} <= INJECTED


def test_build_passes_positional_bound_and_injected_arguments(things: Registry[Any]):
    made = things.build("thing", {"count": 3, "shape": [1, 2]}, "first", place="x", classes=7)
    assert made.made_of == ("first", 3, 1.0, (1, 2), None, False, "a", 7)


def test_build_of_a_function_calls_it(things: Registry[Any]):
    assert things.build("plain", {"rate": 0.25}, place="x") == 0.25


def test_build_raises_all_problems_in_one_line(things: Registry[Any]):
    with pytest.raises(ConfigError) as error:
        things.build("thing", {"on": 1}, place="x")
    expected = "x.args.count: missing, thing 'thing' requires it; x.args.on: expected true or false, got 1"
    assert str(error.value) == expected


def test_bind_all_raises_the_problems_of_all_components_in_one_line(things: Registry[Any]):
    components = [ComponentArgs(things, "plane", {}, "a"), ComponentArgs(things, "plain", {"rate": "x"}, "b")]
    with pytest.raises(ConfigError) as error:
        bind_all(components)
    expected = "a.name: no thing 'plane'; did you mean 'plain'?; b.args.rate: expected a number, got 'x'"
    assert str(error.value) == expected
