from __future__ import annotations

import argparse
import hashlib
import logging
import os
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import MLPBlock

from dnnbrain_app.errors import BadDataError, CannotWriteError, MissingInputError, UsageError
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.weights import (
    download_file,
    fetch_published,
    fill_model,
    find_weights,
    freeze_model,
    hash_tensors,
    read_weights,
    warn_licence,
)

FILE = "alexnet-owt-7be5be79.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
STATE = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "1.weight": torch.zeros(2, 2), "1.bias": torch.ones(2)}
CONTENT = bytes(range(256)) * 8192  # 2 MB
PUBLISHED = f"w-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_finds_the_users_folder_then_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hub, own = tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "my files"
    with pytest.raises(MissingInputError) as error:
        find_weights("alexnet", URL, NetworkOptions())
    assert "with: dnnbrain --fetch-weights alexnet, or" in str(error.value)
    assert f"curl -fL --create-dirs -o {hub / FILE} {URL}" in str(error.value)
    options = NetworkOptions(weights_dir=own)
    with pytest.raises(MissingInputError) as error:
        find_weights("alexnet", URL, options)
    assert f"dnnbrain --fetch-weights alexnet --weights-dir '{own}', or" in str(error.value)
    assert f"-o '{own / FILE}' {URL}" in str(error.value)
    for folder in (hub, own):
        folder.mkdir(parents=True)
        (folder / FILE).touch()
        assert find_weights("alexnet", URL, options) == folder / FILE
    assert find_weights("alexnet", URL, NetworkOptions(weights=tmp_path / "mine.pth")) == tmp_path / "mine.pth"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInputError, match=r"not found: .*mine\.pth"):
        read_weights(tmp_path / "mine.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_reads_both_formats_and_fills(tmp_path, ending):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / f"w.{ending}"
    (save_file if ending == "safetensors" else torch.save)(source.state_dict(), path)
    state, sha256 = read_weights(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    fill_model(target, state, path)
    assert torch.equal(source.weight, target.weight)
    assert hash_tensors(source) == hash_tensors(target)


def test_a_poisoned_file_is_refused_and_not_run(tmp_path):
    """Trap 6: torchvision would have run it."""
    path, target = tmp_path / "w.pth", tmp_path / "attacked"
    torch.save({"weight": Attack(target)}, path)
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the attack is a real one
    assert target.exists()


def test_the_hash_in_the_name_is_checked(tmp_path):
    """Trap 6: torchvision takes any content under the right name."""
    path = tmp_path / FILE
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(BadDataError, match=r"SHA-256 should start with 7be5be79.* Fetch it again"):
        read_weights(path)
    dated = path.rename(tmp_path / "mine-20261123.pth")
    assert set(read_weights(dated)[0]) == {"weight", "bias"}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model": STATE, "args": argparse.Namespace(lr=0.1)},
        {"model": {"state_dict": STATE}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {"model_state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in STATE.items()}},
        OrderedDict((name, nn.Parameter(tensor)) for name, tensor in STATE.items()),
    ],
    ids=["state_dict", "model and settings", "nested", "data parallel", "compiled", "parameters"],
)
def test_checkpoints_of_training_programs_are_unwrapped(tmp_path, content):
    path, model = tmp_path / "w.pth", nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    torch.save(content, path)
    fill_model(model, read_weights(path)[0], path)
    for name, tensor in STATE.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_prefix_that_the_model_has_too_stays():
    model = nn.ModuleDict({"module": nn.Linear(3, 2)})
    state = {"module.weight": torch.ones(2, 3), "module.bias": torch.zeros(2)}
    fill_model(model, state, Path("w.pth"))
    assert torch.equal(model.state_dict()["module.weight"], state["module.weight"])


def test_files_older_than_the_count_of_batches():
    model = nn.Sequential(nn.BatchNorm2d(3))
    state = {f"0.{name}": torch.full((3,), 2.0) for name in ("weight", "bias", "running_mean", "running_var")}
    fill_model(model, state, Path("w.pth"))
    assert model.state_dict()["0.running_var"].tolist() == [2, 2, 2]


def test_names_of_former_versions():
    """Torchvision renamed the layers of its perceptrons; published vision transformers have the old names."""
    reference, model = (nn.Sequential(MLPBlock(4, 8, 0.0)) for _ in range(2))
    old = {
        name: re.sub(r"0\.(0|3)\.", lambda m: f"0.linear_{int(m[1]) // 3 + 1}.", name) for name in model.state_dict()
    }
    assert "0.linear_2.bias" in old.values()
    fill_model(model, {old[name]: tensor for name, tensor in reference.state_dict().items()}, Path("w.pth"))
    assert hash_tensors(model) == hash_tensors(reference)


def test_networks_that_ask_for_their_version(tmp_path):
    """MNASNet wants to know by which version of itself a file was written; .safetensors do not tell."""
    reference, path = models.mnasnet0_5(), tmp_path / "w.safetensors"
    save_file(reference.state_dict(), path)
    model = models.mnasnet0_5()
    fill_model(model, read_weights(path)[0], path)
    assert hash_tensors(model) == hash_tensors(reference)
    with pytest.raises(BadDataError, match="another architecture than MNASNet: version"):
        fill_model(model, STATE, path)


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"student": STATE, "teacher": STATE}, path)
    with pytest.raises(BadDataError, match=r"should hold a state dictionary .*'student', 'teacher'"):
        read_weights(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BadDataError, match="a dictionary with nothing"):
        read_weights(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(BadDataError, match="not a Tensor"):
        read_weights(path)
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    path.write_bytes(b"")
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(BadDataError, match="cannot be read as weights"):
        read_weights(broken)


def test_whole_models_are_refused_with_advice(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(nn.Linear(3, 2), path)
    with pytest.raises(
        BadDataError, match=r"it needs torch\.nn\.modules\.linear\.Linear .* Save the model's state_dict"
    ):
        read_weights(path)
    torch.jit.script(nn.Linear(3, 2)).save(str(path))
    with pytest.raises(BadDataError, match=r"TorchScript.*state_dict\(\) of the module that it was made from"):
        read_weights(path)


@pytest.mark.parametrize(
    ("name", "advice"), [("model.npy", "pickles"), ("net.onnx", "onnx:FILE"), ("net.keras", "keras:FILE")]
)
def test_other_formats_are_refused_with_advice(tmp_path, name, advice):
    """The original keeps fitted models as pickles in .npy files."""
    path = tmp_path / name
    with path.open("wb") as file:
        np.save(file, np.array([Attack(tmp_path / "attacked")], dtype=object), allow_pickle=True)
    with pytest.raises(BadDataError, match=f"{name}: no file of weights: .*{advice}"):
        read_weights(path)
    assert not (tmp_path / "attacked").exists()


def test_weights_of_another_architecture_are_named():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2), "fc.weight": torch.zeros(2)}
    with pytest.raises(BadDataError) as error:
        fill_model(model, state, Path("w.pth"))
    for part in ("2 missing: 1.weight, 1.bias", "1 unexpected: fc.weight", "0.weight (3, 2) instead of (2, 3)"):
        assert part in str(error.value)


