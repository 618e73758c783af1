"""Haemodynamic response functions: nilearn's, and a library of shapes for voxels to choose from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from nilearn.glm.first_level import (
    glover_dispersion_derivative,
    glover_hrf,
    glover_time_derivative,
    spm_dispersion_derivative,
    spm_hrf,
    spm_time_derivative,
)
from scipy.stats import gamma

from dnnbrain_app.errors import UnknownNameError
from dnnbrain_app.records import Array

Kernel = Callable[[float, int], Array]  # from a TR (s) and the number of samples in it to the samples of a response

HRFS: dict[str, tuple[Kernel, ...]] = {
    "glover": (glover_hrf,),
    "glover + derivative": (glover_hrf, glover_time_derivative),
    "glover + derivative + dispersion": (glover_hrf, glover_time_derivative, glover_dispersion_derivative),
    "spm": (spm_hrf,),
    "spm + derivative": (spm_hrf, spm_time_derivative),
    "spm + derivative + dispersion": (spm_hrf, spm_time_derivative, spm_dispersion_derivative),
}
RESPONSE_LENGTH = 32.0  # seconds, of all of them

PEAKS = np.arange(3, 7.5, 0.5)  # seconds after a very brief event; later ones are hard to tell from the next trial's
UNDERSHOOT = 0.15  # depth of it, of the peak
UNDERSHOOT_DELAY, UNDERSHOOT_WIDTH = 2.6, 1.6  # of the peak's time and width


def get_kernels(hrf: str) -> tuple[Kernel, ...]:
    """Return the response of this name (nilearn's names), then its derivatives if the name has them.

    Raises
    ------
    UnknownNameError
        If there is no such HRF.
    """
    if hrf not in HRFS:
        raise UnknownNameError("HRF", hrf, HRFS)
    return HRFS[hrf]


def build_library(hrf: str) -> tuple[Kernel, ...]:
    r"""Build the responses that a voxel may have: the assumed one, and nine that peak between 3 and 7 s.

    .. math:: h_p(t) \propto g(t; p, p) - 0.15 \, g(t; 2.6 p, 1.6 p), \quad
              g(t; p, w) = \Big(\frac{t}{p}\Big)^{a - 1} e^{(a - 1) (1 - t / p)}, \quad
              a = 1 + 8 \ln 2 \, \frac{p^2}{w^2}

    with the peak at :math:`p` and a full width at half maximum of :math:`w`: differences of two gamma densities
    (Friston et al. 1998; Glover 1999) over the range of latencies that are found (Handwerker et al. 2004). Late
    responses are wide ones, as in the library of GLMsingle, which is of measured curves. They all are as high as the
    assumed one, so that betas are in its units.

    Parameters
    ----------
    hrf : {'glover', 'spm'}
        The assumed response: the first of the library.

    Returns
    -------
    tuple of 10 kernels

    References
    ----------
    Friston et al. (1998), doi:10.1006/nimg.1997.0306. Glover (1999), doi:10.1006/nimg.1998.0419.
    Handwerker et al. (2004), doi:10.1016/j.neuroimage.2003.11.029.
    """
    assumed = get_kernels(hrf)[0]
    return (assumed, *(partial(_sample_shape, assumed, float(peak)) for peak in PEAKS))


def make_box(delay: int, _tr: float, oversampling: int) -> Array:
    """Sample a response that lasts one TR and begins `delay` of them late: nilearn's finite impulse response."""
    return np.repeat([0.0, 1 / oversampling], [delay * oversampling, oversampling])


def _sample_shape(assumed: Kernel, peak: float, tr: float, oversampling: int) -> Array:
    """Sample a double gamma, scaled to the height of the assumed response."""
    t = np.linspace(0, RESPONSE_LENGTH, round(RESPONSE_LENGTH / tr * oversampling))
    samples = _sample_gamma(t, peak, peak)
    samples -= UNDERSHOOT * _sample_gamma(t, UNDERSHOOT_DELAY * peak, UNDERSHOOT_WIDTH * peak)
    samples *= assumed(tr, oversampling).max() / samples.max()
    return samples


def _sample_gamma(t: Array, peak: float, width: float) -> Array:
    """Sample a gamma density of which the peak is 1, by the peak's time and the full width at half maximum."""
    shape = 1 + 8 * np.log(2) * (peak / width) ** 2
    scale = peak / (shape - 1)
    density: Array = gamma.pdf(t, shape, scale=scale) / gamma.pdf(peak, shape, scale=scale)
    return density
