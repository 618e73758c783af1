"""Single-trial betas (LSS) of one run, against a loop of nilearn's ``run_glm`` over trials.

``python benchmarks/responses.py --help``; both get the same arrays, alternate, and the medians are compared. With
noise model ar1 nilearn's loop estimates the autocorrelation anew from each trial's model, and dnnbrain once a run:
there the difference is the two estimates', and the tests compare betas of equal ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import median

import numpy as np
from nilearn.glm.first_level import compute_regressor, run_glm
from scipy.signal import lfilter

from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.glm import RunData, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions

OPTIONS = ResponseOptions(scaling="none")


def simulate_run(n_trials: int, n_frames: int, n_voxels: int, rng: np.random.Generator) -> tuple[RunData, Trials]:
    """Autocorrelated noise around 1000, with motion confounds: the time a GLM takes does not depend on the signal."""
    frame_times = 0.972 + 2.0 * np.arange(n_frames)
    motion = {
        name: rng.standard_normal(n_frames) for name in ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    }
    nuisance, _ = build_nuisance(motion, frame_times, OPTIONS)
    bold = lfilter([10.0], [1.0, -0.35], rng.standard_normal((n_frames, n_voxels)), axis=0).astype(np.float32) + 1000
    onset = np.linspace(10, frame_times[-1] - 15, n_trials)
    names = np.array([f"stimulus{i}" for i in range(n_trials)])
    trials = Trials(onset, np.ones(n_trials), names, np.zeros(n_trials, dtype=int), ("run-1",))
    return RunData(bold, frame_times, nuisance), trials


def estimate_with_nilearn(run: RunData, trials: Trials, noise_model: str) -> Array:
    """One model a trial: the trial, all others, the nuisance."""
    betas = np.empty((len(trials), run.bold.shape[1]), dtype=np.float32)
    ones = np.ones(len(trials))
    for i in range(len(trials)):
        events = np.array([trials.onset, trials.duration, ones])
        alone, _ = compute_regressor(events[:, [i]], OPTIONS.hrf, run.frame_times)
        others, _ = compute_regressor(np.delete(events, i, axis=1), OPTIONS.hrf, run.frame_times)
        labels, results = run_glm(run.bold, np.hstack([alone, others, run.nuisance]), noise_model=noise_model)
        for label in np.unique(labels):
            betas[i, labels == label] = results[label].theta[0]
    return betas


def estimate_with_dnnbrain(run: RunData, trials: Trials, noise_model: str) -> Array:
    return estimate_betas([run], trials, replace(OPTIONS, noise_model=noise_model))[0]


def measure(
    function: Callable[[RunData, Trials, str], Array], run: RunData, trials: Trials, noise_model: str
) -> tuple[float, float, Array]:
    """Wall-clock seconds, CPU-seconds, result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(run, trials, noise_model)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=92)
    parser.add_argument("--volumes", type=int, default=190)
    parser.add_argument("--voxels", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--noise-models", nargs="+", choices=("ols", "ar1"), default=["ols", "ar1"])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)

    print("| noise | trials x volumes x voxels | nilearn s (CPU) | dnnbrain s (CPU) | ratio (CPU) | difference / SD |")
    print("|---|---|---|---|---|---|")
    for n_voxels, noise_model in product(arguments.voxels, arguments.noise_models):
        run, trials = simulate_run(arguments.trials, arguments.volumes, n_voxels, rng)
        theirs, ours = [], []
        for _ in range(arguments.repeats):
            theirs.append(measure(estimate_with_nilearn, run, trials, noise_model))
            ours.append(measure(estimate_with_dnnbrain, run, trials, noise_model))
        (wall_a, wall_b), (cpu_a, cpu_b) = ([median(t[k] for t in times) for times in (theirs, ours)] for k in (0, 1))
        difference = np.abs(theirs[0][2] - ours[0][2]).max() / theirs[0][2].std()
        print(
            f"| {noise_model} | {arguments.trials} x {arguments.volumes} x {n_voxels} | {wall_a:.2f} ({cpu_a:.2f}) "
            f"| {wall_b:.3f} ({cpu_b:.3f}) | {wall_a / wall_b:.0f} ({cpu_a / cpu_b:.0f}) | {difference:.1e} |"
        )


if __name__ == "__main__":
    main()
