from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.models import feature_extraction
from torchvision.transforms.v2.functional import pil_to_tensor

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.networks.layers import choose_layers, find_layer, list_layers


def make_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def make_swin() -> nn.Module:
    return models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=5
    )


def make_convnext() -> nn.Module:
    setting = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(setting, num_classes=5)


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


class Functions(nn.Module):
    """Every way to call a function: operators, also in place, methods, torch's and those of nn.functional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y += 1
        y = functional.relu(y * 2, inplace=True)
        y = torch.cat([y, y.sigmoid()], 1)[:, :4]
        y = self.relu(y).view(y.shape) + 1
        tokens = y.flatten(2).transpose(1, 2)
        return functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(1)


class Returns(nn.Module):
    """Tuples and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named, self.empty = Pair(), Named(), Nothing()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.empty(x)
        named: dict[str, torch.Tensor] = self.named(self.pair(x)[1][0])
        return named


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[object, list[torch.Tensor]]:
        return x.shape, [x * 1, x[:, :1] * 2]


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mask": x > 0, "features": x[:, :2] * 2}


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        assert len(x)


def list_by_name(network) -> dict:
    return {layer.name: layer for layer in list_layers(network)}


def test_lists_in_the_order_of_the_forward_pass(make_network):
    layers = list_layers(make_network(Repeats()))
    assert [layer.name for layer in layers] == ["conv1", "relu:1", "conv2", "relu:2", "patches", "spare"]
    assert [layer.depth for layer in layers] == [0, 1, 2, 3, 4, 5]
    assert [(layer.path, layer.call) for layer in layers[1:4]] == [("relu", 1), ("conv2", 1), ("relu", 2)]
    assert (layers[0].shape, layers[0].n_features, layers[0].kind) == ((4, 30, 30), 3600, "Conv2d")
    assert [layer.name for layer in layers if layer.problem] == ["patches", "spare"]


def test_functions_are_layers_too(make_network):
    layers = list_layers(make_network(Functions(), 8))
    functions = [layer.name for layer in layers if layer.kind == "function"]
    assert functions == [
        "add:1",
        "mul",
        "relu.function",  # there is a module of this name
        "sigmoid",
        "cat",
        "add:2",
        "flatten",
        "scaled_dot_product_attention",
        "mean",
    ]
    by_name = {layer.name: layer for layer in layers}
    assert by_name["cat"].shape == (8, 8, 8)
    assert by_name["scaled_dot_product_attention"].shape == (4, 64, 1)
    assert [layer.name for layer in choose_layers(layers, ["all"], ())] == ["conv", "relu"]
    assert [layer.name for layer in choose_layers(layers, ["add:2", "c*"], ())] == ["conv", "add:2"]
    assert [layer.name for layer in choose_layers(layers, ["ad*"], ())] == ["add:1", "add:2"]
    with pytest.raises(UsageError, match="'add' is called 2 times; say which: add:1, add:2"):
        choose_layers(layers, ["add"], ())


MOVES = ("x", "getitem", "unsqueeze", "getattr", "size", "view", "permute", "transpose")


@pytest.mark.parametrize("architecture", ["resnet18", "googlenet", "densenet121"])
def test_functions_have_the_names_that_torchvision_gives_them(architecture, make_network):
    arguments = {"transform_input": True, "aux_logits": True, "init_weights": False}
    model = models.get_model(architecture, **(arguments if architecture == "googlenet" else {}))
    found = {layer.path for layer in list_layers(make_network(model, 64)) if layer.kind == "function"}
    nodes = feature_extraction.get_graph_node_names(model.eval(), suppress_diff_warning=True)[1]
    names = {re.sub(r"_\d+$", "", node) for node in nodes} - {name for name, _ in model.named_modules()}
    assert found == {name for name in names if name.rpartition(".")[2] not in MOVES}


def test_what_runs_in_a_layer_is_no_layer(make_network):
    """torch's own modules are layers themselves; the functions that they call are not."""
    layers = list_layers(make_network(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softmax(1), nn.GELU())))
    assert [layer.name for layer in layers] == ["0", "1", "2"]


