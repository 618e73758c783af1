from __future__ import annotations

import copy
import dataclasses
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from dnnbrain_app.errors import TemporaryError, UsageError
from dnnbrain_app.networks import recording
from dnnbrain_app.networks.layers import choose_layers, list_layers
from dnnbrain_app.networks.recording import Recorder

CPU = torch.device("cpu")


def record(network, patterns, images, *, device=CPU, precision="float32") -> dict[str, torch.Tensor]:
    layers = choose_layers(list_layers(network), patterns, ())
    with Recorder(network, layers, device, precision=precision) as recorder:
        return recorder.run(images)


def seeded(build, *arguments, **more) -> nn.Module:
    torch.manual_seed(3)
    return build(*arguments, **more)


def make_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(3456, 5),
    )


def make_resnet() -> nn.Module:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def make_bottleneck() -> nn.Module:
    return models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10)


def make_encoder() -> nn.Module:
    """A transformer with torch's own encoder layer, which has a fused form for when nobody watches."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.Sequential(nn.Conv2d(3, 16, 8, 8), Tokens(), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2) + 0


class InPlace(nn.Module):
    """Works in place by functions, as torchvision's GoogLeNet and ResNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.conv1(x)), inplace=True)
        y = self.conv2(x)
        y += x
        y[:, :2] = 0
        return y


class Viewer(nn.Module):
    """Relies on the usual order of memory, as much code does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(2), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.pool(self.conv(x)).view(len(x), -1))
        return y


class Stubborn(nn.Module):
    """Catches every failure of its part, and goes on; counts the calls of what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.n_calls = nn.Conv2d(3, 4, 5), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            x = self.first(x)
        except Exception:
            x = x * 0
        self.n_calls += 1
        return x


class Fragile(nn.Module):
    """Runs out of memory above some number of images; notes their numbers."""

    def __init__(self, limit: int, message: str) -> None:
        super().__init__()
        self.cnn, self.limit, self.message, self.sizes = make_cnn(), limit, message, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise RuntimeError(self.message)
        y: torch.Tensor = self.cnn(x)
        return y


