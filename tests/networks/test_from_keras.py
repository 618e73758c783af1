from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.networks import from_keras
from dnnbrain_app.networks.layers import Layer, choose_layers, list_layers
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.recording import Recorder

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
Save = Callable[[Any, str], Path]


@pytest.fixture(scope="session")
def keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras", reason="Keras is not installed (extra keras)")


@pytest.fixture
def save(keras, tmp_path) -> Save:
    def write(model: Any, name: str = "mine.keras") -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Keras, about numpy
            model.save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def branched(keras) -> Any:
    """A model in the model, a layer that is called twice, functions, branches that meet."""
    keras.utils.clear_session()  # so that functions are numbered from the first
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    first = [layers.Conv2D(4, 3, activation="relu", name="conv1"), layers.MaxPooling2D(name="pool")]
    stem = keras.Sequential(first, name="stem")(image)
    rectify = layers.ReLU(name="rectify")
    x = rectify(layers.Conv2D(4, 3, padding="same", name="conv2")(stem))
    x = rectify(layers.Add(name="meet")([x, stem]))
    x = keras.ops.sqrt(x + 1.0)
    x = layers.GlobalAveragePooling2D(name="half")(layers.Dropout(0.5, name="drop")(x))
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="branched")


@pytest.fixture
def straight(keras) -> Any:
    layers = keras.layers
    members = [
        keras.Input((None, None, 3)),
        layers.Conv2D(4, 3, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.Activation("gelu", name="act"),
        layers.GlobalAveragePooling2D(name="pooled"),
        layers.Dense(5, name="logits"),
    ]
    return keras.Sequential(members)


def load(path: Path, options: NetworkOptions | None = None) -> Network:
    return from_keras.load(f"keras:{path}", options or NetworkOptions(), fill=True)


def list_chosen(network: Network, *names: str) -> list[Layer]:
    return choose_layers(list_layers(network), names, network.default_layers)


def record(network: Network, images: Tensor, *names: str) -> dict[str, Tensor]:
    with Recorder(network, list_chosen(network, *names), CPU) as recorder:
        return recorder.run(images)


def draw(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def predict(model: Any, images: Tensor) -> Tensor:
    """What Keras itself gives for (n, 3, rows, columns), with the channels first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = model.predict(images.permute(0, 2, 3, 1).contiguous().numpy(), verbose=0)
    return torch.from_numpy(np.moveaxis(values, -1, 1).reshape(len(values), -1))


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert torch.linalg.vector_norm(found - expected) <= 1e-6 * torch.linalg.vector_norm(expected)


def test_layers_of_a_functional_model(branched, save):
    network = load(save(branched))
    assert [(layer.name, layer.kind, layer.shape) for layer in list_layers(network)] == [
        ("stem.conv1", "Conv2D", (4, 14, 14)),
        ("stem.pool", "MaxPooling2D", (4, 7, 7)),
        ("stem", "Sequential", (4, 7, 7)),
        ("conv2", "Conv2D", (4, 7, 7)),
        ("rectify:1", "ReLU", (4, 7, 7)),
        ("meet", "Add", (4, 7, 7)),
        ("rectify:2", "ReLU", (4, 7, 7)),
        ("add", "Add", (4, 7, 7)),
        ("sqrt", "Sqrt", (4, 7, 7)),
        ("drop", "Dropout", (4, 7, 7)),
        ("half_", "GlobalAveragePooling2D", (4,)),
        ("logits", "Dense", (5,)),
    ]
    main = [layer.name for layer in list_chosen(network, "main")]
    assert main[:5] == ["stem.conv1", "stem.pool", "conv2", "rectify:1", "meet"]
    assert "drop" not in main
    assert network.differentiable


def test_values_are_keras_own(branched, save, keras):
    network, images = load(save(branched)), draw(3, 3, 16, 16)
    found = record(network, images, "all")
    seen = network.normalize(images)
    stem = branched.get_layer("stem")
    rectify = branched.get_layer("rectify")
    expected = {
        "stem.conv1": stem.layers[0].output,
        "conv2": branched.get_layer("conv2").output,
        "meet": branched.get_layer("meet").output,
        "half_": branched.get_layer("half").output,
        "logits": branched.output,
    }
    for name, output in expected.items():
        source = stem.inputs if name.startswith("stem") else branched.inputs
        assert_close(found[name], predict(keras.Model(source, output), seen))
    for call in (1, 2):
        output = rectify._inbound_nodes[call - 1].outputs[0]
        assert_close(found[f"rectify:{call}"], predict(keras.Model(branched.inputs, output), seen))
    assert torch.equal(found["drop"], found["sqrt"])  # nothing is dropped
    assert_close(network.model(seen), predict(branched, seen))
    for name in ("stem.pool", "rectify:2"):
        assert torch.equal(record(network, images, name)[name], found[name])


def test_a_sequential_model_of_any_size(straight, save, keras):
    path = save(straight)
    network = load(path, NetworkOptions(image_size=20, resize="squash", mean=(0.5,), std=(0.25,)))
    layers = list_layers(network)
    assert [(layer.name, layer.shape) for layer in layers[:2]] == [("conv", (4, 18, 18)), ("norm", (4, 18, 18))]
    assert [layer.name for layer in list_chosen(network, "main")] == ["conv", "act", "pooled", "logits"]
    images = draw(2, 3, 20, 20)
    found = record(network, images, "act", "logits")
    seen = network.normalize(images)
    assert_close(found["act"], predict(keras.Model(straight.inputs, straight.get_layer("act").output), seen))
    assert_close(found["logits"], predict(straight, seen))
    text = network.provenance["Transform"]
    assert text.startswith("resize to 20 x 20 (")
    assert text.endswith("chosen by the user, as the file does not say")
    assert network.provenance["Precision"] == "float32"
    assert network.provenance["SHA256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    unfilled = from_keras.load(f"keras:{path}", NetworkOptions(), fill=False)
    assert not {"Weights", "SHA256"} & unfilled.provenance.keys()


def test_main_layers_are_where_branches_meet(keras, save):
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)
    network = load(save(model))
    main = list_chosen(network, "main")
    assert [layer.name for layer in main][:2] == ["block_2_add", "block_4_add"]
    assert (len(main), main[-1].name) == (11, "predictions")


def test_rectified_where_branches_meet(keras, save):
    layers = keras.layers
    x = image = keras.Input((8, 8, 3))
    for i in range(3):
        x = layers.Activation("relu", name=f"out{i}")(layers.Add(name=f"sum{i}")([x, layers.Conv2D(3, 1)(x)]))
    network = load(save(keras.Model(image, layers.Dense(2, name="logits")(layers.Flatten()(x)))))
    assert network.default_layers == ("out0", "out1", "out2", "logits")


def test_channels_first(keras, save):
    layers = keras.layers
    image = keras.Input((3, 12, 16))
    x = layers.Conv2D(4, 3, data_format="channels_first", name="conv")(image)
    model = keras.Model(image, layers.Dense(2, name="logits")(layers.Flatten()(x)))
    network, images = load(save(model)), draw(2, 3, 12, 16)
    assert list_layers(network)[0].shape == (4, 10, 14)
    seen = network.normalize(images)
    with torch.no_grad():
        expected = keras.Model(image, x)(seen)
    assert_close(record(network, images, "conv")["conv"], expected.flatten(1))


def test_gradients_reach_the_image(branched, save):
    network = load(save(branched))
    list_layers(network)  # which works without gradients, and leaves nothing behind
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    network.model(image)[0, 2].backward()
    own = image.detach().permute(0, 2, 3, 1).clone().requires_grad_()
    branched(own)[0, 2].backward()
    assert image.grad.abs().sum() > 0
    torch.testing.assert_close(image.grad, own.grad.permute(0, 3, 1, 2))
    assert not any(variable.value.requires_grad for variable in load(save(branched)).model._compute.args[0].variables)


def test_where_gradients_end(keras, save):
    image = keras.Input((8, 8, 3))
    rounded = keras.ops.cast(keras.ops.cast(image * 255, "int32"), "float32")
    assert not load(save(keras.Model(image, keras.layers.Flatten()(rounded)))).differentiable


def test_hooks_can_change_what_follows(branched, save):
    """So that a layer's channels can be silenced."""
    network = load(save(branched))
    image = torch.rand(1, 3, 16, 16)
    before = network.model(image)
    handle = network.model.get_submodule("half_").register_forward_hook(lambda _m, _i, output: output * 0)
    bias = branched.get_layer("logits").bias.value
    torch.testing.assert_close(network.model(image)[0], bias)
    handle.remove()
    assert torch.equal(network.model(image), before)


def test_stops_after_the_last_layer(branched, save):
    network = load(save(branched))
    layers = list_chosen(network, "conv2")
    logits = next(o for o in network.model._compute.args[0].operations if o.name == "logits")

    def refuse(*_, **__):
        raise AssertionError("was computed")

    with Recorder(network, layers, CPU) as recorder:
        recorder.run(draw(2, 3, 16, 16))  # tries a whole pass first
        logits.call = refuse
        assert recorder.run(draw(2, 3, 16, 16))["conv2"].shape == (2, 196)


def test_its_own_preprocessing_is_warned_of(keras, save, caplog):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
    with caplog.at_level(logging.WARNING):
        load(save(model))
    assert "prepares pixels itself" in caplog.text
    assert "--mean 0 --std 0.00392157" in caplog.text


def test_code_is_refused(keras, save):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x + 1)])
    with pytest.raises(BadDataError, match=r"mine\.keras: Keras cannot read it: ValueError: .*`Lambda`") as error:
        load(save(model))
    assert "\n" not in str(error.value)


