"""Columns of the design: nilearn's, wherever the events lie; and the original DNNBrain's two HRF mistakes."""

import numpy as np
import pytest
from nilearn.glm.first_level import compute_regressor

from dnnbrain_app.errors import BadDataError, UnknownNameError
from dnnbrain_app.responses.design import build_derivatives, build_design
from dnnbrain_app.responses.hrfs import HRFS


def compute_with_nilearn(onset, duration, frame_times, hrf):
    events = np.array([onset, duration, np.ones(len(onset))])
    return np.hstack([compute_regressor(events[:, [i]], hrf, frame_times)[0] for i in range(len(onset))])


@pytest.mark.parametrize("hrf", ["glover", "spm"])
@pytest.mark.parametrize(("tr", "start"), [(2.0, 0.0), (2.0, 0.972), (0.72, 0.35), (2.5, -1.2), (2.4, 3.0)])
def test_columns_are_nilearns(rng, tr, start, hrf):
    frame_times = start + tr * np.arange(120)
    onset = rng.uniform(-20, frame_times[-1] + 20, 40)
    duration = rng.choice([0, 0.5, 1, 3, 30], 40)
    expected = compute_with_nilearn(onset, duration, frame_times, hrf)
    design = build_design(onset, duration, frame_times, hrf)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(design, expected, atol=1e-9)


@pytest.mark.parametrize("hrf", HRFS)
@pytest.mark.parametrize(("tr", "start"), [(2.0, 0.972), (0.72, 0.35)])
def test_derivatives_are_nilearns(rng, tr, start, hrf):
    frame_times = start + tr * np.arange(150)
    onset, duration = np.sort(rng.uniform(-5, frame_times[-1] + 5, 20)), rng.choice([0.5, 2.0], 20)
    groups = np.arange(20)[:, np.newaxis] % 4 == np.arange(4)
    canonical = build_design(onset, duration, frame_times, hrf) @ groups
    derivatives = build_derivatives(onset, duration, frame_times, hrf, groups)
    n_derivatives = len(HRFS[hrf]) - 1
    assert derivatives.shape == (150, 4 * n_derivatives)
    for group in range(4):
        rows = groups[:, group]
        events = np.array([onset[rows], duration[rows], np.ones(rows.sum())])
        expected = compute_regressor(events, hrf, frame_times)[0]
        found = np.column_stack([canonical[:, group], derivatives.reshape(150, n_derivatives, 4)[:, :, group]])
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_response_outside_the_run_has_no_derivative_either():
    derivatives = build_derivatives(
        np.array([10.0, 400.0]), np.ones(2), 2.0 * np.arange(60), "spm + derivative", np.eye(2, dtype=bool)
    )
    assert derivatives[:, 0].any()
    assert not derivatives[:, 1].any()


def test_irregular_volumes(rng):
    """Seconds are seconds wherever volumes are; nilearn's response is longer, by the mean TR over the least."""
    frame_times = np.cumsum(rng.choice([2.0, 2.0, 5.0], 60))
    onset, duration = np.array([3.0, 40.2, 90.0]), np.array([4.0, 1.0, 12.0])
    fine = np.arange(frame_times[0], frame_times[-1] + 0.5, 0.5)
    dense = build_design(onset, duration, fine, "glover")
    expected = np.array([np.interp(frame_times, fine, x) for x in dense.T]).T
    assert np.diff(frame_times).mean() > 2.5
    np.testing.assert_allclose(
        build_design(onset, duration, frame_times, "glover"), expected, atol=0.03
    )  # the grid is .06 s wide


def test_events_outside_the_run_are_zero():
    frame_times = 1.0 + 2.0 * np.arange(50)
    onset = np.array([200.0, -60.0, -60.0, 20.0])
    design = build_design(onset, np.array([1.0, 1.0, 50.0, 1.0]), frame_times, "glover")
    assert not design[:, :2].any()
    assert design[0, 2] != 0  # it began long before, but lasts until 10 s before the first volume
    assert design[:, 3].max() > 0.1


def test_start_time_shifts_the_response():
    onset, duration = np.array([10.0]), np.array([1.0])
    early = build_design(onset, duration, 2.0 * np.arange(40), "glover")
    late = build_design(onset, duration, 0.972 + 2.0 * np.arange(40), "glover")
    same = build_design(onset + 0.96, duration, 0.96 + 2.0 * np.arange(40), "glover")
    assert np.abs(early - late).max() > 0.05
    np.testing.assert_allclose(same, early, atol=0.01)  # the grid's samples are 0.04 s apart


def test_no_event_gives_no_column():
    assert build_design(np.empty(0), np.empty(0), 2.0 * np.arange(10), "spm").shape == (10, 0)


def test_dnnbrain_defect_1_negative_onsets():
    # there, an event at -14 s wrapped to the end of the run and moved all others
    frame_times = 2.0 * np.arange(60)
    onset = np.array([-14.0, -2.0, 0.0, 40.0])
    design = build_design(onset, np.full(4, 2.0), frame_times, "spm")
    at_zero = design[:, 2]
    np.testing.assert_allclose(design[:-7, 0], at_zero[7:], atol=1e-12)
    np.testing.assert_allclose(design[:-1, 1], at_zero[1:], atol=1e-12)
    np.testing.assert_allclose(design[20:, 3], at_zero[:-20], atol=1e-12)
    assert not design[-20:, :3].any()


def test_dnnbrain_defect_2_overlap_end_and_fractions():
    # there, overlapping events overwrote each other, a run longer than the events broke, and times were truncated
    frame_times = 2.0 * np.arange(100)
    both = build_design(np.array([10.0, 12.0]), np.array([6.0, 6.0]), frame_times, "glover")
    events = np.array([[10.0, 12.0], [6.0, 6.0], [1.0, 1.0]])
    np.testing.assert_allclose(both.sum(axis=1), compute_regressor(events, "glover", frame_times)[0][:, 0], atol=1e-9)
    assert both.sum(axis=1).max() > 1.2 * both.max()
    whole, fraction = build_design(np.array([10.0, 10.9]), np.ones(2), frame_times, "glover").T
    assert np.abs(whole - fraction).max() > 0.1 * whole.max()


def test_wrong_inputs():
    one = np.ones(1)
    with pytest.raises(UnknownNameError, match=r"'glove'.*did you mean 'glover'.*spm"):
        build_design(one, one, np.arange(9.0), "glove")
    with pytest.raises(BadDataError, match="run of 1 volume"):
        build_design(one, one, np.zeros(1), "glover")
