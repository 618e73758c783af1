"""Graphs in ONNX files: what they take, what they compute on the way, and the part that some outputs need."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnbrain_app.errors import BadDataError, MissingInputError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_LENGTH = rb"[\x80-\xff]?[\x00-\x7f]"
# how protobuf writes in which file a tensor is: an entry (field 13), its key, and the length of its value
_LOCATION = re.compile(rb"\x6a" + _LENGTH + rb"\x0a\x08location\x12(" + _LENGTH + rb")", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Input:
    """What a graph takes.

    Parameters
    ----------
    name : str
        What it calls it.
    n_images : int
        The number of images that the file fixes, or 0.
    size : tuple of int or None
        Rows and columns, if the file fixes them.
    channels_last : bool
        Whether it takes (n, rows, columns, 3) instead of (n, 3, rows, columns).
    dtype : type
        numpy's, of the numbers.
    """

    name: str
    n_images: int
    size: tuple[int, int] | None
    channels_last: bool
    dtype: Any


@dataclass(frozen=True, slots=True)
class Output:
    """What a node computes.

    Parameters
    ----------
    name : str
        What the graph calls it.
    kind : str
        The operation.
    sources : tuple of str
        The tensors that it is computed from, of those that depend on the image.
    """

    name: str
    kind: str
    sources: tuple[str, ...]


def list_companions(path: Path) -> list[Path]:
    """List the files beside an ONNX file that have its weights (without reading these, or importing onnx).

    Raises
    ------
    MissingInputError
        If one is not there.
    """
    if path.stat().st_size == 0:
        return []
    names = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _LOCATION.finditer(content):
            low, *high = match[1]
            length = (low & 0x7F) + (high[0] << 7 if high else 0)
            names.add(content[match.end() : match.end() + length].decode(errors="replace"))
    companions = [path.parent / name for name in sorted(names)]
    for companion in companions:
        if not companion.is_file():
            raise MissingInputError(f"{path}: the file with its weights is not beside it: {companion.name}")
    return companions


def read_graph(path: Path) -> ModelProto:
    """Read a graph, without the weights that are in other files.

    Raises
    ------
    BadDataError
        If there is none.
    """
    import onnx

    try:
        content = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # of protobuf, whose classes differ from version to version
        raise BadDataError(f"{path}: not an ONNX file, or a damaged one: {error}") from error
    if not content.graph.node or not content.graph.output:
        raise BadDataError(f"{path}: not an ONNX file, or one without a graph.")
    return content


def find_input(graph: GraphProto, path: Path) -> Input:
    """Find out what the graph takes: one input, of images.

    Raises
    ------
    BadDataError
        If it takes something else.
    """
    import onnx

    constants = {tensor.name for tensor in graph.initializer}  # which old files list as inputs, too
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise BadDataError(f"{path}: takes {len(inputs)} inputs ({names}); a network of images takes one.")
    tensor = inputs[0].type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    dtypes = {"FLOAT": np.float32, "FLOAT16": np.float16}
    lengths = [dim.dim_value for dim in tensor.shape.dim]  # 0 where it is free
    channels_last = len(lengths) == 4 and lengths[3] == 3 != lengths[1]
    if kind not in dtypes or len(lengths) != 4 or (not channels_last and lengths[1] not in (0, 3)):
        shape = " x ".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
        raise BadDataError(
            f"{path}: input {inputs[0].name!r} is {kind} {shape or 'of unknown shape'}; a network of images takes "
            "FLOAT n x 3 x rows x columns or n x rows x columns x 3."
        )
    rows, columns = lengths[1:3] if channels_last else lengths[2:]
    size = (rows, columns) if rows > 0 and columns > 0 else None
    return Input(inputs[0].name, max(lengths[0], 0), size, channels_last, dtypes[kind])


def list_outputs(graph: GraphProto, image: str) -> list[Output]:
    """List what is computed from the image, in order; not what is computed from weights alone."""
    outputs: dict[str, Output] = {}
    for node in graph.node:
        sources = tuple(dict.fromkeys(name for name in _list_inputs(node) if name == image or name in outputs))
        if sources:
            outputs |= {name: Output(name, node.op_type, sources) for name in node.output if name}
    return list(outputs.values())


def _list_inputs(node: NodeProto) -> Iterator[str]:
    """List the tensors that a node uses, also those in its branches and loops."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _list_inputs(inner)


def cut_graph(graph: GraphProto, outputs: Sequence[str], image: str) -> None:
    """Leave only what these outputs need: ONNX Runtime would compute all that is there."""
    import onnx

    needed, kept = {image, *outputs}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_list_inputs(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    for values in (graph.initializer, graph.input):
        for i in reversed(range(len(values))):
            if values[i].name not in needed:
                del values[i]
