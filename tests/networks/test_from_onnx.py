from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.networks import from_onnx
from dnnbrain_app.networks.layers import choose_layers, list_layers
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.onnx_graph import cut_graph
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.recording import Recorder

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

MakeGraph = Callable[..., Path]
CPU = torch.device("cpu")


def export(model: nn.Module, images: Tensor, path: Path, **settings: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters, about themselves
        torch.onnx.export(model.eval(), (images,), path, input_names=["image"], verbose=False, **settings)
    return path


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> tuple[nn.Module, Path]:
    """ResNet-18 for any number of images of 64 pixels, by torch's older exporter."""
    torch.manual_seed(0)
    model = models.resnet18().eval()
    path = tmp_path_factory.mktemp("onnx") / "resnet18.onnx"
    axes = {"image": {0: "n"}}
    return model, export(model, torch.zeros(2, 3, 64, 64), path, dynamo=False, dynamic_axes=axes)


@pytest.fixture
def make_graph(tmp_path, rng) -> MakeGraph:
    """Write a convolution, ReLU, a part that has nothing to do with the image, pooling and a classifier."""

    def make(
        shape=("n", 3, 16, 16), kind=onnx.TensorProto.FLOAT, name="tiny.onnx", opset=17, nodes=(), **where
    ) -> Path:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        node = onnx.helper.make_node
        turned = [node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2])] if shape[-1] == 3 else []
        first = [
            *turned,
            node("Conv", ["turned" if turned else "image", "w"], ["a.b:conv"]),
            node("Relu", ["a.b:conv"], ["a/b:conv"]),
            node("Neg", ["w"], ["of the weights"]),
            node("GlobalAveragePool", ["a/b:conv"], ["half"]),
            node("Flatten", ["half"], ["flat"]),
            node("Shape", ["flat"], ["whole numbers"]),
            *nodes,
            node("MatMul", ["flat", "c"], ["/logits/MatMul_output_0"]),
        ]
        drawn = {"w": rng.standard_normal((4, 3, 3, 3)), "c": rng.standard_normal((4, 5))}
        constants = [onnx.numpy_helper.from_array(value.astype(dtype), key) for key, value in drawn.items()]
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            first,
            "tiny",
            [value("image", kind, shape)],
            [value("/logits/MatMul_output_0", kind, (shape[0], 5))],
            constants,
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(model, tmp_path / name, **where)
        return tmp_path / name

    return make


def load(path: Path, options: NetworkOptions | None = None) -> Network:
    return from_onnx.load(f"onnx:{path}", options or NetworkOptions(), fill=True)


def record(network: Network, names: list[str], images: Tensor) -> dict[str, Tensor]:
    layers = choose_layers(list_layers(network), names, network.default_layers)
    with Recorder(network, layers, CPU) as recorder:
        return recorder.run(images)


def draw(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """The difference is 1e-6 of the values, or less."""
    assert torch.linalg.vector_norm(found - expected) <= 1e-6 * torch.linalg.vector_norm(expected)


def test_resnet_as_in_torch(resnet):
    """In float64, for in float32 torch itself is 7e-7 away from that."""
    model, path = copy.deepcopy(resnet[0]).double(), resnet[1]
    network, images = load(path), draw(3, 3, 64, 64)
    blocks = [module for name, module in model.named_modules() if name.count(".") == 1 and name[:5] == "layer"]
    expected: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _m, _i, o: expected.append(o)) for module in [*blocks, model.fc]]
    with torch.inference_mode():
        model(network.normalize(images).double())
    for handle in handles:
        handle.remove()
    found = record(network, ["main"], images)
    assert list(found)[:2] == ["layer1_layer1_0_relu_1_Relu", "layer1_layer1_1_relu_1_Relu"]
    assert len(found) == 9
    for values, wanted in zip(found.values(), expected, strict=True):
        assert_close(values, wanted.flatten(1))
    assert not network.differentiable
    assert network.model(network.normalize(images)).shape == (3, 1000)  # with nobody looking, the logits


