from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional

from dnnbrain_app.errors import BadDataError, TemporaryError, UsageError
from dnnbrain_app.networks.extraction import extract_features, find_device, make_grams
from dnnbrain_app.networks.layers import choose_layers, list_layers
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.projection import Projector
from dnnbrain_app.networks.sources import load_network
from dnnbrain_app.networks.summary import merge_statistics


class MemoryStore:
    """The least that extraction asks of a store; rows are NaN until they are written."""

    def __init__(self, layers, n_stimuli: int, shard: int = 100) -> None:
        self.X = {layer.name: np.full((n_stimuli, layer.n_features), np.nan, np.float32) for layer in layers}
        self.shards = [range(start, min(start + shard, n_stimuli)) for start in range(0, n_stimuli, shard)]
        self.kept: dict[range, dict[str, np.ndarray]] = {}

    def pending(self) -> list[range]:
        return [shard for shard in self.shards if shard not in self.kept]

    def write(self, layer, start_row, rows):
        shard = self.pending()[0]
        assert shard.start <= start_row < start_row + len(rows) <= shard.stop
        assert rows.dtype == np.float32
        self.X[layer][start_row : start_row + len(rows)] = rows

    def commit(self, rows, extras):
        assert not any(np.isnan(X[rows.start : rows.stop]).any() for X in self.X.values())
        self.kept[rows] = extras

    def blocks(self, layer, width):
        return (self.X[layer][:, start : start + width] for start in range(0, self.X[layer].shape[1], width))

    def read(self, layer):
        return self.X[layer]

    def extras(self):
        return [self.kept[shard] for shard in self.shards]


@pytest.fixture
def extract(stimuli, read_image):
    """Extract the named layers, by default into a new store; returns the store."""

    def run(network, names, *, stimuli=stimuli, read=read_image, shard=100, batch_size=3, store=None, **settings):
        layers = choose_layers(list_layers(network), names, network.default_layers)
        store = store or MemoryStore(layers, len(stimuli), shard)
        settings = {"device": "cpu", "precision": "float32"} | settings
        extract_features(network, layers, stimuli, read, batch_size=batch_size, store=store, **settings)
        return store

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


class Watched(nn.Module):
    """Tells when it is called, with how many images; may run out of memory above some number of them."""

    def __init__(self, tell=lambda _n: None, limit: int = 10**6) -> None:
        super().__init__()
        self.cnn = make_cnn()
        self.tell = tell
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tell(len(x))
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


def make_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )


