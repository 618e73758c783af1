"""Single-trial betas of one run, against a loop of nilearn's ``run_glm`` over trials; and of a whole study.

``python benchmarks/responses.py nilearn --help``; both get the same arrays, alternate, and the medians are compared.
With noise model ar1 nilearn's loop estimates the autocorrelation anew from each trial's model, and dnnbrain once a run:
there the difference is the two estimates', and the tests compare betas of equal ones.

``python benchmarks/responses.py study --help``; runs of grayordinates, made one at a time as they are read. The time
to make them is told apart, and the peak is of the process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from statistics import median

import numpy as np
from nilearn.glm.first_level import compute_regressor, run_glm

from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.glm import RunData, estimate_betas
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions

OPTIONS = ResponseOptions(scaling="none")


def simulate_run(n_trials: int, n_frames: int, n_voxels: int, rng: np.random.Generator) -> tuple[RunData, Trials]:
    """Autocorrelated noise around 100, with motion confounds: the time a GLM takes does not depend on the signal."""
    frame_times = 0.972 + 2.0 * np.arange(n_frames)
    motion = {
        name: rng.standard_normal(n_frames) for name in ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    }
    nuisance, _ = build_nuisance(motion, frame_times, OPTIONS)
    bold = rng.standard_normal((n_frames, n_voxels), dtype=np.float32)
    for t in range(1, n_frames):
        bold[t] += 0.35 * bold[t - 1]
    bold += 100
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


def compare(arguments: argparse.Namespace) -> None:
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


class Study:
    """Runs that are made when they are read, each time the same."""

    def __init__(self, n_runs: int, n_trials: int, n_frames: int, n_voxels: int) -> None:
        self._shape = n_trials, n_frames, n_voxels
        self._seeds = range(n_runs)
        self.wall = self.cpu = 0.0  # seconds that making them took
        names = [f"stimulus{i}" for i in range(n_trials)]
        trials = [simulate_run(n_trials, n_frames, 1, np.random.default_rng(seed))[1] for seed in self._seeds]
        self.trials = Trials(
            np.concatenate([one.onset for one in trials]),
            np.concatenate([one.duration for one in trials]),
            np.concatenate([np.random.default_rng(seed).permutation(names) for seed in self._seeds]),
            np.repeat(np.arange(n_runs), n_trials),
            tuple(f"run-{seed + 1}" for seed in self._seeds),
        )

    def __iter__(self) -> Iterator[RunData]:
        for seed in self._seeds:
            wall, cpu = time.perf_counter(), time.process_time()
            run = simulate_run(*self._shape, np.random.default_rng(seed))[0]
            self.wall, self.cpu = self.wall + time.perf_counter() - wall, self.cpu + time.process_time() - cpu
            yield run
            del run


def fit_study(arguments: argparse.Namespace) -> None:
    study = Study(arguments.runs, arguments.trials, arguments.volumes, arguments.voxels)
    wall, cpu = time.perf_counter(), time.process_time()
    betas, _ = estimate_betas(study, study.trials, ResponseOptions(model=arguments.model))
    wall, cpu = time.perf_counter() - wall - study.wall, time.process_time() - cpu - study.cpu
    size = f"{arguments.runs} x {arguments.volumes} x {arguments.voxels}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print("| model | runs x volumes x voxels | trials | s | CPU-s | making the data s | peak GB | betas GB |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.model} | {size} | {len(study.trials)} | {wall:.1f} | {cpu:.1f} | {study.wall:.1f} | {peak:.2f} "
        f"| {betas.nbytes / 1e9:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("nilearn")
    one.add_argument("--trials", type=int, default=92)
    one.add_argument("--volumes", type=int, default=190)
    one.add_argument("--voxels", type=int, nargs="+", default=[1000, 5000, 20000])
    one.add_argument("--noise-models", nargs="+", choices=("ols", "ar1"), default=["ols", "ar1"])
    one.add_argument("--repeats", type=int, default=3)
    whole = commands.add_parser("study")
    whole.add_argument("--model", default="lss")
    whole.add_argument("--runs", type=int, default=12)
    whole.add_argument("--trials", type=int, default=92)
    whole.add_argument("--volumes", type=int, default=300)
    whole.add_argument("--voxels", type=int, default=91_282)
    arguments = parser.parse_args()
    if arguments.command:
        (compare if arguments.command == "nilearn" else fit_study)(arguments)
        return
    compare(one.parse_args([]))
    print()
    fit_study(whole.parse_args([]))


if __name__ == "__main__":
    main()
