"""What may befall a run: damaged files, full disks, lost mounts, non-finite losses, changed configs, signals."""

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TINY, wait_for

from mnv2det.cli import main
from mnv2det.config import Config, load_config
from mnv2det.engine import interrupt
from mnv2det.engine.checkpoint import load_checkpoint, load_newest, remove_leftovers, save_checkpoint
from mnv2det.engine.failures import PeerFailed, explain
from mnv2det.engine.interrupt import stop_requests
from mnv2det.engine.resume import resume_config
from mnv2det.engine.trainer import train
from mnv2det.errors import TrainingError, WeightsError
from mnv2det.models.model import Model

pytestmark = [pytest.mark.process, pytest.mark.training]

QUICK = (*TINY, "data.workers=0", "train.steps=6", "train.eval_every=0", "data.val.args.count=2")


def tiny(root: Path, *more: str) -> Config:
    return load_config(root / "configs" / "ssdlite_shapes.yaml", [*QUICK, *more])


def records(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def model_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt")["model"]


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(root, "train.keep_checkpoints=3"), run, device="cpu")
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    """One bit of a weight, not of the padding between them; torch itself would not notice."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    data = bytearray(path.read_bytes())
    start = largest.header_offset + 30 + sum(struct.unpack_from("<HH", data, largest.header_offset + 26))
    data[start + largest.file_size // 2] ^= 1
    path.write_bytes(data)


# checkpoints


def test_the_newest_k_are_kept(finished: Path):
    found = {path.name: load_checkpoint(path)["progress"]["step"] for path in finished.glob("last*")}
    # the last step is saved before and after its evaluation
    assert found == {"last.pt": 6, "last.1.pt": 6, "last.2.pt": 5}
    assert not list(finished.glob(".*"))


def test_keeping_fewer_removes_the_others(tmp_path: Path):
    for step, keep in enumerate((4, 4, 4, 4, 2)):
        save_checkpoint(tmp_path / "last.pt", {"n": step}, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.1.pt", "last.pt"]
    assert [load_checkpoint(tmp_path / name)["n"] for name in ("last.pt", "last.1.pt")] == [4, 3]


@pytest.mark.parametrize("refused_by", ["file system", "operating system"])
def test_older_checkpoints_are_kept_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_by: str
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if refused_by == "file system":
        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.delattr(os, "link")
    for step in range(3):
        save_checkpoint(tmp_path / "last.pt", {"n": step}, keep=2)
    assert [load_checkpoint(tmp_path / name)["n"] for name in ("last.pt", "last.1.pt")] == [2, 1]


@pytest.mark.parametrize("name", ["fsync", "replace", "link", "chmod"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_last_is_whole_whatever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int):
    path = tmp_path / "last.pt"
    for step in range(4):
        save_checkpoint(path, {"n": step}, keep=3)
    real, calls = getattr(os, name), []

    def broken(*arguments: object, **more: object) -> object:
        calls.append(0)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **more)

    monkeypatch.setattr(os, name, broken)
    try:
        save_checkpoint(path, {"n": 4}, keep=3)
        expected = 4
    except OSError:
        expected = 3
    assert load_checkpoint(path)["n"] == expected
    assert all(load_checkpoint(other) for other in tmp_path.glob("last*.pt"))


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_newest_one_falls_back_with_a_warning(
    finished: Path, run: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
):
    shutil.copy(run / "last.2.pt", run / "last.1.pt")  # the step before
    damage(run / "last.pt")
    train(resume_config(run), run, resume=True, device="cpu")
    assert f"warning: {run / 'last.pt'}: " in (said := capfd.readouterr().err)
    assert "going on from the one before, step 5" in said
    ours, whole = model_of(run), model_of(finished)
    assert [name for name in whole if not torch.equal(ours[name], whole[name])] == []
    assert len(records(run, "eval")) == 1
    assert [line["step"] for line in records(run, "train")] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_one_is_never_moved_over_a_good_one(tmp_path: Path):
    for step in range(2):
        save_checkpoint(tmp_path / "last.pt", {"n": step, "progress": {"step": step}}, keep=2)
    cut(tmp_path / "last.pt")
    state, warnings = load_newest(tmp_path)
    assert (state["n"], len(warnings)) == (0, 1)
    save_checkpoint(tmp_path / "last.pt", {"n": 5}, keep=2)
    assert [load_checkpoint(tmp_path / name)["n"] for name in ("last.pt", "last.1.pt")] == [5, 0]
    with pytest.raises(WeightsError, match="damaged"):
        load_checkpoint(tmp_path / "last.damaged.pt")


def test_all_damaged_is_one_line(root: Path, run: Path):
    for path in run.glob("last*.pt"):
        cut(path)
    with pytest.raises(
        WeightsError, match=r"no checkpoint is readable: .*last\.pt: damaged .*last\.2\.pt: dam"
    ) as told:
        train(resume_config(run), run, resume=True, device="cpu")
    assert "\n" not in str(told.value)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path):
    for name in (".last.new.pt.x1", ".best.safetensors.abc", ".metrics.jsonl.q", "last.new.pt", ".last.1.pt.link"):
        (tmp_path / name).write_bytes(b"half")
    kept = ("last.pt", "best.safetensors", ".notes", "mine.txt")
    for name in kept:
        (tmp_path / name).write_bytes(b"whole")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


# resuming


def test_overrides_that_change_the_result_are_refused_key_by_key(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--resume", str(run), "train.steps=8", "data.workers=3", "optim.warmup_steps=1"]) == 2
    said = capsys.readouterr().err
    assert "optim.warmup_steps (2 -> 1), train.steps (6 -> 8); take it back, or accept it with --allow-changes" in said
    assert "workers" not in said


def test_harmless_overrides_go_with_resume_and_are_logged(run: Path):
    assert main(["train", "--resume", str(run), "train.log_every=5", "--device", "cpu"]) == 0
    assert [(line["key"], line["old"], line["new"]) for line in records(run, "change")] == [("train.log_every", 1, 5)]
    assert load_config(run / "config.yaml").train.log_every == 5


def test_allowed_changes_take_effect_and_are_logged(run: Path):
    more = ["train.steps=8", "optim.optimizer.args.lr=0.25", "optim.schedule.name=constant"]
    assert main(["train", "--resume", str(run), *more, "--allow-changes", "--device", "cpu"]) == 0
    assert {line["key"] for line in records(run, "change")} == {
        "train.steps",
        "optim.optimizer.args.lr",
        "optim.schedule.name",
    }
    assert [line["step"] for line in records(run, "train")] == list(range(1, 9))
    assert records(run, "train")[-1]["lr"] == 0.25, "the checkpoint's rate does not come back"
    assert load_checkpoint(run / "last.pt")["config"]["train"]["steps"] == 8


@pytest.mark.parametrize(
    "change",
    ["model.input_size=[96,96]", "tasks.det.head.args.max_scale=0.8", "optim.optimizer={name: sgd, args: {lr: 0.1}}"],
)
def test_what_would_not_fit_is_refused_even_if_allowed(run: Path, change: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--resume", str(run), change, "--allow-changes", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert change.partition("=")[0] in said
    assert "start another run" in said


def test_a_checkpoint_of_before_a_key_existed_has_its_default(run: Path):
    state = load_checkpoint(run / "last.pt")
    for key in ("keep_checkpoints", "skip_nonfinite"):
        del state["config"]["train"][key]
    for key in ("nonfinite", "evaluated"):
        del state["progress"][key]
    del state["world"]
    save_checkpoint(run / "last.pt", {key: value for key, value in state.items() if key != "format"})
    assert train(resume_config(run), run, resume=True, device="cpu")["steps"] == 6


# a loss that is not finite


def poison(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """Makes these losses (counted from 1), and all that batch norm saw then, not a number."""
    real, count = Model.loss, []

    def loss(self: Model, *arguments: object, **more: object) -> dict[str, torch.Tensor]:
        count.append(0)
        found = real(self, *arguments, **more)
        if len(count) not in calls:
            return found
        next(iter(self.buffers())).fill_(float("nan"))
        return {name: value * float("nan") for name, value in found.items()}

    monkeypatch.setattr(Model, "loss", loss)


def test_it_stops_with_step_images_checkpoint_and_what_to_try(root: Path, tmp_path: Path, monkeypatch):
    poison(monkeypatch, 4)
    with pytest.raises(TrainingError) as told:
        train(tiny(root), tmp_path / "run", device="cpu")
    message = str(told.value)
    assert told.value.exit_code == 1
    assert "\n" not in message
    assert "at step 4 (det/cls nan, det/box nan) on images [" in message
    assert f"{tmp_path / 'run' / 'last.pt'} holds step 3" in message
    for advice in ("args.lr", "warmup_steps", "clip_norm", "train.amp=fp32", "data check", "train.skip_nonfinite"):
        assert advice in message
    assert all(value.isfinite().all() for value in model_of(tmp_path / "run").values())


def test_skipping_is_bounded_logged_and_changes_nothing(root: Path, tmp_path: Path, monkeypatch):
    poison(monkeypatch, 3, 5)
    summary = train(tiny(root, "train.skip_nonfinite=2"), tmp_path / "two", device="cpu")
    assert (summary["nonfinite"], summary["steps"]) == (2, 6)
    assert [(line["step"], line["count"], len(line["images"])) for line in records(tmp_path / "two", "nonfinite")] == [
        (3, 1, 4),
        (5, 2, 4),
    ]
    assert [line["step"] for line in records(tmp_path / "two", "train")] == [1, 2, 4, 6]
    state = load_checkpoint(tmp_path / "two" / "last.pt")
    assert all(value.isfinite().all() for part in ("model", "average") for value in state[part].values())
    poison(monkeypatch, 3, 5)
    with pytest.raises(TrainingError, match=r"at step 5 .* after 1 that were left out; .* holds step 4"):
        train(tiny(root, "train.skip_nonfinite=1"), tmp_path / "one", device="cpu")


# the system


@pytest.mark.parametrize(
    ("number", "said", "advice"),
    [
        (errno.ENOSPC, "No space left on device", "free some room there"),
        (errno.EIO, "Input/output error", "is its disk or network mount still there"),
        (errno.ESTALE, "Stale file handle", "is its disk or network mount still there"),
        (errno.EROFS, "Read-only file system", "read-only"),
    ],
)
def test_a_disk_that_fails_is_one_line_and_the_checkpoint_stays(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, advice: str
):
    run, real, failing = tmp_path / "run", os.fsync, []

    def fsync(handle: int) -> None:
        if (run / "last.1.pt").exists():
            failing.append(handle)
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(TrainingError) as told:
        train(tiny(root), run, device="cpu")
    assert failing
    assert said in str(told.value)
    assert advice in str(told.value)
    assert "last.pt holds step 2; go on with it by --resume" in str(told.value)
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert load_checkpoint(run / "last.pt")["progress"]["step"] == 2
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.jsonl", "last.pt", "last.1.pt"}
    assert train(resume_config(run), run, resume=True, device="cpu")["steps"] == 6


def test_a_run_folder_that_vanishes_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As an unmounted file system does."""
    run = tmp_path / "run"
    poison_at, real = [], Model.loss

    def loss(self: Model, *arguments: object, **more: object) -> dict[str, torch.Tensor]:
        poison_at.append(0)
        if len(poison_at) == 3:
            run.rename(tmp_path / "elsewhere")
        return real(self, *arguments, **more)

    monkeypatch.setattr(Model, "loss", loss)
    with pytest.raises(
        TrainingError, match=r"metrics\.jsonl: cannot be read or written at step 4 \(No such file.*mount"
    ):
        train(tiny(root), run, device="cpu")
    assert load_checkpoint(tmp_path / "elsewhere" / "last.pt")["progress"]["step"] == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a loader worker died at step 3"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "fewer data.workers"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
            "ran out of shared memory at step 3",
        ),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("[gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), "another process did"),
        (torch.OutOfMemoryError("CUDA out of memory"), "train.accumulate"),
        (MemoryError(), "out of memory at step 3"),
    ],
)
def test_failures_are_explain(error: RuntimeError, words: str):
    told = explain(error, "at step 3", "r/last.pt holds step 2")
    assert words in str(told)
    assert "r/last.pt holds step 2" in str(told).replace("R/", "r/")
    assert told.exit_code == 1