def run_plainly(model: nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Every call of every module, by a plain forward pass that copies at once, of the model as torchvision has it."""
    values: dict[str, np.ndarray] = {}
    n_calls: dict[str, int] = {}

    def keep(path):
        def hook(_module, _inputs, output):
            n_calls[path] = n_calls.get(path, 0) + 1
            tensor = output[0] if isinstance(output, tuple) else output
            channels_first = tensor.transpose(1, 2) if tensor.ndim == 3 else tensor  # tokens
            values[f"{path}:{n_calls[path]}"] = channels_first.flatten(1).clone().numpy()

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
    "vit": (lambda: seeded(make_vit), 32),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_layers_equal_a_plain_forward_pass(name, extract, make_network, stimuli, read_image):
    """Traps 1 and 4, and functions that work in place (ResNet's sums)."""
    build, size = ARCHITECTURES[name]
    network = make_network(build(), size)
    expected = run_plainly(build(), torch.stack([network.transform(read_image(path)) for path in stimuli.paths]))
    X = extract(network, ["all"]).X
    assert set(expected) == {name if ":" in name else f"{name}:1" for name in X}
    for layer, values in X.items():
        exact = expected[layer if ":" in layer else f"{layer}:1"]
        assert np.linalg.norm(values - exact) <= 3e-6 * np.linalg.norm(exact), layer


@pytest.mark.parametrize("name", ["features.0", "features.3.squeeze"])
def test_a_layer_does_not_depend_on_its_company(name, extract, make_network):
    """Trap 1: convolutions came back rectified if a later layer was asked for as well."""
    network = make_network(seeded(models.squeezenet1_1), 64)
    alone = extract(network, [name]).X[name]
    together = extract(network, ["all"]).X[name]
    np.testing.assert_array_equal(alone, together)
    assert 0.1 < (alone < 0).mean() < 0.9


def test_a_copied_network_stays_in_evaluation_mode(extract, make_network):
    """Trap 3: copies of torchvision's extractors train."""
    network = make_network(make_resnet())
    before = copy.deepcopy(network.model.state_dict())
    other = dataclasses.replace(network, model=copy.deepcopy(network.model))
    first, second = extract(network, ["avgpool"]).X, extract(other, ["avgpool"]).X
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
    X = extract(make_network(make_cnn().half()), ["5"]).X["5"]
    np.testing.assert_allclose(X, extract(make_network(make_cnn()), ["5"]).X["5"], atol=5e-3)


def test_precision_is_handed_on(extract, make_network):
    network = make_network(make_cnn())
    exact = extract(network, ["0"]).X["0"]
    short = extract(network, ["0"], precision="bfloat16").X["0"]
    assert 1e-4 < np.linalg.norm(short - exact) / np.linalg.norm(exact) < 2e-2


@pytest.mark.parametrize(("batch_size", "shard"), [(1, 100), (2, 3), (4, 4), (100, 100), (100, 2)])
def test_batches_and_shards_do_not_matter(batch_size, shard, extract, make_network):
    expected = extract(make_network(make_cnn()), ["all"]).X
    for name, values in extract(make_network(make_cnn()), ["all"], batch_size=batch_size, shard=shard).X.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)


def test_pixels_are_normalised_in_the_batch(extract, make_network):
    plain = make_network(make_cnn())
    network = dataclasses.replace(
        plain,
        transform=lambda image: functional.pil_to_tensor(image.resize((32, 32))),
        normalize=lambda batch: batch.float() / 127.5 - 1,
    )
    np.testing.assert_allclose(extract(network, ["0"]).X["0"], extract(plain, ["0"]).X["0"], atol=1e-5)


def test_clips(extract, make_network, stimuli):
    """What `read` gives goes to the transform as it is: here three frames."""

    def transform(frames):
        return torch.stack([functional.pil_to_tensor(frame.resize((8, 8))) for frame in frames], 1)

    network = dataclasses.replace(
        make_network(nn.Sequential(nn.Conv3d(3, 2, 3), nn.Flatten())),
        transform=transform,
        normalize=lambda batch: batch.float() / 255,
        n_frames=3,
    )
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    clips = {path: [*frames[i % 3 :], *frames[: i % 3]] for i, path in enumerate(stimuli.paths)}
    X = extract(network, ["1"], read=clips.__getitem__).X["1"]
    with torch.no_grad():
        exact = network.model(torch.stack([transform(clip) for clip in clips.values()]).float() / 255)
    np.testing.assert_allclose(X, exact, atol=1e-5)


def test_a_finished_shard_is_left_alone(extract, make_network, stimuli, read_image):
    network = make_network(make_cnn())
    whole = extract(network, ["0", "5"], shard=3)
    resumed = extract(network, ["0", "5"], shard=3)
    del resumed.kept[range(3, 6)]
    resumed.X["0"][3:6] = np.nan
    seen, told = [], []

    def read(path):
        seen.append(path)
        return read_image(path)

    extract(network, ["0", "5"], store=resumed, read=read, progress=lambda *numbers: told.append(numbers))
    assert sorted(seen) == list(stimuli.paths[3:6])
    assert told == [(4, 7), (7, 7)]
    np.testing.assert_array_equal(resumed.X["0"], whole.X["0"])
    told.clear()
    extract(network, ["0", "5"], store=resumed, read=None, progress=lambda *numbers: told.append(numbers))
    assert told == [(7, 7)]


def test_progress_counts_what_is_stored(extract, make_network, stimuli):
    store = MemoryStore(choose_layers(list_layers(make_network(make_cnn())), ["5"], ()), 7, shard=5)
    told = []

    def tell(done, total):
        assert not np.isnan(store.X["5"][:done]).any()
        told.append((done, total))

    extract(make_network(make_cnn()), ["5"], store=store, batch_size=2, progress=tell)
    assert told == [(0, 7), (2, 7), (4, 7), (5, 7), (7, 7)]


@pytest.mark.parametrize("shard", [100, 4])
def test_reads_one_batch_ahead_and_no_more(shard, extract, make_network, stimuli, read_image):
    """While the network looks at a batch, the next one is read, in whatever shard it is, and none after that."""
    n_read, changed, n_wanted = 0, threading.Condition(), iter([4, 6, 6])

    def read(path):
        nonlocal n_read
        with changed:
            n_read += 1
            changed.notify()
        return read_image(path)

    def look(n):
        if n == 1:  # the recorder tries how the network takes its memory
            return
        wanted = next(n_wanted)
        with changed:
            assert changed.wait_for(lambda: n_read >= wanted, timeout=20)
            assert not changed.wait_for(lambda: n_read > wanted, timeout=0.05)

    network = make_network(Watched())
    layers = choose_layers(list_layers(network), ["cnn.5"], ())
    network.model.tell = look
    extract_features(
        network,
        layers,
        stimuli.take(stimuli.ids[:6]),
        read,
        batch_size=2,
        device="cpu",
        precision="float32",
        store=MemoryStore(layers, 6, shard),
    )
    assert next(n_wanted, None) is None


def test_rows_do_not_depend_on_which_thread_is_first(extract, make_network, stimuli, read_image):
    def read(path):
        time.sleep(0.02 * (stimuli.paths.index(path) % 3 == 0))
        return read_image(path)

    network = make_network(make_cnn())
    np.testing.assert_array_equal(extract(network, ["0"], read=read).X["0"], extract(network, ["0"]).X["0"])


def test_the_pass_ends_after_the_last_layer(extract, make_network):
    sizes = []
    model = nn.Sequential(make_cnn(), Watched(sizes.append))
    model[1].cnn = nn.Identity()
    network = make_network(model)
    list_layers(network)
    n_trials = len(sizes)
    extract(network, ["0.3"])
    assert sizes[n_trials:] in ([2], [2, 1])  # trial runs


def test_short_memory_halves_the_batches(extract, make_network, caplog):
    with caplog.at_level(logging.WARNING):
        X = extract(make_network(Watched(limit=2)), ["cnn.5"], batch_size=5).X["cnn.5"]
    assert "not enough memory for 5 images at once; going on with 2" in caplog.text
    np.testing.assert_allclose(X, extract(make_network(make_cnn()), ["5"]).X["5"], atol=1e-5)


def test_no_memory_for_a_single_image(extract, make_network, stimuli, read_image):
    network = make_network(Watched())
    layers = choose_layers(list_layers(network), ["cnn.5"], ())
    network.model.limit = 0
    store = MemoryStore(layers, 7)
    settings = {"batch_size": 3, "device": "cpu", "precision": "float32"}
    with pytest.raises(TemporaryError, match="memory for a single image"):
        extract_features(network, layers, stimuli, read_image, store=store, **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -3e37])
