from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.networks.layers import Layer, choose_layers, list_layers
from dnnbrain_app.networks.recording import Recorder
from dnnbrain_app.networks.reduction import Reduction, Selection, format_mask, parse_mask, plan_reduction

CPU = torch.device("cpu")


def make_layer(name: str, *shape: int, **more) -> Layer:
    return Layer(name, name, 1, shape, math.prod(shape), 0, "Conv2d", **more)


CONV = make_layer("conv", 4, 5, 6)
TOKENS = make_layer("block", 8, 7, 1, channels_last=True)
UNITS = make_layer("fc", 10)
CLIP = make_layer("clip", 2, 3, 4, 4)


@pytest.fixture
def write(tmp_path):
    def run(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "test.dmask.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return run


def test_parses_the_masks_of_the_original(write):
    """Unsorted channels crashed there, and so did a second equals sign."""
    path = write("conv1=chn,row,col\n3,1\n2, 4,5\n7\n\nlayer4.0.relu:2=col\n10\nfc=\na=b=chn\n1\n")
    assert parse_mask(path) == {
        "conv1": Selection((3, 1), (2, 4, 5), (7,)),
        "layer4.0.relu:2": Selection(columns=(10,)),
        "fc": Selection(),
        "a=b": Selection((1,)),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_parses_files_of_every_system(write, newline, encoding):
    path = write(newline.join(["conv1 = row, chn", "2", "1,3"]), encoding)
    assert parse_mask(path) == {"conv1": Selection((1, 3), (2,))}


def test_reads_what_it_writes(tmp_path):
    masks = {"features.0": Selection((3, 1), None, (2,)), "fc": Selection(), "x": Selection(None, (9, 8, 7))}
    path = tmp_path / "own.dmask.csv"
    path.write_text(format_mask(masks))
    assert path.read_text() == "features.0=chn,col\n3,1\n2\nfc=\nx=row\n9,8,7\n"
    assert parse_mask(path) == masks
    assert list(parse_mask(path)) == list(masks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no layer"),
        ("\n\n", "names no layer"),
        ("1,2\n", r"line 1: '1,2' should be layer=, or layer=chn,row,col"),
        ("conv=channel\n1\n", r"line 1: 'conv=channel' should be"),
        ("conv=chn,chn\n1\n1\n", r"line 1: 'conv=chn,chn' should be"),
        ("=chn\n1\n", r"line 1: '=chn' should be"),
        ("fc=\nconv=chn,row\n1\n", r"line 2: 'conv=chn,row' should be followed by 2 lines of numbers"),
        ("conv=chn\n\n0,1\n", r"line 3: '0,1' should be whole numbers from 1, divided by commas"),
        ("conv=chn\n-1\n", "line 2: '-1' should be whole numbers"),
        ("conv=chn\n1.5\n", "line 2: '1.5' should be whole numbers"),
        ("conv=chn\n1,\n", "line 2: '1,' should be whole numbers"),
        ("conv=chn\n1 2\n", "line 2: '1 2' should be whole numbers"),
        ("conv=chn\nfc=\n", "line 2: 'fc=' should be whole numbers"),
        ("conv=chn\n" + "9" * 5000 + "\n", "should be whole numbers"),
        ("conv=chn\n3,1,3\n", "line 2: 3 is there twice"),
        ("conv=\nfc=\nconv=\n", "line 3: layer 'conv' is there twice"),
    ],
)
def test_refuses_broken_masks(write, text, message):
    with pytest.raises(BadDataError, match=message):
        parse_mask(write(text))


def test_refuses_what_is_no_mask(write, tmp_path):
    with pytest.raises(BadDataError, match="is not a text file"):
        parse_mask(write("conv=é\n", "latin-1"))
    with pytest.raises(MissingInputError, match=r"mask file not found: .*none\.dmask\.csv"):
        parse_mask(tmp_path / "none.dmask.csv")
    with pytest.raises(MissingInputError, match="mask file not found"):
        parse_mask(tmp_path)


@pytest.mark.parametrize(
    ("layer", "selection", "pooling", "expected"),
    [
        (CONV, Selection((3, 1), (5, 2), (6,)), (), (2, 2, 1)),
        (CONV, Selection(rows=(1,)), (), (4, 1, 6)),
        (CONV, Selection((2,)), ("max",), (1, 1, 1)),
        (CONV, Selection(), ("grid2",), (4, 2, 2)),
        (CONV, Selection(), ("grid9",), (4, 5, 6)),
        (TOKENS, Selection((8,), (1, 7)), (), (1, 2, 1)),
        (TOKENS, Selection(), ("MEAN",), (8, 1, 1)),
        (UNITS, Selection((10, 1)), ("l2",), (2,)),
        (UNITS, Selection((10, 1), (1,), (1,)), (), (2,)),
        (CLIP, Selection((1,), (4,), (1, 2)), (), (1, 3, 1, 2)),
        (CLIP, Selection(), ("grid2",), (2, 3, 2, 2)),
        (CLIP, Selection(), ("l1",), (2, 1, 1, 1)),
    ],
)
def test_shapes_after_reduction(layer, selection, pooling, expected):
    [planned] = plan_reduction([layer], {layer.name: selection}, pooling)
    assert planned.shape == expected
    assert planned.n_features == math.prod(expected)
    assert replace(planned, shape=layer.shape, n_features=layer.n_features, reduction=None) == layer


def test_layers_are_left_alone_unless_something_is_asked():
    assert plan_reduction([CONV, UNITS], {"conv": Selection()}, ()) == [CONV, UNITS]
    assert plan_reduction([UNITS], {}, ("max",)) == [UNITS]


def test_selects_in_the_order_given(rng):
    values = rng.standard_normal((2, 4, 5, 6)).astype(np.float32)
    reduced = Reduction(Selection((3, 1), (5, 2), (6, 4, 1))).apply(torch.from_numpy(values))
    np.testing.assert_array_equal(reduced, values[:, [2, 0]][:, :, [4, 1]][..., [5, 3, 0]])


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 7, 1), (3, 2, 3, 4, 5)])
@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("max", lambda values: values.max(2)),
        ("mean", lambda values: values.mean(2)),
        ("median", lambda values: np.median(values, 2)),  # of even numbers too
        ("l1", lambda values: np.abs(values).sum(2)),
        ("l2", lambda values: np.sqrt((values**2).sum(2))),
    ],
)
def test_pools_as_numpy_does(rng, shape, pooling, expected):
    """The original's L1 and L2 were norms of matrices: the largest sum of a column, the largest singular value."""
    values = rng.standard_normal(shape)
    pooled = Reduction(pooling=pooling).apply(torch.from_numpy(values))
    assert pooled.dtype == torch.float32
    assert pooled.shape == (*shape[:2], *[1] * (len(shape) - 2))
    np.testing.assert_allclose(pooled.flatten(1), expected(values.reshape(*shape[:2], -1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean", "median", "l1", "l2", "grid1"])
def test_pooling_hides_no_damage(pooling):
    values = torch.ones(1, 1, 3, 3)
    values[..., 1, 1] = torch.nan
    assert Reduction(pooling=pooling).apply(values).isnan().all()


def test_grids_are_means_over_fields(rng):
    values = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)
    fields = values.reshape(2, 3, 2, 2, 2, 3).mean((3, 5))
    np.testing.assert_allclose(Reduction(pooling="grid2").apply(torch.from_numpy(values)), fields, rtol=1e-5)
    whole = Reduction(pooling="grid1").apply(torch.from_numpy(values))
    np.testing.assert_allclose(whole, values.mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-7)
    clip = torch.from_numpy(rng.standard_normal((2, 3, 5, 4, 4)))
    frames = [Reduction(pooling="grid3").apply(clip[:, :, i]) for i in range(5)]
    torch.testing.assert_close(Reduction(pooling="grid3").apply(clip), torch.stack(frames, 2))


def test_the_mask_comes_before_the_pooling():
    values = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert Reduction(Selection(rows=(1, 2), columns=(2,)), "max").apply(values).item() == 5


def test_pooling_of_some_layers():
    layers = [make_layer(name, 4, 6, 6) for name in ("a.0", "a.1", "b")]

    def methods(*pooling: str) -> list[str]:
        planned = plan_reduction(layers, {}, pooling)
        return [layer.reduction.pooling if layer.reduction else "" for layer in planned]

    assert methods("max") == ["max", "max", "max"]
    assert methods("a.*=mean") == ["mean", "mean", ""]
    assert methods("a.*=mean", "max", "a.1=grid2") == ["mean", "grid2", "max"]
    with pytest.raises(UnknownNameError, match=r"unknown layer 'c'; .*Valid: a\.0, a\.1, b"):
        methods("c=max")
    with pytest.raises(UnknownNameError, match=r"unknown pooling 'maximum'; did you mean 'max'\?.*gridN.*as in grid4"):
        methods("maximum")
    for wrong in ("grid0", "grid", "b=grid-1", "a.0="):
        with pytest.raises(UnknownNameError, match="unknown pooling"):
            methods(wrong)
    with pytest.raises(UsageError, match="pooling max and mean for all layers: name the layers"):
        methods("max", "mean")


@pytest.mark.parametrize(
    ("layer", "selection", "message"),
    [
        (CONV, Selection((4, 5)), "mask of layer 'conv': channel 5 does not exist; there are 1 to 4"),
        (CONV, Selection(None, (6,)), "row 6 does not exist; there are 1 to 5"),
        (CONV, Selection(None, None, (7,)), "column 7 does not exist; there are 1 to 6"),
        (CONV, Selection((0,)), "channel 0 does not exist; there are 1 to 4"),
        (TOKENS, Selection(None, (8,)), "row 8 does not exist; there are 1 to 7"),
        (TOKENS, Selection(None, None, (2,)), "column 2 does not exist; there are 1 to 1"),
        (UNITS, Selection((11,)), "channel 11 does not exist; there are 1 to 10"),
        (UNITS, Selection(None, (2,)), "row 2 does not exist; there are 1 to 1"),
        (CLIP, Selection(None, (5,)), "row 5 does not exist; there are 1 to 4"),
    ],
)
def test_refuses_what_a_layer_does_not_have(layer, selection, message):
    with pytest.raises(BadDataError, match=message):
        plan_reduction([layer], {layer.name: selection}, ())


def test_refuses_masks_that_fit_no_layer():
    alias = replace(make_layer("conv1_relu", 4, 5, 5), path="features.1", alias="conv1_relu")
    assert plan_reduction([alias], {"features.1": Selection((1,))}, ())[0].shape == (1, 5, 5)
    with pytest.raises(UnknownNameError, match=r"unknown layer 'conv2'; did you mean 'conv'\?"):
        plan_reduction([CONV], {"conv2": Selection()}, ())
    with pytest.raises(UsageError, match=r"layer 'conv1_relu' has two masks; one of them is called 'features\.1'"):
        plan_reduction([alias], {"conv1_relu": Selection(), "features.1": Selection((1,))}, ())


def test_refuses_grids_over_tokens():
    with pytest.raises(UsageError, match=r"'block' has 7 tokens, not a map, so grid2 cannot pool it; use max, mean"):
        plan_reduction([CONV, TOKENS], {}, ("grid2",))
    planned = plan_reduction([CONV, TOKENS], {}, ("grid2", "block=mean"))
    assert [layer.shape for layer in planned] == [(4, 2, 2), (8, 1, 1)]


def test_the_recorder_reduces(make_network, rng):
    torch.manual_seed(0)
    network = make_network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), 8)
    layers = choose_layers(list_layers(network), ["0", "1", "3"], ())
    images = torch.from_numpy(rng.standard_normal((3, 3, 8, 8)).astype(np.float32))
    with Recorder(network, layers, CPU) as recorder:
        whole = {layer.name: recorder.run(images)[layer.name].reshape(3, *layer.shape) for layer in layers}
    masks = {"0": Selection((4, 1), (2, 3)), "3": Selection((5,))}
    planned = plan_reduction(layers, masks, ("1=median",))
    with Recorder(network, planned, CPU) as recorder:
        values = recorder.run(images)
    assert {name: tuple(rows.shape) for name, rows in values.items()} == {"0": (3, 24), "1": (3, 4), "3": (3, 1)}
    np.testing.assert_array_equal(values["0"], whole["0"][:, [3, 0], 1:3].flatten(1))
    np.testing.assert_allclose(values["1"], np.median(whole["1"].numpy(), (2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(values["3"], whole["3"][:, [4]])
