from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError
from dnnbrain_app.networks import from_timm
from dnnbrain_app.networks.layers import choose_layers, list_layers
from dnnbrain_app.networks.options import NetworkOptions

timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")

# where timm's own tests have a tiny one of the family, that
FAMILIES = {
    "resnet18": ("act1", (64, 112, 112), "fc", (1000,), 6),
    "convnext_tiny": ("stages.0", (96, 56, 56), "head.fc", (1000,), 5),
    "swin_tiny_patch4_window7_224": ("layers.0", (96, 56, 56), "head.fc", (1000,), 5),
    "vit_small_patch14_dinov2.lvd142m": ("blocks.0", (384, 1370, 1), "head", (384,), 13),
    "efficientnet_b0": ("blocks.0", (16, 112, 112), "classifier", (1000,), 8),
    "mixer_s16_224": ("blocks.0", (512, 196, 1), "head", (1000,), 9),
    "beit_base_patch16_224": ("blocks.0", (768, 197, 1), "head", (1000,), 13),
    "eva02_tiny_patch14_224": ("blocks.0", (192, 257, 1), "head", (192,), 13),
    "test_maxvit": ("stages.0", (32, 40, 40), "head.fc", (1000,), 5),
    "levit_128s": ("stages.0", (128, 196, 1), "head_dist.linear", (1000,), 5),
    "densenet121": ("features.norm0", (64, 112, 112), "classifier", (1000,), 6),
    "twins_svt_small": ("blocks.0.0", (64, 3136, 1), "head", (1000,), 19),
    "hiera_tiny_224": ("blocks.0", (96, 3136, 1), "head.fc", (1000,), 13),
    "mobilenetv3_small_050": ("blocks.0", (8, 56, 56), "classifier", (1000,), 7),
    "test_nfnet": ("stages.0", (32, 40, 40), "head.fc", (1000,), 5),
}


@pytest.fixture(autouse=True)
def no_caches(tmp_path, monkeypatch) -> Path:
    """Neither torch's nor the hub's cache has anything."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def vit(tmp_path) -> tuple[nn.Module, NetworkOptions]:
    """A tiny transformer, and a file of its weights."""
    model = timm.create_model("test_vit")
    path = tmp_path / "mine.safetensors"
    save_file(model.state_dict(), path)
    return model.eval(), NetworkOptions(weights=path)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    first, first_shape, last, last_shape, n_main = FAMILIES[name]
    network = from_timm.load(f"timm/{name}", NetworkOptions(), fill=False)
    layers = list_layers(network)
    main = choose_layers(layers, ["main"], network.default_layers)
    assert (main[0].name, main[0].shape, len(main)) == (first, first_shape, n_main)
    assert (main[-1].name, main[-1].shape) == (last, last_shape)
    assert not {"Weights", "SHA256"} & network.provenance.keys()


def test_values_are_timms_own(vit):
    model, options = vit
    network = from_timm.load("timm/test_vit", options, fill=True)
    provenance = network.provenance
    assert provenance["Name"] == "timm/test_vit.r160_in1k"
    assert (provenance["Weights"], provenance["License"]) == ("mine.safetensors", "apache-2.0")
    assert provenance["SHA256"] == hashlib.sha256(options.weights.read_bytes()).hexdigest()
    assert provenance["Transform"].startswith("resize the shorter side to 168 (")
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(network.model(images), model(images))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",  # shorter side, bicubic
        "dla34",  # bilinear
        "test_vit",  # 160 pixels, other mean
        "vit_small_patch14_dinov2",  # 518 pixels
        "convnext_small.in12k_ft_in1k_384",  # squashed
        "dm_nfnet_f0",  # squashed, then cut
        "deepseek_vit_412m",  # borders added
    ],
)
def test_transform_is_timms_own(name, rng):
    published = timm.get_pretrained_cfg(name)
    transform, normalize, text = from_timm._make_transform(published)
    own = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=published.to_dict()))
    for shape in ((300, 451, 3), (640, 480, 3), (90, 90, 3)):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        assert torch.equal(normalize(transform(image)[None])[0], own(image))
    whole = name not in ("dm_nfnet_f0", "deepseek_vit_412m")
    assert (transform(image).dtype == torch.uint8) is whole
    assert str(published.input_size[1]) in text


def test_finds_weights_by_name_or_repository(tmp_path, vit, no_caches):
    folder, hub = tmp_path / "own", no_caches
    options = NetworkOptions(weights_dir=folder)
    with pytest.raises(MissingInputError) as error:
        from_timm.load("timm/test_vit", options, fill=True)
    target, url = folder / "test_vit.r160_in1k.safetensors", "huggingface.co/timm/test_vit.r160_in1k/resolve/main"
    assert f"curl -fL --create-dirs -o {target} https://{url}/model.safetensors" in str(error.value)
    assert f"dnnbrain --fetch-weights timm/test_vit.r160_in1k --weights-dir {folder}," in str(error.value)
    snapshot = hub / "models--timm--test_vit.r160_in1k" / "snapshots" / "0123"
    for path in (  # each goes before those that were found already
        snapshot / "model.safetensors",
        tmp_path / "torch" / "hub" / "checkpoints" / target.name,
        folder / "test_vit.r160_in1k" / "model.safetensors",
        folder / "test_vit.r160_in1k.pth",
        target,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        (snapshot.parents[1] / "refs").mkdir(parents=True, exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text("0123")
        state = vit[0].state_dict() | {"head.bias": torch.full((1000,), float(len(str(path))))}
        torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
        network = from_timm.load("timm/test_vit", options, fill=True)
        assert torch.equal(network.model.head.bias, state["head.bias"])
        assert (network.provenance["Weights"], network.provenance["Source"]) == (path.name, "timm/test_vit.r160_in1k")


def test_goes_nowhere_for_weights(tmp_path, vit, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from_timm.load("timm/test_vit", vit[1], fill=True)
    with pytest.raises(MissingInputError, match=r"test_vit\.r160_in1k\.safetensors"):
        from_timm.load("timm/test_vit", NetworkOptions(), fill=True)


def test_publishers_names_are_translated(tmp_path):
    """DINOv2's own files have a token for masks, which timm leaves out, and their registers under another name."""
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    model = timm.create_model("vit_small_patch14_reg4_dinov2")
    state = model.state_dict()
    original = {"mask_token": torch.zeros(1, 384), **state, "register_tokens": state["reg_token"]}
    del original["reg_token"]
    original["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], dim=1)
    torch.save(original, path)
    network = from_timm.load("timm/vit_small_patch14_reg4_dinov2", NetworkOptions(weights=path), fill=True)
    filled = network.model.state_dict()
    assert filled.keys() == state.keys()
    assert all(torch.equal(filled[name], state[name]) for name in state)
    assert "state_dict" not in network.model.pretrained_cfg


def test_fine_tuned_for_other_classes(tmp_path):
    path = tmp_path / "faces.safetensors"
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    network = from_timm.load("timm/test_vit", NetworkOptions(weights=path), fill=True)
    assert network.model.head.out_features == 7


@pytest.mark.parametrize("other", ["test_vit2", "test_resnet", "vit_tiny_patch16_224"])
def test_weights_of_another_architecture(tmp_path, other):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model(other).state_dict(), path)
    with pytest.raises(BadDataError, match="weights of another architecture than VisionTransformer"):
        from_timm.load("timm/test_vit", NetworkOptions(weights=path), fill=True)