def test_values_that_are_not_finite(extract, make_network, stimuli, read_image, value):
    """3e37 is finite, but its square, which K would have, is not. What was whole before stays."""
    fifth = np.asarray(read_image(stimuli.paths[6]))

    def transform(image):
        return torch.full((3, 8, 8), value if np.array_equal(image, fifth) else 1.0)

    network = dataclasses.replace(make_network(nn.Sequential(nn.Identity(), nn.ReLU())), transform=transform)
    store = MemoryStore(choose_layers(list_layers(network), ["0"], ()), 7, shard=4)
    with pytest.raises(BadDataError, match=r"layer '0' has values that are not finite, .* stimulus '06\.png'"):
        extract(network, ["0"], store=store, batch_size=2)
    assert list(store.kept) == [range(4)]


def test_an_unreadable_stimulus_leaves_whole_shards_and_no_thread(extract, make_network, stimuli, read_image):
    def read(path):
        if path == stimuli.paths[5]:
            raise BadDataError(f"{path}: damaged")
        return read_image(path)

    network = make_network(make_cnn())
    store = MemoryStore(choose_layers(list_layers(network), ["5"], ()), 7, shard=2)
    n_threads = threading.active_count()
    with pytest.raises(BadDataError, match="damaged"):
        extract(network, ["5"], store=store, batch_size=1, read=read)
    assert threading.active_count() == n_threads
    assert range(2) in store.kept
    assert store.pending()[-1] == range(6, 7)
    extract(network, ["5"], store=store)
    np.testing.assert_allclose(store.X["5"], extract(network, ["5"]).X["5"], atol=1e-5)


def test_bad_transforms_and_sizes(extract, make_network):
    network = make_network(make_cnn())
    with pytest.raises(UsageError, match="batch size 0"):
        extract(network, ["0"], batch_size=0)

    def refuse(image):
        if image.size == (40, 40):
            raise ValueError("too small")
        return torch.zeros(3, 32, 32)

    with pytest.raises(BadDataError, match=r"stimulus 00\.png: the transform of tiny failed: too small"):
        extract(dataclasses.replace(network, transform=refuse), ["0"])

    def vary(image):  # the trial run has larger images
        return torch.zeros(3, 8, 8 if image.size != (40, 40) else 8 + image.getpixel((0, 0))[0] % 7)

    uneven = dataclasses.replace(make_network(nn.Sequential(nn.ReLU())), transform=vary)
    with pytest.raises(BadDataError, match=r"images of different shapes: \(3, 8, \d+\), \(3, 8, "):
        extract(uneven, ["0"])
    with pytest.raises(BadDataError, match=r"layer '0' has \d+ units for stimulus '00\.png', but 192 in the trial run"):
        extract(uneven, ["0"], batch_size=1)


