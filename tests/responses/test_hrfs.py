"""The library: shapes that were meant, and near to the curves that others measured."""

import numpy as np
import pytest

from dnnbrain_app.errors import UnknownNameError
from dnnbrain_app.responses.hrfs import HRFS, PEAKS, RESPONSE_LENGTH, build_library, get_kernels

T = np.linspace(0, RESPONSE_LENGTH, 1600)


def sample_library(hrf):
    return np.array([kernel(1.0, 50) for kernel in build_library(hrf)])


def measure_width(h):
    above = np.flatnonzero(h > h.max() / 2)
    return T[above[-1]] - T[above[0]]


@pytest.mark.parametrize("hrf", ["glover", "spm"])
def test_the_assumed_response_comes_first_and_sets_the_height(hrf):
    library = sample_library(hrf)
    np.testing.assert_array_equal(library[0], HRFS[hrf][0](1.0, 50))
    np.testing.assert_allclose(library.max(axis=1), library[0].max())


def test_shapes_are_those_of_the_docs():
    for h, peak in zip(sample_library("glover")[1:], PEAKS, strict=True):
        assert T[h.argmax()] == pytest.approx(peak, abs=0.1)
        assert measure_width(h) == pytest.approx(peak, rel=0.08)
        assert h.min() == pytest.approx(-0.14 * h.max(), rel=0.1)
        assert h[0] == 0
        assert abs(h[-1]) < 0.05 * h.max()


def test_the_grid_of_time_does_not_matter():
    for kernel in build_library("spm"):
        coarse, fine = kernel(2.0, 50), kernel(1.0, 50)
        assert len(fine) == 2 * len(coarse)
        # per sample, so half as high on a grid twice as fine
        np.testing.assert_allclose(np.interp(T, np.linspace(0, 32, 800), coarse), 2 * fine, atol=0.01 * coarse.max())


@pytest.mark.parametrize("hrf", ["glover", "spm"])
def test_early_and_late_responses_have_a_neighbour(hrf):
    library = sample_library("glover")[1:]
    nearest = []
    for latency in (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5):
        shifted = np.interp(T - latency, T, HRFS[hrf][0](1.0, 50))
        r = np.corrcoef(shifted, library)[0, 1:]
        assert r.max() > 0.93
        nearest.append(PEAKS[r.argmax()])
    assert nearest == sorted(nearest)
    assert nearest[-1] - nearest[0] == pytest.approx(3, abs=0.5)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"unknown HRF 'spm\+derivative'.*spm \+ derivative"):
        get_kernels("spm+derivative")