def test_a_mistake_of_the_program_is_not_explained_away():
    assert explain(RuntimeError("shape '[2]' is invalid"), "at step 1", "nothing") is None
    assert not isinstance(explain(OSError(errno.EIO, "x"), "at step 1", "nothing"), PeerFailed)


# signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_it_finishes_the_step_saves_and_exits_with_130(root: Path, tmp_path: Path, number: signal.Signals):
    run = tmp_path / "run"
    command = [sys.executable, "tools/train.py", "configs/ssdlite_shapes.yaml", *TINY, "train.steps=400"]
    process = subprocess.Popen([*command, "--out", str(run)], cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for(run, 2, process)
    # a cluster sends it to every process of the step
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), number)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "saved; go on with: mnv2det train --resume" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert load_checkpoint(run / "last.pt")["progress"]["step"] == records(run, "train")[-1]["step"]


def test_a_second_request_ends_it_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interrupt, "SAME_REQUEST_S", 0.3)
    pid = os.fork()
    if not pid:
        with stop_requests():
            for pause in (0.0, 0.05, 0.6):
                time.sleep(pause)
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_one_request_passed_on_by_a_launcher_is_one():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones_do(root: Path):
    done = subprocess.run(
        [sys.executable, "benchmarks/kills.py", "--kills", "3"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills over" in done.stdout
