r"""Ridge regression of many voxels on one layer, with a penalty for each voxel, from the layer's Gram.

With the centred training kernel :math:`K = U s U^\top`, every quantity that the choice of the penalty :math:`\alpha`
needs (see `penalties`) is elementwise in :math:`Z = U^\top Y`, which is computed once, and the predictions for test
rows with centred kernel :math:`K_*` against the training rows are :math:`K_* U \, (Z_v / (s + \alpha_v))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from dnnbrain_app.analyses.autocorrelation import SerialNoise
from dnnbrain_app.analyses.penalties import Penalties, weigh_penalties
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Gram

LARGEST_DOUBLE = 500  # training rows up to which float64 costs no more than a few hundredths of a second

Draw = Callable[[Array], Array]  # from rows to the responses of some voxels to them, (n_rows, n_voxels)


@dataclass(frozen=True, slots=True, eq=False)
class RidgeFold:
    """The model of one layer in one fold, before it has seen a response.

    The kernel is divided by the mean eigenvalue of the training kernel (its trace / n), so that the penalties, too,
    are in this unit and one grid fits every layer.

    Parameters
    ----------
    train, test : array of int
        Rows of the stimuli.
    penalties : Penalties
        To choose from.
    U : array of shape (n_train, n_train), float32
        Eigenvectors of the centred training kernel.
    s : array of shape (n_train,), float32
        Eigenvalues.
    T : array of shape (n_test, n_train), float32
        Test rows of the kernel, projected on the eigenvectors.
    """

    train: Array
    test: Array
    penalties: Penalties
    U: Array
    s: Array
    T: Array

    def predict(self, Y: Array) -> tuple[Array, Array]:
        """Choose each voxel's penalty by GCV and predict the test rows.

        Parameters
        ----------
        Y : array of shape (n_train, n_voxels), float32
            Training responses, centred. A column with NaN gives NaN and harms no other.

        Returns
        -------
        predictions : array of shape (n_test, n_voxels), float32
            Relative to the training mean.
        choice : array of int, shape (n_voxels,)
            Place of each voxel's penalty in the grid.
        """
        Z = self.U.T @ Y
        choice = self.penalties.choose(Z * Z)
        Z /= np.add.outer(self.s, self.penalties.grid[choice].astype(np.float32))
        return self.T @ Z, choice

    def score(self, draw: Draw) -> Array:
        """Fit some voxels on the training rows, predict the test rows, and score.

        Parameters
        ----------
        draw : callable
            From rows to the responses to them, (n_rows, n_voxels).

        Returns
        -------
        array of shape (1, 5, n_voxels)
            For this one fold: correlation, the sums of squares around the predictions and around the training mean,
            log penalty, and whether the penalty is on the edge of the grid.
        """
        with np.errstate(all="ignore"):  # voxels without signal come out as NaN, which is what they should
            Y = draw(self.train)
            mean = Y.mean(axis=0, dtype=np.float64).astype(Y.dtype)
            Y -= mean
            predicted, choice = self.predict(Y.astype(np.float32, copy=False))
            measured = (draw(self.test) - mean).astype(np.float32, copy=False)
            return np.concatenate([score_predictions(predicted, measured), self.penalties.describe(choice)])[None]


def prepare_ridge(gram: Gram, test: Array, grid: Array, noise: SerialNoise | None = None) -> RidgeFold:
    r"""Decompose the training part of a layer's kernel.

    Centring is on the training rows only.

    Large kernels are decomposed in float32, in half the time. Its eigenvalues are wrong by 1e-7 of the largest, which
    blurs those that should be (nearly) zero and misleads GCV (differences in r up to .01 for a layer with few
    dimensions). The small ones are therefore computed again from their eigenvectors, :math:`s_i = u_i^\top K u_i` in
    float64, whose error is of second order. The scores then are those of float64, to 1e-6 in the median voxel of
    layers of all kinds (1e-4 without noise); now and then a voxel takes the other of two penalties that are equally
    good.

    Parameters
    ----------
    gram : Gram
        The layer, over all stimuli, with K.
    test : array of int, shape (n_test,)
        Held-out rows; the others are training rows.
    grid : array of shape (n_alphas,)
        Penalties, positive and rising, in units of the mean eigenvalue.
    noise : SerialNoise, optional
        Where the rows are volumes, what noise they have.

    Raises
    ------
    BadDataError
        The activations do not vary over the training rows.
    """
    train = np.delete(np.arange(len(gram.row_sums)), test)
    return decompose_kernel(*centre_kernel(gram, train, test), train, test, grid, noise)


def centre_kernel(gram: Gram, train: Array, test: Array) -> tuple[Array, Array]:
    """Return training (n_train, n_train) and test rows (n_test, n_train) of a layer's kernel, as `RidgeFold` has it."""
    assert gram.K is not None  # the caller looked
    rows = gram.K[train]
    K_train = rows[:, train]
    means = K_train.mean(axis=0)
    K_test = rows[:, test].T - means
    del rows
    K_test -= K_test.mean(axis=1, keepdims=True)
    energy = K_train.trace()
    K_train -= means
    K_train -= K_train.mean(axis=1, keepdims=True)
    unit = find_unit(gram.layer, K_train.trace(), energy, len(train))
    K_train /= unit
    K_test /= unit
    return K_train, K_test


def decompose_kernel(
    K_train: Array, K_test: Array, train: Array, test: Array, grid: Array, noise: SerialNoise | None
) -> RidgeFold:
    """Make the model of a kernel that `centre_kernel` returned, or of a sum of such, with a trace of n_train."""
    precise = len(train) <= LARGEST_DOUBLE
    s, U = eigh(
        K_train if precise else K_train.astype(np.float32), driver="evd", overwrite_a=not precise, check_finite=False
    )
    if not precise:
        s = s.astype(np.float64)
        blurred = s < 1e-4 * s[-1]
        V = U[:, blurred].astype(np.float64)
        s[blurred] = np.einsum("ni,ni->i", V, K_train @ V)
    T = K_test @ U
    U -= U.mean(axis=0)  # or rounding of Y's mean enters GCV, unshrunken, by the constant eigenvector
    s = np.maximum(s, 0)
    penalties = weigh_penalties(s, len(train), grid, None if noise is None else noise.take(train).measure(U))
    return RidgeFold(train, test, penalties, *(np.asarray(a, dtype=np.float32) for a in (U, s, T)))


def find_unit(layer: str, variance: float, energy: float, n: int) -> float:
    """Return the mean eigenvalue of the centred kernel, given its trace and the trace before centring."""
    if variance <= 1e-10 * energy:
        raise BadDataError(f"layer {layer}: its activations do not vary over the {n} training stimuli; leave it out")
    return variance / n


def score_predictions(predicted: Array, measured: Array) -> Array:
    """Compare predictions with held-out responses, (n_test, n_voxels), both relative to the training mean.

    Returns
    -------
    array of shape (3, n_voxels)
        Correlation, NaN where one does not vary by more than rounding, and the sums of squares around the predictions
        and around the training mean.
    """
    a = predicted - predicted.mean(axis=0)
    b = measured - measured.mean(axis=0)
    variances, energies = [], []
    for centred, original in ((a, predicted), (b, measured)):
        variance, energy = _sum_products(centred, centred), _sum_products(original, original)
        variance[variance <= 1e-10 * energy] = np.nan
        variances.append(variance)
        energies.append(energy)
    r = _sum_products(a, b) / np.sqrt(variances[0] * variances[1])
    error = measured - predicted
    return np.stack([r, _sum_products(error, error), energies[1]])


def _sum_products(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("nv,nv->v", a, b), dtype=np.float64)
