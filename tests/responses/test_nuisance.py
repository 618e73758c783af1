"""Which confounds enter, under which conditions, and that the rest is said."""

import logging

import numpy as np
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.responses.nuisance import build_nuisance
from dnnbrain_app.responses.options import ResponseOptions

T = 150
FRAME_TIMES = 0.972 + 2.0 * np.arange(T)
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def simulate_confounds(rng):
    confounds = {"global_signal": rng.standard_normal(T)}
    for name in MOTION:
        for suffix in ("", "_power2", "_derivative1", "_derivative1_power2"):
            confounds[name + suffix] = rng.standard_normal(T)
            if "derivative" in suffix:
                confounds[name + suffix][0] = np.nan
    confounds |= {f"a_comp_cor_{i:02}": rng.standard_normal(T) for i in range(6)}
    confounds |= {f"cosine{i:02}": np.cos(np.pi * (i + 1) * (np.arange(T) + 0.5) / T) for i in range(3)}
    confounds |= {"non_steady_state_outlier00": np.eye(T)[0], "motion_outlier00": np.eye(T)[50]}
    return confounds


@pytest.mark.parametrize("motion", [0, 6, 24])
@pytest.mark.parametrize("compcor", [0, 5])
@pytest.mark.parametrize("spikes", [True, False])
def test_what_is_asked_for_enters(rng, motion, compcor, spikes):
    confounds = simulate_confounds(rng)
    options = ResponseOptions(motion=motion, compcor=compcor, spikes=spikes)
    nuisance, names = build_nuisance(confounds, FRAME_TIMES, options)
    assert names[:4] == ("constant", "cosine00", "cosine01", "cosine02")
    assert sum(name.startswith(("trans", "rot")) for name in names) == motion
    assert sum(name.startswith("a_comp_cor") for name in names) == compcor
    assert [name for name in names if "outlier" in name] == (
        ["motion_outlier00", "non_steady_state_outlier00"] * spikes
    )
    assert "global_signal" not in names
    assert nuisance.shape == (T, len(names))
    assert np.linalg.matrix_rank(nuisance) == len(names)
    for name, column in zip(names[1:], nuisance.T[1:], strict=True):
        np.testing.assert_array_equal(column, np.nan_to_num(confounds[name]), err_msg=name)
    assert np.isnan(confounds["trans_x_derivative1"][0]), "the caller's arrays are left alone"


@pytest.mark.parametrize("high_pass", [128.0, 60.0, 1000.0])
def test_drifts_are_nilearns(high_pass):
    nuisance, names = build_nuisance({}, FRAME_TIMES, ResponseOptions(high_pass=high_pass))
    expected = make_first_level_design_matrix(FRAME_TIMES, high_pass=1 / high_pass).to_numpy()
    assert nuisance.shape == expected.shape
    assert names[0] == "constant"
    both = np.hstack([nuisance, expected])
    assert np.linalg.matrix_rank(both) == len(names)


def test_no_drifts_when_high_pass_is_zero(caplog):
    assert build_nuisance({}, FRAME_TIMES, ResponseOptions(high_pass=0))[1] == ("constant",)
    caplog.clear()
    assert build_nuisance({}, FRAME_TIMES, ResponseOptions(high_pass=0, motion=0))[1] == ("constant",)
    assert not caplog.text, "nothing is missed where nothing was asked for"


def test_volumes_that_moved_are_scrubbed(rng, caplog):
    confounds = simulate_confounds(rng)
    displacement = rng.uniform(0, 0.3, T)
    displacement[[0, 20, 50, 99]] = np.nan, 0.51, 2.0, 0.5
    confounds["framewise_displacement"] = displacement
    with caplog.at_level(logging.INFO):
        nuisance, names = build_nuisance(confounds, FRAME_TIMES, ResponseOptions(fd_threshold=0.5))
    _, plain_names = build_nuisance(confounds, FRAME_TIMES, ResponseOptions())
    assert len(names) == len(plain_names) + 1, "volume 50 is an outlier of fMRIPrep's already"
    assert "2 of 150 volumes are scrubbed: they moved by more than 0.5 mm" in caplog.text
    unexplained = np.linalg.lstsq(nuisance, np.eye(T)[:, [20, 50, 99]], rcond=None)[1]
    np.testing.assert_allclose(unexplained[:2], 0, atol=1e-20)
    assert unexplained[2] > 0.1
    assert "framewise_displacement" not in names