def test_timm_networks_are_seen_through(make_network):
    timm = pytest.importorskip("timm", reason="timm is optional")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    layers = list_by_name(make_network(model))
    assert layers["blocks.0"].shape == layers["blocks.1.add:2"].shape == (192, 5, 1)
    assert layers["blocks.1.attn.scaled_dot_product_attention"].shape == (3, 5, 64)
    assert layers["blocks.0.attn.attn_drop"].problem == "is never called in the forward pass"


def test_tokens_and_tuples_have_channels_first(make_network):
    layers = list_by_name(make_network(make_vit()))
    assert layers["encoder.layers.encoder_layer_0"].shape == (16, 5, 1)
    assert layers["encoder.layers.encoder_layer_0.self_attention"].shape == (16, 5, 1)  # returns a tuple
    assert layers["heads.head"].shape == (5,)


def test_the_first_tensor_counts(make_network):
    layers = list_by_name(make_network(Returns(), 8))
    assert layers["pair"].shape == (3, 8, 8)
    assert layers["named"].shape == (2, 8, 8)
    assert layers["empty"].problem == "gives no tensor with one row a stimulus"


def test_channels_come_first_where_the_network_has_them_last(make_network):
    layers = list_by_name(make_network(make_swin()))
    turned = {name for name, layer in layers.items() if layer.channels_last}
    for name in ("features.0.1", "features.0.2", "features.0", "features.1.0.attn", "features.1.0.add:2", "features.1"):
        assert layers[name].shape == (8, 8, 8), name
        assert name in turned, name
    assert layers["features.1.0.mlp.0"].shape == (32, 8, 8)
    assert layers["features.2.cat"].shape == (32, 4, 4)
    assert layers["features.3.1"].shape == (16, 4, 4)
    assert not {"features.0.0", "permute", "avgpool", "head"} & turned


def test_channels_come_first_within_convnext(make_network):
    layers = list_by_name(make_network(make_convnext()))
    turned = {name for name, layer in layers.items() if layer.channels_last and layer.kind != "function"}
    inner = {"block.1", "block.2", "block.3", "block.4", "block.5"}  # between the two permutations
    assert turned == {f"features.{stage}.0.{part}" for stage in (1, 3) for part in inner}
    assert layers["features.1.0.block.3"].shape == (32, 8, 8)
    assert layers["features.1.0.block.6"].shape == layers["features.1.0.add"].shape == (8, 8, 8)


def test_sequences_of_convolutions_are_not_tokens(make_network):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Conv1d(4, 6, 5), nn.ReLU())
    layers = list_layers(make_network(model, 8))
    assert [layer.shape for layer in layers] == [(4, 6, 6), (4, 36, 1), (6, 32, 1), (6, 32, 1)]


def test_clips_keep_their_frames(make_network):
    network = make_network(nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()), 8)
    frames: list[int] = []

    def transform(clip):
        frames.append(len(clip))
        return torch.stack([pil_to_tensor(frame.resize((8, 8))) for frame in clip], 1)

    network = dataclasses.replace(network, transform=transform, normalize=lambda x: x.float() / 255, n_frames=5)
    assert [layer.shape for layer in list_layers(network)] == [(4, 3, 6, 6), (4, 3, 6, 6), (4, 1, 1, 1), (4,)]
    assert frames == [5, 5]


