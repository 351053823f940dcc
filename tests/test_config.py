import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnv2det.config import Amp, BadData, Config, data_root, from_dict, load_config, merge, to_dict, to_yaml
from mnv2det.errors import ConfigError

SMALL = """
tasks:
  det: {head: {name: ssdlite}, evaluator: {name: coco}}
data:
  train: {name: shapes}
  val: {name: shapes}
train: {epochs: 1}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path, "small.yaml", SMALL)


def test_values_and_defaults_are_read(small: Path):
    config = load_config(small)
    assert config.tasks["det"].head.name == "ssdlite"
    assert (config.seed, config.train.epochs, config.train.steps) == (0, 1, None)
    assert (config.train.amp, config.data.bad_data) == (Amp.fp32, BadData.stop)


# inheritance


def test_later_bases_win_over_earlier_and_the_file_over_both(tmp_path: Path):
    write(tmp_path, "a.yaml", SMALL + "seed: 1\nmodel: {input_size: [64, 64]}\noptim: {warmup_steps: 1, clip_norm: 1}")
    write(tmp_path, "b.yaml", "seed: 2\noptim: {warmup_steps: 2}")
    config = load_config(write(tmp_path, "c.yaml", "base: [a.yaml, b.yaml]\nseed: 3"))
    assert (config.seed, config.optim.warmup_steps, config.optim.clip_norm) == (3, 2, 1)
    assert config.model.input_size == [64, 64]


def test_two_levels_of_base_relative_to_each_file(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", "root.yaml", SMALL + "seed: 5")
    write(tmp_path / "inner", "middle.yaml", "base: root.yaml\ntrain: {log_every: 7}")
    config = load_config(write(tmp_path, "top.yaml", "base: inner/middle.yaml"))
    assert (config.seed, config.train.log_every) == (5, 7)


def test_three_levels_of_base_are_refused(tmp_path: Path):
    write(tmp_path, "0.yaml", SMALL)
    for level in (1, 2, 3):
        write(tmp_path, f"{level}.yaml", f"base: {level - 1}.yaml")
    assert load_config(tmp_path / "2.yaml").train.epochs == 1
    expected = f"base of {tmp_path}/1.yaml: {tmp_path}/0.yaml: more than 2 levels of base"
    assert message(tmp_path / "3.yaml") == expected


@pytest.mark.parametrize("length", [1, 2])
def test_bases_that_form_a_cycle_are_refused(tmp_path: Path, length: int):
    for number in range(length):
        write(tmp_path, f"{number}.yaml", f"base: {(number + 1) % length}.yaml")
    expected = f"base of {tmp_path}/{length - 1}.yaml: {tmp_path}/0.yaml: bases form a cycle"
    assert message(tmp_path / "0.yaml") == expected


def test_missing_base_names_who_asked_and_the_nearest_file(tmp_path: Path):
    write(tmp_path, "ssd_cpu.yaml", SMALL)
    top = write(tmp_path, "top.yaml", "base: ssd_cpuu.yaml")
    expected = f"base of {top}: {tmp_path}/ssd_cpuu.yaml: no such config file; did you mean 'ssd_cpu.yaml'?"
    assert message(top) == expected


def test_missing_file_names_the_nearest(small: Path):
    assert message(small.with_name("smal.yaml")).endswith("smal.yaml: no such config file; did you mean 'small.yaml'?")


def test_base_name_too_long_for_a_file_is_refused(tmp_path: Path):
    assert "no such config file" in message(write(tmp_path, "top.yaml", "base: " + "x" * 1000))


@pytest.mark.parametrize("base", ["3", "[a.yaml, 3]", "{a: b}"])
def test_base_that_names_no_file_is_refused(tmp_path: Path, base: str):
    top = write(tmp_path, "top.yaml", f"base: {base}")
    assert message(top).startswith(f"{top}: base: expected a file name or a list of them, got")


def test_unknown_key_in_a_base_names_the_base(tmp_path: Path):
    base = write(tmp_path, "base.yaml", SMALL + "sed: 3")
    assert message(write(tmp_path, "top.yaml", "base: base.yaml")).startswith(f"{base}: unknown key 'sed'")


# components


def test_component_given_a_new_name_starts_from_empty_args(tmp_path: Path):
    write(tmp_path, "base.yaml", SMALL + "optim: {optimizer: {name: sgd, args: {lr: 1, momentum: 0.9}}}")
    top = write(tmp_path, "top.yaml", "base: base.yaml\noptim: {optimizer: {name: adamw, args: {lr: 2}}}")
    assert load_config(top).optim.optimizer.args == {"lr": 2}


def test_component_given_the_same_name_keeps_its_args(tmp_path: Path):
    write(tmp_path, "base.yaml", SMALL + "optim: {optimizer: {name: sgd, args: {lr: 1, momentum: 0.9}}}")
    top = write(tmp_path, "top.yaml", "base: base.yaml\noptim: {optimizer: {name: sgd, args: {lr: 2}}}")
    assert load_config(top).optim.optimizer.args == {"lr": 2, "momentum": 0.9}


def test_args_written_for_a_default_component_do_not_reach_another(tmp_path: Path):
    write(tmp_path, "base.yaml", SMALL + "optim: {optimizer: {args: {momentum: 0}}}")
    top = write(tmp_path, "top.yaml", "base: base.yaml\noptim: {optimizer: {name: adamw}}")
    assert load_config(tmp_path / "base.yaml").optim.optimizer.args == {"momentum": 0}
    assert load_config(top).optim.optimizer.args == {}


def test_args_may_be_written_before_the_component_is_named(tmp_path: Path):
    base = SMALL.replace("train: {name: shapes}", "train: {args: {count: 3}}")
    write(tmp_path, "base.yaml", base)
    top = write(tmp_path, "top.yaml", "base: base.yaml\ndata: {train: {name: shapes}}")
    assert load_config(top).data.train.args == {"count": 3}


def test_override_of_a_name_empties_args_too(tmp_path: Path):
    path = write(tmp_path, "a.yaml", SMALL + "optim: {optimizer: {name: sgd, args: {momentum: 0.9}}}")
    assert load_config(path, ["optim.optimizer.name=adamw"]).optim.optimizer.args == {}


def test_merge_leaves_its_arguments_alone():
    base, top = {"a": {"name": "x", "args": {"k": 1}}}, {"a": {"name": "y"}}
    assert merge(base, top) == {"a": {"name": "y", "args": {}}}
    assert base == {"a": {"name": "x", "args": {"k": 1}}}


# overrides


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=7", lambda c: c.seed, 7),
        ("optim.optimizer.args.lr=1e-3", lambda c: c.optim.optimizer.args["lr"], 0.001),
        ("model.input_size=[64,96]", lambda c: c.model.input_size, [64, 96]),
        ("train.amp=bf16", lambda c: c.train.amp, Amp.bf16),
        ("data.bad_data=skip", lambda c: c.data.bad_data, BadData.skip),
        ("train.channels_last=false", lambda c: c.train.channels_last, False),
        ("train.ema_decay=null", lambda c: c.train.ema_decay, None),
        ("data.root=/a b/c=d", lambda c: c.data.root, "/a b/c=d"),
        ("data.train.args.names={a: [x, 1]}", lambda c: c.data.train.args["names"], {"a": ["x", 1]}),
    ],
)
def test_override_is_read_as_yaml(small: Path, override: str, read, value):
    found = read(load_config(small, [override]))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["yard #2", "007", "1e3", "on", "no", "~", "[new] yard", "a: b", "true", "2026-11-27"])
@pytest.mark.parametrize("key", ["root", "weights", "name"])
def test_override_of_a_key_that_holds_text_is_the_text_typed(small: Path, key: str, text: str):
    override = {"root": "data.root", "weights": "model.weights", "name": "optim.optimizer.name"}[key]
    config = load_config(small, [f"{override}={text}"])
    assert {"root": config.data.root, "weights": config.model.weights, "name": config.optim.optimizer.name}[key] == text


@pytest.mark.parametrize(("text", "value"), [("null", None), ("'null'", "null"), ('"yard #2"', "yard #2"), ("", None)])
def test_override_of_text_may_be_null_or_quoted(small: Path, text: str, value: str | None):
    assert load_config(small, [f"data.root={text}"]).data.root == value


def test_override_of_an_argument_keeps_text_that_yaml_would_shorten(small: Path):
    args = load_config(small, ["data.train.args.images=yard #2", "data.train.args.count=12 # a dozen"]).data.train.args
    assert args == {"images": "yard #2", "count": 12}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "model.input_size=96",
            "model.input_size: expected two whole numbers from 32 to 8192, [height, width], e.g. [96, 96], got 96",
        ),
        ("model.mean=x", "model.mean: expected three numbers from 0 to 1, R G B, got 'x'"),
        ("train.steps=abc", "train.steps: expected a whole number >= 1, got 'abc'"),
        ("train.steps=1.5", "train.steps: expected a whole number >= 1, got 1.5"),
        ("train.amp=fp8", "train.amp: expected one of fp32, bf16, fp16, got 'fp8'"),
        ("model.fit=zoom", "model.fit: expected one of stretch, letterbox, pad, crop, got 'zoom'"),
        ("train.channels_last=maybe", "train.channels_last: expected true or false, got 'maybe'"),
        ("model.backbone.args=3", "model.backbone.args: expected keys below it, got 3"),
        ("optim.clip_norm=x", "optim.clip_norm: expected a number > 0, got 'x'"),
        ("seed=null", "seed: expected a whole number >= 0, got None"),
        ("seed=${x}", "seed: '${x}' refers to a key that is not there; expected ${KEY} with a key of the config"),
        (
            "optim.optimizer.args={1: 2}",
            "optim.optimizer.args.1: expected a name with a value below 'optim.optimizer.args', got 1",
        ),
    ],
)
def test_value_of_the_wrong_type_says_what_was_expected(small: Path, override: str, expected: str):
    assert message(small, override) == f"{small}: {expected}"


@pytest.mark.parametrize("text", ["007", "1e3", "on", "no"])
def test_text_in_a_file_that_yaml_takes_for_something_else_is_refused(tmp_path: Path, text: str):
    path = write(tmp_path, "a.yaml", SMALL + f"model: {{weights: {text}}}")
    assert message(path).startswith(f"{path}: model.weights: expected text, got ")


def test_last_override_wins(small: Path):
    assert load_config(small, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1", ".seed=1", ""])
def test_override_without_key_or_value_is_refused(small: Path, override: str):
    assert message(small, override) == f"override '{override}': expected key.sub=value"


@pytest.mark.parametrize("override", ["seed=[", "seed=${", "seed={a: ", "seed=!!int ''", "seed=!!bool x"])
def test_override_that_is_no_yaml_is_refused(small: Path, override: str):
    assert message(small, override).startswith(f"override '{override}': not a YAML value: ")


def test_unknown_key_in_an_override_names_it_and_the_nearest(small: Path):
    expected = "override 'train.epoch=3': unknown key 'train.epoch'; did you mean 'epochs'?"
    assert message(small, "train.epoch=3") == expected


def test_unknown_key_with_nothing_near_lists_what_there_is(small: Path):
    expected = "override 'optim.optimizer.lr=2': unknown key 'optim.optimizer.lr'; expected one of args, name"
    assert message(small, "optim.optimizer.lr=2") == expected


# what is wrong in a file


def test_unknown_key_names_file_key_and_nearest(tmp_path: Path):
    path = write(tmp_path, "a.yaml", SMALL + "optim: {warmup_step: 3}")
    assert message(path) == f"{path}: unknown key 'optim.warmup_step'; did you mean 'warmup_steps'?"


def test_unknown_key_below_a_task_is_found(tmp_path: Path):
    path = write(tmp_path, "a.yaml", SMALL.replace("head:", "haed:"))
    assert message(path) == f"{path}: unknown key 'tasks.det.haed'; did you mean 'head'?"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=true", "seed"),
        ("seed=3.5", "seed"),
        ("seed=null", "seed"),
        ("seed={x: 1}", "seed"),
        ("train.amp=fp64", "train.amp"),
        ("data.bad_data=ignore", "data.bad_data"),
        ("tasks.det.weight=heavy", "tasks.det.weight"),
        ("model.input_size=320", "model.input_size"),
        ("model.input_size=[a,b]", "model.input_size[0]"),
        ("optim.optimizer.args=3", "optim.optimizer.args"),
        ("optim.optimizer.args={1: 2}", "optim.optimizer.args.1"),
        ("optim.optimizer.args=[1]", "optim.optimizer.args"),
        ("model.mean={0: 1}", "model.mean"),
        ("model.mean=[{a: 1},2,3]", "model.mean[0]"),
        ("model.input_size={}", "model.input_size"),
        ("test.scales=[[1]]", "test.scales[0]"),
        ("tasks=[]", "tasks"),
        ("tasks=null", "tasks"),
        ("train=null", "train"),
    ],
)
def test_value_of_the_wrong_type_names_its_key(small: Path, override: str, key: str):
    assert f": {key}: " in message(small, override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=-1", "seed: expected a whole number >= 0, got -1"),
        (
            "model.input_size=[320]",
            "model.input_size: expected two whole numbers from 32 to 8192, [height, width], e.g. [96, 96], got [320]",
        ),
        (
            "model.input_size=[96,9]",
            "model.input_size: expected two whole numbers from 32 to 8192, [height, width], e.g. [96, 96], got [96, 9]",
        ),
        ("model.mean=[0.5]", "model.mean: expected three numbers from 0 to 1, R G B, got [0.5]"),
        ("model.mean=[127,0,0]", "model.mean: expected three numbers from 0 to 1, R G B, got [127.0, 0.0, 0.0]"),
        ("model.mean=[.nan,0,0]", "model.mean: expected three numbers from 0 to 1, R G B, got [nan, 0.0, 0.0]"),
        ("model.std=[1,1,0]", "model.std: expected three numbers > 0, R G B, got [1.0, 1.0, 0.0]"),
        ("tasks.det.weight=-1", "tasks.det.weight: expected a number >= 0, got -1.0"),
        ("tasks.det.weight=.nan", "tasks.det.weight: expected a number >= 0, got nan"),
        ("data.batch_size=0", "data.batch_size: expected a whole number >= 1, got 0"),
        ("data.workers=-1", "data.workers: expected a whole number >= 0, got -1"),
        ("train.epochs=0", "train.epochs: expected a whole number >= 1, got 0"),
        ("train.steps=3", "train.epochs / train.steps: expected exactly one of them, got [1, 3]"),
        ("train.epochs=null", "train.epochs / train.steps: expected exactly one of them, got [None, None]"),
        ("train.accumulate=0", "train.accumulate: expected a whole number >= 1, got 0"),
        ("train.eval_every=-1", "train.eval_every: expected a whole number >= 0, got -1"),
        ("train.checkpoint_every=0", "train.checkpoint_every: expected a whole number >= 1, got 0"),
        ("train.log_every=0", "train.log_every: expected a whole number >= 1, got 0"),
        ("train.ema_decay=1", "train.ema_decay: expected a number between 0 and 1, got 1.0"),
        ("optim.clip_norm=0", "optim.clip_norm: expected a number > 0, got 0.0"),
        ("optim.warmup_steps=-1", "optim.warmup_steps: expected a whole number >= 0, got -1"),
        ("optim.warmup_start=2", "optim.warmup_start: expected a number from 0 to 1, got 2.0"),
        ("optim.head_lr_factor=-1", "optim.head_lr_factor: expected a number >= 0, got -1.0"),
        ("optim.head_lr_factor=.inf", "optim.head_lr_factor: expected a number >= 0, got inf"),
        ("train.keep_checkpoints=0", "train.keep_checkpoints: expected a whole number >= 1, got 0"),
        ("train.skip_nonfinite=-1", "train.skip_nonfinite: expected a whole number >= 0, got -1"),
        ("test.scales=[]", "test.scales: expected numbers from 0.1 to 4, at least one, got []"),
        ("test.scales=[1,5]", "test.scales: expected numbers from 0.1 to 4, at least one, got [1.0, 5.0]"),
    ],
)
def test_value_out_of_range_names_key_expectation_and_value(small: Path, override: str, expected: str):
    assert message(small, override) == f"{small}: {expected}"


def test_task_name_that_cannot_be_a_prefix_is_refused(tmp_path: Path):
    path = write(tmp_path, "a.yaml", SMALL.replace("det:", "a/b:"))
    assert message(path) == f"{path}: tasks.a/b: expected a name of letters, digits and _, got 'a/b'"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("head: {name: ssdlite}, ", "", "tasks.det.head.name"),
        (", evaluator: {name: coco}", "", "tasks.det.evaluator.name"),
        ("val: {name: shapes}", "", "data.val.name"),
    ],
)
def test_missing_component_is_named(tmp_path: Path, old: str, new: str, key: str):
    path = write(tmp_path, "a.yaml", SMALL.replace(old, new))
    assert message(path) == f"{path}: {key}: missing; expected the name of a component"


def test_empty_component_name_is_refused(small: Path):
    expected = f"{small}: tasks.det.head.name: expected the name of a component, got None"
    assert message(small, "tasks.det.head.name=''") == expected


def test_empty_file_says_what_is_missing(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "")
    assert message(path) == f"{path}: data.train.name: missing; expected the name of a component"


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "a: b: c", "? [a]\n: b", "seed: &a [*a]", "seed: !!python/object:os.system x", 'seed: !!int ""'),
        *("seed: !!timestamp x", "seed: !!bool x", "seed: !!set {x}", "seed: " + "[" * 2000, "seed: 1\nseed: 2"),
    ],
)
def test_damaged_yaml_names_the_file_in_one_short_line(tmp_path: Path, text: str):
    path = write(tmp_path, "a.yaml", text)
    found = message(path)
    assert found.startswith(f"{path}: not a YAML config: ")
    assert len(found) < len(str(path)) + 400


@pytest.mark.parametrize("text", ["- a\n- b", "1: 2"])
def test_top_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    path = write(tmp_path, "a.yaml", text)
    assert message(path) == f"{path}: a mapping of keys was expected at the top"


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    assert message(path).startswith(f"{path}: not a YAML config: ")


# round trip


def test_round_trip_gives_an_equal_config(tmp_path: Path, small: Path):
    overrides = ["model.mean=[0.1,0.2,0.3]", "train.amp=fp16", "data.bad_data=skip", "optim.optimizer.args.lr=1e-5"]
    overrides += ["tasks.seg={head: {name: x, args: {a: [1, {b: null}], t: 'yes', n: '3'}}, evaluator: {name: y}}"]
    config = load_config(small, overrides)
    assert load_config(write(tmp_path, "again.yaml", to_yaml(config))) == config


def test_dict_round_trip_is_plain_data(small: Path):
    config = load_config(small)
    assert to_dict(config)["train"]["amp"] == "fp32"
    assert from_dict(to_dict(config), where="x") == config


def test_a_config_that_is_changed_changes_no_other(small: Path):
    changed = load_config(small)
    changed.optim.optimizer.args["lr"] = 1
    changed.model.input_size.append(3)
    to_dict(changed)["test"]["scales"].append(2.0)
    again = load_config(small)
    assert (again.optim.optimizer.args, again.model.input_size, again.test.scales) == ({}, [320, 320], [1.0])


def test_every_config_shipped_loads(root: Path):
    shipped = sorted((root / "configs").glob("*.yaml"))
    assert shipped
    for path in shipped:
        assert isinstance(load_config(path), Config)


def test_configs_of_the_package_go_by_their_bare_names(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ssdlite_bccd", "ssdlite_bccd.yaml"):
        # which has a base
        assert load_config(name) == load_config(root / "configs/ssdlite_bccd.yaml")
    assert message(Path("ssdlite_bcd")) == "ssdlite_bcd: no such config file; did you mean 'ssdlite_bccd'?"
    assert message(Path("configs/ssdlite_bccd")).startswith("configs/ssdlite_bccd: no such config file")


def test_a_file_in_the_current_folder_wins_over_a_config_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "ssdlite_bccd.yaml", SMALL + "seed: 77")
    assert load_config("ssdlite_bccd.yaml").seed == 77


@pytest.mark.process
def test_the_wheel_contains_every_config(root: Path, tmp_path: Path):
    pytest.importorskip("setuptools", minversion="70.1")  # builds wheels without the package wheel
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("mnv2det", "configs"):
        shutil.copytree(root / name, copy / name, ignore=ignored)
    for name in ("setup.cfg", "setup.py", "README.md", "pyproject.toml"):
        shutil.copy(root / name, copy)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "installed")
    expected = {f"mnv2det/{path.relative_to(root).as_posix()}" for path in (root / "configs").rglob("*.yaml")}
    assert expected <= names
    assert {f"mnv2det/{path.relative_to(root / 'mnv2det')}" for path in (root / "mnv2det").rglob("*.py")} <= names
    assert "mnv2det/py.typed" in names
    command = [sys.executable, "-m", "mnv2det", "config", "ssdlite_bccd"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "ssdlite" in done.stdout


def test_data_root_prefers_config_then_environment(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MNV2DET_DATA", raising=False)
    assert data_root(load_config(small)) == Path("datasets")
    monkeypatch.setenv("MNV2DET_DATA", "/elsewhere")
    assert data_root(load_config(small)) == Path("/elsewhere")
    assert data_root(load_config(small, ["data.root=/here"])) == Path("/here")


def test_data_root_expands_the_home_folder(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MNV2DET_DATA", "~/pictures")
    assert data_root(load_config(small)) == tmp_path / "pictures"
    assert data_root(load_config(small, ["data.root=~"])) == tmp_path


# fuzz

WORDS = "a 1 seed base tasks det head name train null data model optim args ??? ${seed} ${ !!int !!float !!binary"
MORE = "!!timestamp 1e9 .nan true mean <<: --- ~ *a &a epochs : - [ ] { } , & * ! | > ' \" # ? % @ ` $ \\"
PIECES = st.sampled_from([*WORDS.split(), *MORE.split(), " ", " ", "\n", "\n  ", ": ", SMALL])
TEXT = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def loads_or_config_error(path: Path, *overrides: str) -> None:
    try:
        config = load_config(path, overrides)
    except ConfigError:
        return
    assert isinstance(config, Config)


@FUZZ
@given(TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
def test_any_bytes_give_a_config_or_a_config_error(tmp_path: Path, content: bytes):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    loads_or_config_error(path)


@FUZZ
@given(TEXT)
def test_any_text_after_a_good_config_gives_a_config_or_a_config_error(tmp_path: Path, text: str):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes((SMALL + text).encode("utf-8", "surrogatepass"))
    loads_or_config_error(path)


@FUZZ
@given(
    st.sampled_from(["seed", "data", "model.mean", "tasks", "tasks.det.head.args.a", "base", "train.amp"]) | st.text(),
    TEXT,
)
def test_any_override_gives_a_config_or_a_config_error(tmp_path: Path, key: str, value: str):
    loads_or_config_error(write(tmp_path, "small.yaml", SMALL), f"{key}={value}")


# start-up


@pytest.mark.process
@pytest.mark.parametrize("module", ["mnv2det.config", "mnv2det.cli", "mnv2det.registry"])
def test_import_loads_nothing_heavy(root: Path, module: str):
    heavy = "{'torch', 'torchvision', 'albumentations', 'cv2', 'matplotlib', 'onnxruntime'}"
    code = f"import {module}, sys; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
