"""Voxelwise ridge encoding against himalaya, scikit-learn, and the one matrix product that nobody can avoid.

    python benchmarks/encoding.py                 # n=1000, p=4096, V=5000: a fully connected layer, a few regions
    python benchmarks/encoding.py --size large    # n=2000, p=9216, V=10000

All get the same outer folds and the same penalties relative to the training kernel, choose a penalty for each voxel,
and are scored by the mean over folds of the held-out correlation. Tools alternate; medians of several rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.linear_model import RidgeCV

from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.folds import make_folds
from dnnbrain_app.analyses.options import EncodingOptions
from dnnbrain_app.records import Array, Gram

SIZES = {"small": (400, 1500, 1000), "medium": (1000, 4096, 5000), "large": (2000, 9216, 10_000)}
OPTIONS = EncodingOptions(n_folds=5, n_alphas=15, n_null=1)  # no permutations: the peers make none
GRID = np.geomspace(OPTIONS.alpha_min, OPTIONS.alpha_max, OPTIONS.n_alphas)

Scores = list[Array]  # one array of correlations a fold


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", nargs="*", choices=("himalaya", "sklearn"), default=("himalaya", "sklearn"))
    arguments = parser.parse_args()
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
