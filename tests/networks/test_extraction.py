from __future__ import annotations

import copy
import dataclasses
import logging

import numpy as np
import pytest
import scipy.io
import torch
from scipy.stats import spearmanr
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional

from dnnbrain_app.derivatives.stores import FeatureStore
from dnnbrain_app.errors import BadDataError, TemporaryError, UsageError
from dnnbrain_app.networks.extraction import extract_activations, find_device
from dnnbrain_app.networks.layers import find_tensor, list_layers
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import load_network


@pytest.fixture
def extract(stimuli, read_image, tmp_path):
    """Extract; returns the activations, and the features of each layer."""

    def run(network, layers, *, batch_size=3, memory=10**9, stimuli=stimuli, progress=None):
        with FeatureStore(tmp_path / "work", memory) as store:
            activations = extract_activations(
                network,
                layers,
                stimuli,
                read_image,
                batch_size=batch_size,
                device="cpu",
                store=store,
                progress=progress,
            )
            return activations, {name: np.array(store.read(name)) for name in activations.names}

    return run


def make_cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(3456, 5),
    )


class Fragile(nn.Module):
    """Runs out of memory above some number of images; counts its calls."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.cnn = make_cnn()
        self.limit = limit
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return self.cnn(x)


class Functional(nn.Module):
    """Works in place by functions, as torchvision's GoogLeNet and ResNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.norm(self.conv1(x)), inplace=True)
        y = self.conv2(x)
        y += x
        return y


def make_resnet() -> nn.Module:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def run_plainly(model: nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Every call of every module, by a plain forward pass that copies at once, of the model as torchvision has it."""
    values: dict[str, np.ndarray] = {}
    n_calls: dict[str, int] = {}

    def keep(path):
        def hook(_module, _inputs, output):
            n_calls[path] = n_calls.get(path, 0) + 1
            tensor = find_tensor(output)
            if tensor is not None:
                values[f"{path}:{n_calls[path]}"] = tensor.flatten(1).clone().numpy()

        return hook

    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(keep(path))
    with torch.no_grad():
        model.eval()(images)
    return values


def seeded(build, **arguments) -> nn.Module:
    torch.manual_seed(3)
    return build(**arguments)


ARCHITECTURES = {
    "squeezenet": (lambda: seeded(models.squeezenet1_1, num_classes=10), 64),
    "resnet": (lambda: seeded(make_resnet), 64),
    "functional": (lambda: seeded(Functional), 32),
    "swin": (
        lambda: seeded(
            models.SwinTransformer, patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4]
        ),
        64,
    ),
    "vit": (
        lambda: seeded(
            models.VisionTransformer,
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
        ),
        32,
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_layers_equal_a_plain_forward_pass(name, extract, make_network, stimuli, read_image):
    """Traps 1 and 4, and functions that work in place (ResNet's sums, GoogLeNet's rectifiers)."""
    build, size = ARCHITECTURES[name]
    network = make_network(build(), size)
    activations, features = extract(network, ["all"])
    expected = run_plainly(build(), torch.stack([network.transform(read_image(path)) for path in stimuli.paths]))
    assert activations.names == tuple(layer.name for layer in list_layers(network) if not layer.problem)
    for layer, values in features.items():
        exact = expected[layer if ":" in layer else f"{layer}:1"]
        assert np.linalg.norm(values - exact) <= 3e-6 * np.linalg.norm(exact), layer


@pytest.mark.parametrize("name", ["features.0", "features.3.squeeze"])
def test_a_layer_does_not_depend_on_its_company(name, extract, make_network):
    """Trap 1: convolutions came back rectified if a later layer was asked for as well."""
    network = make_network(seeded(models.squeezenet1_1), 64)
    alone = extract(network, [name])[1][name]
    together = extract(network, ["all"])[1][name]
    np.testing.assert_array_equal(alone, together)
    assert 0.1 < (alone < 0).mean() < 0.9


def test_a_copied_network_stays_in_evaluation_mode(extract, make_network):
    """Trap 3: copies of torchvision's extractors train."""
    network = make_network(make_resnet())
    before = copy.deepcopy(network.model.state_dict())
    other = dataclasses.replace(network, model=copy.deepcopy(network.model))
    first, second = extract(network, ["avgpool"])[1], extract(other, ["avgpool"])[1]
    np.testing.assert_array_equal(first["avgpool"], second["avgpool"])
    assert all(torch.equal(value, before[key]) for key, value in other.model.state_dict().items())


def test_training_mode_is_refused(extract, make_network):
    """Trap 3: batch statistics and dropout would make a stimulus depend on its batch."""
    network = make_network(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)))
    network.model[1].train()
    with pytest.raises(UsageError, match="1 is in training mode"):
        extract(network, ["1"])