def test_modules_that_never_fire_are_explained(make_network):
    """Trap 5: ViT computes its output projection without calling the module."""
    layers = list_layers(make_network(make_vit()))
    name = "encoder.layers.encoder_layer_1.self_attention.out_proj"
    with pytest.raises(UsageError, match=r"out_proj' \(NonDynamicallyQuantizableLinear\) is never called"):
        choose_layers(layers, [name], ())
    assert name not in [layer.name for layer in choose_layers(layers, ["all"], ())]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_swin, "features.1.0.attn.qkv"),
        (lambda: models.googlenet(init_weights=False), "aux1.fc1"),
        (lambda: models.inception_v3(init_weights=False), "AuxLogits"),
        (lambda: models.efficientnet_b0(num_classes=5), "features.1.0.stochastic_depth"),
    ],
    ids=["functional", "googlenet", "inception", "stochastic depth"],
)
def test_silent_modules_come_last(make, name, make_network):
    """Trap 5."""
    layers = list_layers(make_network(make(), 80))
    names = [layer.name for layer in layers]
    assert layers[names.index(name)].problem == "is never called in the forward pass"
    assert all(layer.problem for layer in layers[names.index(name) :])
    with pytest.raises(UsageError, match="is never called in the forward pass; choose another"):
        choose_layers(layers, [name], ())


def test_calls_must_be_told_apart(make_network):
    """Trap 4: a name alone would mean the last call in one tool and the first in another."""
    layers = list_layers(make_network(Repeats()))
    with pytest.raises(UsageError, match=r"'relu' is called 2 times; say which: relu:1, relu:2"):
        choose_layers(layers, ["relu"], ())
    assert [layer.name for layer in choose_layers(layers, ["relu:2"], ())] == ["relu:2"]
    assert [layer.name for layer in choose_layers(layers, ["re*"], ())] == ["relu:1", "relu:2"]
    assert [layer.name for layer in choose_layers(layers, ["conv1:1"], ())] == ["conv1"]
    with pytest.raises(UsageError, match="no tensor with one row a stimulus"):
        choose_layers(layers, ["patches"], ())


def test_friendly_names(make_network):
    aliases = {"conv1_relu": "relu:1", "conv2_relu": "relu:2", "second": "relu:2", "gone": "conv7", "idle": "spare"}
    layers = list_layers(dataclasses.replace(make_network(Repeats()), aliases=aliases))
    assert [layer.alias for layer in layers] == ["", "conv1_relu", "", "conv2_relu", "", "idle"]

    def names(*patterns: str) -> list[tuple[str, str, int]]:
        return [(layer.name, layer.path, layer.call) for layer in choose_layers(layers, patterns, ("conv2_relu",))]

    assert names("conv2_relu") == [("conv2_relu", "relu", 2)]
    assert names("main", "relu:2") == [("conv2_relu", "relu", 2)]
    assert names("relu:2", "conv2_relu") == [("relu:2", "relu", 2)]
    assert names("conv*_relu") == [("conv1_relu", "relu", 1), ("conv2_relu", "relu", 2)]
    assert [name for name, *_ in names("conv*")] == ["conv1", "conv1_relu", "conv2", "conv2_relu"]
    with pytest.raises(UsageError, match=r"'idle' \(Linear\) is never called"):
        names("idle")
    with pytest.raises(UnknownNameError, match="did you mean 'conv2_relu'"):
        names("conv2_rule")


def test_finds_a_chosen_layer_by_any_of_its_names(make_network):
    layers = list_layers(dataclasses.replace(make_network(Repeats()), aliases={"last": "relu:2", "first": "conv1"}))
    chosen = choose_layers(layers, ["last", "first"], ())
    assert [layer.name for layer in chosen] == ["first", "last"]
    assert find_layer("relu:2", chosen) == find_layer("relu", chosen) == find_layer("last", chosen) == chosen[1]
    assert find_layer("conv1", chosen) == chosen[0]


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
    network = make_network(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)))
    with pytest.raises(BadDataError, match="network tiny: two trial images failed: RuntimeError: mat1"):
        list_layers(network)
    with pytest.raises(BadDataError, match="network tiny: two trial clips failed: AttributeError"):
        list_layers(dataclasses.replace(network, n_frames=3))


def test_the_trial_run_leaves_the_network_as_it_was(make_network):
    network = make_network(make_vit())
    fused = torch.backends.mha.get_fastpath_enabled()
    list_layers(network)
    assert torch.backends.mha.get_fastpath_enabled() is fused
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())
