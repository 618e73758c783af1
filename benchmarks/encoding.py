"""Voxelwise ridge encoding against himalaya, scikit-learn, and the one matrix product that nobody can avoid.

    python benchmarks/encoding.py                 # n=1000, p=4096, V=5000: a fully connected layer, a few regions
    python benchmarks/encoding.py --size large    # n=2000, p=9216, V=10000
    python benchmarks/encoding.py --size banded   # n=300, three feature spaces, V=500: mixtures of kernels
    python benchmarks/encoding.py --size many     # n=5000, 20 000, 60 000, p=512, V=1000: ours alone, and its memory

All get the same outer folds and the same penalties relative to the training kernel, choose a penalty for each voxel,
and are scored by the mean over folds of the held-out correlation. Tools alternate; medians of several rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from himalaya.kernel_ridge import KernelRidgeCV, MultipleKernelRidgeCV
from sklearn.linear_model import RidgeCV

from dnnbrain_app.analyses.banded import score_bands
from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import BandedOptions, EncodingOptions
from dnnbrain_app.records import Array, Gram

SIZES = {"small": (400, 1500, 1000), "medium": (1000, 4096, 5000), "large": (2000, 9216, 10_000)}
OPTIONS = EncodingOptions(n_folds=5, n_alphas=15, n_null=1)  # no permutations: the peers make none
GRID = np.geomspace(OPTIONS.alpha_min, OPTIONS.alpha_max, OPTIONS.n_alphas)

Scores = list[Array]  # one array of correlations a fold

MANY = (5000, 20_000, 60_000)
WIDTH, N_VOXELS = 512, 1000
MANY_MEMORY = 2**29

N_MIXTURES = 10


def simulate(n: int, p: int, V: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Rectified features with a power-law spectrum, and voxels that see a tenth of them through noise."""
    latent = rng.standard_normal((n, 500)).astype(np.float32) * np.arange(1, 501, dtype=np.float32) ** -0.5
    X = np.maximum(latent @ rng.standard_normal((500, p)).astype(np.float32), 0)
    signal = X @ (rng.standard_normal((p, V)) * (rng.random((p, V)) < 0.1)).astype(np.float32)
    signal = (signal - signal.mean(0)) / signal.std(0)
    return X, (0.3 * signal + rng.standard_normal((n, V))).astype(np.float32)


def correlate(P: Array, Y: Array) -> Array:
    P, Y = P - P.mean(0), Y - Y.mean(0)
    return (P * Y).sum(0) / np.sqrt((P**2).sum(0) * (Y**2).sum(0))


