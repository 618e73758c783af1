"""A sensible handful of layers for every family of networks: what ``--layers main`` stands for."""

from __future__ import annotations

import re

from torch import nn

_MINOR = (nn.Dropout, nn.Flatten, nn.Identity, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
_MANY = 48

# the ends of stages, or of blocks where there are few of them, then pooled features and logits
_FAMILIES = {
    "alexnet": "features.1 features.4 features.7 features.9 features.11 classifier.2 classifier.5 classifier.6",
    "vgg": "{MaxPool2d} classifier.1 classifier.4 classifier.6",
    "resnet|resnext|wide_resnet": "layer? avgpool fc",
    "googlenet": "conv? inception?? avgpool fc",
    "inception": "Conv2d_* Mixed_* avgpool fc",
    "densenet": "features.relu0 features.denseblock? features.transition? features.norm5 classifier",
    "squeezenet": "features.1 {Fire} classifier.2 classifier.3",
    "mobilenet_v2": "features.* classifier.1",
    "mobilenet_v3": "features.* avgpool classifier.1 classifier.3",
    "mnasnet": "layers.2 layers.5 layers.7 layers.8 layers.9 layers.1[0-3] layers.16 classifier.1",
    "shufflenet": "conv1 stage? conv5 fc",
    "efficientnet": "features.* avgpool classifier.1",
    "regnet": "stem trunk_output.block? avgpool fc",
    "convnext": "features.[01357] avgpool classifier.2",
    "vit_": "encoder.layers.* heads",
    "swin3d": "patch_embed features.[0246] avgpool head",
    "swin": "features.[01357] avgpool head",
    "maxvit": "stem blocks.* classifier.0 classifier.4 classifier.5",
    "r3d|mc3|r2plus1d": "stem layer? avgpool fc",
    "s3d": "features.[02] {TemporalSeparableConv} {SepInceptionBlock3D} avgpool classifier.1",
    "mvit": "conv_proj blocks.* head",
}


def find_main_layers(architecture: str, model: nn.Module) -> tuple[str, ...]:
    """Choose a sensible handful of layers.

    Parameters
    ----------
    architecture : str
        torchvision's name of it.
    model : torch.nn.Module
        The network.

    Returns
    -------
    tuple of str
        Names and patterns for `choose_layers`. For other architectures than torchvision's: the top-level modules.
    """
    for family, chosen in _FAMILIES.items():
        if re.match(family, architecture):
            return tuple(name for entry in chosen.split() for name in _list_names(entry, model))
    return find_top_layers(model)


def _list_names(entry: str, model: nn.Module) -> list[str]:
    """Replace ``{Class}`` by the modules of this class at the second level, where the numbers differ in a family."""
    if not entry.startswith("{"):
        return [entry]
    modules = [(path, type(module).__name__) for path, module in model.named_modules() if path.count(".") == 1]
    return [path for path, kind in modules if kind == entry.strip("{}")]


def find_top_layers(model: nn.Module) -> tuple[str, ...]:
    """Name the top-level modules; a sequence or list of modules stands for its members, unless they are many."""
    whole = [name for name, child in model.named_children() if not isinstance(child, _MINOR)]
    opened = []
    for name, child in model.named_children():
        has_members = isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and len(child) > 1)
        members = [(f"{name}.{inner}", module) for inner, module in child.named_children()]
        opened += [
            path for path, module in (members if has_members else [(name, child)]) if not isinstance(module, _MINOR)
        ]
    return tuple(opened if len(opened) <= _MANY else whole)