def test_a_model_that_fails(keras, save):
    image = keras.Input((None, None, 3))
    x = keras.layers.Dense(2)(keras.layers.Reshape((10 * 10 * 3,))(image))
    with pytest.raises(BadDataError, match=r"a trial image failed: \w+: Exception encountered .*shape") as error:
        load(save(keras.Model(image, x)))
    assert "\n" not in str(error.value)


def test_models_that_hide_their_layers(keras, save):
    @keras.saving.register_keras_serializable("tests")
    class Hidden(keras.Model):
        def call(self, x):
            return x

    model = Hidden()
    model(torch.zeros(1, 8, 8, 3))
    for hiding in (model, keras.Sequential([keras.layers.Flatten()])):
        with pytest.raises(BadDataError, match="not a functional or Sequential model with a shape of input"):
            load(save(hiding))


def test_networks_of_something_else(keras, save):
    grey, image = keras.Input((8, 8, 1)), keras.Input((8, 8, 3))
    with pytest.raises(BadDataError, match=r"takes \(None, 8, 8, 1\); a network of images takes"):
        load(save(keras.Model(grey, keras.layers.Flatten()(grey))))
    both = keras.layers.Concatenate()([grey, image])
    with pytest.raises(BadDataError, match=r"takes 2 inputs \(.*\); a network of images takes one"):
        load(save(keras.Model([grey, image], both)))


