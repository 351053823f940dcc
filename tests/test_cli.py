import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny import TINY

from mnv2det.cli import build_parser, main
from mnv2det.commands.evaluate import evaluate_source
from mnv2det.commands.train import run_name
from mnv2det.config import load_config
from mnv2det.engine.trainer import train

VERBS = ("train", "eval", "predict", "export", "bench", "config", "import-weights", "grid", "paper", "data")


def make_voc(root: Path, *, broken: bool = False) -> None:
    """A VOC folder of eight pictures; the third truncated if ``broken``."""
    home = root / "VOCdevkit" / "Mine"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        image = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        data = cv2.imencode(".jpg", image)[1].tobytes()
        (home / "JPEGImages" / f"img{number}.jpg").write_bytes(
            data[: len(data) // 2] if broken and number == 2 else data
        )
        (home / "Annotations" / f"img{number}.xml").write_text(
            "<annotation><size><width>80</width><height>60</height></size><object><name>cat</name><bndbox>"
            "<xmin>10</xmin><ymin>10</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object></annotation>"
        )
    (home / "ImageSets/Main/train.txt").write_text("".join(f"img{n}\n" for n in range(5)))
    (home / "ImageSets/Main/val.txt").write_text("img5\nimg6\nimg7\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A run of four steps on a folder of our own."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run") / "mine"
    make_voc(data)
    code = main(
        [
            "train",
            str(root / "configs/ssdlite_bccd.yaml"),
            f"data.root={data}",
            "model.weights=null",
            "model.freeze=null",
            "model.backbone.args.width=0.35",
            "model.input_size=[64,96]",
            "data.train.args.sets=[Mine/train]",
            "data.val.args.sets=[Mine/val]",
            "data.batch_size=2",
            "data.workers=0",
            "train.steps=4",
            "optim.warmup_steps=2",
            "train.amp=fp32",
            "--out",
            str(out),
            "--json",
            str(out / "summary.json"),
        ]
    )
    assert code == 0
    return out


@pytest.mark.process
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_a_tool(verb: str, root: Path):
    tool = root / "tools" / f"{verb.replace('-', '_')}.py"
    done = subprocess.run([sys.executable, tool, "--help"], capture_output=True, text=True, check=True)
    assert f"mnv2det {verb}" in done.stdout


def test_overrides_may_stand_before_and_after_options(root: Path, capsys):
    assert main(["config", str(root / "configs/ssdlite_shapes.yaml"), "seed=3", "--check", "data.workers=7"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 3" in printed
    assert "workers: 7" in printed
    with pytest.raises(SystemExit) as caught:
        main(["config", str(root / "configs/ssdlite_shapes.yaml"), "--chek", "data.workers=7"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --chek" in capsys.readouterr().err


@pytest.mark.process
def test_help_and_config_load_no_torch(root: Path):
    for arguments in (["--help"], ["eval", "--help"], ["config", str(root / "configs/ssdlite_shapes.yaml")]):
        assert run_without_torch(arguments, root).returncode == 0


def run_without_torch(arguments: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, where any import of torch or a picture library is an error."""
    code = (
        "import sys\n"
        "for name in ('torch', 'cv2', 'albumentations', 'torchvision'): sys.modules[name] = None\n"
        f"import mnv2det.cli as cli; sys.exit(cli.main({arguments!r}))"
    )
    command = [sys.executable, "-c", code]
    env = {name: value for name, value in os.environ.items() if name != "MNV2DET_DATA"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/nope.yaml"], "configs/nope.yaml: no such config file"),
        (["train", "configs/ssdlite_shapes.yaml", "--out", "{run}"], "{run}: holds a run already"),
        (["train", "configs/ssdlite_shapes.yaml", "--out", "README.md"], "README.md: is a file; a run needs a folder"),
        (["train", "configs/ssdlite_bccd.yaml", "data.root=nowhere"], "data.root: nowhere: no such folder"),
        (["train", "--resume", "configs"], "configs: not a run folder (no config.yaml in it)"),
        (["eval", "configs/nope.yaml"], "configs/nope.yaml: no such config file"),
        (["eval", "configs"], "configs: not a run folder (no config.yaml in it)"),
        (["grid", "configs"], "configs: not a run folder (no config.yaml in it)"),
    ],
)
def test_wrong_paths_are_reported_before_torch_is_imported(arguments: list[str], message: str, run: Path, root: Path):
    done = run_without_torch([argument.format(run=run) for argument in arguments], root)
    assert done.stderr.startswith(f"mnv2det: {message.format(run=run)}")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


def test_a_missing_folder_that_the_environment_names_is_reported(root: Path, monkeypatch, capsys):
    monkeypatch.setenv("MNV2DET_DATA", "/nonexistent")
    assert main(["train", str(root / "configs/ssdlite_bccd.yaml")]) == 2
    assert capsys.readouterr().err == "mnv2det: MNV2DET_DATA: /nonexistent: no such folder\n"


@pytest.mark.training
def test_train_writes_its_summary(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert "det/AP" in summary["metrics"]


@pytest.mark.training
def test_eval_of_a_run_repeats_the_metrics_of_training(run: Path, tmp_path: Path):
    assert main(["eval", str(run), "--json", str(tmp_path / "f.json")]) == 0
    metrics = json.loads((tmp_path / "f.json").read_text())["metrics"]
    trained = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics == pytest.approx(trained, abs=1e-6)


@pytest.mark.training
def test_eval_of_a_config_with_whole_weights(run: Path, capsys):
    assert main(["eval", str(run / "config.yaml"), f"model.weights={run / 'best.safetensors'}"]) == 0
    assert "det/AP50" in capsys.readouterr().out


@pytest.mark.training
def test_predict_writes_pictures_and_json(run: Path, tmp_path: Path):
    images = run.parent / "pictures"
    images.mkdir()
    for name, size in (("a.jpg", (40, 50, 3)), ("b.png", (90, 30, 3))):
        cv2.imwrite(str(images / name), np.full(size, 99, np.uint8))
    out = tmp_path / "out"
    assert main(["predict", str(run), str(images), "--out", str(out), "--threshold", "0.001"]) == 0
    assert cv2.imread(str(out / "a.jpg")).shape == (40, 50, 3)
    assert cv2.imread(str(out / "b.png")).shape == (90, 30, 3)
    written = json.loads((out / "predictions.json").read_text())
    assert [entry["height"] for entry in written["images"]] == [40, 90]
    assert written["categories"] == [{"id": 1, "name": "cat"}]
    assert written["annotations"]
    for row in written["annotations"]:
        assert row["image_id"] in (1, 2)
        assert row["category_id"] == 1
        assert len(row["bbox"]) == 4
        assert 0.001 <= row["score"] <= 1


@pytest.mark.training
def test_predict_goes_on_after_a_broken_picture_and_exits_1(run: Path, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    cv2.imwrite(str(tmp_path / "in" / "good.jpg"), np.zeros((40, 40, 3), np.uint8))
    assert main(["predict", str(run), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert (tmp_path / "out" / "good.jpg").exists()
    assert "failed: " in (errors := capsys.readouterr().err)
    assert "bad.jpg: truncated JPEG" in errors


@pytest.mark.training
def test_predict_writes_the_formats_that_are_named(run: Path, tmp_path: Path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 50, 3), 99, np.uint8))
    arguments = ["predict", str(run), str(tmp_path / "*.png"), "--out", str(tmp_path / "out"), "--threshold", "0.001"]
    assert main([*arguments, "--formats", "voc,csv"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a.xml", "predictions.csv"]
    assert (tmp_path / "out/predictions.csv").read_text().startswith("file,frame,class,score,x1,y1,x2,y2\n")
    assert main([*arguments, "--formats", "voc,cvs"]) == 2
    assert capsys.readouterr().err == "mnv2det: formats: no format 'cvs'; did you mean 'csv'?\n"


@pytest.mark.training
def test_grid_draws_predictions_beside_truth(run: Path):
    assert main(["grid", str(run), "--count", "2"]) == 0
    picture = cv2.imread(str(run / "predictions.png"))
    assert picture.shape == (256 + 24 + 4, 6 * (round(80 * 256 / 60) + 4), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "configs/ssdlite_shape.yaml"],
            "configs/ssdlite_shape.yaml: no such config file; did you mean 'ssdlite_shapes.yaml'?",
        ),
        (["train"], "train needs a config, or --resume RUN"),
        (
            ["train", "configs/ssdlite_shapes.yaml", "train.stepz=3"],
            "override 'train.stepz=3': unknown key 'train.stepz'; did you mean 'steps'?",
        ),
        (
            ["train", "configs/ssdlite_shapes.yaml", "--resume", "runs/x"],
            "--resume RUN goes alone: the run folder holds its config",
        ),
        (["train", "--resume", "runs/none"], "runs/none: not a run folder (no config.yaml in it)"),
        (
            ["train", "configs/ssdlite_shapes.yaml", "tasks.det.head.name=ssdlight", "--out", "/nonexistent/x"],
            "tasks.det.head.name: no head 'ssdlight'; did you mean 'ssdlite'?",
        ),
        (
            ["train", "configs/ssdlite_shapes.yaml", "tasks.det.head.args.extra=[1]", "data.train.args.coun=1"],
            "data.train.args.coun: dataset 'shapes' has no such argument; did you mean 'count'?;"
            " tasks.det.head.args.extra: head 'ssdlite' has no such argument; did you mean 'extras'?",
        ),
        (["eval"], "eval needs a config or run, or --ground-truth and --detections"),
        (
            ["eval", "configs/ssdlite_shapes.yaml"],
            "configs/ssdlite_shapes.yaml: nothing to evaluate; name a run folder, model.weights=FILE or --weights FILE",
        ),
        (
            ["eval", "--ground-truth", "x.json"],
            "--ground-truth and --detections go together, and without a config, run or weights",
        ),
        (["predict", "missing.safetensors", "x.jpg"], "missing.safetensors: no such weight file"),
        (
            ["predict", "configs", "x.jpg"],
            "configs: no best.safetensors in this folder; has the run been evaluated yet?",
        ),
        (
            ["predict", "configs", "x.mp4", "--every", "0"],
            "--threshold must be from 0 to 1, --batch-size and --every at least 1",
        ),
        (
            ["train", "configs/ssdlite_coco.yaml", "data.root=/nonexistent"],
            "data.root: /nonexistent: no such folder",
        ),
        (
            ["config", "configs/ssdlite_shapes.yaml", "tasks.det.haed=x"],
            "override 'tasks.det.haed=x': unknown key 'tasks.det.haed'; did you mean 'head'?",
        ),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(arguments, message, capsys, root, monkeypatch):
    monkeypatch.chdir(root)
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"mnv2det: {message}\n"


def test_eval_of_files(tmp_path: Path, capsys):
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 50, "width": 50}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 20], "score": 0.9}])
    )
    files = ["--ground-truth", str(tmp_path / "gt.json"), "--detections", str(tmp_path / "dt.json")]
    assert main(["eval", *files]) == 0
    assert "AP                                 1.0000" in capsys.readouterr().out
    assert main(["eval", *files, "--protocol", "voc07", "--iou", "0.5", "--json", str(tmp_path / "o.json")]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["metrics"]["AP50"] == 1.0


def in_shell(redirection: str, arguments: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    """The command with its streams as a shell redirects them; the exit code is the command's, not that of a pipe."""
    command = f'{{ "$@"; echo "code $?" >&3; }} {redirection}'
    done = subprocess.run(
        ["sh", "-c", f"exec 3>&1; {command}", "sh", sys.executable, "-m", "mnv2det", *arguments],
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done


@pytest.mark.process
@pytest.mark.training
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_every_verb_works_with_closed_streams(run: Path, root: Path, tmp_path: Path, redirection: str):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    summary = str(tmp_path / "summary.json")
    small = ("model.weights=null", "model.freeze=null", "train.steps=1", "optim.warmup_steps=0", "data.workers=0")
    for arguments in (
        ["train", str(run / "config.yaml"), *small, "--out", str(tmp_path / "new"), "--json", summary],
        ["eval", str(run), "--json", summary],
        ["predict", str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--json", summary],
        ["data", "check", str(run / "config.yaml"), "--workers", "2", "--json", summary],
    ):
        done = in_shell(redirection, arguments, root)
        assert "Traceback" not in done.stdout + done.stderr
        assert "code 0" in done.stdout, (arguments, done)
        assert json.loads(Path(summary).read_text())
        Path(summary).unlink()


@pytest.mark.process
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("arguments", [["--help"], ["config", "configs/ssdlite_bccd.yaml"], ["config", "a/none.yaml"]])
@pytest.mark.parametrize("redirection", ["| true", "2>&1 | true"])
def test_a_closed_pipe_ends_quietly(arguments: list[str], redirection: str, root: Path):
    done = in_shell(redirection, arguments, root)
    assert done.stderr.replace("mnv2det: a/none.yaml: no such config file\n", "") == ""


def test_streams_that_are_none_are_no_error(root: Path, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["config", str(root / "configs/ssdlite_bccd.yaml")]) == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["config", str(root / "configs/none.yaml")]) == 2


@pytest.mark.training
def test_a_program_without_a_console_trains_and_measures(run: Path, tmp_path: Path, monkeypatch):
    """As pythonw and services run it: all streams are None."""
    config = load_config(run / "config.yaml", ["train.steps=1", "optim.warmup_steps=0", "data.workers=0"])
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert train(config, tmp_path / "new")["steps"] == 1
    assert evaluate_source(tmp_path / "new")["images"] > 0


@pytest.mark.training
def test_a_run_finds_its_data_from_everywhere(root: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load_config(root / "configs/ssdlite_shapes.yaml", [*TINY, "train.steps=3", "data.root=data"])
    train(config, "run")
    assert load_config(tmp_path / "run/config.yaml").data.root == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("configs/ssdlite_bccd.yaml", "ssdlite_bccd"),
        ("ssdlite_bccd", "ssdlite_bccd"),
        ("data/photos", "photos"),
        ("data/photos/", "photos"),
        ("data/photos.v2", "photos.v2"),
        ("data/photos.v2/config.yaml", "photos.v2"),
    ],
)
def test_a_run_is_called_like_its_config_or_its_data(config: str, name: str):
    assert run_name(config) == name


def test_a_warm_up_longer_than_the_run_is_refused_before_training(root: Path, tmp_path: Path, capsys):
    arguments = ["train", str(root / "configs/ssdlite_shapes.yaml"), "--out", str(tmp_path / "new")]
    message = (
        "mnv2det: optim.warmup_steps: 100, but the run has 4 steps and would end before the learning rate reaches its"
        " peak; expected fewer, such as 0, or more steps\n"
    )
    for length in ("train.steps=4", "train.epochs=1"):
        other = ["train.epochs=null"] if "steps" in length else ["train.steps=null"]
        data = ["data.train.args.count=16", "data.batch_size=4", "data.workers=0", "model.backbone.args.width=0.35"]
        assert main([*arguments, "optim.warmup_steps=100", length, *other, *data]) == 2
        assert capsys.readouterr().err.endswith(message)
        assert not (tmp_path / "new/metrics.jsonl").exists()


@pytest.mark.training
def test_a_run_is_weights_for_eval_of_a_config(run: Path, tmp_path: Path, capsys):
    assert main(["eval", str(run / "config.yaml"), f"model.weights={run}"]) == 0
    assert f"weights {run / 'best.safetensors'}" in capsys.readouterr().out
    assert main(["eval", str(run), "--weights", str(run)]) == 0


@pytest.mark.training
def test_paths_may_begin_with_the_home_folder(run: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "run").symlink_to(run)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    assert main(["predict", "~/run", "~/a.png", "--out=~/out"]) == 0
    assert (tmp_path / "out/predictions.json").is_file()
    assert main(["config", "~/run/config.yaml", "model.weights=~/w.safetensors"]) == 0
    assert "weights: ~/w.safetensors" in capsys.readouterr().out


@pytest.mark.training
def test_eval_takes_what_predict_writes(run: Path, tmp_path: Path, capsys):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path / "out"), "--threshold", "0"]) == 0
    predictions = tmp_path / "out/predictions.json"
    boxes = json.loads(predictions.read_text())["annotations"]
    assert boxes
    truth = {
        "images": [{"id": "x", "file_name": "b.png"}, {"id": "y", "file_name": "a.png"}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": "yx"[b["image_id"] - 1], "category_id": 7, "bbox": b["bbox"]}
            for n, b in enumerate(boxes)
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    capsys.readouterr()
    assert main(["eval", "--ground-truth", str(tmp_path / "gt.json"), "--detections", str(predictions)]) == 0
    assert "AP                                 1.0000" in capsys.readouterr().out


@pytest.mark.training
def test_predict_never_overwrites_what_it_reads(run: Path, tmp_path: Path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    before = (tmp_path / "a.png").read_bytes()
    assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "would overwrite the picture" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.training
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_an_unknown_device_is_one_line(run: Path, device: str, capsys):
    assert main(["eval", str(run), "--device", device]) == 2
    assert capsys.readouterr().err.startswith(f"mnv2det: device '{device}': ")


@pytest.mark.training
def test_a_grid_that_is_no_picture_is_one_line(run: Path, capsys):
    assert main(["grid", str(run), "--out", "grid.pdf"]) == 2
    assert "expected the name of a picture" in capsys.readouterr().err


def verbs_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """All verbs below a parser, with those that have verbs of their own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield verb
                yield from verbs_of(verb)


@pytest.mark.parametrize("verb", list(verbs_of(build_parser())), ids=lambda verb: verb.prog)
def test_every_help_has_examples_that_can_be_parsed(verb: argparse.ArgumentParser):
    epilog = verb.epilog or ""
    lines = [line.strip() for line in epilog.splitlines() if line.startswith("  mnv2det ")]
    assert lines
    for line in lines:
        parsed = build_parser().parse_args(shlex.split(line.partition(" > ")[0])[1:])
        assert parsed.run is not None, line


@pytest.mark.parametrize(("arguments", "shown"), [([], "train a model"), (["data"], "import "), (["weights"], "get ")])
def test_without_a_verb_the_help_is_shown(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["trian", "x"], "train"), (["data", "chek", "x"], "check"), (["weights", "gte", "coco"], "get")],
)
def test_a_misspelt_verb_names_the_nearest(arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert f"did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_name_the_verbs(shell: str, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("shtab", reason="needs shtab: pip install 'mnv2det[completion]'")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "import-weights" in script
    assert "--no-estimate" in script
