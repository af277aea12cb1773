"""Weights from the hub where there is no network: one line at once, or the file that an earlier download left."""

from __future__ import annotations

import logging
import socket
import time

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones import hub
from cdl_deploy.training.backbones.loading import load_backbone

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, and a resolver that knows no host."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tmp_path / "cache"


def test_no_network_is_one_line_at_once(no_network, capfd, caplog):
    began = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        load_backbone(MODEL, None, None)
    assert time.perf_counter() - began < 10  # the hub's own retries take 46 s
    assert str(caught.value) == (
        f"cannot get pretrained weights of '{MODEL}': "
        "the hub cannot be reached (hub.example: Name or service not known) and no earlier download is here; "
        "check the network, or give a file with --teacher-weights or --student-weights"
    )
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_an_earlier_download_is_used(no_network):
    torch.manual_seed(0)
    vit = timm.create_model(MODEL, pretrained=False)
    folder = no_network / f"models--timm--{MODEL}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    safetensors.torch.save_file(vit.state_dict(), folder / "snapshots/abc/model.safetensors")
    backbone, info = load_backbone(MODEL, None, None)
    assert (info.model, info.source) == (MODEL, "hub")
    stored = {name: value for name, value in vit.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(backbone.vit.state_dict()[name], value) for name, value in stored.items())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, None),
        (TimeoutError("timed out"), None),  # slow is not absent
        (ConnectionRefusedError(111, "Connection refused"), "hub.example: Connection refused"),
        (OSError(101, "Network is unreachable"), "hub.example: Network is unreachable"),
    ],
)
def test_only_what_the_system_refuses_is_believed(no_network, monkeypatch, error, expected):
    asked = []

    class Connection:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

    def connect(address, timeout):
        asked.append(address)
        if error is not None:
            raise error
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert hub.unreachable() == expected
    assert asked == [("hub.example", 443)]


def test_a_proxy_is_left_to_the_hub(no_network, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub.unreachable() is None


def test_what_is_not_on_the_hub_does_not_ask_for_it(no_network):
    assert not hub.on_the_hub("mini_student")
    assert load_backbone("mini_student", None, None)[1].source == "package"


def test_quiet_ends(caplog):
    logger = logging.getLogger("huggingface_hub")
    with caplog.at_level(logging.WARNING):
        with hub.quiet():
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        assert not caplog.records
        logger.propagate, before = True, logger.propagate
        logger.warning("seen")
        logger.propagate = before
    assert [record.message for record in caplog.records] == ["seen"]