def test_projected_layers_and_their_statistics(extract, make_network):
    """What is stored is projected; the statistics are of the layers as they are."""
    network = make_network(make_cnn())
    layers = choose_layers(list_layers(network), ["2", "5"], ())
    projector = Projector(64, seed=1)
    kept = projector.plan(layers)
    store = extract(
        network, ["2", "5"], store=MemoryStore(kept, 7, shard=4), projector=projector, summarise=3, batch_size=2
    )
    exact = extract(network, ["2", "5"], batch_size=2).X
    np.testing.assert_allclose(store.X["2"], Projector(64, seed=1).apply("2", exact["2"]), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(store.X["5"], exact["5"])
    wide, narrow = merge_statistics(layers, store.extras())
    maps = exact["2"].reshape(7, 6, -1)
    np.testing.assert_allclose(wide.mean, maps.mean((0, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(wide.top_values, np.sort(maps.max(2), axis=0)[:-4:-1])
    np.testing.assert_array_equal(narrow.top_stimuli, np.argsort(-exact["5"], axis=0, kind="stable")[:3])


def test_nothing_is_summarised_unless_asked(extract, make_network):
    assert extract(make_network(make_cnn()), ["5"]).extras() == [{}]


def test_grams_are_those_of_the_features(extract, make_network):
    network = make_network(make_cnn())
    layers = choose_layers(list_layers(network), ["5", "0"], ())
    store = extract(network, ["5", "0"])
    told = []
    grams = list(make_grams(store, layers, keep_kernel=True, progress=lambda *numbers: told.append(numbers)))
    assert [gram.layer for gram in grams] == ["0", "5"]
    assert told == [(1, 2), (2, 2)]
    for depth, gram in enumerate(grams):
        X = store.X[gram.layer].astype(np.float64)
        assert gram.depth == depth
        np.testing.assert_allclose(gram.K, X @ X.T, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gram.row_sums, X.sum(1), rtol=1e-6, atol=1e-6)
    assert grams[0].X is None  # 3136 features, 7 stimuli
    np.testing.assert_array_equal(grams[1].X, store.X["5"])


def test_grams_are_made_one_at_a_time(extract, make_network, monkeypatch):
    network = make_network(make_cnn())
    store = extract(network, ["5", "0"])
    asked = []
    blocks = store.blocks
    monkeypatch.setattr(store, "blocks", lambda layer, width: asked.append(layer) or blocks(layer, width))
    grams = make_grams(store, choose_layers(list_layers(network), ["5", "0"], ()), keep_kernel=True)
    assert asked == []
    next(grams)
    assert asked == ["0"]


def test_features_alone_stay_in_their_file(extract, make_network, tmp_path):
    network = make_network(make_cnn())
    layers = choose_layers(list_layers(network), ["0"], ())
    store = extract(network, ["0"])
    exact = store.X["0"]
    exact.tofile(tmp_path / "X")
    store.X["0"] = np.memmap(tmp_path / "X", np.float32, "r", shape=exact.shape)
    (gram,) = make_grams(store, layers, keep_kernel=False)
    assert gram.K is None
    assert isinstance(gram.X, np.memmap)
    np.testing.assert_array_equal(gram.X, exact)
    np.testing.assert_allclose(gram.row_sums, exact.astype(np.float64).sum(1), rtol=1e-12)


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
        network = dataclasses.replace(network, transform=transform, normalize=lambda batch: batch)
    names = [f"blocks.{i}" for i in expected]
    layers = choose_layers(list_layers(network), names, ())
    store = extract(network, names, batch_size=16, stimuli=write_stimuli(pictures))
    for gram, rho in zip(make_grams(store, layers, keep_kernel=True), expected.values(), strict=True):
        covariance = gram.K - np.outer(gram.row_sums, gram.row_sums) / gram.n_features
        deviation = np.sqrt(np.diag(covariance))
        distances = 1 - (covariance / np.outer(deviation, deviation))[np.triu_indices(92, 1)]
        assert np.mean([spearmanr(distances, rdm)[0] for rdm in rdms]) == pytest.approx(rho, abs=2e-3), gram.layer
