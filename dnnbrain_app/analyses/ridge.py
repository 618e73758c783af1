r"""Ridge regression of many voxels on one layer, with a penalty for each voxel.

With centred training features :math:`X` (n, p), responses :math:`Y` (n, V) and the eigenvectors :math:`U` and
eigenvalues :math:`s` of :math:`X X^\top`, every quantity that the choice of the penalty :math:`\alpha` needs is
elementwise in :math:`Z = U^\top Y`, which is computed once:

.. math::

    GCV_v(\alpha) = \frac{\sum_i \left(\frac{\alpha}{s_i + \alpha}\right)^2 Z_{iv}^2}{(n - dof(\alpha))^2},
    \qquad dof(\alpha) = 1 + \sum_i \frac{s_i}{s_i + \alpha},

(the 1 is the intercept; Golub, Heath & Wahba 1979), and the predictions for test rows with centred kernel
:math:`K_*` against the training rows are :math:`K_* U \, (Z_v / (s + \alpha_v))`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Gram

LEAST_RESIDUAL = (3, 0.05)  # degrees of freedom, and share of the training rows, that GCV needs to judge a penalty by
LARGEST_DOUBLE = 500  # training rows up to which float64 costs no more than a few hundredths of a second


@dataclass(frozen=True, slots=True, eq=False)
class RidgeFold:
    """The model of one layer in one fold, before it has seen a response.

    The kernel is divided by the mean eigenvalue of the training kernel (its trace / n), so that the penalties, too,
    are in this unit and one grid fits every layer.

    Parameters
    ----------
    alphas : array of shape (n_alphas,)
        Penalties to choose from: the grid, without the smallest ones where these leave no residual to judge by.
    n_left_out : int
        How many of the grid's smallest penalties are left out.
    U : array of shape (n_train, k), float32
        Eigenvectors of the centred training kernel: all of them (k = n_train), or those of a rank-deficient kernel
        that have an eigenvalue (k = n_features).
    s : array of shape (k,), float32
        Eigenvalues.
    T : array of shape (n_test, k), float32
        Test rows of the kernel, projected on the eigenvectors.
    weights : array of shape (n_alphas, k), float32
        What a squared projection adds to GCV.
    outside : array of shape (n_alphas,), float32
        What the squared response outside the span of U adds to GCV; zeros where U is complete.
    """

    alphas: Array
    n_left_out: int
    U: Array
    s: Array
    T: Array
    weights: Array
    outside: Array

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
            Index of each voxel's penalty in the whole grid.
        """
        Z = self.U.T @ Y
        energy = Z * Z
        loss = self.weights @ energy
        if self.outside.any():
            remainder = np.einsum("nv,nv->v", Y, Y) - energy.sum(axis=0)
            loss += self.outside[:, None] * np.maximum(remainder, 0)
        choice = loss.argmin(axis=0)
        Z /= np.add.outer(self.s, self.alphas[choice].astype(np.float32))
        return self.T @ Z, choice + self.n_left_out


