"""Noise that remembers the volume before: its autocorrelation a voxel, and least squares that allow for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dnnbrain_app.records import Array

BINS = 100  # values of the coefficient a unit, as in nilearn: all voxels of a bin share one filter
ROUNDING = 1e-6  # share of a voxel's energy that single precision can leave over when the design explains all
BLOCK = 4096  # voxels in double precision at a time


def estimate_autocorrelation(residuals: Array) -> Array:
    r"""Estimate the lag-1 autocorrelation of each voxel's residuals, as nilearn does (Yule-Walker).

    .. math:: \hat\rho = \frac{\sum_{t \ge 2} e_t e_{t-1} / (T - 1)}{\sum_t e_t^2 / T}

    Parameters
    ----------
    residuals : array of shape (n_frames, n_voxels)
        Of mean zero.

    Returns
    -------
    array of shape (n_voxels,)
        0 where there are no residuals, NaN where they are.
    """
    n_frames = len(residuals)
    energy, neighbours = _multiply_lags(residuals)
    return _divide(neighbours / (n_frames - 1), energy / n_frames)


def whiten(X: Array, rho: float) -> Array:
    r"""Filter each column, :math:`(A_\rho x)_t = x_t - \rho x_{t-1}`; the first row stays, as in nilearn's ``ARModel``.

    Parameters
    ----------
    X : array of shape (n_frames, n_columns)
        Any series.
    rho : float
        Lag-1 autocorrelation.

    Returns
    -------
    array of shape (n_frames, n_columns)
        float64.
    """
    X = X.astype(np.float64)
    return np.concatenate([X[:1], X[1:] - rho * X[:-1]])


def whiten_weights(weights: Array, rho: float) -> Array:
    r"""Turn weights for filtered series into weights for the series as they are, :math:`W (A_\rho Y) = (W A_\rho) Y`.

    Parameters
    ----------
    weights : array of shape (n, n_frames)
        For series that `whiten` has filtered.
    rho : float
        Lag-1 autocorrelation.

    Returns
    -------
    array of shape (n, n_frames)
        float64.
    """
    weights = weights.astype(np.float64)
    return np.concatenate([weights[:, :-1] - rho * weights[:, 1:], weights[:, -1:]], axis=1)


def bin_voxels(rho: Array) -> Iterator[tuple[float, list[Array]]]:
    """Group voxels by their autocorrelation, cut to 1/100 towards zero as in nilearn; what is below 0 counts as 0.

    Residuals of few degrees of freedom have a negative autocorrelation whatever the noise has; a filter made from it
    is worse than none.

    Parameters
    ----------
    rho : array of shape (n_voxels,)
        Lag-1 autocorrelations; NaN counts as 0.

    Yields
    ------
    rho : float
        Of the bin, ascending.
    blocks : list of array of int
        The bin's voxels, ascending, at most `BLOCK` an array.
    """
    bins = np.trunc(np.maximum(np.nan_to_num(rho), 0) * BINS)
    order = np.argsort(bins, kind="stable")
    for voxels in np.split(order, np.flatnonzero(np.diff(bins[order])) + 1):
        yield float(bins[voxels[0]]) / BINS, np.split(voxels, range(BLOCK, len(voxels), BLOCK))


@dataclass(frozen=True, slots=True, eq=False)
class _RunProducts:
    """What the normal equations keep of a run when its time series are gone."""

    X: Array  # (n_frames, n_regressors)
    Q: Array  # (n_frames, n_nuisance)
    QY: Array  # (n_nuisance, n_voxels): products of lag 1
    last: Array  # (n_voxels,): the last volume


class NormalEquations:
    r"""Least squares over runs, each with its own nuisance, for noise whose autocorrelation is known at the end only.

    With :math:`S` the shift by one volume and :math:`z_T, y_T` the last volume, products of filtered series are a
    polynomial in :math:`\rho`, exactly:

    .. math:: (A_\rho Z)^\top A_\rho Y = (1 + \rho^2) Z^\top Y - \rho Z^\top (S + S^\top) Y - \rho^2 z_T y_T^\top

    so that a run is seen once, and what is kept of it is of lag 0, of lag 1, and its last volume. The same products
    give the autocorrelation of the residuals; `solve` then makes the equations of each bin of voxels and eliminates
    each run's (filtered) nuisance from them.

    Parameters
    ----------
    n_regressors, n_voxels : int
        Columns of the design that the runs share, and of the data.
    lagged : bool
        False to keep products of lag 0 only, which is all that autocorrelation 0 needs.

    Attributes
    ----------
    XX : array of shape (n_regressors, n_regressors)
        :math:`\sum_r X_r^\top X_r`.
    """

    def __init__(self, n_regressors: int, n_voxels: int, *, lagged: bool) -> None:
        self.XX = np.zeros((n_regressors, n_regressors))
        self._lagged = lagged
        self._XY = np.zeros((2 if lagged else 1, n_regressors, n_voxels), dtype=np.float32)
        self._YY = np.zeros((2, n_voxels))
        self._runs: list[_RunProducts] = []

    def add(self, X: Array, Q: Array, blocks: Iterable[tuple[slice, Array]]) -> None:
        """Add a run.

        Parameters
        ----------
        X : array of shape (n_frames, n_regressors)
            Design, orthogonal to `Q`.
        Q : array of shape (n_frames, n_nuisance)
            Orthonormal basis of the nuisance.
        blocks : iterable of (slice, array of shape (n_frames, n))
            Which voxels, and their time series, orthogonal to `Q`.
        """
        n_lags, n_regressors, n_voxels = self._XY.shape
        n_products = n_lags * n_regressors
        shape = (Q.shape[1], n_voxels if self._lagged else 0)
        run = _RunProducts(X, Q, np.empty(shape, dtype=np.float32), np.empty(shape[1], dtype=np.float32))
        weights = np.hstack([X, _add_neighbours(X), _add_neighbours(Q)] if self._lagged else [X]).T
        for voxels, Y in blocks:
            products = weights @ Y
            self._XY[..., voxels] += products[:n_products].reshape(n_lags, n_regressors, -1)
            if self._lagged:
                run.QY[:, voxels] = products[n_products:]
                run.last[voxels] = Y[-1]
                self._YY[:, voxels] += _multiply_lags(Y)
        self.XX += X.T @ X
        self._runs.append(run)

    def estimate_autocorrelation(self) -> Array:
        r"""Estimate each voxel's autocorrelation over all runs from the residuals of least squares.

        As the function of this name, with sums over runs. They follow from the products, with :math:`b` the OLS betas:
        :math:`\sum_t e_t^2 = y^\top y - b^\top X^\top y` and
        :math:`\sum_t e_t e_{t-1} = \frac12 (y - X b)^\top (S + S^\top) (y - X b)`.

        Returns
        -------
        array of shape (n_voxels,)
            0 where the design explains everything, NaN where the data are.
        """
        XSX = sum(run.X.T @ _add_neighbours(run.X) for run in self._runs)
        n_frames = sum(len(run.X) for run in self._runs)
        rho = np.empty(self._XY.shape[2])
        for start in range(0, len(rho), BLOCK):
            block = slice(start, start + BLOCK)
            XY = self._XY[:, :, block].astype(np.float64)
            betas = np.linalg.solve(self.XX, XY[0])
            total, neighbours = self._YY[:, block]
            energy = total - np.einsum("sv,sv->v", betas, XY[0])
            energy[energy < ROUNDING * total] = 0
            neighbours = neighbours + np.einsum("sv,sv->v", betas, XSX @ betas / 2 - XY[1])
            rho[block] = _divide(neighbours / (n_frames - len(self._runs)), energy / n_frames)
        return rho

    def solve(self, rho: Array) -> Array:
        """Solve the equations of each voxel.

        Parameters
        ----------
        rho : array of shape (n_voxels,)
            Lag-1 autocorrelation of each voxel, the same in all runs.

        Returns
        -------
        array of shape (n_regressors, n_voxels)
            float32.
        """
        betas = np.empty(self._XY.shape[1:], dtype=np.float32)
        for value, blocks in bin_voxels(rho):
            XX, slopes = self._filter_designs(value)
            for voxels in blocks:
                XY = (1 + value**2) * self._XY[0][:, voxels].astype(np.float64)
                if value:
                    XY -= value * self._XY[1][:, voxels]
                    for run, slope in zip(self._runs, slopes, strict=True):
                        XY += value * (slope @ run.QY[:, voxels])
                        XY -= value**2 * np.outer(run.X[-1] - slope @ run.Q[-1], run.last[voxels])
                betas[:, voxels] = np.linalg.solve(XX, XY)
        return betas

    def _filter_designs(self, rho: float) -> tuple[Array, list[Array]]:
        """Sum the filtered runs' X'X less what the nuisance explains; return X'Q (Q'Q)^-1 of each run with it."""
        n_regressors = self._XY.shape[1]
        total, slopes = np.zeros((n_regressors, n_regressors)), []
        for run in self._runs:
            X, Q = whiten(run.X, rho), whiten(run.Q, rho)
            slopes.append(np.linalg.solve(Q.T @ Q, Q.T @ X).T)
            total += X.T @ (X - Q @ slopes[-1].T)
        return total, slopes


def _add_neighbours(X: Array) -> Array:
    """Sum the volume before and the volume after."""
    total = np.zeros_like(X)
    total[1:] += X[:-1]
    total[:-1] += X[1:]
    return total


def _multiply_lags(Y: Array) -> tuple[Array, Array]:
    """Sum each column's products with itself, and with itself one volume before."""
    return np.einsum("tv,tv->v", Y, Y), np.einsum("tv,tv->v", Y[1:], Y[:-1])


def _divide(products: Array, energy: Array) -> Array:
    """Divide, 0 / 0 being 0."""
    quotient: Array = np.divide(products, energy, out=np.zeros_like(energy), where=energy != 0)
    return quotient
