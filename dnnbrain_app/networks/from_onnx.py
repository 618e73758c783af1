"""Networks in ONNX files, from any framework: ``onnx:FILE``.

Every number that a graph computes from the image, on its way, is a layer, named by the graph's own name for it. What
the exporter merged (batch normalisation goes into the convolution before it) is not there. ONNX Runtime gives no
gradients: such a network can be mapped to brains, but not looked into.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.onnx_graph import (
    Input,
    Output,
    cut_graph,
    find_input,
    list_companions,
    list_outputs,
    read_graph,
)
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import find_version, list_preprocessing, stamp_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dnnbrain_app.networks.outputs import OutputModel
    from dnnbrain_app.records import Array

logger = logging.getLogger(__name__)

_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
_JOINS = ("Add", "Sum", "Concat")
_ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Clip", "Gelu", "HardSwish", "Mish", "Softplus")


def load(name: str, options: NetworkOptions, *, fill: bool) -> Network:
    """Load a network; with `fill` false, the files are not hashed.

    Raises
    ------
    MissingInputError
        A file that is not there (also one with the graph's weights), or onnx or onnxruntime.
    BadDataError
        A file that is no ONNX graph of a network of images, or that ONNX Runtime cannot run.
    UsageError
        Weights beside those in the file.
    """
    from dnnbrain_app.networks import outputs
    from dnnbrain_app.networks.transforms import describe_transform, make_transform

    outputs.refuse_weights(name, options.weights)
    version = _find_version()
    path = _find_file(name)
    companions = list_companions(path)
    content = read_graph(path)
    source = find_input(content.graph, path)
    runtime = _Runtime(path, source, content.graph.output[0].name)
    computed = runtime.keep_floats(list_outputs(content.graph, source.name))
    size, *rest = list_preprocessing(options)
    recipe = (source.size or size, *rest)
    provenance = {
        "Name": name,
        "License": "not stated in the file",
        "Source": str(path),
        "Transform": f"{describe_transform(*recipe)}; chosen by the user, as the file does not say",
        "Precision": np.dtype(source.dtype).name,
        "Producer": f"{content.producer_name} {content.producer_version}".strip() or "unknown",
        "Onnxruntime": version,
    }
    if fill:
        provenance |= _hash_files(path, companions)
    for output in computed:
        runtime.names[outputs.make_name(output.name.removesuffix("_output_0"), runtime.names)] = output.name
    kinds = {safe: output.kind for safe, output in zip(runtime.names, computed, strict=True)}
    layers = _choose_main(list(runtime.names), computed, {output.name for output in content.graph.output})
    model = outputs.OutputModel(kinds, runtime).eval()
    transform, normalize = make_transform(*recipe)
    return Network(name, model, transform, layers, provenance, normalize, differentiable=False)


def identify(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what the values depend on: the file, those with its weights, ONNX Runtime, and the user's preprocessing."""
    path = _find_file(name)
    files = [stamp_file(file) for file in (path, *list_companions(path))]
    return {"weights": files, "onnxruntime": _find_version(), "preprocessing": list_preprocessing(options)}


def _find_version() -> str:
    users = "networks named onnx:FILE"
    find_version("onnx", users, "onnx")
    return find_version("onnxruntime", users, "onnx")


def _find_file(name: str) -> Path:
    path = Path(name.partition(":")[2]).expanduser()
    if not path.is_file():
        raise MissingInputError(f"network {name}: file not found: {path}")
    return path


def _hash_files(path: Path, companions: Sequence[Path]) -> dict[str, Any]:
    from dnnbrain_app.networks.weights import check_hash

    hashes: dict[str, Any] = {"Weights": path.name, "SHA256": check_hash(path)}
    if companions:
        hashes["CompanionsSHA256"] = {companion.name: check_hash(companion) for companion in companions}
    return hashes


def _choose_main(names: Sequence[str], computed: Sequence[Output], final: Container[str]) -> tuple[str, ...]:
    """Choose where branches meet (the ends of residual blocks, of inception modules), after what rectifies it.

    In graphs with few such places: all activation functions, or else everything. And what the graph gives at its end.
    """
    after = {output.sources[0]: output.name for output in computed if output.kind in _ACTIVATIONS}
    gates = {output.name: output.sources[0] for output in computed if output.kind == "Sigmoid"}
    for output in computed:  # exporters write x sigmoid(x), SiLU, in two steps
        after |= {gates[name]: output.name for name in output.sources if gates.get(name) in output.sources}
    joins = [output.name for output in computed if output.kind in _JOINS and len(output.sources) > 1]
    chosen = {after.get(name, name) for name in joins} if len(joins) > 2 else set(after.values())
    found = tuple(
        name for name, output in zip(names, computed, strict=True) if output.name in chosen or output.name in final
    )
    return found if chosen else tuple(names)


class _Runtime:
    """Runs a graph in ONNX Runtime, as far as the outputs that are looked at need it."""

    def __init__(self, path: Path, source: Input, final: str) -> None:
        self.names: dict[str, str] = {}  # of the probes, and what the graph calls their outputs
        self._path = path
        self._source = source
        self._final = final
        self._key: tuple[Any, ...] = ()
        self._session: Any = None

    def __call__(self, images: Tensor, model: OutputModel) -> Tensor:
        """Run a batch (n, 3, rows, columns), show the outputs that are watched, and return the last of them."""
        import torch

        watched = model.list_watched()
        wanted = [self.names[name] for name in watched] or [self._final]
        batch = images.detach().permute(0, 2, 3, 1) if self._source.channels_last else images.detach()
        values = self._run(self._open(wanted, images.device), batch.contiguous().cpu().numpy())
        tensors = [torch.from_numpy(value).to(images.device) for value in values]
        for name, tensor in zip(watched, tensors, strict=False):  # without any, the graph's own output
            model.show(name, tensor)
        return tensors[-1]

    def keep_floats(self, outputs: Sequence[Output]) -> list[Output]:
        """Keep the outputs that are numbers with a fraction, by the types that ONNX Runtime finds.

        Raises
        ------
        BadDataError
            If there are none.
        """
        import torch

        session = self._open([output.name for output in outputs], torch.device("cpu"))
        types = {value.name: value.type for value in session.get_outputs()}
        kept = [output for output in outputs if types[output.name] in _FLOATS]
        if not kept:
            raise BadDataError(f"{self._path}: the graph computes nothing from its input {self._source.name!r}.")
        return kept

    def _open(self, wanted: Sequence[str], device: torch.device) -> Any:
        """Prepare the part of the graph that computes these outputs; the last one is kept.

        Raises
        ------
        BadDataError
            If ONNX Runtime cannot run it.
        """
        import onnxruntime
        import torch

        key = (tuple(wanted), device, torch.get_num_threads())
        if key == self._key:
            return self._session
        self._key, self._session = (), None  # frees the memory of the one before
        content = read_graph(self._path)
        cut_graph(content.graph, wanted, self._source.name)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3  # errors
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._path.parent.absolute())
        )
        try:
            session = onnxruntime.InferenceSession(
                content.SerializeToString(), settings, providers=_choose_providers(device)
            )
        except Exception as error:  # ONNX Runtime's are of no common class
            raise BadDataError(f"{self._path}: ONNX Runtime cannot run it: {_shorten(error)}") from error
        self._key, self._session = key, session
        return session

    def _run(self, session: Any, images: Array) -> list[Array]:
        """Run a batch; piece by piece if the file fixes the number of images, the last piece filled up."""
        names = [value.name for value in session.get_outputs()]
        step = self._source.n_images or len(images)
        pieces = []
        for start in range(0, len(images), step):
            piece = images[start : start + step]
            filled = np.resize(piece, (step, *piece.shape[1:])).astype(self._source.dtype, copy=False)
            try:
                values = session.run(names, {self._source.name: filled})
            except Exception as error:
                if "memory" in str(error) or "bad_alloc" in str(error):
                    raise MemoryError(_shorten(error)) from error
                raise
            pieces.append(
                [value[: len(piece)] if len(value) == step else value for value in map(np.atleast_1d, values)]
            )
        return pieces[0] if len(pieces) == 1 else [np.concatenate(values) for values in zip(*pieces, strict=True)]


def _choose_providers(device: torch.device) -> list[Any]:
    import onnxruntime

    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        logger.warning("onnxruntime has no CUDA here (the package onnxruntime-gpu has): it runs on the CPU")
        return ["CPUExecutionProvider"]
    exact = {"device_id": device.index or 0, "use_tf32": 0}
    return [("CUDAExecutionProvider", exact), "CPUExecutionProvider"]


def _shorten(error: Exception) -> str:
    """Leave out what ONNX Runtime says of its own source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    return re.sub(r"(?:Load model .*? failed with error: ?)?/onnxruntime_src/.*?\) (?=[A-Z])", "", text)
