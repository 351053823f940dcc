"""What `import mnv2det` offers, and that the documents' snippets run."""

from __future__ import annotations

import contextlib
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_models import picture
from tiny import TINY

import mnv2det
import mnv2det.api
import mnv2det.commands.export
import mnv2det.config
import mnv2det.runtime.predictor
from mnv2det.config import load_config, to_dict, to_yaml
from mnv2det.report.draw import encode

SETTINGS = [*TINY, "data.workers=0", "train.steps=4", "train.eval_every=0", "data.train.args.count=8", "seed=3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data (a config, as an import writes one), a picture, and a run."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data/photos").mkdir(parents=True)
    (folder / "data/photos/config.yaml").write_text(to_yaml(load_config("ssdlite_shapes", SETTINGS)))
    (folder / "photo.jpg").write_bytes(encode(picture(48, 64), ".jpg"))
    with contextlib.chdir(folder):
        mnv2det.train("data/photos", device="cpu")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    monkeypatch.chdir(place)
    return place


def snippets(page: Path, heading: str = "") -> list[str]:
    text = page.read_text()
    if heading:
        text = re.split(r"\n(?=From Python:|#)", text.split(f"\n{heading}\n")[1])[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


# the package


def test_what_there_is_is_listed() -> None:
    assert dir(mnv2det) == sorted(mnv2det.__all__)
    assert {"Predictor", "Result", "Run", "train", "evaluate", "export", "check_data", "load_config"} <= {*dir(mnv2det)}
    for name in mnv2det.__all__:
        assert getattr(mnv2det, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'mnv2det' has no attribute 'trian'"):
        mnv2det.trian  # noqa: B018


def test_a_function_is_not_hidden_by_a_module_of_its_name() -> None:
    import mnv2det.commands.export
    import mnv2det.runtime.predictor

    for name in mnv2det.__all__:
        assert name == "__version__" or callable(getattr(mnv2det, name)), name


@pytest.mark.process
def test_importing_the_package_loads_no_torch(root: Path) -> None:
    code = (
        "import sys, mnv2det; dir(mnv2det); mnv2det.train, mnv2det.Run, mnv2det.check_data, mnv2det.DataError\n"
        "assert not {'torch', 'cv2', 'numpy'} & set(sys.modules), 'too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# configs


def test_overrides_may_be_dotted_or_nested() -> None:
    written = load_config("ssdlite_shapes", ["train.steps=7", "model.input_size=[64,96]", "data.root=a b"])
    dotted = {"train.steps": 7, "model.input_size": (64, 96), "data.root": Path("a b")}
    nested = {"train": {"steps": 7}, "model": {"input_size": [64, 96]}, "data": {"root": "a b"}}
    assert load_config("ssdlite_shapes", dotted) == load_config("ssdlite_shapes", nested) == written
    assert load_config(written) == load_config(to_dict(written)) == written
    assert load_config(written, {"seed": 5}).seed == 5


def test_keys_and_values_are_a_config_and_may_name_a_base(root: Path) -> None:
    wanted = load_config("joint_shapes", ["train.steps=7", "data.augment.name=ssd"])
    for base in ("joint_shapes", str(root / "configs/joint_shapes.yaml"), ["joint_shapes"]):
        given = {"base": base, "train": {"steps": 7}, "data": {"augment": {"name": "ssd"}}}
        assert load_config(given) == wanted
        assert given["base"] == base, "what was given must not change"


@pytest.mark.training
def test_a_folder_with_a_config_is_one(here: Path) -> None:
    assert load_config("data/photos") == load_config(here / "data/photos/config.yaml")
    assert load_config(mnv2det.Run("runs/photos")).seed == 3


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("ssdlite_shape", {}, "ssdlite_shape: no such config file; did you mean 'ssdlite_shapes'"),
        (
            "ssdlite_shapes",
            {"train.stps": 1},
            r"override 'train\.stps': unknown key 'train\.stps'; did you mean 'steps'",
        ),
        ("ssdlite_shapes", {"train": {"stps": 1}}, "override 'train': unknown key 'train.stps'"),
        ("ssdlite_shapes", {"train": 3}, "override 'train': train: expected keys below it, got 3"),
        ("ssdlite_shapes", {"train.steps": "many"}, "train.steps: expected a whole number"),
        ("ssdlite_shapes", {"train.steps": 0}, "train.steps: expected"),
        ({"sed": 1}, {}, "config: unknown key 'sed'; did you mean 'seed'"),
        ({"base": 3}, {}, "config: base: expected a file name or a list of them, got 3"),
        ({"base": "shapes"}, {}, "shapes: no such config file"),
        ({}, {}, "config: data.train.name: missing; expected the name of a component"),
    ],
)
def test_the_checks_are_those_of_files(config: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(mnv2det.ConfigError, match=message):
        load_config(config, overrides)


# runs


@pytest.mark.training
def test_a_run_says_what_it_holds(here: Path) -> None:
    run = mnv2det.Run("runs/photos")
    assert (repr(run), str(run), run.best) == (
        "Run('runs/photos')",
        "runs/photos",
        Path("runs/photos/best.safetensors"),
    )
    assert run.best.is_file()
    assert (run.config.seed, run.config.train.steps) == (3, 4)
    last = [record for record in run.history if record["kind"] == "eval"][-1]
    assert last["step"] == 4
    assert run.metrics == {key: last[key] for key in run.metrics}
    assert "det/AP" in run.metrics
    assert mnv2det.evaluate(run, device="cpu")["det/AP"] == pytest.approx(run.metrics["det/AP"], abs=1e-6)
    assert isinstance(run.predictor(threads=1)("photo.jpg", threshold=0), mnv2det.Result)
    with pytest.raises(mnv2det.ConfigError, match="data: not a run folder"):
        mnv2det.Run("data")


@pytest.mark.training
def test_a_run_goes_on_where_it_stopped(here: Path) -> None:
    more = {"steps": 5}
    with pytest.raises(mnv2det.ConfigError, match=r"runs/photos: holds a run already"):
        mnv2det.train("data/photos")
    with pytest.raises(mnv2det.ConfigError, match="resume: expected a run folder"):
        mnv2det.train("data/photos", "elsewhere", resume=True)
    with pytest.raises(mnv2det.ConfigError, match="out: expected a run folder"):
        mnv2det.train(load_config("data/photos"))
    run = mnv2det.train("data/photos", here / "runs/more", device="cpu", train={"steps": 3})
    assert run.history[-1]["step"] == 3
    assert mnv2det.train(run, resume=True, allow_changes=True, device="cpu", train=more).history[-1]["step"] == 5


@pytest.mark.training
def test_data_is_checked_by_the_same_rules(here: Path) -> None:
    report = mnv2det.check_data("data/photos", **{"data.val.args.count": 2})
    assert [len(part.facts) for part in report.parts] == [8, 2]
    assert report.counts()["error"] == 0
    assert mnv2det.check_data(load_config("data/photos")).source == "config"
    with pytest.raises(mnv2det.ConfigError, match="overrides such as 'seed' are for a config"):
        mnv2det.check_data("data", seed=1)


# the documents


@pytest.mark.training
@pytest.mark.parametrize("written", ["nothing", pytest.param("a file", marks=[pytest.mark.slow, pytest.mark.export])])
def test_the_snippets_for_python_run(
    here: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    real = inspect.signature(mnv2det.commands.export.export)

    def pretend(*given: Any, **options: Any) -> dict[str, Any]:
        real.bind(*given, **options)
        return {"bytes": 1, "differences": {}}

    if written == "nothing":  # an export takes longer than all the rest
        monkeypatch.setattr(mnv2det.commands.export, "export", pretend)
    blocks, names = snippets(root / "docs/python.md"), dict[str, Any]()
    assert len(blocks) == 7
    for block in blocks:
        if "to_pandas" in block and not all(map(has, ("pandas", "supervision"))):
            continue  # the tests of results say loudly that this was not checked
        # these models learned nothing, and know other classes
        block = block.replace("threshold=0.5", "threshold=0.0").replace('"dog", "person"', '"circle"')
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(names["result"]) > 0
    assert (here / "photos.onnx").is_file() == (written == "a file")
    assert (here / "found.jpg").is_file()
    assert re.search(r"; 48x64\n", capsys.readouterr().out)


@pytest.mark.training
def test_the_snippet_of_the_readme_runs(here: Path, root: Path) -> None:
    (block,) = snippets(root / "README.md", "From Python:")
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert isinstance(names["result"], mnv2det.Result)


@pytest.mark.parametrize("module", [mnv2det.api, mnv2det.config], ids=lambda module: module.__name__)
def test_the_examples_are_true(module: Any) -> None:
    done = doctest.testmod(module)
    assert done.failed == 0
    assert done.attempted > 0 or module is mnv2det.api, "there was nothing to try"


def has(library: str) -> bool:
    with contextlib.suppress(ImportError):
        __import__(library)
        return True
    return False