def test_half_precision_becomes_single(extract, make_network):
    """Trap 10."""
    _, features = extract(make_network(make_cnn().half()), ["5"])
    assert features["5"].dtype == np.float32
    np.testing.assert_allclose(features["5"], extract(make_network(make_cnn()), ["5"])[1]["5"], atol=5e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_do_not_matter(batch_size, extract, make_network):
    expected = extract(make_network(make_cnn()), ["all"], batch_size=3)[1]
    for name, values in extract(make_network(make_cnn()), ["all"], batch_size=batch_size)[1].items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)


def test_grams_are_those_of_the_features(extract, make_network):
    activations, features = extract(make_network(make_cnn()), ["5", "0"])
    assert activations.names == ("0", "5")
    for depth, gram in enumerate(activations.layers):
        X = features[gram.layer].astype(np.float64)
        assert gram.depth == depth
        np.testing.assert_allclose(gram.K, X @ X.T, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gram.row_sums, X.sum(1), rtol=1e-6, atol=1e-6)
    assert activations.layers[0].X is None  # 3136 features, 7 stimuli
    np.testing.assert_array_equal(activations.layers[1].X, features["5"])


def test_identical_images_are_computed_once(extract, make_network, stimuli):
    model = Fragile(limit=100)
    seen = []
    _, features = extract(make_network(model), ["cnn.5"], progress=lambda done, total: seen.append((done, total)))
    assert sum(model.sizes[1:]) == 5  # after the trial run
    assert seen == [(3, 5), (5, 5)]
    X = features["cnn.5"]
    np.testing.assert_array_equal(X[[1, 1]], X[[4, 5]])
    assert len(np.unique(X, axis=0)) == 5
    alone = dataclasses.replace(stimuli, digests=tuple(map(str, range(7))))
    np.testing.assert_allclose(extract(make_network(make_cnn()), ["5"], stimuli=alone)[1]["5"], X, atol=1e-5)


def test_the_pass_ends_after_the_last_layer(extract, make_network):
    model = nn.Sequential(make_cnn(), Fragile(limit=100))
    model[0].append(nn.Unflatten(1, (5, 1, 1)))
    model[1].cnn = nn.Identity()
    extract(make_network(model), ["0.3"])
    assert model[1].sizes == [2]  # the trial run


def test_short_memory_halves_the_batches(extract, make_network, caplog):
    model = Fragile(limit=2)
    with caplog.at_level(logging.WARNING):
        _, features = extract(make_network(model), ["cnn.5"], batch_size=5)
    assert "not enough memory for 5 images at once; going on with 2" in caplog.text
    assert model.sizes == [2, 5, 2, 2, 1]
    np.testing.assert_allclose(features["cnn.5"], extract(make_network(make_cnn()), ["5"])[1]["5"], atol=1e-5)


def test_no_memory_for_a_single_image(extract, make_network, monkeypatch):
    network = make_network(Fragile(limit=2))
    listed = list_layers(network)
    monkeypatch.setattr("dnnbrain_app.networks.extraction.list_layers", lambda _network: listed)
    network.model.limit = 0
    with pytest.raises(TemporaryError, match="memory for a single image"):
        extract(network, ["cnn.5"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -3e37])
