"""Searchlights: all spheres of a volume against rsatoolbox's, and a brain of 91 125 voxels with many stimuli.

    python benchmarks/searchlight.py                 # 20 x 20 x 20 voxels, 60 stimuli; 45 x 45 x 45, 500 stimuli
    python benchmarks/searchlight.py --size large    # the second with 5000 stimuli (8 GB)

rsatoolbox compares one layer by Spearman's correlation, ours five.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from collections.abc import Callable

import numpy as np
from rsatoolbox.inference import eval_fixed
from rsatoolbox.model import ModelFixed
from rsatoolbox.util.searchlight import evaluate_models_searchlight, get_searchlight_RDMs, get_volume_searchlight
from scipy.spatial.distance import pdist

from dnnbrain_app.analyses.neighbourhoods import Neighbourhoods, find_neighbourhoods
from dnnbrain_app.analyses.options import SearchlightOptions
from dnnbrain_app.analyses.searchlight import score_searchlight
from dnnbrain_app.records import Array, BrainPart, BrainSpace, Rdm

SIZES = {"small": (10, 15, 100), "medium": (20, 45, 500), "large": (20, 45, 5000)}
N_LAYERS, RADIUS = 5, 3
MEMORY = 3 * 2**30


def make_layers(n: int, rng: np.random.Generator) -> list[Rdm]:
    """Layers whose variance falls along their dimensions, as that of networks does."""
    scale = np.arange(1, 201) ** -0.7
    layers = (rng.standard_normal((n, 200)) * scale for _ in range(N_LAYERS))
    return [Rdm(f"layer{i}", pdist(X, "sqeuclidean"), tuple(map(str, range(n)))) for i, X in enumerate(layers)]


def find_balls(side: int) -> Neighbourhoods:
    voxels = np.argwhere(np.ones((side, side, side)))
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    space = BrainSpace("boldref", "nifti", (part,), affine=np.eye(4), shape=(side, side, side))
    return find_neighbourhoods(space, {}, RADIUS - 0.01, memory=MEMORY)  # rsatoolbox excludes the radius itself


def score(Y: Array, layers: list[Rdm], balls: Neighbourhoods, comparison: str, n_permutations: int = 0) -> Array:
    options = SearchlightOptions(comparison=comparison, n_permutations=n_permutations)
    rng = np.random.default_rng(0)
    return score_searchlight("net", Y, layers, balls, options, rng=rng, memory=MEMORY, n_jobs=2).similarity


def time_call(run: Callable[[], Array | Neighbourhoods | tuple[Array, Array]]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare_tools(side: int, rounds: int, rng: np.random.Generator) -> None:
    n = 60
    Y, layers = rng.standard_normal((n, side**3)).astype(np.float32), make_layers(n, rng)
    mask = np.ones((side, side, side))
    balls = find_balls(side)
    sizes = np.diff(balls.members.indptr)
    whole = np.flatnonzero(sizes == sizes.max())  # at the rim, rsatoolbox's spheres differ

    def find_spheres() -> tuple[Array, Array]:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # progress
            return get_volume_searchlight(mask, radius=RADIUS, threshold=1.0)

    centres, neighbours = find_spheres()

    def rsatoolbox() -> Array:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            rdms = get_searchlight_RDMs(Y, centres, neighbours, np.arange(n), method="correlation")
            model = ModelFixed("layer0", layers[0].dissimilarities)
            results = evaluate_models_searchlight(rdms, model, eval_fixed, method="spearman", n_jobs=1)
        return np.array([result.evaluations.item() for result in results])

    difference = np.abs(score(Y, layers, balls, "spearman")[0, whole] - rsatoolbox()[np.searchsorted(centres, whole)])
    tools = {
        "rsatoolbox neighbours": find_spheres,
        "dnnbrain neighbours": lambda: find_balls(side),
        "rsatoolbox spearman, 1 layer": rsatoolbox,
        f"dnnbrain spearman, {N_LAYERS} layers": lambda: score(Y, layers, balls, "spearman"),
        f"dnnbrain cka, {N_LAYERS} layers": lambda: score(Y, layers, balls, "cka"),
        f"dnnbrain cka, {N_LAYERS} layers, 100 permutations": lambda: score(Y, layers, balls, "cka", 100),
    }
    times = {name: np.median([time_call(run) for _ in range(rounds)], axis=0) for name, run in tools.items()}
    reference = times["rsatoolbox spearman, 1 layer"]
    print(f"\n{len(centres)} spheres of {whole_size(balls)} voxels, {n} stimuli; median of {rounds}; ", end="")
    print(f"largest difference {difference.max():.1e}\n")
    print("| what | wall s | CPU s | rsatoolbox's spearman / this (CPU) |\n|---|---|---|---|")
    for name, (wall, cpu) in times.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {reference[1] / cpu:.1f} |")


def whole_size(balls: Neighbourhoods) -> int:
    return int(np.diff(balls.members.indptr).max())


def grow(side: int, n: int, rng: np.random.Generator) -> None:
    """Whole brains: half and all of the stimuli, half and all of the layers."""
    wall, cpu = time_call(lambda: find_balls(side))
    balls = find_balls(side)
    print(f"\n{side**3} voxels, spheres of {whole_size(balls)} (found in {cpu:.1f} CPU-s); whitened cosine\n")
    print("| stimuli | layers | wall s | CPU s | peak memory GB, Y and RDMs included |\n|---|---|---|---|---|")
    for n_stimuli, n_layers in ((n // 2, N_LAYERS), (n, 1), (n, N_LAYERS)):
        Y = rng.standard_normal((n_stimuli, side**3), dtype=np.float32)
        layers = make_layers(n_stimuli, rng)[:n_layers]
        wall, cpu = time_call(lambda Y=Y, layers=layers: score(Y, layers, balls, "whitened-cosine"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {n_stimuli} | {n_layers} | {wall:.1f} | {cpu:.1f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    small, large, n = SIZES[arguments.size]
    rng = np.random.default_rng(0)
    compare_tools(small, arguments.rounds, rng)
    grow(large, n, rng)


if __name__ == "__main__":
    main()
