from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torchvision import models

from dnnbrain_app.networks.aliases import find_aliases
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import load_network

FAMILIES = [
    "alexnet",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "googlenet",
    "inception_v3",
    "r3d_18",
]
# the original's layer names, as far as they are not torchvision's own
ORIGINAL = {
    "alexnet": (18, {"conv1": "features.0", "conv2_maxpool": "features.5", "conv5_relu": "features.11"}),
    "vgg11": (26, {"conv3": "features.6", "conv4_maxpool": "features.10", "conv8_relu": "features.19"}),
    "vgg19_bn": (58, {"conv1_bn": "features.1", "conv1_relu": "features.2", "conv16_maxpool": "features.52"}),
    "resnet152": (52, {"conv": "conv1", "layer1_bottleneck0": "layer1.0", "layer3_bottleneck35": "layer3.35"}),
    "inception_v3": (16, {"conv4": "Conv2d_3b_1x1", "inception4": "Mixed_6a", "inception11": "Mixed_7c"}),
    "r3d_18": (5, {"conv3d_1": "stem", "conv3d_5": "layer4"}),
}
KEPT = {
    "googlenet": [
        "conv1",
        "maxpool1",
        "conv3",
        "maxpool2",
        "inception3a",
        "inception4e",
        "maxpool4",
        "inception5b",
        "fc",
    ],
    "inception_v3": ["maxpool1", "maxpool2", "avgpool", "fc"],
    "resnet152": ["relu", "maxpool", "avgpool", "fc"],
    "r3d_18": ["fc"],
}


def build_empty(architecture: str) -> nn.Module:
    """A network whose tensors have a shape only, so that the largest is built and run at once."""
    settings = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        return models.get_model(architecture, weights=None, **settings).eval()


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_alias_names_a_module_that_fires_once(architecture):
    model = build_empty(architecture)
    aliases = find_aliases(model)
    modules = dict(model.named_modules())
    assert set(aliases.values()) <= set(modules)
    assert not set(aliases) & set(modules)  # a name has one meaning
    n_calls: Counter[str] = Counter()
    for path in aliases.values():
        modules[path].register_forward_hook(lambda *_, path=path: n_calls.update([path]))
    shape = (1, 3, 16, 112, 112) if architecture == "r3d_18" else (1, 3, 299, 299)
    model(torch.empty(shape, device="meta"))
    assert n_calls == dict.fromkeys(aliases.values(), 1)


@pytest.mark.parametrize("architecture", ORIGINAL)
def test_the_names_of_the_original(architecture):
    aliases = find_aliases(build_empty(architecture))
    n_names, some = ORIGINAL[architecture]
    assert len(aliases) == n_names
    assert some.items() <= aliases.items()


@pytest.mark.parametrize("architecture", KEPT)
def test_names_that_torchvision_shares(architecture):
    assert set(KEPT[architecture]) <= set(dict(build_empty(architecture).named_modules()))


def test_aliases_say_what_the_module_is():
    """The original swapped conv1_relu and conv1_bn of its VGG19."""
    model = build_empty("vgg19_bn")
    modules = dict(model.named_modules())
    kinds = {"bn": nn.BatchNorm2d, "relu": nn.ReLU, "maxpool": nn.MaxPool2d}
    for alias, path in find_aliases(model).items():
        start, _, part = alias.partition("_")
        assert isinstance(modules[path], kinds.get(part, nn.Linear if start.startswith("fc") else nn.Conv2d)), alias


def test_blocks_that_are_no_bottlenecks():
    assert find_aliases(build_empty("resnet18"))["layer4_basicblock1"] == "layer4.1"


def test_networks_come_with_their_aliases():
    network = load_network("alexnet", NetworkOptions(), fill=False)
    assert network.aliases["fc3"] == "classifier.6"
    assert not find_aliases(nn.Sequential(nn.Conv2d(3, 4, 1)))