class Sometimes(nn.Module):
    """Calls a module only for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bright(x) if x.mean() > -1 else x * 1


@pytest.fixture
def images(rng) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((5, 3, 32, 32)).astype(np.float32))


BUILDERS = {
    "cnn": make_cnn,
    "in place": InPlace,
    "resnet": make_resnet,
    "squeezenet": lambda: models.squeezenet1_1(num_classes=10),
    "encoder": make_encoder,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_layer_does_not_depend_on_its_company(name, images, make_network):
    """Trap 1: convolutions came back rectified if a later layer was asked for as well."""
    network = make_network(seeded(BUILDERS[name]))
    layers = [layer for layer in list_layers(network) if not layer.problem]
    with Recorder(network, layers, CPU) as recorder:
        together = recorder.run(images)
    assert list(together) == [layer.name for layer in layers]
    for layer in layers[:: max(1, len(layers) // 12)]:
        with Recorder(network, [layer], CPU) as recorder:
            alone = recorder.run(images)
        np.testing.assert_array_equal(alone[layer.name], together[layer.name], err_msg=layer.name)


@pytest.mark.parametrize(("name", "layer"), [("cnn", "0"), ("resnet", "bn1"), ("in place", "norm")])
def test_values_before_a_rectifier_are_not_rectified(name, layer, images, make_network):
    """Traps 1 and 2: modules, and functions, that work in place would overwrite them."""
    values = record(make_network(seeded(BUILDERS[name])), ["all"], images)[layer]
    assert 0.2 < (values < 0).float().mean() < 0.8


def test_values_are_a_copy(images, make_network):
    """Trap 2: what the network, or the next batch, does afterwards must not show."""
    network = make_network(seeded(make_cnn))
    layers = choose_layers(list_layers(network), ["all"], ())
    with Recorder(network, layers, CPU) as recorder:
        first = recorder.run(images)
        kept = {name: values.clone() for name, values in first.items()}
        recorder.run(-images)
    for name, values in first.items():
        np.testing.assert_array_equal(values, kept[name])


@pytest.mark.parametrize(("build", "n_calls"), [(make_resnet, 2), (make_bottleneck, 3)])
def test_every_call_of_a_module_is_recorded(build, n_calls, images, make_network):
    """Trap 4: the first calls were overwritten by the last."""
    network = make_network(seeded(build))
    names = [f"layer1.0.relu:{i + 1}" for i in range(n_calls)]
    values = record(network, ["layer1.0.bn?", "layer1.0.relu*", "layer1.0", "layer1.0.add"], images)
    for i, name in enumerate(names[:-1], 1):
        np.testing.assert_array_equal(values[name], values[f"layer1.0.bn{i}"].clamp(min=0))
    np.testing.assert_array_equal(values[names[-1]], values["layer1.0"])
    np.testing.assert_array_equal(values[names[-1]], values["layer1.0.add"].clamp(min=0))


def test_functions_are_recorded(images, make_network):
    network = make_network(seeded(InPlace))
    values = record(network, ["norm", "relu", "conv2", "add"], images)
    np.testing.assert_array_equal(values["relu"], values["norm"].clamp(min=0))
    np.testing.assert_array_equal(values["add"], values["conv2"] + values["relu"])


def test_fused_attention_is_never_used(images, make_network):
    """Torch fuses an encoder layer only where no module in it is watched: the values must not change by watching."""
    network = make_network(seeded(make_encoder))
    names = [layer.name for layer in list_layers(network) if not layer.problem]
    assert "2.layers.0.linear1" in names
    fused = torch.backends.mha.get_fastpath_enabled()
    assert record(network, ["2.layers.0.norm1"], images)["2.layers.0.norm1"].isfinite().all()
    assert torch.backends.mha.get_fastpath_enabled() is fused


def test_channels_come_first(images, make_network):
    model = seeded(
        models.SwinTransformer, patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=[4, 4]
    )
    network = make_network(model)
    names = ["features.0.0", "features.0.1", "features.0.2", "features.1.0.mlp.0"]
    values = record(network, names, images)
    np.testing.assert_array_equal(values["features.0.0"], values["features.0.1"])  # a permutation
    plain = {}
    model.features[1][0].mlp[0].register_forward_hook(lambda _module, _inputs, output: plain.update(linear=output))
    with torch.inference_mode():
        model(images)
    expected = plain["linear"].permute(0, 3, 1, 2).flatten(1)
    np.testing.assert_allclose(values["features.1.0.mlp.0"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 3), (2, 3, 1, 1), (2, 40, 50, 30), (2, 3, 4, 5, 6), (1, 1, 7, 3), (2, 2000, 3, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_keep_the_order_of_units(shape, dtype, rng):
    values = torch.from_numpy(rng.standard_normal(shape)).to(dtype)
    expected = values.reshape(shape[0], -1).float()
    for order in ("contiguous", "innermost", "sliced"):
        tensor = values.movedim(1, -1).contiguous().movedim(-1, 1) if order == "innermost" else values
        tensor = torch.cat([tensor, tensor], 1)[:, : shape[1]] if order == "sliced" else tensor
        rows = recording._copy_rows(tensor)
        assert rows.dtype == torch.float32
        assert rows.is_contiguous()
        np.testing.assert_array_equal(rows, expected)
        assert rows.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_networks_that_need_the_usual_order_of_memory(images, make_network):
    network = make_network(seeded(Viewer))
    values = record(network, ["all"], images)
    with torch.inference_mode():
        expected = network.model(images)
    np.testing.assert_allclose(values["fc"], expected, atol=1e-6)
    first = record(network, ["conv"], images)  # the pass ends before the line that needs it
    np.testing.assert_array_equal(first["conv"], values["conv"])


def test_uint8_is_normalised_on_the_batch(images, make_network):
    pixels = ((images.clamp(-2, 2) + 2) * 63).to(torch.uint8)
    network = make_network(seeded(make_cnn))
    expected = record(network, ["5"], (pixels.float() / 255 - 0.5) / 0.25)
    network = dataclasses.replace(network, normalize=lambda batch: (batch.float() / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(record(network, ["5"], pixels)["5"], expected["5"], rtol=1e-5)


def test_clips(rng, make_network):
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    clips = torch.from_numpy(rng.standard_normal((2, 3, 5, 8, 8)).astype(np.float32))
    network = make_network(model, 8)
    network = dataclasses.replace(network, n_frames=5, transform=lambda _clip: clips[0])
    values = record(network, ["all"], clips)
    with torch.inference_mode():
        np.testing.assert_allclose(values["0"], model[0](clips).flatten(1), atol=1e-6)
        np.testing.assert_allclose(values["4"], model(clips), atol=1e-6)


@pytest.mark.parametrize("last", ["0", "1"])
def test_the_pass_ends_after_the_last_layer(last, images, make_network):
    model = make_cnn()
    calls: list[int] = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    network = make_network(model)
    layers = choose_layers(list_layers(network), ["0", last], ())
    with Recorder(network, layers, CPU) as recorder:
        recorder.run(images)
        calls.clear()  # the first batch is preceded by a whole pass of one image
        recorder.run(images)
    assert calls == []


def test_the_pass_ends_whatever_the_network_catches(images, make_network):
    network = make_network(seeded(Stubborn))
    layers = choose_layers(list_layers(network), ["first"], ())
    with Recorder(network, layers, CPU) as recorder:
        recorder.run(images)
        before = network.model.n_calls
        recorder.run(images)
    assert network.model.n_calls == before


def test_a_copied_network_stays_in_evaluation_mode(images, make_network):
    """Trap 3: copies of torchvision's extractors train."""
    network = make_network(seeded(make_resnet))
    before = copy.deepcopy(network.model.state_dict())
    other = dataclasses.replace(network, model=copy.deepcopy(network.model))
    np.testing.assert_array_equal(
        record(network, ["avgpool"], images)["avgpool"], record(other, ["avgpool"], images)["avgpool"]
    )
    assert all(torch.equal(value, before[key]) for key, value in other.model.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_mode_is_refused(precision, images, make_network):
    """Trap 3: batch statistics and dropout would make a stimulus depend on its batch."""
    network = make_network(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)))
    layers = choose_layers(list_layers(network), ["1"], ())
    network.model[1].train()
    with (
        Recorder(network, layers, CPU, precision=precision) as recorder,
        pytest.raises(UsageError, match="1 is in training mode"),
    ):
        recorder.run(images)


