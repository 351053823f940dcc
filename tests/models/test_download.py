"""Weights that are named in a config: torchvision's, fetched from a server on this machine."""

import functools
import hashlib
import http.server
import threading

import pytest
import torch
import torchvision
from torchvision.models import MobileNet_V2_Weights

from mnv2det.errors import WeightsError
from mnv2det.models.torchvision_weights import download_torchvision


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server with torchvision's file, under the name that its hash gives it; and the folder it is kept in."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), folder / "raw")
    name = f"mobilenet_v2-{hashlib.sha256((folder / 'raw').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "raw").rename(folder / name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            MobileNet_V2_Weights.IMAGENET1K_V1.value, "url", f"http://127.0.0.1:{server.server_port}/{name}"
        )
        yield folder / name, tmp_path / "home" / "hub" / "checkpoints" / name
        server.shutdown()


@pytest.mark.parametrize("name", ["imagenet", "torchvision:IMAGENET1K_V1"])
def test_weights_are_downloaded_once(published, name):
    served, kept = published
    tensors, header = download_torchvision(name)
    assert kept.read_bytes() == served.read_bytes()
    assert len(header.classes["cls"]) == 1000
    assert header.backbone["args"]["width"] == 1.0
    served.unlink()
    again, _ = download_torchvision(name)
    assert all(torch.equal(again[key], value) for key, value in tensors.items())


def test_without_a_network_the_message_says_where_the_file_goes(published):
    served, kept = published
    served.unlink()
    with pytest.raises(
        WeightsError, match=r"imagenet: download failed \(.*404.*\); fetch http://.* and put it into"
    ) as info:
        download_torchvision("imagenet")
    assert str(kept.parent) in str(info.value)
    assert "\n" not in str(info.value)
    assert not kept.exists()


def test_a_file_that_was_put_there_damaged_is_refused(published):
    served, kept = published
    kept.parent.mkdir(parents=True)
    kept.write_bytes(served.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"mobilenet_v2-.*\.pth: damaged, its sha256 begins with \w+, expected \w+"):
        download_torchvision("imagenet")


def test_a_damaged_download_is_refused_and_not_kept(published):
    served, kept = published
    served.write_bytes(served.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"download failed .*invalid hash"):
        download_torchvision("imagenet")
    assert not kept.exists()
