"""Layers: which there are, what they give, and how a user names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.networks.sources import Network

_MINOR = (nn.Dropout, nn.Flatten, nn.Identity, nn.BatchNorm2d, nn.LayerNorm)


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of one module in the forward pass.

    Parameters
    ----------
    name : str
        The module's path (``layer3.0.conv1``); with ``:2`` for the second of several calls (``layer3.0.relu:2``).
    shape : tuple of int
        Of one stimulus's activations: (channels, rows, columns), (units,), or (channels, tokens, 1) for tokens.
    n_features : int
        Units in all.
    depth : int
        Position in the forward pass, from 0.
    kind : str
        Class of the module.
    problem : str
        Why it cannot be used, or empty.
    """

    name: str
    shape: tuple[int, ...]
    n_features: int
    depth: int
    kind: str
    problem: str = ""


def list_layers(network: Network) -> list[Layer]:
    """Run two random images through the network and list what fired, in order, then the modules that did not.

    Returns
    -------
    list of Layer
        Those with a `problem` are there to be explained, not to be used.

    Raises
    ------
    BadDataError
        If the network fails on its own transform's output.
    """
    noise = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    modules = {path: module for path, module in network.model.named_modules() if path}
    fired: list[tuple[str, tuple[int, ...] | None]] = []
    handles = [module.register_forward_hook(partial(_note_output, fired, path)) for path, module in modules.items()]
    device = next(network.model.parameters(), torch.empty(0)).device
    try:
        images = torch.stack([network.transform(Image.fromarray(pixels)) for pixels in noise])
        with torch.inference_mode():
            network.model(images.to(device))
    except Exception as error:  # whatever a user's module or transform may raise
        raise BadDataError(
            f"network {network.name}: two trial images failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    n_calls = Counter(path for path, _ in fired)
    seen: Counter[str] = Counter()
    layers = []
    for depth, (path, shape) in enumerate(fired):
        seen[path] += 1
        name = path if n_calls[path] == 1 else f"{path}:{seen[path]}"
        problem = "" if shape else "gives no tensor with one row a stimulus"
        kind = type(modules[path]).__name__
        layers.append(Layer(name, shape or (), int(np.prod(shape)) if shape else 0, depth, kind, problem))
    silent = [path for path in modules if path not in n_calls]
    never = "is never called in the forward pass"
    return layers + [Layer(path, (), 0, len(fired), type(modules[path]).__name__, never) for path in silent]


def _note_output(fired: list[Any], path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    tensor = find_tensor(output)
    usable = tensor is not None and tensor.ndim >= 1 and len(tensor) == 2 and tensor.numel() > 0
    fired.append((path, (tuple(tensor.shape[1:]) or (1,)) if usable and tensor is not None else None))


def find_tensor(output: Any) -> Tensor | None:
    """Find the activations in what a module returned: the tensor, or the first one in a tuple, list or dictionary.

    Tokens (n, tokens, channels) come back as (n, channels, tokens, 1), so that channels are first everywhere.
    """
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        found = (find_tensor(part) for part in output)
        return next((tensor for tensor in found if tensor is not None), None)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return output.transpose(1, 2).unsqueeze(3) if output.ndim == 3 else output


def choose_layers(layers: Sequence[Layer], patterns: Sequence[str], default: Sequence[str]) -> list[Layer]:
    """Choose layers by name.

    Parameters
    ----------
    layers : sequence of Layer
        What `list_layers` gave.
    patterns : sequence of str
        ``all``; ``main``, which stands for `default`; names; or patterns, in which ``*`` and ``?`` stand for anything
        within one part of the path: ``blocks.*`` is ``blocks.0`` but not ``blocks.0.project``.
    default : sequence of str
        The network's main layers, as names or patterns.

    Returns
    -------
    list of Layer
        Each once, in the order of the forward pass.

    Raises
    ------
    UnknownNameError
        A name or pattern that fits nothing.
    UsageError
        A module that is called more than once (its calls are listed), never, or without usable output.
    """
    usable = [layer for layer in layers if not layer.problem]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == "all":
            chosen.update(layer.name for layer in usable)
        elif pattern == "main":
            # a set for a whole family may name a module that this network does not use, or uses several times
            unused = {layer.name for layer in layers if layer.problem}
            for entry in default:
                chosen.update([] if entry in unused else _match_pattern(entry, usable))
        elif any(sign in pattern for sign in "*?["):
            chosen.update(_match_pattern(pattern, usable))
        else:
            chosen.add(_match_name(pattern, layers))
    if not chosen:
        raise UsageError(f"no layer is left of {', '.join(patterns) or 'an empty list'}; see --list-layers for names.")
    return [layer for layer in usable if layer.name in chosen]


def _match_name(name: str, layers: Sequence[Layer]) -> str:
    for layer in layers:
        if layer.name == name and layer.problem:
            raise UsageError(f"layer {name!r} ({layer.kind}) {layer.problem}; choose another.")
        if layer.name == name:
            return name
    calls = [layer.name for layer in layers if _path(layer.name) == name]
    if calls:
        raise UsageError(f"layer {name!r} is called {len(calls)} times; say which: {', '.join(calls)}.")
    raise _unknown_layer(name, layers)


def _match_pattern(pattern: str, usable: Sequence[Layer]) -> list[str]:
    matched = [layer.name for layer in usable if _fits(layer.name, pattern) or _fits(_path(layer.name), pattern)]
    if not matched:
        raise _unknown_layer(pattern, usable)
    return matched


def _unknown_layer(name: str, layers: Sequence[Layer]) -> UnknownNameError:
    return UnknownNameError(
        "layer", name, [layer.name for layer in layers if not layer.problem], hint="See --list-layers."
    )


def _fits(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _path(name: str) -> str:
    return name.partition(":")[0]


def find_main_layers(architecture: str, model: nn.Module) -> tuple[str, ...]:
    """Choose a sensible handful of layers.

    AlexNet: every rectified layer and the logits. VGG: the end of each stage, the rectified fully connected layers and
    the logits. ResNet and its kin: the four stages, the pooled features and the logits. Vision transformers: every
    block and the logits. Anything else: the top-level modules, with sequences opened once, without dropout and norms.
    """
    modules = dict(model.named_modules())
    if architecture == "alexnet":
        return (*_of_kind(modules, nn.ReLU, ""), "classifier.6")
    if architecture.startswith("vgg"):
        return (*_of_kind(modules, nn.MaxPool2d, ""), *_of_kind(modules, nn.ReLU, "classifier"), "classifier.6")
    if architecture.startswith(("resnet", "resnext", "wide_resnet")):
        return ("layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
    if architecture.startswith("vit_"):
        return ("encoder.layers.*", "heads")
    return find_top_layers(model)


def _of_kind(modules: dict[str, nn.Module], kind: type[nn.Module], prefix: str) -> tuple[str, ...]:
    return tuple(path for path, module in modules.items() if isinstance(module, kind) and path.startswith(prefix))


def find_top_layers(model: nn.Module) -> tuple[str, ...]:
    """Name the top-level modules; a sequence or list of modules stands for its members."""
    names = []
    for name, child in model.named_children():
        opened = isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and len(child) > 1)
        members = (
            [(f"{name}.{inner}", module) for inner, module in child.named_children()] if opened else [(name, child)]
        )
        names += [path for path, module in members if not isinstance(module, _MINOR)]
    return tuple(names)