def test_damaged_files(tmp_path, straight, save):
    path = save(straight)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadDataError, match=r"mine\.keras: not a \.keras file, or a damaged one"):
        load(path)


def test_other_formats_and_missing_files(tmp_path, straight, save):
    (tmp_path / "old.h5").touch()
    with pytest.raises(UsageError, match=r"only \.keras files are read; save the model again"):
        load(tmp_path / "old.h5")
    for call in (from_keras.identify, lambda name, options: from_keras.load(name, options, fill=True)):
        with pytest.raises(MissingInputError, match=r"network keras:gone\.keras: file not found: gone\.keras"):
            call("keras:gone.keras", NetworkOptions())
    with pytest.raises(UsageError, match=r"its file has the weights; --weights w\.h5 does not apply"):
        load(save(straight), NetworkOptions(weights=Path("w.h5")))


def test_another_framework_behind_keras(straight, save, keras, monkeypatch):
    path = save(straight)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match="Keras was imported with jax behind it; set KERAS_BACKEND=torch"):
        load(path)


def test_without_keras(tmp_path, monkeypatch):
    def find(package):
        raise importlib.metadata.PackageNotFoundError(package)

    (tmp_path / "x.keras").touch()
    monkeypatch.setattr("importlib.metadata.version", find)
    with pytest.raises(MissingInputError, match=r"pip install 'dnnbrain-app\[keras\]'"):
        load(tmp_path / "x.keras")


def test_identity_changes_with_what_it_stands_for(straight, save):
    path = save(straight)
    name = f"keras:{path}"
    seen = [from_keras.identify(name, NetworkOptions(image_size=size)) for size in (16, 32)]
    os.utime(path, ns=(1, 1))
    seen.append(from_keras.identify(name, NetworkOptions(image_size=32)))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert seen[-1] == from_keras.identify(name, NetworkOptions(image_size=32))


def test_torch_is_put_behind_keras_in_time(straight, save):
    code = (
        "import sys; from dnnbrain_app.networks.options import NetworkOptions as O; "
        "from dnnbrain_app.networks import from_keras; name = sys.argv[1]; from_keras.identify(name, O()); "
        "print({'torch', 'keras'} & set(sys.modules)); network = from_keras.load(name, O(image_size=16), fill=True); "
        "import keras; print(keras.backend.backend(), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, f"keras:{save(straight)}"]
    env = os.environ | {"KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["set()", "torch False"], done.stderr
