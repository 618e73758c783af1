from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.transforms.v2.functional import pil_to_tensor

from dnnbrain_app.networks.families import find_main_layers, find_top_layers
from dnnbrain_app.networks.layers import choose_layers, list_layers


def to_clip(size: int):
    def transform(clip):
        return torch.stack([pil_to_tensor(frame.resize((size, size))).float() for frame in clip], 1)

    return transform


def build(architecture: str) -> nn.Module:
    """Build small ones of their kind: the architecture with the fewest weights, small windows and short clips."""
    if architecture == "vit_b_16":
        return models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=12, num_heads=2, hidden_dim=16, mlp_dim=32
        )
    if architecture == "maxvit_t":
        return models.MaxVit(
            input_size=(64, 64),
            stem_channels=8,
            partition_size=2,
            block_channels=[8, 16, 32, 64],
            block_layers=[1, 1, 2, 1],
            head_dim=8,
            stochastic_depth_prob=0.0,
        )
    if architecture == "mvit_v1_b":
        pooling = {"kernel_q": [], "kernel_kv": [3, 3, 3], "stride_q": [], "stride_kv": [1, 2, 2]}
        blocks = [
            MSBlockConfig(1, 8, 8, **pooling),
            MSBlockConfig(2, 8, 16, **pooling),
            MSBlockConfig(2, 16, 16, **pooling),
        ]
        return models.video.MViT(
            (64, 64),
            4,
            blocks,
            residual_pool=False,
            residual_with_cls_embed=True,
            rel_pos_embed=False,
            proj_after_attn=False,
            num_classes=5,
        )
    arguments = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    return models.get_model(architecture, num_classes=5, **arguments)


SIZES = {"inception_v3": 80, "vit_b_16": 32, "swin3d_t": 32, "s3d": 224}

EXPECTED = {
    "alexnet": "features.1 features.4 features.7 features.9 features.11 classifier.2 classifier.5 classifier.6",
    "vgg11": "features.2 features.5 features.10 features.15 features.20 classifier.1 classifier.4 classifier.6",
    "vgg16_bn": "features.6 features.13 features.23 features.33 features.43 classifier.1 classifier.4 classifier.6",
    "resnet18": "layer1 layer2 layer3 layer4 avgpool fc",
    "googlenet": (
        "conv1 conv2 conv3 inception3a inception3b inception4a inception4b inception4c inception4d inception4e "
        "inception5a inception5b avgpool fc"
    ),
    "inception_v3": (
        "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3 Mixed_5b Mixed_5c Mixed_5d Mixed_6a "
        "Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c avgpool fc"
    ),
    "densenet121": (
        "features.relu0 features.denseblock1 features.transition1 features.denseblock2 features.transition2 "
        "features.denseblock3 features.transition3 features.denseblock4 features.norm5 classifier"
    ),
    "squeezenet1_0": " ".join(f"features.{i}" for i in (1, 3, 4, 5, 7, 8, 9, 10, 12)) + " classifier.2 classifier.3",
    "squeezenet1_1": " ".join(f"features.{i}" for i in (1, 3, 4, 6, 7, 9, 10, 11, 12)) + " classifier.2 classifier.3",
    "mobilenet_v2": " ".join(f"features.{i}" for i in range(19)) + " classifier.1",
    "mobilenet_v3_small": " ".join(f"features.{i}" for i in range(13)) + " avgpool classifier.1 classifier.3",
    "mnasnet0_5": " ".join(f"layers.{i}" for i in (2, 5, 7, 8, 9, 10, 11, 12, 13, 16)) + " classifier.1",
    "shufflenet_v2_x0_5": "conv1 stage2 stage3 stage4 conv5 fc",
    "efficientnet_b0": " ".join(f"features.{i}" for i in range(9)) + " avgpool classifier.1",
    "efficientnet_v2_s": " ".join(f"features.{i}" for i in range(8)) + " avgpool classifier.1",
    "regnet_x_400mf": "stem " + " ".join(f"trunk_output.block{i}" for i in (1, 2, 3, 4)) + " avgpool fc",
    "convnext_tiny": "features.0 features.1 features.3 features.5 features.7 avgpool classifier.2",
    "vit_b_16": " ".join(f"encoder.layers.encoder_layer_{i}" for i in range(12)) + " heads",
    "swin_t": "features.0 features.1 features.3 features.5 features.7 avgpool head",
    "swin_v2_t": "features.0 features.1 features.3 features.5 features.7 avgpool head",
    "maxvit_t": "stem blocks.0 blocks.1 blocks.2 blocks.3 classifier.0 classifier.4 classifier.5",
    "r3d_18": "stem layer1 layer2 layer3 layer4 avgpool fc",
    "mc3_18": "stem layer1 layer2 layer3 layer4 avgpool fc",
    "r2plus1d_18": "stem layer1 layer2 layer3 layer4 avgpool fc",
    "s3d": (
        "features.0 features.2 features.3 features.5 features.6 features.8 features.9 features.10 features.11 "
        "features.12 features.14 features.15 avgpool classifier.1"
    ),
    "mvit_v1_b": "conv_proj blocks.0 blocks.1 blocks.2 head",
    "swin3d_t": "patch_embed features.0 features.2 features.4 features.6 avgpool head",
}
VIDEO = {"r3d_18": 8, "mc3_18": 8, "r2plus1d_18": 8, "s3d": 16, "mvit_v1_b": 4, "swin3d_t": 4}


@pytest.fixture
def without_initialising(monkeypatch):
    """Random numbers for millions of weights would take the time of these tests; zeros fire as well."""
    for name in ("kaiming_normal_", "normal_", "trunc_normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_args, **_kwargs: tensor.data.zero_())


@pytest.mark.parametrize("architecture", EXPECTED)
def test_main_layers_of_every_family_fire(architecture, make_network, without_initialising):
    network = make_network(build(architecture), SIZES.get(architecture, 64))
    if architecture in VIDEO:
        size = SIZES.get(architecture, 64)
        network = dataclasses.replace(network, transform=to_clip(size), n_frames=VIDEO[architecture])
    chosen = choose_layers(list_layers(network), ["main"], find_main_layers(architecture, network.model))
    assert [layer.name for layer in chosen] == EXPECTED[architecture].split()
    assert 4 <= len(chosen) <= 30
    assert chosen[-1].n_features == (1000 if architecture in ("vit_b_16", "maxvit_t") else 5)


def test_every_architecture_of_torchvision_has_a_family():
    names = {*models.list_models(module=models), *models.list_models(module=models.video)}
    model = nn.Sequential(nn.Linear(1, 1))
    assert [name for name in sorted(names) if find_main_layers(name, model) == find_top_layers(model)] == []


def test_top_layers_open_sequences():
    model = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 2, 3)),
            "stages": nn.Sequential(nn.Conv2d(2, 2, 1), nn.Dropout(), nn.ReLU()),
            "list": nn.ModuleList([nn.Linear(2, 2), nn.Identity()]),
            "norm": nn.LayerNorm(2),
            "head": nn.Linear(2, 2),
        }
    )
    assert find_top_layers(model) == ("stem", "stages.0", "stages.2", "list.0", "head")


def test_long_sequences_stay_closed():
    stages = {f"stage{i}": nn.Sequential(*[nn.Linear(1, 1) for _ in range(30)]) for i in (0, 1)}
    model = nn.ModuleDict({**stages, "norm": nn.LayerNorm(1), "head": nn.Linear(1, 1)})
    assert find_top_layers(model) == ("stage0", "stage1", "head")