def test_values_that_are_not_finite(extract, make_network, stimuli, read_image, value):
    """3e37 is finite, but its square, which K would have, is not."""
    third = np.asarray(read_image(stimuli.paths[2]))

    def transform(image):
        return torch.full((3, 8, 8), value if np.array_equal(image, third) else 1.0)

    network = dataclasses.replace(make_network(nn.Sequential(nn.Identity())), transform=transform)
    with pytest.raises(BadDataError, match=r"layer '0' has values that are not finite, .* stimulus '02\.png'"):
        extract(network, ["0"])


def test_bad_transforms_and_sizes(extract, make_network, monkeypatch):
    network = make_network(make_cnn())
    with pytest.raises(UsageError, match="batch size 0"):
        extract(network, ["0"], batch_size=0)

    def refuse(image):
        if image.size == (40, 40):
            raise ValueError("too small")
        return torch.zeros(3, 32, 32)

    with pytest.raises(BadDataError, match=r"stimulus 00\.png: the transform of tiny failed: too small"):
        extract(dataclasses.replace(network, transform=refuse), ["0"])
    sizes = iter(range(20, 100))
    uneven = dataclasses.replace(make_network(nn.Sequential(nn.ReLU())), transform=lambda _: torch.zeros(3, 8, 8))
    listed = list_layers(uneven)
    uneven = dataclasses.replace(uneven, transform=lambda _: torch.zeros(3, 8, next(sizes)))
    monkeypatch.setattr("dnnbrain_app.networks.extraction.list_layers", lambda _network: listed)
    with pytest.raises(BadDataError, match="images of different shapes"):
        extract(uneven, ["0"])


@pytest.mark.parametrize("name", ["tpu:x", "cuda:99", "quantum"])
def test_devices(name):
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match=f"device '{name}' cannot be used here"):
        find_device(name)


@pytest.fixture(scope="module")
def objects92(shared) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and the RDMs of human IT, (4 participants, 4186), of Kriegeskorte et al. 2008."""
    folder = shared / "data" / "92objects"
    table = scipy.io.loadmat(folder / "Kriegeskorte_Neuron2008_supplementalData.mat", squeeze_me=True)["stimuli_92objs"]
    cells = scipy.io.loadmat(folder / "92_brainRDMs.mat", squeeze_me=True, struct_as_record=False)["RDMs"]
    rdms = np.array([[cell.RDM for cell in sessions] for sessions in cells], dtype=float).mean(1)
    return [np.asarray(image) for image in table["image"]], rdms[:, *np.triu_indices(92, 1)]


def transform_plainly(image) -> torch.Tensor:
    pixels = functional.pil_to_tensor(image).float() / 255
    resized = nn.functional.interpolate(pixels[None], (224, 224), mode="bilinear", antialias=True)[0]
    return functional.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (None, {0: 0.153, 4: 0.176, 8: 0.222, 12: 0.384, 15: 0.251}),
        (transform_plainly, {0: 0.048, 5: 0.144, 10: 0.171, 13: 0.268, 15: 0.158}),
    ],
    ids=["own", "plain"],
)
def test_human_it_by_block(transform, expected, objects92, extract, write_stimuli):
    """With its own transform: against the mean RDM. With the plain one: the mean of the correlations."""
    pictures, rdms = objects92
    network = load_network("efficientnet_lite0", NetworkOptions())
    if transform is None:
        rdms = rdms.mean(0, keepdims=True)
    else:
        network = dataclasses.replace(network, transform=transform)
    names = [f"blocks.{i}" for i in expected]
    activations, _ = extract(network, names, batch_size=16, stimuli=write_stimuli(pictures))
    for gram, rho in zip(activations.layers, expected.values(), strict=True):
        covariance = gram.K - np.outer(gram.row_sums, gram.row_sums) / gram.n_features
        deviation = np.sqrt(np.diag(covariance))
        distances = 1 - (covariance / np.outer(deviation, deviation))[np.triu_indices(92, 1)]
        assert np.mean([spearmanr(distances, rdm)[0] for rdm in rdms]) == pytest.approx(rho, abs=2e-3), gram.layer