def test_one_layer_alone_is_the_same_and_stops_there(resnet):
    network, images = load(resnet[1]), draw(2, 3, 64, 64)
    together = record(network, ["all"], images)
    assert len(together) == 49
    for name in ("conv1_Conv", "maxpool_MaxPool", "layer3_layer3_0_downsample_downsample_0_Conv"):
        assert_close(record(network, [name], images)[name], together[name])
    content = onnx.load(resnet[1])
    cut_graph(content.graph, ["/maxpool/MaxPool_output_0"], "image")
    assert [node.op_type for node in content.graph.node] == ["Conv", "Relu", "MaxPool"]
    assert len(content.graph.initializer) == 2


def test_torchs_newer_exporter(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    path = export(model, torch.zeros(2, 3, 16, 16), tmp_path / "new.onnx", dynamo=True, external_data=True)
    assert (tmp_path / "new.onnx.data").is_file()
    network, images = load(path), draw(5, 3, 16, 16)  # the file is for 2 images
    with torch.inference_mode():
        expected = model(network.normalize(images))
        convolved = model[0](network.normalize(images))
    found = list(record(network, ["all"], images).values())
    assert_close(found[0], convolved.flatten(1))
    assert_close(found[-1], expected)
    assert network.provenance["CompanionsSHA256"].keys() == {"new.onnx.data"}


def test_layers_of_a_graph(make_graph):
    network = load(make_graph())
    layers = list_layers(network)
    assert [(layer.name, layer.kind, layer.shape) for layer in layers] == [
        ("a_b_conv", "Conv", (4, 14, 14)),
        ("a_b_conv_", "Relu", (4, 14, 14)),
        ("half_", "GlobalAveragePool", (4, 1, 1)),
        ("flat", "Flatten", (4,)),
        ("logits_MatMul", "MatMul", (5,)),
    ]
    main = choose_layers(layers, ["main"], network.default_layers)
    assert [layer.name for layer in main] == ["a_b_conv_", "logits_MatMul"]


def test_main_layers_are_where_branches_meet(make_graph):
    node = onnx.helper.make_node
    joins = [
        node("Add", ["a.b:conv", "a/b:conv"], ["sum"]),
        node("Relu", ["sum"], ["rectified"]),
        node("Concat", ["sum", "rectified"], ["both"], axis=1),
        node("Add", ["rectified", "a/b:conv"], ["again"]),
        node("Add", ["flat", "zero"], ["shifted"]),
        node("ConstantOfShape", ["whole numbers"], ["zero"]),
    ]
    network = load(make_graph(nodes=[joins[5], *joins[:5]]))
    assert network.default_layers == ("rectified", "both", "again", "shifted", "logits_MatMul")


def test_main_layers_of_swish(make_graph):
    node = onnx.helper.make_node
    swish = [node("Sigmoid", ["a.b:conv"], ["gate"]), node("Mul", ["a.b:conv", "gate"], ["swish"])]
    assert load(make_graph(nodes=swish)).default_layers == ("swish", "logits_MatMul")


@pytest.mark.parametrize("n_images", ["n", 1, 2, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_numbers_of_images_and_layouts(make_graph, n_images, channels_last):
    free = make_graph()
    shape = (n_images, 16, 16, 3) if channels_last else (n_images, 3, 16, 16)
    network = load(free)
    images = draw(5, 3, 16, 16)
    names = ["a_b_conv", "flat", "logits_MatMul"]
    expected = record(network, names, images)
    weights = {tensor.name: tensor for tensor in onnx.load(free).graph.initializer}
    path = make_graph(shape, name="other.onnx")
    content = onnx.load(path)
    for tensor in content.graph.initializer:
        tensor.CopyFrom(weights[tensor.name])
    onnx.save(content, path)
    found = record(load(path), names, images)
    for name in names:
        assert found[name].shape == expected[name].shape
        assert_close(found[name], expected[name])


def test_half_precision(make_graph):
    path = make_graph(kind=onnx.TensorProto.FLOAT16)
    network, images = load(path), draw(2, 3, 16, 16)
    weight = torch.tensor(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]), dtype=torch.float32)
    expected = nn.functional.conv2d(network.normalize(images), weight).flatten(1)
    found = record(network, ["a_b_conv"], images)["a_b_conv"]
    assert (found.dtype, network.provenance["Precision"]) == (torch.float32, "float16")
    assert torch.linalg.vector_norm(found - expected) <= 3e-3 * torch.linalg.vector_norm(expected)


def test_preprocessing_is_the_users(make_graph):
    options = NetworkOptions(image_size=20, resize="squash", mean=(0.5,), std=(0.25,))
    network = load(make_graph(("n", 3, "rows", "columns")), options)
    assert list_layers(network)[0].shape == (4, 18, 18)
    text = network.provenance["Transform"]
    assert text.startswith("resize to 20 x 20 (")
    assert text.endswith("chosen by the user, as the file does not say")
    fixed = load(make_graph(("n", 3, 12, 16)), options)
    assert list_layers(fixed)[0].shape == (4, 10, 14)  # the file says, so the option does not
    assert "12 x 16" in fixed.provenance["Transform"]


def test_provenance(make_graph):
    path = make_graph()
    network = load(path)
    assert network.provenance["SHA256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (network.provenance["Weights"], network.provenance["Source"]) == ("tiny.onnx", str(path))
    assert network.provenance["License"] == "not stated in the file"
    unfilled = from_onnx.load(f"onnx:{path}", NetworkOptions(), fill=False)
    assert not {"Weights", "SHA256"} & unfilled.provenance.keys()


def test_threads_follow_torch(make_graph, monkeypatch):
    network = load(make_graph())
    seen = []
    session = onnxruntime.InferenceSession

    def note(content, settings, **rest):
        seen.append(settings.intra_op_num_threads)
        return session(content, settings, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", note)
    for n_threads in (2, 2, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        network.model(torch.zeros(1, 3, 16, 16))
    assert seen == [2, 1]


def test_without_cuda_it_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert from_onnx._choose_providers(torch.device("cuda:1"))[-1] == "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "runs on the CPU" in caplog.text


def test_memory_that_is_short_is_told_as_such(make_graph):
    class Short:
        def get_outputs(self):
            return []

        def run(self, *_):
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for a buffer")

    network = load(make_graph())
    with pytest.raises(MemoryError, match=r"^Failed to allocate memory"):
        network.model._compute._run(Short(), np.zeros((1, 3, 16, 16), np.float32))


def test_weights_in_another_file(make_graph, tmp_path):
    settings = {"save_as_external_data": True, "location": "tiny_weights.bin", "size_threshold": 0}
    path = make_graph(**settings)
    weights = tmp_path / "tiny_weights.bin"
    identities = [from_onnx.identify(f"onnx:{path}", NetworkOptions())]
    assert len(identities[0]["weights"]) == 2
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert load(path).provenance["CompanionsSHA256"] == {"tiny_weights.bin": digest}
    weights.write_bytes(weights.read_bytes()[:-40])
    assert from_onnx.identify(f"onnx:{path}", NetworkOptions()) not in identities
    with pytest.raises(BadDataError, match=r"tiny\.onnx: ONNX Runtime cannot run it: .*"):
        load(path)
    weights.unlink()
    for call in (load, lambda path: from_onnx.identify(f"onnx:{path}", NetworkOptions())):
        with pytest.raises(MissingInputError, match=r"tiny\.onnx: the file with its weights .*: tiny_weights\.bin"):
            call(path)


def test_a_long_name_of_the_file_of_weights(make_graph, tmp_path):
    name = "weights_" + "x" * 150
    path = make_graph(save_as_external_data=True, location=name, size_threshold=0)
    assert [Path(stamp[0]).name for stamp in from_onnx.identify(f"onnx:{path}", NetworkOptions())["weights"]] == [
        "tiny.onnx",
        name,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, I am no graph at all", "not an ONNX file, or a damaged one"),
        (b"", "not an ONNX file, or one without a graph"),
        (b"PK\x03\x04" + bytes(100), "not an ONNX file"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    path = tmp_path / "mine.onnx"
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_truncated_file(resnet, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(resnet[1].read_bytes()[:500_000])
    with pytest.raises(BadDataError, match=r"cut\.onnx: not an ONNX file, or a damaged one"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 99), "Opset 99 is under development"),
        (lambda model: setattr(model, "ir_version", 99), "Unsupported model IR version: 99"),
        (lambda model: setattr(model.graph.node[0], "op_type", "Frobnicate"), "No Op registered for Frobnicate"),
    ],
)
def test_graphs_that_onnxruntime_cannot_run(make_graph, change, message):
    path = make_graph()
    content = onnx.load(path)
    change(content)
    onnx.save(content, path)
    with pytest.raises(BadDataError, match=f"ONNX Runtime cannot run it: .*{message}") as error:
        load(path)
    text = str(error.value)
    assert "\n" not in text
    assert "onnxruntime_src" not in text


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (("n", 10), "FLOAT", r"input 'image' is FLOAT n x 10; a network of images takes FLOAT n x 3"),
        (("n", 1, 16, 16), "FLOAT", "FLOAT n x 1 x 16 x 16"),
        (("n", 3, 16, 16), "INT32", "is INT32 n x 3 x 16 x 16"),
    ],
)
def test_networks_of_something_else(make_graph, shape, kind, message):
    with pytest.raises(BadDataError, match=message):
        load(make_graph(shape, onnx.TensorProto.DataType.Value(kind)))


def test_several_inputs(make_graph):
    path = make_graph()
    content = onnx.load(path)
    content.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, (1,)))
    onnx.save(content, path)
    with pytest.raises(BadDataError, match=r"takes 2 inputs \(image, mask\); a network of images takes one"):
        load(path)