def test_bfloat16_is_close_and_leaves_the_network_alone(images, make_network):
    network = make_network(seeded(make_resnet))
    exact = record(network, ["layer?", "fc"], images)
    rounded = record(network, ["layer?", "fc"], images, precision="bfloat16")
    for name, values in rounded.items():
        assert values.dtype == torch.float32
        assert 1e-4 < torch.linalg.vector_norm(values - exact[name]) / torch.linalg.vector_norm(exact[name]) < 3e-2
    assert {parameter.dtype for parameter in network.model.parameters()} == {torch.float32}
    np.testing.assert_array_equal(record(network, ["fc"], images)["fc"], exact["fc"])


def test_slow_bfloat16_is_told(images, make_network, monkeypatch, caplog):
    network = make_network(seeded(make_cnn))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    record(network, ["0"], images, precision="bfloat16")
    assert "this processor has no instructions for bfloat16; float32 would be faster" in caplog.text


@pytest.mark.parametrize("precision", ["float16", "half", "float64"])
def test_other_precisions_are_refused(precision, make_network):
    """Trap 10: float16 is thirty times slower than float32 on processors, and overflows."""
    network = make_network(make_cnn())
    with pytest.raises(UsageError, match=f"precision '{precision}': should be one of float32, bfloat16"):
        Recorder(network, list_layers(network), CPU, precision=precision)


