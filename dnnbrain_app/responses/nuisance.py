"""What moves the signal without being a response: motion, physiology, drift, and volumes that are not to be trusted."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import numpy as np
from scipy.linalg import qr

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array
from dnnbrain_app.responses.options import ResponseOptions

logger = logging.getLogger(__name__)

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
EXPANSIONS = {0: (), 6: ("",), 24: ("", "_derivative1", "_power2", "_derivative1_power2")}
COSINE = re.compile(r"cosine\d+")
DISPLACEMENT = "framewise_displacement"
SPIKE = re.compile(r"(non_steady_state|motion)_outlier\d+")
COLLINEAR = 1e-8  # share of a column's norm that must be its own: confounds files have about eight digits


def build_nuisance(
    confounds: Mapping[str, Array], frame_times: Array, options: ResponseOptions
) -> tuple[Array, tuple[str, ...]]:
    r"""Collect the regressors of no interest of one run.

    A constant, cosine drifts, motion, anatomical CompCor and spikes, named as fMRIPrep names them, and a regressor for
    each volume to be scrubbed, :math:`FD_k > \theta` (Power et al. 2012), as if it had not been measured. Without
    cosines in the confounds, drift :math:`j` at volume :math:`k` of :math:`T` is
    :math:`\cos(\pi j (k + 1/2) / T)`, for every :math:`j` whose period is at least ``options.high_pass``. Columns that
    follow from others are left out.

    Parameters
    ----------
    confounds : mapping of str to array of shape (n_frames,)
        Columns of the confounds file, with NaN for n/a; empty if there is no file: drifts and constant only then.
    frame_times : array of shape (n_frames,)
        Seconds.
    options : ResponseOptions
        ``motion``, ``compcor``, ``spikes``, ``fd_threshold`` and ``high_pass`` say what enters.

    Returns
    -------
    nuisance : array of shape (n_frames, n_regressors)
        float64, of full column rank.
    names : tuple of str
        One a column; the first is ``constant``.

    Raises
    ------
    BadDataError
        If a column that was asked for is absent, has another length than the run or a gap (n/a) after its first row,
        or if the regressors leave no degree of freedom.

    References
    ----------
    Power et al. (2012), doi:10.1016/j.neuroimage.2011.10.018.
    """
    n_frames = len(frame_times)
    cosines = sorted(filter(COSINE.fullmatch, confounds))
    asked = [*cosines, *(_name_requested(confounds, options))]
    columns = {"constant": np.ones(n_frames)}
    if not cosines:
        columns |= _build_drifts(frame_times, options.high_pass)
    columns |= {name: _read_column(confounds[name], name, n_frames) for name in asked}
    if options.fd_threshold:
        columns |= _build_spikes(confounds, n_frames, options.fd_threshold)

    names = np.array(list(columns))
    nuisance = np.column_stack(list(columns.values()))
    kept = _find_independent(nuisance)
    if len(kept) < len(names):
        logger.info("nuisance regressors left out, as they follow from others: %s", ", ".join(np.delete(names, kept)))
    if len(kept) >= n_frames:
        raise BadDataError(
            f"{len(kept)} nuisance regressors leave no degree of freedom in {n_frames} volumes; ask for fewer: less "
            "responses.motion or responses.compcor, a longer responses.high_pass, responses.spikes = false, "
            "or a higher responses.fd_threshold"
        )
    return nuisance[:, kept], tuple(names[kept].tolist())


def _name_requested(confounds: Mapping[str, Array], options: ResponseOptions) -> list[str]:
    """Name the motion, CompCor and spike columns to use."""
    # no table at all was warned about; a table without motion is a mistake in it or in the options
    motion = [name + suffix for suffix in EXPANSIONS[options.motion] for name in MOTION] if confounds else []
    compcor = [f"a_comp_cor_{i:02}" for i in range(options.compcor)]
    for names, option in ((motion, "motion"), (compcor, "compcor")):
        missing = [name for name in names if name not in confounds]
        if missing:
            raise BadDataError(
                f"the confounds have no column {', '.join(missing)}; add it, or set responses.{option} = 0 "
                f"(it is {getattr(options, option)})"
            )
    spikes = sorted(filter(SPIKE.fullmatch, confounds)) if options.spikes else []
    return [*motion, *compcor, *spikes]


def _build_spikes(confounds: Mapping[str, Array], n_frames: int, threshold: float) -> dict[str, Array]:
    """Build a regressor for each volume with more framewise displacement than the threshold (mm)."""
    if DISPLACEMENT not in confounds:
        raise BadDataError(
            f"the confounds have no column {DISPLACEMENT}; add it, or set responses.fd_threshold = 0 "
            f"(it is {threshold:g})"
        )
    moved = _read_column(confounds[DISPLACEMENT], DISPLACEMENT, n_frames) > threshold
    logger.info("%d of %d volumes are scrubbed: they moved by more than %g mm", moved.sum(), n_frames, threshold)
    return {f"scrubbed{volume:04}": np.eye(n_frames)[volume] for volume in np.flatnonzero(moved)}


def _read_column(values: Array, name: str, n_frames: int) -> Array:
    """Check one confound; the n/a that a derivative has in its first row becomes 0."""
    if len(values) != n_frames:
        raise BadDataError(f"confound {name} has {len(values)} rows, but the run has {n_frames} volumes")
    values = np.array(values, dtype=np.float64)
    if np.isnan(values[0]):
        values[0] = 0.0
    gaps = np.flatnonzero(~np.isfinite(values))
    if gaps.size:
        raise BadDataError(
            f"confound {name} has no finite value in row {gaps[0] + 1}; n/a is right in the first row only"
        )
    return values


def _build_drifts(frame_times: Array, high_pass: float) -> dict[str, Array]:
    """Build discrete cosines of periods down to `high_pass` seconds."""
    n_frames = len(frame_times)
    run_length = n_frames * (frame_times[-1] - frame_times[0]) / (n_frames - 1)
    n_drifts = min(int(2 * run_length / high_pass), n_frames - 1) if high_pass else 0
    phase = np.pi * (np.arange(n_frames) + 0.5) / n_frames
    return {f"cosine{j - 1:02}": np.cos(j * phase) for j in range(1, n_drifts + 1)}


def _find_independent(columns: Array) -> Array:
    """Find the indices, ascending, of a largest set of linearly independent columns, the first among them."""
    norms = np.linalg.norm(columns, axis=0)
    norms[0] /= 2  # the longest column becomes the first pivot: the constant is never the one to go
    R, pivots = qr(columns / np.where(norms > 0, norms, 1), mode="r", pivoting=True)
    rank = np.count_nonzero(np.abs(np.diag(R)) > COLLINEAR)
    kept: Array = np.sort(pivots[:rank])
    return kept