def test_old_files_list_their_weights_as_inputs(make_graph):
    path = make_graph()
    content = onnx.load(path)
    for tensor in content.graph.initializer:
        content.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(content, path)
    images = draw(2, 3, 16, 16)
    assert record(load(path), ["a_b_conv"], images)["a_b_conv"].shape == (2, 784)


def test_usage(make_graph, tmp_path):
    with pytest.raises(UsageError, match=r"its file has the weights; --weights w\.pth does not apply"):
        load(make_graph(), NetworkOptions(weights=Path("w.pth")))
    for call in (from_onnx.identify, lambda name, options: from_onnx.load(name, options, fill=True)):
        with pytest.raises(MissingInputError, match=r"network onnx:gone\.onnx: file not found: gone\.onnx"):
            call("onnx:gone.onnx", NetworkOptions())


def test_without_onnxruntime(make_graph, monkeypatch):
    path = make_graph()

    def find(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", find)
    with pytest.raises(MissingInputError, match=r"need onnx, .* pip install 'dnnbrain-app\[onnx\]'"):
        load(path)


def test_identity_changes_with_what_it_stands_for(make_graph):
    path = make_graph()
    name = f"onnx:{path}"
    seen = [from_onnx.identify(name, NetworkOptions(image_size=size)) for size in (16, 32)]
    os.utime(path, ns=(1, 1))
    seen.append(from_onnx.identify(name, NetworkOptions(image_size=32)))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert seen[-1] == from_onnx.identify(name, NetworkOptions(image_size=32))
    code = (
        "import sys; from dnnbrain_app.networks.options import NetworkOptions as O; "
        f"from dnnbrain_app.networks.from_onnx import identify; identify({name!r}, O()); "
        "print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