def split(X: Array, Y: Array, test: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Centre on the training rows; the last value is the grid in absolute units."""
    train = np.delete(np.arange(len(X)), test)
    X_mean, Y_mean = X[train].mean(0), Y[train].mean(0)
    X_train, X_test = X[train] - X_mean, X[test] - X_mean
    unit = float((X_train.astype(np.float64) ** 2).sum() / len(train))
    return X_train, X_test, Y[train] - Y_mean, Y[test] - Y_mean, GRID * unit


def run_ours(X: Array, Y: Array, folds: list[Array]) -> float:
    gram = Gram("layer", (X.shape[1],), 0, (X @ X.T).astype(np.float64), X.sum(1, dtype=np.float64))
    return float(
        score_encoding(
            "net", [gram], Y, folds, OPTIONS, rng=np.random.default_rng(0), memory=4 * 2**30, n_jobs=os.cpu_count() or 1
        ).r.mean()
    )


def run_himalaya(X: Array, Y: Array, folds: list[Array]) -> float:
    scores = []
    for test in folds:
        X_train, X_test, Y_train, Y_test, alphas = split(X, Y, test)
        model = KernelRidgeCV(alphas=alphas, kernel="precomputed", cv=5).fit(X_train @ X_train.T, Y_train)
        scores.append(correlate(model.predict(X_test @ X_train.T), Y_test))
    return float(np.mean(scores))


def run_sklearn(X: Array, Y: Array, folds: list[Array]) -> float:
    scores = []
    for test in folds:
        X_train, X_test, Y_train, Y_test, alphas = split(X, Y, test)
        model = RidgeCV(alphas=alphas, alpha_per_target=True).fit(X_train, Y_train)
        scores.append(correlate(model.predict(X_test), Y_test))
    return float(np.mean(scores))


def run_products(X: Array, Y: Array, folds: list[Array]) -> float:
    """U'Y, once a fold, with a matrix of the right size."""
    for test in folds:
        n_train = len(X) - len(test)
        _ = np.ascontiguousarray(X[:n_train, :n_train]).T @ Y[:n_train]
    return float("nan")


def measure(function: Callable[[], float]) -> tuple[float, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    score = function()
    return time.perf_counter() - wall, time.process_time() - cpu, score


def write_many(n: int, folder: Path, rng: np.random.Generator) -> None:
    """Write features to a file, and responses: in half of the voxels signal, as strong as the noise."""
    X = np.lib.format.open_memmap(folder / "X.npy", mode="w+", dtype=np.float32, shape=(n, WIDTH))
    Y = np.lib.format.open_memmap(folder / "Y.npy", mode="w+", dtype=np.float32, shape=(n, N_VOXELS))
    weights = rng.standard_normal((WIDTH, N_VOXELS // 2), dtype=np.float32)
    weights /= np.linalg.norm(weights, axis=0)
    for start in range(0, n, 1000):
        block = rng.standard_normal((1000, WIDTH), dtype=np.float32)
        X[start : start + 1000] = block + 1
        Y[start : start + 1000] = rng.standard_normal((1000, N_VOXELS), dtype=np.float32)
        Y[start : start + 1000, : N_VOXELS // 2] += block @ weights


def score_many(folder: Path) -> tuple[float, ...]:
    """Score all, in a process of its own: time, memory, and what came out."""
    X, Y = np.load(folder / "X.npy", mmap_mode="r"), np.load(folder / "Y.npy")
    gram = Gram("layer", (WIDTH,), 0, None, np.zeros(len(X)), X)
    folds = make_folds(len(X), OPTIONS.n_folds, np.random.default_rng(0))
    n_jobs = os.cpu_count() or 1
    product = min(measure(lambda: float((X.T @ Y)[0, 0]))[1] for _ in range(3))
    before = peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    scores = score_encoding(
        "net", [gram], Y, folds, OPTIONS, rng=np.random.default_rng(0), memory=MANY_MEMORY, n_jobs=n_jobs
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    signal, noise = scores.r[0, : N_VOXELS // 2], scores.r[0, N_VOXELS // 2 :]
    used = peak_memory()
    return wall, cpu, cpu / product, used / 1e6, (used - before) / 1e6, signal.mean(), noise.mean(), np.abs(noise).max()


def peak_memory() -> int:
    """Largest resident size so far, in bytes; pages of mapped files count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare_many() -> None:
    """Print how time and memory grow with the number of stimuli."""
    print(
        f"p={WIDTH} V={N_VOXELS}, {OPTIONS.n_folds} folds, {len(GRID)} penalties, {MANY_MEMORY / 1e6:.0f} MB allowed\n"
    )
    print(
        "| n | X MB | Y MB | wall s | CPU s | CPU of bare X'Y | peak MB | beyond X, Y and libraries MB "
        "| r with signal (.707) | r in noise | largest |\n" + "|---" * 11 + "|"
    )
    for n in MANY:
        with tempfile.TemporaryDirectory() as name:
            write_many(n, Path(name), np.random.default_rng(0))
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                wall, cpu, ratio, peak, extra, signal, noise, most = pool.submit(score_many, Path(name)).result()
        print(
            f"| {n} | {n * WIDTH * 4e-6:.0f} | {n * N_VOXELS * 4e-6:.0f} | {wall:.2f} | {cpu:.2f} | {ratio:.2f} "
            f"| {peak:.0f} | {extra:.0f} | {signal:.4f} | {noise:.4f} | {most:.4f} |"
        )


def run_our_bands(spaces: list[Array], Y: Array, folds: list[Array]) -> float:
    grams = [Gram(str(i), (X.shape[1],), i, (X @ X.T).astype(np.float64), X.sum(1)) for i, X in enumerate(spaces)]
    options = BandedOptions(**asdict(OPTIONS), n_mixtures=N_MIXTURES)
    settings = {"rng": np.random.default_rng(0), "memory": 4 * 2**30, "n_jobs": os.cpu_count() or 1}
    return float(score_bands(grams, Y, folds, options, **settings).r.mean())


def run_himalaya_bands(spaces: list[Array], Y: Array, folds: list[Array]) -> float:
    scores = []
    for test in folds:
        parts = [split(X, Y, test) for X in spaces]
        units = [(X_train**2).sum() / len(X_train) for X_train, *_ in parts]
        Ks = np.stack([p[0] @ p[0].T / unit for p, unit in zip(parts, units, strict=True)])
        Ks_test = np.stack([p[1] @ p[0].T / unit for p, unit in zip(parts, units, strict=True)])
        search = {"alphas": GRID, "n_iter": N_MIXTURES, "progress_bar": False}
        model = MultipleKernelRidgeCV(
            kernels="precomputed", solver="random_search", solver_params=search, cv=5, random_state=0
        )
        scores.append(correlate(model.fit(Ks, parts[0][2]).predict(Ks_test), parts[0][3]))
    return float(np.mean(scores))


def compare_banded(rounds: int) -> None:
    """Print both, side by side; himalaya cross-validates each mixture within the training stimuli, we use GCV."""
    rng = np.random.default_rng(0)
    n, V = 300, 500
    spaces, Y = [], np.zeros((n, V), dtype=np.float32)
    for strength in (0.6, 0.3, 0.0):
        X, signal = simulate(n, 1500, V, rng)
        spaces.append(X)
        Y += strength * signal
    folds = make_folds(n, OPTIONS.n_folds, rng)
    tools = {"dnnbrain": run_our_bands, "himalaya": run_himalaya_bands}
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, run in tools.items():
            results[name].append(measure(lambda run=run: run(spaces, Y, folds)))  # type: ignore[misc]
    print(f"n={n} V={V}, 3 spaces, {N_MIXTURES} mixtures, {len(folds)} folds, {len(GRID)} penalties\n")
    print("| tool | wall s | CPU s | mean r |\n|---|---|---|---|")
    for name, rows in results.items():
        wall, cpu, score = np.median(rows, axis=0)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {score:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=(*SIZES, "many", "banded"), default="medium")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", nargs="*", choices=("himalaya", "sklearn"), default=("himalaya", "sklearn"))
    arguments = parser.parse_args()
    if arguments.size == "many":
        compare_many()
        return
    if arguments.size == "banded":
        compare_banded(arguments.rounds)
        return
    n, p, V = SIZES[arguments.size]
    rng = np.random.default_rng(0)
    X, Y = simulate(n, p, V, rng)
    folds = make_folds(n, OPTIONS.n_folds, rng)
    tools = {"U'Y products": run_products, "dnnbrain": run_ours}
    tools |= {name: {"himalaya": run_himalaya, "sklearn": run_sklearn}[name] for name in arguments.against}
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in tools}
    for name, run in tools.items():  # warm up threads and caches
        if name in ("U'Y products", "dnnbrain"):
            run(X, Y, folds)
    for _ in range(arguments.rounds):
        for name, run in tools.items():
            results[name].append(measure(lambda run=run: run(X, Y, folds)))  # type: ignore[misc]
    medians = {name: np.median(rows, axis=0) for name, rows in results.items()}
    print(f"n={n} p={p} V={V}, {len(folds)} folds, {len(GRID)} penalties; median of {arguments.rounds}\n")
    print("| tool | wall s | CPU s | of ours (wall) | of ours (CPU) | mean r |\n|---|---|---|---|---|---|")
    ours = medians["dnnbrain"]
    for name, (wall, cpu, score) in medians.items():
        print(f"| {name} | {wall:.3f} | {cpu:.3f} | {wall / ours[0]:.2f} | {cpu / ours[1]:.2f} | {score:.4f} |")
    products = medians["U'Y products"]
    print(f"\ndnnbrain / bare U'Y: {ours[0] / products[0]:.2f} wall, {ours[1] / products[1]:.2f} CPU")


if __name__ == "__main__":
    main()
