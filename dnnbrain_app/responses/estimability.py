"""Whether the data can tell a response at all: it must lie in the run, and not be confounded with others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array
from dnnbrain_app.responses.design import build_design
from dnnbrain_app.responses.hrfs import RESPONSE_LENGTH

ESTIMABLE = 0.01  # share of a response's energy that must be its own; less means a standard error ten times the usual
COLLINEAR = 1e-8  # eigenvalue of the regressors' correlation matrix below which one follows from the others


def measure_energy(duration: Array, frame_times: Array, hrf: str) -> Array:
    """Sum the squares of the whole response to events of these durations, wherever in the run they are.

    Parameters
    ----------
    duration : array of shape (n_events,)
        Seconds.
    frame_times : array of shape (n_frames,)
        Seconds.
    hrf : str
        Name of the response.

    Returns
    -------
    array of shape (n_events,)
    """
    step = float(np.diff(frame_times).min())
    length = RESPONSE_LENGTH + duration.max(initial=0.0)
    whole = build_design(np.zeros(len(duration)), duration, np.arange(0.0, length + 2 * step, step), hrf)
    energy: Array = np.square(whole).sum(axis=0)
    return energy


def require_own_energy(own: Array, whole: Array, names: Sequence[str] | Array) -> None:
    """Refuse responses of which too little is left; `own` and `whole` are energies (n,).

    Raises
    ------
    BadDataError
        If some keep less than 1 %; it names them.
    """
    lost = [name for name, left in zip(names, own > ESTIMABLE * whole, strict=True) if not left]
    if lost:
        raise BadDataError(
            f"the runs hold too little of the response to {enumerate_names(lost)}: its events lie outside the runs, "
            "or within volumes that spikes or drifts explain"
        )


def require_separable(XX: Array, names: Sequence[str] | Array, advice: str) -> Array:
    r"""Refuse regressors that follow from one another; else say what their overlap costs.

    Parameters
    ----------
    XX : array of shape (n, n)
        :math:`X^\top X` of the regressors, nuisance projected out.
    names : sequence of str
        Of the responses.
    advice : str
        What to do instead, for the message.

    Returns
    -------
    array of shape (n,)
        By how much the overlap with the others inflates the standard error of each beta,
        :math:`\sqrt{(X^\top X)_{ii} (X^\top X)^{-1}_{ii}}` (the root of the variance inflation factor).

    Raises
    ------
    BadDataError
        If some follow from others; it names them.
    """
    norms = np.sqrt(np.diag(XX))
    eigenvalues, vectors = np.linalg.eigh(XX / np.outer(norms, norms))
    if eigenvalues.size and eigenvalues[0] < COLLINEAR:
        share = np.abs(vectors[:, 0])
        mixed = [name for name, part in zip(names, share, strict=True) if part > share.max() / 2]
        raise BadDataError(
            f"responses to {enumerate_names(mixed)} cannot be told apart: they are always shown "
            f"together, or there are more of them than the volumes can resolve; {advice}"
        )
    inflation: Array = np.sqrt(np.square(vectors) @ (1 / eigenvalues))
    return inflation


def enumerate_names(names: Sequence[str] | Array, limit: int = 10) -> str:
    """List the names, the first few of them if there are many.

    Examples
    --------
    >>> enumerate_names(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    return ", ".join(map(str, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
