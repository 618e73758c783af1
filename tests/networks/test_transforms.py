from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms.functional import pil_to_tensor

from dnnbrain_app.errors import UsageError
from dnnbrain_app.networks.from_torchvision import CLIPS, _list_steps
from dnnbrain_app.networks.transforms import make_transform

HALVES = np.repeat(np.repeat(np.array([0, 255], dtype=np.uint8), 60)[None, :, None], 60, axis=0).repeat(3, axis=2)


def list_presets(module) -> list[object]:
    """One published weight for each of torchvision's distinct transforms."""
    presets = {
        repr(entry.transforms()): entry
        for name in models.list_models(module=module)
        for entry in models.get_model_weights(name)
    }
    return list(presets.values())


@pytest.fixture
def picture(rng) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (97, 130, 3), dtype=np.uint8))


@pytest.mark.parametrize("entry", list_presets(models), ids=str)
def test_images_are_bitwise_those_of_the_publisher(entry, picture):
    transform, normalize = make_transform(*_list_steps(entry))
    upright = picture.transpose(Image.Transpose.ROTATE_90)
    pixels = torch.stack([transform(picture), transform(upright)])
    assert pixels.dtype == torch.uint8
    preset = entry.transforms()
    assert torch.equal(normalize(pixels), torch.stack([preset(picture), preset(upright)]))


@pytest.mark.parametrize("entry", list_presets(models.video), ids=str)
def test_clips_are_bitwise_those_of_the_publisher(entry, rng):
    frames = [Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8)) for _ in range(3)]
    transform, normalize = make_transform(*_list_steps(entry), clips=True)
    pixels = transform(frames)
    assert (pixels.dtype, pixels.shape[:2]) == (torch.uint8, (3, 3))
    expected = entry.transforms()(torch.stack([pil_to_tensor(frame) for frame in frames]))
    assert torch.equal(normalize(pixels[None])[0], expected)


def test_networks_of_clips_are_known_without_torchvision():
    assert sorted(CLIPS) == models.list_models(module=models.video)


def test_crop_and_squash():
    """A picture twice as wide as high: its sides are lost, or it is made to fit."""
    picture = Image.fromarray(HALVES)
    crop, squash = (make_transform(60, resize, (0.0,), (1.0,))[0](picture) for resize in ("crop", "squash"))
    assert crop.shape == squash.shape == (3, 60, 60)
    np.testing.assert_array_equal(crop.permute(1, 2, 0), HALVES[:, 30:90])
    np.testing.assert_array_equal(squash.permute(1, 2, 0), picture.resize((60, 60), Image.Resampling.BILINEAR))
    wide = make_transform((30, 60), "crop", (0.0,), (1.0,))[0](picture)
    assert wide.shape == (3, 30, 60)


def test_normalizing():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    _, normalize = make_transform(8, "crop", (0.0, 0.2, 0.5), (1.0, 1.0, 0.25))
    assert normalize(batch).flatten().tolist() == pytest.approx([0, 0, 2])
    assert batch.flatten().tolist() == [0, 51, 255]
    _, unscaled = make_transform(8, "crop", (127,), (128,), scale=1)
    assert unscaled(batch).flatten().tolist() == [-127 / 128, -76 / 128, 1]


def test_both_steps_go_to_other_processes(picture):
    steps = make_transform(16, 20, (0.5,), (0.5,), "bicubic")
    transform, normalize = pickle.loads(pickle.dumps(steps))
    batch = transform(picture)[None]
    assert torch.equal(normalize(batch), steps[1](steps[0](picture)[None]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "crop", (0.5,), (0.5,)), "image size 0 x 0"),
        ((8, "stretch", (0.5,), (0.5,)), "resize 'stretch': should be crop or squash"),
        ((8, "crop", (0.5, 0.5), (0.5,)), r"mean \(0\.5, 0\.5\)"),
        ((8, "crop", (0.5,), (0.5, 0.0, 0.5)), "those of std above 0"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_transform(*arguments)