def test_the_digest_follows_the_values():
    model = nn.BatchNorm2d(3)
    before = hash_tensors(model)
    assert model.running_mean is not None
    model.running_mean[1] = 1e-7
    assert hash_tensors(model) != before


def test_freezing():
    """Trap 10: half precision is emulated on processors; everything runs in float32."""
    model = freeze_model(nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout())).half())
    assert not any(module.training for module in model.modules())
    assert not model[1][0].inplace
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(UsageError, match="TorchScript"):
        freeze_model(torch.jit.script(nn.ReLU()))


class Publisher(BaseHTTPRequestHandler):
    """Has `PUBLISHED`; serves another content under another name, and breaks off in ``broken.pth``."""

    def do_GET(self) -> None:
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        content = CONTENT[::-1] if self.path.startswith("/wrong") else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: 1000 if self.path == "/broken.pth" else None])

    def log_message(self, *_arguments: object) -> None:
        """Stay silent."""


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_whole_files(tmp_path, server):
    seen: list[tuple[int, int]] = []
    target = tmp_path / "new" / PUBLISHED
    assert download_file(f"{server}/{PUBLISHED}", target, lambda *n: seen.append(n)) == target
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (2, 2)
    assert [path.name for path in target.parent.iterdir()] == [PUBLISHED]
    assert target.stat().st_mode & 0o077 == (tmp_path / "new").stat().st_mode & 0o066  # others may read it, as usual
    copy = download_file(target.as_uri(), tmp_path / PUBLISHED)
    assert copy.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing.pth", MissingInputError, "cannot be fetched: HTTP Error 404: Not Found"),
        ("broken.pth", MissingInputError, "the connection broke after 1000 of 2097152 bytes"),
        (f"wrong-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth", BadDataError, "http:.*SHA-256 should start with"),
    ],
)
def test_broken_downloads_leave_nothing(tmp_path, server, name, error, message):
    target = tmp_path / name
    target.write_text("what was there")
    with pytest.raises(error, match=message):
        download_file(f"{server}/{name}", target)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


def test_downloads_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(MissingInputError, match=r"127\.0\.0\.1:9/w\.pth: cannot be fetched: .*refused"):
        download_file("http://127.0.0.1:9/w.pth", tmp_path / "w.pth")
    with pytest.raises(MissingInputError, match=r"cannot be fetched: .*No such file"):
        download_file((tmp_path / "gone.pth").as_uri(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="only https, http and file"):
        download_file("ftp://127.0.0.1/w.pth", tmp_path / "w.pth")
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError, match=r"file/w\.pth: cannot be written"):
        download_file((tmp_path / "file").as_uri(), tmp_path / "file" / "w.pth")


def test_fetching_keeps_what_is_right(tmp_path, server, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub = tmp_path / "hub" / "checkpoints" / PUBLISHED
    options = NetworkOptions(weights_dir=tmp_path / "own")
    assert fetch_published("w", f"{server}/{PUBLISHED}", "mit", NetworkOptions()) == hub
    assert fetch_published("w", "http://127.0.0.1:9/" + PUBLISHED, "mit", options) == hub  # nobody is asked
    assert not caplog.records
    hub.write_bytes(b"damaged")
    own = tmp_path / "own" / PUBLISHED
    assert fetch_published("w", f"{server}/{PUBLISHED}", "cc-by-nc-4.0", options) == own
    assert own.read_bytes() == CONTENT
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "(cc-by-nc-4.0)" in warnings[0]
    assert "SHA-256" in warnings[1]


@pytest.mark.parametrize(
    ("licence", "warned"),
    [
        ("cc-by-nc-4.0", True),
        ("dinov3-license", True),
        ("fair-noncommercial-research-license", True),
        ("apple-amlr", True),
        ("https://github.com/facebookresearch/SWAG/blob/main/LICENSE", True),  # CC-BY-NC 4.0
        ("apache-2.0", False),
        ("BSD-3-Clause (torchvision; no other licence is stated for the weights)", False),
        ("the user's", False),
    ],
)
def test_warns_of_restricted_licences(caplog, licence, warned):
    warn_licence("net", licence)
    assert (f"net: the licence of the weights ({licence})" in caplog.text) is warned