def prepare_ridge(gram: Gram, test: Array, alphas: Array) -> RidgeFold:
    r"""Decompose the training part of a layer's kernel.

    Centring is on the training rows only. The features serve instead of the kernel where there are fewer of them than
    training rows (same model, smaller eigenproblem).

    Penalties that leave fewer residual degrees of freedom than three, or than 5 % of the training rows, are not
    considered. Where a model nearly interpolates, GCV rests on one or two numbers, calls the smallest penalty best by
    chance, and predictions explode.

    Large kernels are decomposed in float32, in half the time. Its eigenvalues are wrong by 1e-7 of the largest, which
    blurs those that should be (nearly) zero and misleads GCV (differences in r up to .01 for a layer with few
    dimensions). The small ones are therefore computed again from their eigenvectors, :math:`s_i = u_i^\top K u_i` in
    float64, whose error is of second order. The scores then are those of float64, to 1e-6 in the median voxel of
    layers of all kinds (1e-4 without noise); now and then a voxel takes the other of two penalties that are equally
    good.

    Parameters
    ----------
    gram : Gram
        The layer, over all stimuli.
    test : array of int, shape (n_test,)
        Held-out rows; the others are training rows.
    alphas : array of shape (n_alphas,)
        Penalties, positive, in units of the mean eigenvalue.

    Raises
    ------
    BadDataError
        The activations do not vary over the training rows.
    """
    train = np.delete(np.arange(len(gram.row_sums)), test)
    if gram.X is not None and gram.n_features < len(train):
        U, s, T = _decompose_features(gram, train, test)
    else:
        U, s, T = _decompose_kernel(gram, train, test)
    shrinkage = alphas[:, None] / (s + alphas[:, None])
    n_outside = len(train) - len(s)
    residual_dof = shrinkage.sum(axis=1) + n_outside - 1
    least = max(LEAST_RESIDUAL[0], LEAST_RESIDUAL[1] * len(train))
    n_left_out = min(int((residual_dof < least).sum()), len(alphas) - 1)
    alphas, shrinkage, residual_dof = (a[n_left_out:] for a in (alphas, shrinkage, residual_dof))
    weights = (shrinkage / residual_dof[:, None]) ** 2
    outside = residual_dof**-2.0 if n_outside else np.zeros_like(alphas)
    return RidgeFold(alphas, n_left_out, *(np.asarray(a, dtype=np.float32) for a in (U, s, T, weights, outside)))


def _decompose_kernel(gram: Gram, train: Array, test: Array) -> tuple[Array, Array, Array]:
    """Return all eigenvectors and eigenvalues of the centred training kernel, and the projected test kernel."""
    rows = gram.K[train]
    K_train = rows[:, train]
    means = K_train.mean(axis=0)
    K_test = rows[:, test].T - means
    K_test -= K_test.mean(axis=1, keepdims=True)
    energy = K_train.trace()
    K_train -= means
    K_train -= K_train.mean(axis=1, keepdims=True)
    unit = _find_unit(gram.layer, K_train.trace(), energy, len(train))
    K_train /= unit
    precise = len(train) <= LARGEST_DOUBLE
    s, U = eigh(
        K_train if precise else K_train.astype(np.float32), driver="evd", overwrite_a=not precise, check_finite=False
    )
    if not precise:
        s = s.astype(np.float64)
        blurred = s < 1e-4 * s[-1]
        V = U[:, blurred].astype(np.float64)
        s[blurred] = np.einsum("ni,ni->i", V, K_train @ V)
    T = K_test @ U / unit
    U -= U.mean(axis=0)  # or rounding of Y's mean enters GCV, unshrunken, by the constant eigenvector
    return U, np.maximum(s, 0), T


def _decompose_features(gram: Gram, train: Array, test: Array) -> tuple[Array, Array, Array]:
    """Do the same from the covariance: if X'X = W s W', then U = X W / sqrt(s) and T = X_test W sqrt(s)."""
    assert gram.X is not None
    X_train = gram.X[train].astype(np.float64)
    energy = float(np.vdot(X_train, X_train))
    mean = X_train.mean(axis=0)
    X_train -= mean
    unit = _find_unit(gram.layer, float(np.vdot(X_train, X_train)), energy, len(train))
    X_train /= np.sqrt(unit)
    s, W = eigh(X_train.T @ X_train, driver="evd", overwrite_a=True, check_finite=False)
    kept = s > s[-1] * len(s) * np.finfo(np.float64).eps
    s, W = s[kept], W[:, kept]
    return X_train @ (W / np.sqrt(s)), s, (gram.X[test] - mean) @ (W * np.sqrt(s / unit))


def _find_unit(layer: str, variance: float, energy: float, n: int) -> float:
    """Return the mean eigenvalue of the centred kernel, given its trace and the trace before centring."""
    if variance <= 1e-10 * energy:
        raise BadDataError(f"layer {layer}: its activations do not vary over the {n} training stimuli; leave it out")
    return variance / n
