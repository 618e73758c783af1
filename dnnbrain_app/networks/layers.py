"""Layers: which there are, what they give, and how a user names them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.networks.layouts import ChannelFollower
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.tracing import FUNCTION, Tracer, find_tensor

if TYPE_CHECKING:
    from dnnbrain_app.networks.reduction import Reduction


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of one module, or of one function between modules, in the forward pass.

    Parameters
    ----------
    name : str
        The path; with ``:2`` for the second of several calls (``layer3.0.relu:2``); or the alias, if chosen by it.
    path : str
        The module's path (``layer3.0.conv1``), or that of the module which calls the function, and the function's name
        (``layer3.0.add``).
    call : int
        Which of the calls in one forward pass, from 1.
    shape : tuple of int
        Of one stimulus's activations: (channels, rows, columns), (channels, frames, rows, columns) for clips,
        (channels, tokens, 1) for tokens, or (units,).
    n_features : int
        Units in all.
    depth : int
        Position in the forward pass, from 0.
    kind : str
        Class of the module, or ``function``.
    problem : str
        Why it cannot be used, or empty.
    alias : str
        Friendly name, or empty.
    channels_last : bool
        Whether the network has the channels at the end, so that they must be brought to the front.
    reduction : Reduction, optional
        What is kept of it; `shape` and `n_features` are those of what is kept.
    """

    name: str
    path: str
    call: int
    shape: tuple[int, ...]
    n_features: int
    depth: int
    kind: str
    problem: str = ""
    alias: str = ""
    channels_last: bool = False
    reduction: Reduction | None = None


def list_layers(network: Network) -> list[Layer]:
    """Run two random images (or clips) through the network and list what fired.

    Returns
    -------
    list of Layer
        Calls of modules, and of functions between them, in the order of the forward pass; then the modules that were
        never called. Those with a `problem` are there to be explained, not to be used.

    Raises
    ------
    BadDataError
        If the network fails on its own transform's output.
    """
    fired: list[Layer] = []
    follower = ChannelFollower()

    def note(path: str, call: int, kind: str, output: Any) -> None:
        layer = _describe(path, call, kind, output, len(fired), follower)
        if kind != FUNCTION or not layer.problem:  # most functions are about something else than activations
            fired.append(layer)

    device = next(network.model.parameters(), torch.empty(0)).device
    try:
        images = network.normalize(torch.stack([network.transform(item) for item in _draw_noise(network)]).to(device))
        with follower, Tracer(network.model, note, functions=True) as tracer:
            tracer.run(images)
    except Exception as error:  # whatever a user's module or transform may raise
        kind = "clips" if network.n_frames else "images"
        raise BadDataError(
            f"network {network.name}: two trial {kind} failed: {type(error).__name__}: {error}"
        ) from error
    n_calls = Counter(layer.path for layer in fired)
    named = [
        layer if n_calls[layer.path] == 1 else replace(layer, name=f"{layer.path}:{layer.call}") for layer in fired
    ]
    modules = {path: type(module).__name__ for path, module in network.model.named_modules() if path}
    never = "is never called in the forward pass"
    silent = [Layer(path, path, 1, (), 0, len(fired), modules[path], never) for path in modules if path not in n_calls]
    return _add_aliases([*named, *silent], network.aliases)


def _draw_noise(network: Network) -> list[Any]:
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(2 * max(network.n_frames, 1))]
    pictures = [Image.fromarray(draw) for draw in draws]
    return [pictures[: network.n_frames], pictures[network.n_frames :]] if network.n_frames else pictures


def _describe(path: str, call: int, kind: str, output: Any, depth: int, follower: ChannelFollower) -> Layer:
    tensor = find_tensor(output)
    if tensor is None or tensor.ndim == 0 or len(tensor) != 2 or tensor.numel() == 0:
        return Layer(path, path, call, (), 0, depth, kind, "gives no tensor with one row a stimulus")
    axis = follower.find_axis(tensor)
    # three axes of unknown meaning are tokens; more have the channels first, as torch has them
    channels_last = tensor.ndim == 3 if axis is None else 2 <= axis == tensor.ndim - 1
    shape = tuple(turn_channels(tensor, channels_last=channels_last).shape[1:])
    return Layer(path, path, call, shape, math.prod(shape), depth, kind, channels_last=channels_last)