def test_a_scrubbed_volume_is_as_if_not_measured(rng):
    confounds = simulate_confounds(rng) | {"framewise_displacement": np.eye(T)[30]}
    nuisance, _ = build_nuisance(confounds, FRAME_TIMES, ResponseOptions(fd_threshold=0.9))
    y = np.repeat(rng.standard_normal((T, 1)), 2, axis=1)
    y[30, 1] = 1000.0
    x = rng.standard_normal((T, 1))
    betas = np.linalg.lstsq(np.hstack([x, nuisance]), y, rcond=None)[0][0]
    assert betas[0] == pytest.approx(betas[1])


def test_scrubbing_needs_the_displacement(rng):
    with pytest.raises(BadDataError, match=r"no column framewise_displacement; .*fd_threshold = 0 \(it is 0.5\)"):
        build_nuisance(simulate_confounds(rng), FRAME_TIMES, ResponseOptions(fd_threshold=0.5))
    everything = simulate_confounds(rng) | {"framewise_displacement": np.ones(T)}
    with pytest.raises(BadDataError, match=r"no degree of freedom in 150 volumes.*higher responses\.fd_threshold"):
        build_nuisance(everything, FRAME_TIMES, ResponseOptions(fd_threshold=0.5))


def test_collinear_columns_are_left_out(rng, caplog):
    confounds = simulate_confounds(rng)
    confounds["rot_z"] = 1e-6 * confounds["trans_x"] + 1e-6
    confounds["rot_y"] = np.zeros(T)
    confounds["motion_outlier01"] = confounds["motion_outlier00"]
    with caplog.at_level(logging.INFO):
        nuisance, names = build_nuisance(confounds, FRAME_TIMES, ResponseOptions())
    assert names[0] == "constant"
    assert np.linalg.matrix_rank(nuisance / np.linalg.norm(nuisance, axis=0)) == len(names) == 1 + 3 + 6 + 3 - 3
    assert "rot_y" in caplog.text
    assert "rot_y" not in names


def test_missing_columns_are_named(rng):
    confounds = simulate_confounds(rng)
    del confounds["rot_y_derivative1"]
    with pytest.raises(BadDataError, match=r"rot_y_derivative1; .*responses\.motion = 0 \(it is 24\)"):
        build_nuisance(confounds, FRAME_TIMES, ResponseOptions(motion=24))
    with pytest.raises(BadDataError, match=r"a_comp_cor_06; .*responses\.compcor = 0 \(it is 7\)"):
        build_nuisance(confounds, FRAME_TIMES, ResponseOptions(compcor=7))
    with pytest.raises(BadDataError, match=r"a_comp_cor_00, a_comp_cor_01; .*responses\.compcor = 0"):
        build_nuisance({}, FRAME_TIMES, ResponseOptions(compcor=2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gaps_are_refused(rng, value):
    confounds = simulate_confounds(rng)
    confounds["rot_x"][7] = value
    with pytest.raises(BadDataError, match="rot_x has no finite value in row 8"):
        build_nuisance(confounds, FRAME_TIMES, ResponseOptions())
    build_nuisance(confounds, FRAME_TIMES, ResponseOptions(motion=0))


def test_lengths_must_agree(rng):
    with pytest.raises(BadDataError, match="150 rows, but the run has 149 volumes"):
        build_nuisance(simulate_confounds(rng), FRAME_TIMES[:-1], ResponseOptions())


def test_some_freedom_must_be_left(rng):
    confounds = {name: values[:20] for name, values in simulate_confounds(rng).items()}
    with pytest.raises(BadDataError, match=r"20 nuisance regressors .* 20 volumes.*responses\.compcor"):
        build_nuisance(confounds, FRAME_TIMES[:20], ResponseOptions(motion=24))
    with pytest.raises(BadDataError, match=r"150 nuisance regressors .* 150 volumes.*longer responses\.high_pass"):
        build_nuisance({}, FRAME_TIMES, ResponseOptions(high_pass=1e-3))


def test_the_constant_stays():
    constants = {name: np.full(T, value) for name, value in zip(MOTION, (0.1, 0.3, 0.7, 3, 1e-5, 1e5), strict=True)}
    assert build_nuisance(constants, FRAME_TIMES, ResponseOptions(high_pass=0))[1] == ("constant",)
