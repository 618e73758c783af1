"""Correlation RDMs, their comparison and its p values against rsatoolbox, scipy, and the product that nobody can avoid.

    python benchmarks/rsa.py                    # RDM of 1000 x 9216; 20 models x 8 RDMs of 500 items
    python benchmarks/rsa.py --size large       # RDM of 2000 x 9216; 20 models x 8 RDMs of 1000 items

Tools alternate; medians of several rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import rsatoolbox
from scipy.spatial.distance import pdist, squareform

from dnnbrain_app.analyses.rdms import compute_rdm
from dnnbrain_app.analyses.rsa import score_rsa
from dnnbrain_app.analyses.rsa_inference import permute_labels
from dnnbrain_app.records import Array, Rdm

SIZES = {"small": (300, 2000, 92), "medium": (1000, 9216, 500), "large": (2000, 9216, 1000)}

THEIRS = {"rho-a": "rho-a", "whitened-cosine": "cosine_cov"}

Tools = dict[str, Callable[[], Array]]


def list_rdm_tools(n: int, p: int, rng: np.random.Generator) -> Tools:
    patterns = np.maximum(rng.standard_normal((n, p)), 0).astype(np.float32)
    double = patterns.astype(np.float64)
    items = [f"{i}" for i in range(n)]

    def bare_product() -> Array:
        return patterns @ patterns.T

    def rsatoolbox_single() -> Array:
        return rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(patterns), method="correlation").dissimilarities[0]

    def rsatoolbox_double() -> Array:
        return rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(double), method="correlation").dissimilarities[0]

    return {
        "bare X X'": bare_product,
        "dnnbrain": lambda: compute_rdm(patterns, items, "region").dissimilarities,
        "scipy pdist": lambda: pdist(double, "correlation"),
        "rsatoolbox f32": rsatoolbox_single,
        "rsatoolbox f64": rsatoolbox_double,
    }


def list_comparison_tools(n: int, comparison: str, rng: np.random.Generator) -> Tools:
    pairs = n * (n - 1) // 2
    layers, regions = rng.random((20, pairs)), rng.random((8, pairs))
    items = tuple(f"{i}" for i in range(n))
    layer_rdms = [Rdm(f"layer{i}", values, items) for i, values in enumerate(layers)]
    region_rdms = [Rdm(f"region{i}", values, items) for i, values in enumerate(regions)]
    models = [rsatoolbox.model.ModelFixed(f"layer{i}", values) for i, values in enumerate(layers)]

    def rsatoolbox_eval_fixed() -> Array:
        data = rsatoolbox.rdm.RDMs(regions)
        return rsatoolbox.inference.eval_fixed(models, data, method=THEIRS[comparison]).evaluations[0]

    return {
        "sorting alone": lambda: np.array([np.sort(values) for values in (*layers, *regions)]),
        "dnnbrain": lambda: score_rsa("net", layer_rdms, region_rdms, [comparison]).similarity[comparison],
        "rsatoolbox": rsatoolbox_eval_fixed,
    }


def list_permutation_tools(n: int, rng: np.random.Generator) -> Tools:
    pairs = n * (n - 1) // 2
    values = rng.random((25, pairs))
    items = tuple(f"{i}" for i in range(n))
    rdms = [Rdm(f"{i}", row, items) for i, row in enumerate(values)]

    def permute() -> Array:
        found = permute_labels(
            rdms[:5], rdms[5:], "spearman", n_permutations=20, rng=np.random.default_rng(0), memory=2**33
        )
        return found.p

    def permute_and_compare() -> Array:
        """Permute the layers' RDMs, and compare them anew, as one does without a function for it."""
        draw, regions = np.random.default_rng(0), rsatoolbox.rdm.RDMs(values[5:])
        squares = [squareform(row) for row in values[:5]]
        scores = []
        for order in (np.arange(n), *(draw.permutation(n) for _ in range(20))):
            layers = np.array([squareform(square[np.ix_(order, order)], checks=False) for square in squares])
            scores.append(rsatoolbox.rdm.compare(rsatoolbox.rdm.RDMs(layers), regions, method="spearman"))
        return (np.array(scores) >= scores[0] - 1e-9).mean(axis=0)

    return {"dnnbrain": permute, "rsatoolbox in a loop": permute_and_compare}


def measure(title: str, tools: Tools, rounds: int) -> None:
    """Run the tools in turn, print a table of medians and how far each result is from ours."""
    results = {name: run() for name, run in tools.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, run in tools.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {name: np.median(rows, axis=0) for name, rows in times.items()}
    wall, cpu = medians["dnnbrain"]
    print(f"\n{title}; median of {rounds}\n")
    print("| tool | wall s | CPU s | of ours (wall) | of ours (CPU) | largest difference |\n|---|---|---|---|---|---|")
    for name, (w, c) in medians.items():
        same = results[name].shape == results["dnnbrain"].shape
        difference = f"{np.abs(results[name] - results['dnnbrain']).max():.1e}" if same else "-"
        print(f"| {name} | {w:.3f} | {c:.3f} | {w / wall:.2f} | {c / cpu:.2f} | {difference} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    n, p, n_items = SIZES[arguments.size]
    rng = np.random.default_rng(0)
    measure(f"correlation RDM of {n} x {p}", list_rdm_tools(n, p, rng), arguments.rounds)
    for comparison in THEIRS:
        title = f"{comparison} of 20 layers with 8 regions, {n_items} items"
        measure(title, list_comparison_tools(n_items, comparison, rng), arguments.rounds)
    title = f"p values of 5 layers with 20 regions, {n_items // 5} items, 20 permutations, spearman"
    measure(title, list_permutation_tools(n_items // 5, rng), arguments.rounds)


if __name__ == "__main__":
    main()