def test_bfloat16_needs_a_network_of_torch(make_network):
    network = make_network(nn.Sequential(nn.Identity()))
    with pytest.raises(UsageError, match="network tiny does not compute in torch; use float32"):
        Recorder(network, list_layers(network), CPU, precision="bfloat16")


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x.float().mean((2, 3)))
        return y


def test_a_network_that_cannot_do_bfloat16_says_so(images, make_network):
    with pytest.raises(UsageError, match=r"network tiny fails: RuntimeError: .*dtype.*; try precision float32"):
        record(make_network(Mixed()), ["fc"], images, precision="bfloat16")


MESSAGES = (
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    "CUDA out of memory. Tried to allocate 9 GiB",
    "MPS backend out of memory",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_batches_are_halved_when_memory_is_short(message, images, make_network, caplog):
    network = make_network(Fragile(2, message))
    layers = choose_layers(list_layers(network), ["cnn.5"], ())
    network.model.sizes.clear()
    with caplog.at_level(logging.WARNING), Recorder(network, layers, CPU) as recorder:
        values = recorder.run(images)["cnn.5"]
        assert network.model.sizes == [1, 5, 2, 2, 1]  # one image tells how to lay out memory
        recorder.run(images)
        assert network.model.sizes == [1, 5, 2, 2, 1, 2, 2, 1]
    assert "not enough memory for 5 images at once; going on with 2" in caplog.text
    network.model.limit = 5
    np.testing.assert_allclose(values, record(network, ["cnn.5"], images)["cnn.5"], atol=1e-6)


def test_too_little_memory_for_one_image(images, make_network):
    network = make_network(Fragile(2, MESSAGES[0]))
    layers = choose_layers(list_layers(network), ["cnn.5"], ())
    network.model.limit = 0
    with Recorder(network, layers, CPU) as recorder, pytest.raises(TemporaryError, match="for a single image"):
        recorder.run(images)


def test_layers_that_fire_only_sometimes(images, make_network):
    network = make_network(Sometimes())
    layers = choose_layers(list_layers(network), ["bright"], ())
    with Recorder(network, layers, CPU) as recorder:
        assert recorder.run(images + 1)["bright"].shape == (5, 3072)
        with pytest.raises(UsageError, match="layer 'bright' fired in the trial run but not for these stimuli"):
            recorder.run(images - 9)


class Pairs(nn.Module):
    """Has two rows of something, as a trial run of two images has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.cat([x[:1] * 0, x[:1]]).sum()


def test_rows_of_something_else(images, make_network):
    network = make_network(Pairs())
    assert record(network, ["add"], images)["add"].shape == (5, 3072)
    with pytest.raises(UsageError, match="layer 'cat' gives no row for each stimulus; choose another"):
        record(network, ["cat"], images)


def test_nothing_is_left_behind(images, make_network):
    network = make_network(make_resnet())
    layers = choose_layers(list_layers(network), ["layer1.0.add"], ())
    with pytest.raises(UsageError, match="network tiny fails"), Recorder(network, layers, CPU) as recorder:
        recorder.run(images[:, :1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())
    with Recorder(network, layers, CPU) as recorder:
        recorder.run(images)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())


def test_the_batch_does_not_change_the_values(images, make_network):
    network = make_network(seeded(make_resnet))
    layers = choose_layers(list_layers(network), ["layer4"], ())
    with Recorder(network, layers, CPU) as recorder:
        together = recorder.run(images)["layer4"]
        alone = torch.cat([recorder.run(image[None])["layer4"] for image in images])
    np.testing.assert_allclose(alone, together, atol=1e-6 * together.abs().max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", BUILDERS)
def test_cuda_equals_the_cpu(name, images, make_network):
    """Trap 2: copies on one device and views on the other gave different values."""
    network = make_network(seeded(BUILDERS[name]))
    expected = record(network, ["all"], images)
    for layer, values in record(network, ["all"], images, device=torch.device("cuda")).items():
        assert torch.linalg.vector_norm(values - expected[layer]) <= 1e-3 * torch.linalg.vector_norm(expected[layer])