def turn_channels(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """Bring the channels to the front: (n, units), (n, channels, rows, columns), (n, channels, tokens, 1) ..."""
    if tensor.ndim == 1:
        return tensor[:, None]
    turned = tensor.movedim(-1, 1) if channels_last else tensor
    return turned[..., None] if turned.ndim == 3 else turned


def _add_aliases(layers: Sequence[Layer], aliases: Mapping[str, str]) -> list[Layer]:
    friendly = {name: alias for alias, name in reversed(list(aliases.items()))}  # the first of several
    return [replace(layer, alias=friendly.get(layer.name, "")) for layer in layers]


def choose_layers(layers: Sequence[Layer], patterns: Sequence[str], default: Sequence[str]) -> list[Layer]:
    """Choose layers by name.

    Parameters
    ----------
    layers : sequence of Layer
        What `list_layers` gave.
    patterns : sequence of str
        ``all``, which is every call of a module; ``main``, which stands for `default`; names or aliases; or patterns,
        in which ``*`` and ``?`` stand for anything within one part of the path: ``blocks.*`` is ``blocks.0`` but not
        ``blocks.0.project``. A pattern means functions (``layer?.*.add``) only if it fits no module.
    default : sequence of str
        The network's main layers, as names, aliases or patterns.

    Returns
    -------
    list of Layer
        Each once, in the order of the forward pass. One that was chosen by its alias has that name.

    Raises
    ------
    UnknownNameError
        A name or pattern that fits nothing.
    UsageError
        A layer that is called more than once (its calls are listed), never, or without usable output.
    """
    usable = [layer for layer in layers if not layer.problem]
    chosen: dict[int, Layer] = {}
    for pattern in patterns:
        if pattern == "all":
            found = [layer for layer in usable if layer.kind != FUNCTION]
        elif pattern == "main":
            # a set for a whole family may name a module that this network does not use, or uses several times
            unused = {layer.name for layer in layers if layer.problem}
            found = [layer for entry in default if entry not in unused for layer in match_layers(entry, usable)]
        elif _is_pattern(pattern):
            found = match_layers(pattern, usable)
        else:
            found = [find_layer(pattern, layers)]
        for layer in found:
            chosen.setdefault(layer.depth, layer)  # keeps the name by which it was chosen first
    if not chosen:
        raise UsageError(f"no layer is left of {', '.join(patterns) or 'an empty list'}; see --list-layers for names.")
    return [chosen[depth] for depth in sorted(chosen)]


def find_layer(name: str, layers: Sequence[Layer]) -> Layer:
    """Find the one layer that has this name or alias.

    Raises
    ------
    UnknownNameError
        If there is none.
    UsageError
        If it is called more than once, never, or without usable output.
    """
    named = [layer for layer in layers if name == layer.name] or [layer for layer in layers if name == layer.alias]
    calls = named or [layer for layer in layers if name in (layer.path, f"{layer.path}:{layer.call}")]
    if not calls:
        raise _unknown_layer(name, layers)
    if len(calls) > 1:
        listed = ", ".join(layer.name for layer in calls)
        raise UsageError(f"layer {name!r} is called {len(calls)} times; say which: {listed}.")
    if calls[0].problem:
        raise UsageError(f"layer {name!r} ({calls[0].kind}) {calls[0].problem}; choose another.")
    return replace(calls[0], name=name) if name == calls[0].alias else calls[0]


def match_layers(pattern: str, layers: Sequence[Layer]) -> list[Layer]:
    """Find the layers whose name, path or alias fits; modules, or else functions.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    by_name = [layer for layer in layers if _fits(layer.name, pattern) or _fits(layer.path, pattern)]
    by_alias = [replace(layer, name=layer.alias) for layer in layers if layer.alias and _fits(layer.alias, pattern)]
    modules = [layer for layer in by_name if layer.kind != FUNCTION]
    matched = [*modules, *by_alias] or by_name
    if not matched:
        raise _unknown_layer(pattern, layers)
    return matched


def _unknown_layer(name: str, layers: Sequence[Layer]) -> UnknownNameError:
    usable = [layer for layer in layers if not layer.problem]
    names = [layer.name for layer in usable] + [layer.alias for layer in usable if layer.alias]
    return UnknownNameError("layer", name, names, hint="See --list-layers.")


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _fits(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
