from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.networks.layers import choose_layers, find_main_layers, list_layers


def make_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


class Repeats(nn.Module):
    """A rectifier called twice, a module never called, one that folds stimuli into its first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 3, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.patches = nn.Flatten(0, 1)
        self.spare = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.conv2(self.relu(self.conv1(x))))
        self.patches(y)
        return y


def test_lists_in_the_order_of_the_forward_pass(make_network):
    layers = list_layers(make_network(Repeats()))
    assert [layer.name for layer in layers] == ["conv1", "relu:1", "conv2", "relu:2", "patches", "spare"]
    assert [layer.depth for layer in layers] == [0, 1, 2, 3, 4, 5]
    assert (layers[0].shape, layers[0].n_features, layers[0].kind) == ((4, 30, 30), 3600, "Conv2d")
    assert [layer.name for layer in layers if layer.problem] == ["patches", "spare"]


def test_tokens_and_tuples_have_channels_first(make_network):
    layers = {layer.name: layer for layer in list_layers(make_network(make_vit()))}
    assert layers["encoder.layers.encoder_layer_0"].shape == (16, 5, 1)
    assert layers["encoder.layers.encoder_layer_0.self_attention"].shape == (16, 5, 1)  # returns a tuple
    assert layers["heads.head"].shape == (5,)


def test_modules_that_never_fire_are_explained(make_network):
    """Trap 5: ViT computes its output projection without calling the module."""
    layers = list_layers(make_network(make_vit()))
    name = "encoder.layers.encoder_layer_1.self_attention.out_proj"
    with pytest.raises(UsageError, match=r"out_proj' \(NonDynamicallyQuantizableLinear\) is never called"):
        choose_layers(layers, [name], ())
    assert name not in [layer.name for layer in choose_layers(layers, ["all"], ())]


def test_calls_must_be_told_apart(make_network):
    """Trap 4: a name alone would mean the last call in one tool and the first in another."""
    layers = list_layers(make_network(Repeats()))
    with pytest.raises(UsageError, match=r"'relu' is called 2 times; say which: relu:1, relu:2"):
        choose_layers(layers, ["relu"], ())
    assert [layer.name for layer in choose_layers(layers, ["relu:2"], ())] == ["relu:2"]
    assert [layer.name for layer in choose_layers(layers, ["re*"], ())] == ["relu:1", "relu:2"]
    with pytest.raises(UsageError, match="no tensor with one row a stimulus"):
        choose_layers(layers, ["patches"], ())


def test_patterns_stay_within_one_part_of_the_path(make_network):
    layers = list_layers(make_network(make_vit()))

    def names(*patterns: str) -> list[str]:
        return [layer.name for layer in choose_layers(layers, patterns, ("heads", "conv_proj"))]

    assert names("encoder.layers.*") == ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    assert names("main") == ["conv_proj", "heads"]
    assert names("heads", "main", "conv_proj") == ["conv_proj", "heads"]
    assert names("encoder.layers.*.ln_?") == [
        f"encoder.layers.encoder_layer_{i}.ln_{j}" for i in (0, 1) for j in (1, 2)
    ]


@pytest.mark.parametrize("wrong", ["head", "heads.*.x", "relu:1"])
def test_unknown_layers_get_a_suggestion(make_network, wrong):
    layers = list_layers(make_network(make_vit()))
    with pytest.raises(UnknownNameError, match=r"unknown layer .*Valid: conv_proj"):
        choose_layers(layers, [wrong], ())
    with pytest.raises(UnknownNameError, match="did you mean 'heads'"):
        choose_layers(layers, ["head"], ())


def test_refuses_an_empty_choice(make_network):
    with pytest.raises(UsageError, match="no layer is left"):
        choose_layers(list_layers(make_network(make_vit())), [], ())


def test_a_network_that_fails_is_reported(make_network):
    with pytest.raises(BadDataError, match="network tiny: two trial images failed: RuntimeError: mat1"):
        list_layers(make_network(nn.Sequential(nn.Flatten(), nn.Linear(5, 2))))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("alexnet", "features.1 features.4 features.7 features.9 features.11 classifier.2 classifier.5 classifier.6"),
        ("resnet18", "layer1 layer2 layer3 layer4 avgpool fc"),
        ("efficientnet_b0", " ".join(f"features.{i}" for i in range(9)) + " avgpool classifier.1"),
        ("mnasnet0_5", None),
        ("shufflenet_v2_x0_5", None),
        ("swin_t", None),
        ("convnext_tiny", None),
        ("densenet121", None),
        ("squeezenet1_1", None),
        ("vgg11", "features.2 features.5 features.10 features.15 features.20 classifier.1 classifier.4 classifier.6"),
    ],
)
def test_main_layers_exist_in_every_family(architecture, expected, make_network, monkeypatch):
    # random numbers for millions of weights take the time of this test; zeros fire as well
    for name in ("kaiming_normal_", "normal_", "trunc_normal_", "uniform_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_args, **_kwargs: tensor)
    network = make_network(models.get_model(architecture), size=64)
    main = find_main_layers(architecture, network.model)
    chosen = [layer.name for layer in choose_layers(list_layers(network), ["main"], main)]
    assert 5 <= len(chosen) <= 30
    if expected is not None:
        assert chosen == expected.split()
