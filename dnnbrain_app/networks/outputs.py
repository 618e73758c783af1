"""A module of torch in front of a network that runs elsewhere.

The app looks at layers through hooks on the modules of a network. ONNX Runtime has no modules, and Keras's layers,
though modules of torch, never call their hooks. So each output of such a network gets a probe here: a child that gives
back what it is given, and is called with the output as soon as there is one. All that works by hooks (listing layers,
recording, ending a pass early) then works there too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor, nn

from dnnbrain_app.errors import UsageError


class OutputModel(nn.Module):
    """Probes for the outputs of a network that runs elsewhere.

    Parameters
    ----------
    kinds : mapping of str to str
        Names of the outputs in the order of the forward pass, and what computes each (``Conv``), which becomes the
        name of the probe's class. A dot makes an output part of one that comes before it in the mapping.
    compute : callable
        From a batch (n, 3, rows, columns) and this model to the network's output. It calls `show` with each output,
        at least with those that `list_watched` names; for one that is computed several times, as often.
    """

    def __init__(self, kinds: Mapping[str, str], compute: Callable[[Tensor, OutputModel], Tensor]) -> None:
        super().__init__()
        self._compute = compute
        for name, kind in kinds.items():
            parent, _, child = name.rpartition(".")
            self.get_submodule(parent).add_module(child, type(kind, (nn.Identity,), {})())

    def list_watched(self) -> list[str]:
        """Name the outputs that somebody looks at; the others need not be computed."""
        return [name for name, probe in self.named_modules() if name and probe._forward_hooks]

    def show(self, name: str, output: Tensor) -> Tensor:
        """Show an output to those who look at it; returns what they want the network to go on with."""
        shown: Tensor = self.get_submodule(name)(output)
        return shown

    def forward(self, images: Tensor) -> Tensor:
        """Run the network on a batch (n, 3, rows, columns)."""
        with torch._C.DisableTorchFunction():  # what the runtime does in torch is not the network's own functions
            return self._compute(images, self)


def make_name(text: str, taken: Container[str]) -> str:
    """Make the name of a module out of any text, and another one than those that are taken.

    Examples
    --------
    >>> make_name("/layer1/layer1.0/conv1/Conv_output", set())
    'layer1_layer1_0_conv1_Conv_output'
    >>> make_name("conv:0", {"conv_0"}), make_name("half", set())
    ('conv_0_', 'half_')
    """
    name = re.sub(r"[^\w-]+", "_", text).strip("_") or "output"
    while name in taken or hasattr(nn.Identity(), name):
        name += "_"
    return name


def refuse_weights(name: str, weights: object) -> None:
    """Refuse weights for a network whose file has its own.

    Raises
    ------
    UsageError
        If there are any.
    """
    if weights is not None:
        raise UsageError(f"network {name}: its file has the weights; --weights {weights} does not apply.")
