"""Watching a forward pass: which module was called when, and which functions ran between modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FUNCTION = "function"  # kind of a layer that is no module; ends its name where a module has the name already

# functions that compute nothing: they cut, turn, copy or ask
_MOVES = re.compile(
    "getitem|setitem|get|set|view|view_as|reshape|unflatten|permute|transpose|t|swapaxes|swapdims|movedim|moveaxis|"
    "squeeze|unsqueeze|expand|expand_as|broadcast_to|narrow|select|chunk|split|tensor_split|unbind|contiguous|clone|"
    "detach|to|type|type_as|float|half|bfloat16|cpu|cuda|size|dim|numel|stride"
)


class Enough(BaseException):  # not an error, and not for a network's own `except Exception`
    """Ends a forward pass early: the last layer that is needed was told."""


class Tracer:
    """Tells of calls during forward passes, for as long as the ``with`` lasts.

    Operators, methods of tensors and functions of torch are seen too, where a module that is not one of torch's own
    calls them, and named as torchvision names graph nodes: ``layer1.0.add``, ``flatten``. What runs inside scripted or
    compiled modules, or outside torch (numpy, other runtimes), is not seen.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    tell : callable
        Gets the path, the number of the call in this pass (from 1), the kind and the output. Raises `Enough` to stop.
    paths : container of str, optional
        What to tell of. Everything by default.
    functions : bool
        Whether to look at functions; it takes a few microseconds each.
    """

    def __init__(
        self,
        model: nn.Module,
        tell: Callable[[str, int, str, Any], None],
        *,
        paths: Container[str] | None = None,
        functions: bool = False,
    ) -> None:
        self._model = model
        self._tell = tell
        self._modules = {path: module for path, module in model.named_modules() if path}
        self._paths = paths
        self._mode = _FunctionMode(self._note_function) if functions else None
        self._calls: Counter[str] = Counter()
        self._inside: list[str | None] = []
        self._telling = self._quiet = False
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            if self._mode is not None:
                within = None if _is_leaf(module) else path
                self._handles.append(module.register_forward_pre_hook(partial(self._enter_module, within)))
            if self._mode is not None or self._paths is None or path in self._paths:
                self._handles.append(module.register_forward_hook(partial(self._leave_module, path)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, inputs: Tensor, *, quietly: bool = False) -> None:
        """Do one forward pass, without gradients; `quietly` tells of nothing."""
        self._quiet = quietly
        self._calls.clear()
        self._inside = [""]
        # torch's fused attention runs only where nobody watches: values would depend on which layers are asked for
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.inference_mode(), self._mode or nullcontext():
                self._model(inputs)
        except Enough:
            pass
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)

    def _enter_module(self, within: str | None, _module: nn.Module, _inputs: Any) -> None:
        self._inside.append(within)

    def _leave_module(self, path: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        self._note(path, type(module).__name__, output)
        if self._mode is not None:
            self._inside.pop()

    def _note_function(self, name: str, output: Any) -> None:
        within = self._inside[-1]
        if within is None or self._telling or _MOVES.fullmatch(name):
            return
        path = f"{within}.{name}" if within else name
        self._note(f"{path}.{FUNCTION}" if path in self._modules else path, FUNCTION, output)

    def _note(self, path: str, kind: str, output: Any) -> None:
        if self._quiet or (self._paths is not None and path not in self._paths):
            return
        self._calls[path] += 1
        self._telling = True  # what is done with the output now is not the network's doing
        try:
            self._tell(path, self._calls[path], kind, output)
        finally:
            self._telling = False


class _FunctionMode(TorchFunctionMode):
    """Hands on the name and output of each function of torch that is called within."""

    def __init__(self, note: Callable[[str, Any], None]) -> None:
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._note(getattr(func, "__name__", "").strip("_"), output)  # add, add_ and __add__ are one
        return output


def _is_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())


def find_tensor(output: Any) -> Tensor | None:
    """Find the activations in what a module returned: the tensor, or the first one in a tuple, list or dictionary."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        found = (find_tensor(part) for part in output)
        return next((tensor for tensor in found if tensor is not None), None)
    return output if isinstance(output, Tensor) and output.is_floating_point() else None