def test_positions_of_larger_images_are_not_resized(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file(timm.create_model("test_vit", img_size=192).state_dict(), path)
    with pytest.raises(BadDataError, match=r"pos_embed \(1, 145, 64\) instead of \(1, 101, 64\)"):
        from_timm.load("timm/test_vit", NetworkOptions(weights=path), fill=True)


def test_damaged_and_poisoned_weights(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save({"head.weight": Attack()}, tmp_path / "attack.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"{" * 100)
    for file in ("attack.pth", "broken.safetensors"):
        with pytest.raises(BadDataError, match=file):
            from_timm.load("timm/test_vit", NetworkOptions(weights=tmp_path / file), fill=True)
    assert not (tmp_path / "was run").exists()


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"unknown network 'timm/resnet81'; did you mean 'timm/resnet18'\?"):
        from_timm.load("timm/resnet81", NetworkOptions(), fill=False)
    with pytest.raises(UnknownNameError, match=r"weights of timm/resnet18 'a9_in1k'; did you mean 'a[123]_in1k'\?"):
        from_timm.load("timm/resnet18.a9_in1k", NetworkOptions(), fill=False)
    with pytest.raises(UnknownNameError, match="unknown network 'timm/hf-hub:me/mine'"):
        from_timm.load("timm/hf-hub:me/mine", NetworkOptions(), fill=False)
    with pytest.raises(MissingInputError, match=r"timm/mixer_s16_224: no weights are published for it; .*--weights"):
        from_timm.load("timm/mixer_s16_224", NetworkOptions(), fill=True)


def test_licences_that_restrict_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(MissingInputError):
        from_timm.load("timm/hiera_tiny_224.mae_in1k_ft_in1k", NetworkOptions(), fill=True)
    assert "cc-by-nc-4.0" in caplog.text


def test_without_timm(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", _not_found)
    for call in (
        lambda: from_timm.load("timm/resnet18", NetworkOptions(), fill=False),
        lambda: from_timm.identify("timm/resnet18", NetworkOptions()),
        lambda: from_timm.fetch("timm/resnet18", NetworkOptions(), None),
    ):
        with pytest.raises(MissingInputError, match=r"pip install 'dnnbrain-app\[timm\]'"):
            call()


def _not_found(package: str) -> str:
    raise importlib.metadata.PackageNotFoundError(package)


def test_identity_changes_with_the_files(tmp_path, no_caches):
    name, options = "timm/resnet18", NetworkOptions(weights_dir=tmp_path / "own")
    seen = [from_timm.identify(name, options)]
    assert seen[0]["timm"] == timm.__version__
    for path in (
        tmp_path / "own" / "resnet18.a1_in1k.safetensors",
        tmp_path / "own" / "resnet18.a1_in1k" / "model.safetensors",
        tmp_path / "torch" / "hub" / "checkpoints" / "resnet18.a1_in1k.safetensors",
        no_caches / "models--timm--resnet18.a1_in1k" / "refs" / "main",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        for content in (b"1", b"12"):
            path.write_bytes(content)
            seen.append(from_timm.identify(name, options))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert from_timm.identify(name, options) == seen[-1]
    given = NetworkOptions(weights=path)
    assert from_timm.identify(name, given)["weights"] == [str(path), 2, path.stat().st_mtime_ns]
    with pytest.raises(MissingInputError, match="gone"):
        from_timm.identify(name, NetworkOptions(weights=tmp_path / "gone.pth"))


def test_identity_needs_neither_torch_nor_timm():
    code = (
        "import sys; from dnnbrain_app.networks.options import NetworkOptions as O; "
        "from dnnbrain_app.networks.from_timm import identify; identify('timm/resnet18', O()); "
        "print({'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does; `files` holds what each repository has."""

    files: dict[str, bytes]
    digest = ""

    def do_HEAD(self) -> None:
        content = self.files.get(self.path.replace("/0123abcd/", "/main/"))
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("X-Repo-Commit", "0123abcd")
            self.send_header("X-Linked-Etag", f'"{self.digest or hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files[self.path.replace("/0123abcd/", "/main/")])

    def log_message(self, *args: object) -> None:
        pass


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what HF_ENDPOINT does before huggingface_hub is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    set_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetches_from_the_hub(tmp_path, vit, hub):
    content = vit[1].weights.read_bytes()
    hub.files["/timm/test_vit.r160_in1k/resolve/main/model.safetensors"] = content
    told: list[tuple[int, int]] = []
    options = NetworkOptions(weights_dir=tmp_path / "own")
    path = from_timm.fetch("timm/test_vit", options, lambda done, total: told.append((done, total)))
    assert path == tmp_path / "own" / "test_vit.r160_in1k.safetensors"
    assert (path.read_bytes(), [file.name for file in path.parent.iterdir()]) == (content, [path.name])
    assert told
    assert (
        from_timm.load("timm/test_vit", options, fill=True).provenance["SHA256"] == hashlib.sha256(content).hexdigest()
    )
    stamp = path.stat().st_mtime_ns
    assert from_timm.fetch("timm/test_vit", options, None).stat().st_mtime_ns == stamp  # once is enough
    path.write_bytes(b"damaged")
    assert from_timm.fetch("timm/test_vit", options, None).read_bytes() == content


def test_fetches_a_pickle_where_there_is_nothing_else(tmp_path, hub):
    hub.files["/timm/test_vit.r160_in1k/resolve/main/pytorch_model.bin"] = b"1"
    path = from_timm.fetch("timm/test_vit", NetworkOptions(), None)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / "test_vit.r160_in1k.pth"


def test_what_came_is_not_what_was_published(tmp_path, hub):
    hub.files["/timm/test_vit.r160_in1k/resolve/main/model.safetensors"] = b"something else"
    hub.digest = "0" * 64
    with pytest.raises(BadDataError, match=r"SHA-256 of what came is .*, not 0000"):
        from_timm.fetch("timm/test_vit", NetworkOptions(weights_dir=tmp_path / "own"), None)
    assert not list((tmp_path / "own").iterdir())


def test_nothing_to_fetch(hub, monkeypatch):
    with pytest.raises(MissingInputError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        from_timm.fetch("timm/test_vit", NetworkOptions(), None)
    with pytest.raises(MissingInputError, match="no weights are published"):
        from_timm.fetch("timm/mixer_s16_224", NetworkOptions(), None)
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(MissingInputError, match=r"timm/test_vit: cannot be fetched from timm/test_vit\.r160_in1k"):
        from_timm.fetch("timm/test_vit", NetworkOptions(), None)
