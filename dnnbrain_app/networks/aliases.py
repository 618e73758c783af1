"""Friendly names of layers, as the original DNNBrain and its paper have them (``conv1_relu``, ``fc2``).

They come by rule from the modules of torchvision's networks, so they hold for whole families; where torchvision's own
name is the friendly one (``maxpool1``, ``inception4a``, ``fc``) there is nothing to add. The original's slips are
mended: in its VGG19 with batch normalisation ``conv1_relu`` and ``conv1_bn`` were swapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn
from torchvision import models

_PARTS: dict[type[nn.Module], str] = {nn.BatchNorm2d: "_bn", nn.ReLU: "_relu", nn.MaxPool2d: "_maxpool"}


def find_aliases(model: nn.Module) -> Mapping[str, str]:
    """Find the friendly names of a network's layers; none, if it is not of a family that has some.

    Returns
    -------
    mapping of str to str
        From the friendly name to the module's path; each of these modules is called once.
    """
    if isinstance(model, models.AlexNet | models.VGG):
        return _count_layers(model)
    if isinstance(model, models.Inception3):
        return _count_inceptions(model)
    if isinstance(model, models.ResNet):
        return {"conv": "conv1", "bn": "bn1", **_name_blocks(model)}
    if isinstance(model, models.video.VideoResNet):
        return {"conv3d_1": "stem", **{f"conv3d_{i + 1}": f"layer{i}" for i in range(1, 5)}}
    return {}


def _count_layers(model: nn.Module) -> dict[str, str]:
    """Count convolutions and linear layers; what follows one has its name: ``conv1``, ``conv1_relu``, ``fc1``."""
    aliases: dict[str, str] = {}
    counts: Counter[str] = Counter()
    name = ""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kind = "conv" if isinstance(module, nn.Conv2d) else "fc"
            counts[kind] += 1
            name = f"{kind}{counts[kind]}"
            aliases[name] = path
        elif type(module) in _PARTS:
            aliases[name + _PARTS[type(module)]] = path
    return aliases


def _count_inceptions(model: nn.Module) -> dict[str, str]:
    """``conv1`` to ``conv5`` and ``inception1`` to ``inception11``, in the order of the forward pass."""
    paths = [path for path, _ in model.named_children()]
    return {
        f"{kind}{i}": path
        for kind, start in (("conv", "Conv2d"), ("inception", "Mixed"))
        for i, path in enumerate([path for path in paths if path.startswith(start)], start=1)
    }


def _name_blocks(model: nn.Module) -> dict[str, str]:
    """``layer1_bottleneck0``; in the shallower networks, whose blocks are not bottlenecks, ``layer1_basicblock0``."""
    return {
        path.replace(".", f"_{type(module).__name__.lower()}"): path
        for path, module in model.named_modules()
        if path.startswith("layer") and path.count(".") == 1
    }
