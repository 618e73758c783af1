from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dnnbrain_app.errors import UsageError
from dnnbrain_app.networks.layers import list_layers
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.outputs import OutputModel, make_name, refuse_weights


class Runtime:
    """Multiplies by 1, 2, 3 ...; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, images: Tensor, model: OutputModel) -> Tensor:
        watched = model.list_watched()
        self.asked.append(watched)
        for factor, name in enumerate(["first", "half_", "inner.pool", "twice", "inner", "twice"], 1):
            if name in watched:
                images = model.show(name, images * factor)
        return images


@pytest.fixture
def model() -> OutputModel:
    kinds = {"first": "Conv", "half_": "Relu", "inner": "Model", "inner.pool": "Pool", "twice": "Relu"}
    return OutputModel(kinds, Runtime()).eval()


def test_asks_for_what_is_watched(model):
    images, seen = torch.ones(2, 3, 4, 4), []
    assert torch.equal(model(images), images)
    handle = model.get_submodule("inner.pool").register_forward_hook(lambda _m, _i, output: seen.append(output))
    assert torch.equal(model(images), 3 * images)
    handle.remove()
    model(images)
    assert model._compute.asked == [[], ["inner.pool"], []]
    assert torch.equal(seen[0], 3 * images)
    assert len(seen) == 1


def test_is_listed_like_any_network(model):
    network = Network("net", model, lambda _image: torch.ones(3, 4, 4), ())
    layers = [(layer.name, layer.kind) for layer in list_layers(network)]
    assert layers == [
        ("first", "Conv"),
        ("half_", "Relu"),
        ("inner.pool", "Pool"),
        ("twice:1", "Relu"),
        ("inner", "Model"),
        ("twice:2", "Relu"),
    ]  # and not the multiplications, which are not the network's


def test_hooks_may_change_what_follows(model):
    model.first.register_forward_hook(lambda _m, _i, output: output * 0)
    assert model(torch.ones(1, 3, 2, 2)).sum() == 0


def test_a_copy_has_hooks_of_its_own(model):
    copied, seen = copy.deepcopy(model), []
    copied.first.register_forward_hook(lambda *_: seen.append(1))
    model(torch.ones(1, 3, 2, 2))
    assert not seen
    copied(torch.ones(1, 3, 2, 2))
    assert seen == [1]


@pytest.mark.parametrize("text", ["a.b:0", "conv/Relu_output_0", "", "...", "half", "type", "training", "größe", "12"])
def test_any_text_names_a_module(text):
    taken: set[str] = set()
    for _ in range(3):
        name = make_name(text, taken)
        nn.Identity().add_module(name, nn.Identity())  # refuses dots, nothing, and names of its own
        assert name not in taken
        assert ":" not in name
        taken.add(name)


def test_refuses_weights_beside_the_file():
    refuse_weights("onnx:a.onnx", None)
    with pytest.raises(UsageError, match=r"network onnx:a\.onnx: its file has the weights; --weights w\.pth does not"):
        refuse_weights("onnx:a.onnx", Path("w.pth"))
