"""The data of a run, as every model takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Trials
from dnnbrain_app.responses.noise import BLOCK

LOWEST_MEAN = 3.0  # of the median voxel, in standard deviations: a BOLD signal has 20 to 200, demeaned data 0


@dataclass(frozen=True, slots=True, eq=False)
class RunData:
    """The numbers of one run.

    Parameters
    ----------
    bold : array of shape (n_frames, n_voxels)
        Time series.
    frame_times : array of shape (n_frames,)
        Time that each volume represents, seconds on the clock of the trials' onsets.
    nuisance : array of shape (n_frames, n_regressors)
        Regressors of no interest; of full column rank, with the constant in their span.
    """

    bold: Array
    frame_times: Array
    nuisance: Array

    def __post_init__(self) -> None:
        if not len(self.bold) == len(self.frame_times) == len(self.nuisance):
            raise BadDataError(
                f"a run of {len(self.bold)} volumes with {len(self.frame_times)} frame times "
                f"and {len(self.nuisance)} rows of nuisance regressors"
            )


def read_runs(runs: Iterable[RunData], trials: Trials) -> Iterator[tuple[int, str, RunData]]:
    """Read the data run by run, as many as the trials have; a caller that lets go of one keeps one in memory.

    Yields
    ------
    index : int
        Of the run, as in ``trials.run``.
    label : str
        Of the run.
    run : RunData
        Its data.

    Raises
    ------
    BadDataError
        If there are fewer runs, or more.
    """
    iterator = iter(runs)
    for index, label in enumerate(trials.run_labels):
        run = next(iterator, None)
        if run is None:
            raise BadDataError(f"trials of {len(trials.run_labels)} runs, but data of {index} only")
        yield index, label, run
        del run  # free before the next one is read
    if next(iterator, None) is not None:
        raise BadDataError(f"trials of {len(trials.run_labels)} runs, but data of more")


def project_out(Q: Array, X: Array) -> Array:
    """Subtract from each column what the orthonormal columns of Q explain of it."""
    residuals: Array = X - Q @ (Q.T @ X)
    return residuals


class Series:
    """Time series of a run, centred and scaled as they are read, in blocks; NaN where a voxel has no signal.

    Every model has the constant in its span, so that centring changes nothing but the rounding.

    Parameters
    ----------
    bold : array of shape (n_frames, n_voxels)
        Time series.
    scaling : {'zscore', 'percent', 'none'}
        Unit: a standard deviation of the voxel, a hundredth of its mean, or the data's own.
    label : str
        The run, for messages.

    Raises
    ------
    BadDataError
        If no voxel varies, or for ``percent`` the data were demeaned.
    """

    def __init__(self, bold: Array, scaling: str, label: str) -> None:
        self._bold = bold
        n_voxels = bold.shape[1]
        self._means, self._units = np.empty(n_voxels), np.ones(n_voxels)
        deviations = np.empty(n_voxels)
        for block in self._cut():
            Y = bold[:, block].astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinite values become NaN
                self._means[block] = Y.mean(axis=0)
                Y -= self._means[block]
            deviations[block] = np.sqrt(np.einsum("tv,tv->v", Y, Y) / len(Y))
        has_signal = deviations > 1e-9 * np.abs(self._means)  # false for NaN
        if not has_signal.any():
            raise BadDataError(f"{label}: no voxel varies over time")
        if scaling == "percent":
            _require_means(np.abs(self._means[has_signal]) / deviations[has_signal], label)
            has_signal &= self._means > 0
            self._units = self._means / 100
        elif scaling == "zscore":
            self._units = deviations
        self._units[~has_signal] = np.nan

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        return ((block, self.take(block)) for block in self._cut())

    def take(self, voxels: Array | slice) -> Array:
        """Read some voxels (n_frames, n), float64."""
        Y = self._bold[:, voxels].astype(np.float64)
        with np.errstate(invalid="ignore"):
            Y -= self._means[voxels]
        Y /= self._units[voxels]
        return Y

    def _cut(self) -> Iterator[slice]:
        return (slice(start, start + BLOCK) for start in range(0, self._bold.shape[1], BLOCK))


def _require_means(ratios: Array, label: str) -> None:
    """Refuse percent of demeaned data; `ratios` are means in standard deviations."""
    ratio = float(np.median(ratios))
    if ratio < LOWEST_MEAN:
        raise BadDataError(
            f"{label}: the mean of the median voxel is {ratio:.2g} standard deviations, so these data were "
            'demeaned and have no percent signal change; set responses.scaling = "zscore"'
        )
