"""Released weights by name, fetched from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorflow_writer import arrays_of, frozen_graph, random_model

from mnv2det.cli import main
from mnv2det.commands.weights import get_weights, list_weights
from mnv2det.errors import WeightsError
from mnv2det.importing.start import find_weights
from mnv2det.models.build import from_file, weights_of
from mnv2det.models.releases import RELEASES, Release, archive_of, release_file
from mnv2det.models.weight_file import read_header

pytestmark = pytest.mark.heavy
MEMBER = "release/frozen_inference_graph.pb"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one archive; may lose the connection, or know no ranges."""

    def do_GET(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        server.requests.append(self.headers.get("Range"))
        if server.content is None:
            self.send_error(404)
            return
        start = 0
        if server.ranges and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(match[1])
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            body = body[: server.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """What is served, and what was asked for."""

    content: bytes | None
    ranges = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cuts: list[int] = []
        self.requests: list[str | None] = []


def archive(graph: bytes, member: str = MEMBER) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in (("release/checkpoint", b"none"), (member, graph)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def released(content: bytes, port: int, labels: str | None = "coco90") -> Release:
    return Release(
        "detector: a test's",
        "Apache-2.0",
        f"http://127.0.0.1:{port}/models/release.tar.gz",
        len(content),
        f"sha256:{hashlib.sha256(content).hexdigest()}",
        MEMBER,
        labels,
    )


@pytest.fixture(scope="module")
def published() -> bytes:
    """An archive with a detector of 90 classes, as COCO's release has them."""
    return archive(frozen_graph(arrays_of(random_model("det", classes=90), "det"), (96, 128)))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bytes) -> Iterator[Server]:
    monkeypatch.setenv("MNV2DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with Server(published) as server:
        monkeypatch.setitem(RELEASES, "coco", released(published, server.server_port))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_release_is_fetched_and_converted_once(server: Server, capsys: pytest.CaptureFixture[str]):
    assert main(["weights", "get", "coco"]) == 0
    out = capsys.readouterr().out
    assert f"checksum: {RELEASES['coco'].checksum}" in out
    assert "licence: Apache-2.0" in out
    header = read_header(release_file("coco"))
    assert len(header.classes["det"]) == 80
    assert header.provenance["url"] == RELEASES["coco"].url
    assert header.provenance["archive"] == RELEASES["coco"].checksum
    assert header.trainable
    server.content = None
    assert main(["weights", "get", "coco"]) == 0
    assert server.requests == [None]
    capsys.readouterr()
    assert main(["weights", "where", "coco"]) == 0
    assert capsys.readouterr().out.strip() == str(release_file("coco"))
    assert {row["name"]: row["here"] for row in list_weights()} == {
        "imagenet": False, "coco": True, "voc_deeplab": False,
    }  # fmt: skip


def test_a_lost_connection_is_resumed(server: Server, published: bytes):
    server.cuts = [100_000, 50_000]
    get_weights("coco", progress=False)
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert archive_of("coco").read_bytes() == published


def test_a_download_of_another_day_is_resumed(server: Server, published: bytes):
    server.cuts = [1000] * 4
    with pytest.raises(WeightsError, match=r"download failed \(it ended after 4000 of \d+ bytes\)"):
        get_weights("coco", progress=False)
    get_weights("coco", progress=False)
    assert server.requests[-1] == "bytes=4000-"
    assert archive_of("coco").read_bytes() == published


def test_a_server_without_ranges_is_asked_for_all_of_it(server: Server, published: bytes):
    server.ranges, server.cuts = False, [5000]
    get_weights("coco", progress=False)
    assert archive_of("coco").read_bytes() == published


def test_another_file_is_refused_and_not_kept(server: Server, published: bytes):
    server.content = published[:-9] + bytes(9)
    with pytest.raises(
        WeightsError, match=r"release\.tar\.gz: damaged, now removed: \d+ bytes with sha256 \w+"
    ) as info:
        get_weights("coco", progress=False)
    assert "\n" not in str(info.value)
    assert not archive_of("coco").exists()
    assert not release_file("coco").exists()
    server.content = published
    get_weights("coco", progress=False)


def test_without_a_network_the_archive_can_be_put_there_by_hand(
    server: Server, published: bytes, capsys: pytest.CaptureFixture[str]
):
    server.content = None
    assert main(["weights", "get", "coco"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == (
        f"mnv2det: coco: download failed (404 Not Found); fetch {RELEASES['coco'].url} elsewhere and put it into"
        f" {archive_of('coco').parent}"
    )
    archive_of("coco").write_bytes(published)
    assert main(["weights", "get", "coco"]) == 0


def test_an_archive_without_the_graph_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch):
    content = archive(b"graph", "release/other.pb")
    server.content = content
    monkeypatch.setitem(RELEASES, "coco", released(content, server.server_port))
    with pytest.raises(WeightsError, match=f"no '{MEMBER}' in it"):
        get_weights("coco", progress=False)


def test_several_at_once_fetch_it_once(server: Server):
    threads = [threading.Thread(target=get_weights, args=("coco",), kwargs={"progress": False}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == [None]
    assert release_file("coco").is_file()


def test_unknown_names_have_a_nearest_one(server: Server):
    with pytest.raises(WeightsError, match=r"cocos: no weights of this name; did you mean 'coco'\?"):
        get_weights("cocos")
    with pytest.raises(WeightsError, match=r"coco: not on this machine yet; fetch it with: mnv2det weights get coco"):
        weights_of("coco")


def test_a_name_can_stand_where_a_model_does(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("coco").mkdir()  # a data set may have this name
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save("photo.png")
    assert main(["predict", "coco", "photo.png", "--out", "found", "--threshold", "0"]) == 0
    assert server.requests == [None]
    assert find_weights().detector == "coco"
    model, _ = from_file(str(weights_of("coco")))
    assert model.classes["det"][0] == "person"


def test_a_training_starts_from_a_name(server: Server, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    arguments = ["train", str(root / "configs/ssdlite_shapes.yaml"), "--out", str(run), "model.weights=coco"]
    arguments += ["model.freeze=null", "train.steps=2", "train.eval_every=1"]
    arguments += ["data.workers=0", "data.batch_size=2"]
    arguments += ["data.train.args.count=4", "data.val.args.count=2", "optim.warmup_steps=0"]
    assert main(arguments) == 0
    assert server.requests == [None]
    assert f"{release_file('coco')}: loaded backbone" in capsys.readouterr().err
