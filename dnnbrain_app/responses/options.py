"""How responses to single stimuli are estimated from the time series."""

from __future__ import annotations

from dataclasses import dataclass, field

from dnnbrain_app.errors import UsageError

PLAIN = ("glover", "spm")
DERIVED = tuple(f"{hrf} + derivative{more}" for hrf in PLAIN for more in ("", " + dispersion"))
MODEL_HRFS = {
    "lss": PLAIN,
    "lsa": (*PLAIN, *DERIVED),
    "glmsingle": PLAIN,
    "condition": (*PLAIN, *DERIVED),
    "timeseries": (*PLAIN, "fir"),
    "precomputed": (*PLAIN, *DERIVED, "fir"),  # whatever it is, nothing is convolved
}


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """The general linear model."""

    model: str = field(
        default="lss",
        metadata={
            "doc": (
                "lss: one model a trial (Mumford 2012); stimuli that a run shows 8 times or more keep their own "
                "regressor. lsa: one model a run, with a regressor for each trial. "
                "glmsingle: lsa with each voxel's own HRF, noise regressors from the data and ridge (Prince 2022). "
                "condition: one regressor a stimulus, over all runs. "
                "timeseries: no responses; features, convolved, predict the run itself. "
                "precomputed: betas that somebody else has estimated, from --derivatives."
            ),
            "choices": tuple(MODEL_HRFS),
        },
    )
    hrf: str = field(
        default="glover",
        metadata={
            "doc": (
                "Haemodynamic response function, by nilearn's names. With derivatives (lsa, condition): the response "
                "is the beta of the function itself. fir (timeseries): features of each delay."
            ),
            "choices": (*PLAIN, *DERIVED, "fir"),
        },
    )
    fir_length: float = field(
        default=12.0, metadata={"doc": "Delays that hrf = fir covers, in s, one a volume from 0 on."}
    )
    noise_model: str = field(
        default="ar1",
        metadata={
            "doc": (
                "ar1: noise of a volume depends on the one before, with one coefficient a voxel (glmsingle: a run). "
                "ols: white noise. Without effect on timeseries."
            ),
            "choices": ("ar1", "ols"),
        },
    )
    motion: int = field(
        default=6,
        metadata={"doc": "Motion regressors: 0, 6, or 24 (with derivatives and squares).", "choices": (0, 6, 24)},
    )
    compcor: int = field(
        default=0, metadata={"doc": "Anatomical CompCor components to remove (the first N of a_comp_cor_XX)."}
    )
    spikes: bool = field(
        default=True, metadata={"doc": "One regressor for each non-steady-state and each motion-outlier volume."}
    )
    fd_threshold: float = field(
        default=0.0,
        metadata={
            "doc": "Scrub volumes whose framewise displacement exceeds this, in mm (one regressor for each); 0: none."
        },
    )
    high_pass: float = field(
        default=128.0, metadata={"doc": "Longest period kept, in s, when the confounds have no cosine drifts; 0: none."}
    )
    scaling: str = field(
        default="zscore",
        metadata={
            "doc": (
                "Unit of the betas. zscore: standard deviations of the voxel over the run. "
                "percent: percent of its mean. none: the data's own."
            ),
            "choices": ("zscore", "percent", "none"),
        },
    )
    min_reliability: float = field(
        default=0.0,
        metadata={
            "doc": (
                "Leave out voxels whose split-half reliability (Spearman-Brown, from stimuli shown twice or more) is "
                "below this; 0: none."
            )
        },
    )


def check_options(options: ResponseOptions) -> None:
    """Refuse an HRF that the model cannot take.

    Raises
    ------
    UsageError
        The message names both, and what the model takes.
    """
    valid = MODEL_HRFS[options.model]
    if options.hrf not in valid:
        raise UsageError(
            f"responses.model = {options.model} takes no responses.hrf = {options.hrf}; it takes {', '.join(valid)}"
        )
