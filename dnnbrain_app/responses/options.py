"""How responses to single stimuli are estimated from the time series."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """The general linear model."""

    model: str = field(
        default="lss",
        metadata={
            "doc": "lss: one model a trial (Mumford 2012). condition: one regressor a stimulus, over all runs.",
            "choices": ("lss", "condition"),
        },
    )
    hrf: str = field(
        default="glover", metadata={"doc": "Haemodynamic response function.", "choices": ("glover", "spm")}
    )
    noise_model: str = field(
        default="ar1",
        metadata={
            "doc": "ar1: noise of a volume depends on the one before, with one coefficient a voxel. ols: white noise.",
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
